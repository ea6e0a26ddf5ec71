"""Probes: where the continuation starts, which steps predict the answer, and which side they are on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toggle_edge.errors import ProbeError
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe, load_probes, probes_to_json, split_probes
from toggle_edge.sources import ProbeSource

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunny park."


def written(folder: Path, *entries: object) -> Path:
    path = folder / "probes.jsonl"
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return path


def test_the_answer_steps_predict_exactly_the_answers_tokens(tiny: LanguageModel, tmp_path: Path) -> None:
    path = written(tmp_path, {"text": STORY, "answer": "park"})
    (probe,) = load_probes(path, tiny.tokenizer, steps=16, context_tokens=256)
    assert probe.steps == 16
    answer = [probe.continuation[step] for step in probe.answer_steps]
    assert tiny.tokenizer.decode(answer).strip() == "park"


def test_the_last_occurrence_is_the_answer(tiny: LanguageModel, tmp_path: Path) -> None:
    text = "The park was big. Lily ran to the big park. She was very happy in the park."
    (probe,) = load_probes(
        written(tmp_path, {"text": text, "answer": "park"}), tiny.tokenizer, steps=12, context_tokens=256
    )
    assert probe.answer_steps[-1] == probe.steps - 2  # before the full stop


def test_a_probe_without_an_answer_has_no_answer_steps(tiny: LanguageModel, tmp_path: Path) -> None:
    source = ProbeSource("jsonl", str(written(tmp_path, {"text": STORY})))
    (probe,) = load_probes(source, tiny.tokenizer, steps=8, context_tokens=256)
    assert probe.answer_steps == ()


def test_duplicates_are_one_probe(tiny: LanguageModel, tmp_path: Path) -> None:
    path = written(tmp_path, {"text": STORY}, {"text": STORY})
    assert len(load_probes(path, tiny.tokenizer, steps=8, context_tokens=256)) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{not json", r"probes\.jsonl:1: expected"),
        ({"answer": "x"}, r"probes\.jsonl:1: expected .*got the keys 'answer'"),
        ({"text": 3}, "expected text to be a string, got int"),
        ({"text": STORY, "answer": 3}, "expected answer to be a string, got int"),
        ({"text": "Too short."}, "at least 34 tokens"),
        ({"text": STORY * 9}, "do not fit the model's context"),
        ({"text": STORY + STORY, "answer": "giraffe"}, "is not in the text"),
        (
            {"text": STORY + " " + STORY.replace("Once", "Then"), "answer": "Once"},
            "prompt of at least 2 tokens",
        ),
    ],
)
def test_a_malformed_probe_is_refused_with_its_line(
    tiny: LanguageModel, tmp_path: Path, entry: object, message: str
) -> None:
    source = ProbeSource("jsonl", str(written(tmp_path, entry)))
    with pytest.raises(ProbeError, match=message):
        load_probes(source, tiny.tokenizer, steps=32, context_tokens=256)


def test_a_missing_file_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot be read"):
        load_probes(tmp_path / "absent.jsonl", tiny.tokenizer, steps=32, context_tokens=256)


def numbered(count: int) -> list[Probe]:
    return [Probe(f"text {i}", (1, 2, 3), 1, ()) for i in range(count)]


def test_sides_are_disjoint_and_do_not_depend_on_order_or_additions() -> None:
    split = split_probes(numbered(80), search=20, certificate=20)
    assert not {p.text for p in split.search} & {p.text for p in split.certificate}
    assert split_probes(numbered(80)[::-1], search=20, certificate=20) == split
    grown = split_probes(numbered(160), search=40, certificate=40)
    assert not {p.text for p in grown.search} & {p.text for p in split.certificate}
    assert not {p.text for p in split.search} & {p.text for p in grown.certificate}


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(ProbeError, match="expected at least 50 for the"):
        split_probes(numbered(60), search=50, certificate=50)


def test_what_is_shipped_are_tokens_and_steps() -> None:
    shipped = json.loads(probes_to_json([Probe("secret", (5, 6, 7), 1, (1,))]))
    assert shipped == [{"tokens": [5, 6, 7], "prompt_tokens": 1, "answer_steps": [1]}]
