"""Kinds: what is read of each data set, and what a file is taken for when nobody says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from toggle_edge.errors import ProbeError
from toggle_edge.probes.kinds import PRIMER, READERS, kind_of
from toggle_edge.probes.passages import Passage, last_word, sentence_ends

TRUTHFUL = "Type,Category,Question,Best Answer,Correct Answers\n"
ARTICLES = """
 = Homarus gammarus =

 Homarus gammarus is a lobster .
 It grows to 60 cm .

 = = Description = =

 It is blue .

 = Another =

 Short .
"""


def at_least(words: int) -> object:
    return lambda text: len(text.split()) >= words


def read(path: Path, kind: str, words: int = 1) -> list[Passage]:
    return list(READERS[kind].read(path, at_least(words)))  # type: ignore[arg-type]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def answers(passages: list[Passage]) -> Iterator[str | None]:
    for found in passages:
        yield None if found.answer is None else found.text[slice(*found.answer)]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "text,answer\nx,y\n", "csv"),
        ("a.CSV", TRUTHFUL, "truthfulqa"),
        ("a.csv", "\ufeff" + TRUTHFUL, "truthfulqa"),
        ("mc_task.json", "[]", "truthfulqa"),
        ("a.txt", ARTICLES, "wikitext"),
        ("a.txt", "Prose.\n\nx = y\n=\n", "text"),
        ("a.jsonl", '{"text": "the \\"answer\\" is"}\n\n{"text": "prompt"}\n', "stories"),
        ("a.jsonl", '{"text": "x"}\n{"text": "x", "answer": "x"}\n', "jsonl"),
        ("a.jsonl", '{"text": "x"}\n{"prompt": "x", "answer": "y"}\n', "jsonl"),
    ],
)
def test_what_a_file_holds_is_told_from_name_and_content(
    tmp_path: Path, name: str, content: str, kind: str
) -> None:
    assert kind_of(written(tmp_path, name, content)) == kind


@pytest.mark.parametrize("name", ["probes.md", "probes", "probes.jsonl.gz"])
def test_a_file_that_says_nothing_needs_its_kind(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProbeError, match=rf"KIND:{name} with one of csv, jsonl, lambada"):
        kind_of(written(tmp_path, name, "x"))


def test_given_answers_are_the_last_occurrence_and_prompts_are_joined_with_one_space(tmp_path: Path) -> None:
    entries = [
        {"text": "the park, the park.", "answer": "park"},
        {"text": "no answer"},
        {"text": "none either", "answer": None},
        {"prompt": "turn it to the", "answer": "left "},
        {"prompt": "turn it to the ", "answer": "right"},
        {"prompt": "Zeile:\n", "answer": "links"},
    ]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, entries)))
    found = read(path, "jsonl")
    assert list(answers(found)) == ["park", None, None, "left", "right", "links"]
    assert found[0].answer == (14, 18)
    assert [one.text for one in found[3:]] == [
        "turn it to the left ",
        "turn it to the right",
        "Zeile:\nlinks",
    ]
    assert found[3].place == f"{path}:4"


def test_a_table_may_have_columns_in_any_order_and_answers_over_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'id, Answer ,TEXT\n1,b,"a, b"\n2,,no answer\n3,"d\ne","c d\ne"\n')
    found = read(path, "csv")
    assert [one.text for one in found] == ["a, b", "no answer", "c d\ne"]
    assert list(answers(found)) == ["b", None, "d\ne"]
    assert found[2].place == f"{path}:4"


def test_questions_come_after_a_primer_that_is_no_part_of_the_text(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", TRUTHFUL + "A,B,Why? ,Because it does., x\n")
    choice = [{"question": "Why?", "mc1_targets": {"It does not.": 0, "Because it does.": 1}}]
    task = written(tmp_path, "mc_task.json", json.dumps(choice))
    for path in (table, task):
        (found,) = read(path, "truthfulqa")
        assert found.text == "Q: Why?\nA: Because it does."
        assert found.primer == PRIMER
        assert list(answers([found])) == ["Because it does."]


def test_articles_are_paragraphs_joined_within_an_article(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", ARTICLES)
    assert [one.text for one in read(path, "wikitext")] == [
        "Homarus gammarus is a lobster .",
        "It grows to 60 cm .",
        "It is blue .",
        "Short .",
    ]
    joined = read(path, "wikitext", words=8)
    assert [one.text for one in joined] == [
        "Homarus gammarus is a lobster .\nIt grows to 60 cm .",
        "It is blue .",
        "Short .",
    ]
    assert joined[0].place == f"{path}:4"


def test_plain_text_is_paragraphs_between_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "\none\n two\n\n \nthree\n\nfour five")
    assert [(one.text, one.place) for one in read(path, "text")] == [
        ("one two", f"{path}:2"),
        ("three", f"{path}:6"),
        ("four five", f"{path}:8"),
    ]
    assert [one.text for one in read(path, "text", words=3)] == ["one two\n\nthree", "four five"]


def test_a_paragraph_without_an_end_is_ended(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "word " * 100 + "\n" + ("word " * 100 + "\n") * 400)
    found = read(path, "text")
    assert len(found) > 1
    assert max(len(one.text) for one in found) < 70_000


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("jsonl", "a.jsonl", '{"text": "fine"}\n{not json\n', r"a\.jsonl:2: expected JSON, got '\{not json'"),
        ("jsonl", "a.jsonl", '["text"]\n', 'expected {"text": ...}, got \'["text"]'),
        ("jsonl", "a.jsonl", "[" * 100_000, "nested too deeply"),
        ("jsonl", "a.jsonl", '{"text": ' + "9" * 5000 + "}", "expected JSON"),
        ("jsonl", "a.jsonl", "{}", "got the keys none"),
        ("jsonl", "a.jsonl", '{"prompt": "x"}', "got the keys 'prompt'"),
        (
            "jsonl",
            "a.jsonl",
            '{"prompt": "x", "answer": ""}',
            "expected answer to have words, got an empty one",
        ),
        ("jsonl", "a.jsonl", '{"prompt": " ", "answer": "x"}', "expected prompt to have words"),
        ("jsonl", "a.jsonl", '{"text": null}', "expected text to be a string, got NoneType"),
        ("jsonl", "a.jsonl", '{"text": "a", "answer": ["a"]}', "expected answer to be a string, got list"),
        ("jsonl", "a.jsonl", '{"text": "a b", "answer": "c"}', "answer 'c' is not in the text"),
        ("jsonl", "a.jsonl", '{"text": "a\\u0000b"}', "text has a NUL character"),
        ("jsonl", "a.jsonl", '{"text": "a\\ud800b"}', r"half of a surrogate pair \('\\\\ud800'\)"),
        ("stories", "a.jsonl", '{"story": "x"}', "expected {\"text\": ...}, got the keys 'story'"),
        ("lambada", "a.jsonl", '{"text": true}', "expected text to be a string, got bool"),
        ("csv", "a.csv", "question,reply\nx,y\n", "or prompt and answer, got 'question', 'reply'"),
        ("csv", "a.csv", "text;answer\nx;y\n", "got 'text;answer'"),
        ("csv", "a.csv", "text,answer\nx,y,z\n", r"a\.csv:2: expected 2 columns \(text, answer\), got 3"),
        ("csv", "a.csv", "text,Text\nx,y\n", "expected each column once"),
        ("csv", "a.csv", 'text,answer\n"x,y\nz,w\n', "a.csv:2: expected CSV: unexpected end of data"),
        ("csv", "a.csv", "text\n" + "x" * 140_000 + "\n", "field larger than field limit"),
        ("csv", "a.csv", "\n\n", "expected a header line"),
        ("csv", "a.csv", "text,answer\n,x\n", r"a\.csv:2: expected text to have words"),
        ("truthfulqa", "a.csv", "question,answer\n", "expected columns Question and Best Answer"),
        ("truthfulqa", "a.json", "{}", "expected a list of questions"),
        ("truthfulqa", "a.json", "[3]", 'question 1: expected {"question"'),
        ("truthfulqa", "a.json", '[{"question": "x", "mc1_targets": {"a": 0}}]', "marked 1, got 0"),
        ("truthfulqa", "a.json", '[{"question": 3, "mc1_targets": {"a": 1}}]', "to be a string, got int"),
        ("truthfulqa", "a.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(
    tmp_path: Path, kind: str, name: str, content: str, message: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(ProbeError) as caught:
        read(path, kind)
    said = str(caught.value)
    assert str(path) in said
    assert message.replace("\\", "") in said.replace("\\", "")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("They were happy.", "happy"),
        ('"Is it you?" she asked Helen', "Helen"),
        ('He said, "I can\'t!"', "can't"),
        ("a well-known fact …", "fact"),
        ("a well-known", "well-known"),
        ("in 1984.\n\n", "1984"),
        ("mit der Straße!", "Straße"),
    ],
)
def test_the_last_word_is_without_punctuation(text: str, word: str) -> None:
    span = last_word(text)
    assert span is not None
    assert text[slice(*span)] == word


def test_no_word_is_no_last_word() -> None:
    assert last_word("... --- !") is None


def test_a_megabyte_of_marks_takes_no_longer_than_one_of_words() -> None:
    dots = "." * (1 << 20)
    assert sentence_ends(dots + "x") == []
    assert sentence_ends(f"End{dots} and '{dots}") == [len(dots) + 3, 2 * len(dots) + 9]


def test_sentences_end_after_their_quotes_and_not_after_initials() -> None:
    text = 'H. gammarus met Mr. Brown. "Stop!" he said. It was 3.14 m (or less.) Yes'
    parts = [text[:end] for end in sentence_ends(text)]
    assert [part[-6:] for part in parts] == ["Brown.", 'Stop!"', " said.", "less.)"]
