"""Probes: where the continuation starts, which steps predict the answer, and what becomes of texts that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.errors import ProbeError
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe, load_probes, probes_to_json, read_probes
from toggle_edge.probes.passages import sentence_ends
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


def test_what_is_shipped_are_tokens_and_steps() -> None:
    shipped = json.loads(probes_to_json([Probe("secret", (5, 6, 7), 1, (1,))]))
    assert shipped == [{"tokens": [5, 6, 7], "prompt_tokens": 1, "answer_steps": [1]}]


def read(folder: Path, model: LanguageModel, kind: str, *entries: object, steps: int = 16, most: int = 60):
    source = ProbeSource(kind, str(written(folder, *entries)))
    return read_probes([source], model.tokenizer, steps=steps, context_tokens=256, max_tokens=most)


def answered(model: LanguageModel, probe: Probe) -> str:
    return str(model.tokenizer.decode([probe.continuation[step] for step in probe.answer_steps])).strip()


SENTENCES = [
    "Lily went to the park.",
    'Tom said, "I am here!"',
    "They ran to the big tree and sat down there.",
    "Was it far?",
    "Mr. Brown gave the children a very small red ball.",
]


@settings(deadline=None, max_examples=60)
@given(order=st.lists(st.sampled_from(SENTENCES), min_size=4, max_size=12), most=st.integers(24, 90))
def test_a_long_story_is_cut_at_the_last_sentence_that_fits(
    tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory, order: list[str], most: int
) -> None:
    text = " ".join(order)
    beginnings = [" ".join(order[:count]) for count in range(1, len(order) + 1)]
    fitting = [part for part in beginnings if len(tiny.tokenizer(part)["input_ids"]) <= most]
    expected = fitting[-1] if fitting else ""
    enough = bool(expected) and len(tiny.tokenizer(expected)["input_ids"]) >= 18
    folder = tmp_path_factory.mktemp("cut")
    # A second text that always fits: a file of which nothing is left is an error.
    whole = "One day, a boy named Tim saw a dog. The dog was big."
    loaded = read(folder, tiny, "stories", {"text": whole}, {"text": text}, most=max(most, 24))
    found = {probe.text for probe in loaded.probes} - {whole}
    assert found == ({expected} if enough else set())
    if enough:
        probe = loaded.probes[-1]
        assert len(probe.tokens) <= most
        assert answered(tiny, probe) == expected.rstrip('.!?"').split()[-1]
        assert loaded.cut == (expected != text)
        assert len(expected) in sentence_ends(text)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(2, 18), steps=st.integers(1, 24))
def test_the_continuation_reaches_back_to_the_answer(
    tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory, position: int, steps: int
) -> None:
    words = STORY.split()
    answer = " ".join(words[position:])
    loaded = read(
        tmp_path_factory.mktemp("answers"), tiny, "jsonl", {"text": STORY, "answer": answer}, steps=steps
    )
    (probe,) = loaded.probes
    assert answered(tiny, probe) == answer
    assert probe.steps == max(steps, len(probe.answer_steps))
    assert probe.answer_steps == tuple(range(probe.steps - len(probe.answer_steps), probe.steps))
    assert tiny.tokenizer.decode(probe.tokens, skip_special_tokens=True).strip() == STORY


def test_steps_are_a_minimum_so_probes_may_have_different_numbers(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    loaded = read(
        tmp_path,
        tiny,
        "jsonl",
        {"text": STORY, "answer": "sunny park"},
        {"text": STORY + " Yes.", "answer": "She loved to play outside in the sunny park. Yes."},
    )
    assert loaded.probes[0].steps == 16 < loaded.probes[1].steps


def test_a_word_in_pieces_of_bytes_is_an_answer_like_any_other(tiny: LanguageModel, tmp_path: Path) -> None:
    text = STORY + " She wrote a letter with the word \U0001f600日本"
    (probe,) = read(tmp_path, tiny, "stories", {"text": text}, most=200).probes
    assert answered(tiny, probe) == "日本"
    assert len(probe.answer_steps) == 6


def test_lambada_is_never_cut(tiny: LanguageModel, tmp_path: Path) -> None:
    loaded = read(tmp_path, tiny, "lambada", {"text": f"{STORY} {STORY} {STORY}"}, {"text": STORY[:-1]})
    assert [answered(tiny, probe) for probe in loaded.probes] == ["park"]
    assert loaded.left_out == {"longer than 60 tokens": 1}


def test_what_becomes_of_every_text_is_counted(tiny: LanguageModel, tmp_path: Path) -> None:
    entries = [STORY, STORY, f"{STORY} {STORY} {STORY}", "Short.", "... " * 20, "no end " * 60]
    loaded = read(tmp_path, tiny, "stories", *({"text": text} for text in entries))
    assert (len(loaded.probes), loaded.cut, loaded.duplicates) == (2, 1, 1)
    assert loaded.left_out == {
        "shorter than 18 tokens": 1,
        "without a last word": 1,
        "without a sentence's end within 60 tokens": 1,
    }
    assert loaded.summary == (
        "2 texts; 1 cut at a sentence's end; 1 repeated; left out: 1 shorter than 18 tokens, 1 without a last word, "
        "1 without a sentence's end within 60 tokens"
    )


def test_explicit_probes_are_bound_by_the_context_alone(tiny: LanguageModel, tmp_path: Path) -> None:
    loaded = read(tmp_path, tiny, "jsonl", {"text": f"{STORY} {STORY} {STORY}", "answer": "park"})
    assert len(loaded.probes[0].tokens) > 60


def test_several_sources_are_one_set(tiny: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": STORY}) + "\n")
    (tmp_path / "b.csv").write_text(f'text,answer\n"{STORY}",Lily\n"Then he said: {STORY}",sunny\n')
    sources = [ProbeSource(None, str(tmp_path / name)) for name in ("a.jsonl", "b.csv")]
    loaded = read_probes(sources, tiny.tokenizer, steps=16, context_tokens=256, max_tokens=256)
    assert [answered(tiny, probe) for probe in loaded.probes] == ["park", "sunny"]
    assert [probe.origin.split()[0] for probe in loaded.probes] == ["stories", "csv"]
    assert loaded.duplicates == 1


def test_nothing_left_is_an_error_that_says_why(tiny: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="got none; 0 texts; left out: 2 shorter than 18 tokens"):
        read(tmp_path, tiny, "stories", {"text": "Too short."}, {"text": "This too."})
