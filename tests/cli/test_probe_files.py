"""`--probes` as people type it: what it takes, what it refuses with exit code 2, and what is read without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toggle_edge import cli
from toggle_edge.pipeline.inputs import demo_folder, sources_for
from toggle_edge.profiles import builtin_profiles, load_profile

MODEL = demo_folder() / "model"
STORIES = [json.loads(line)["text"] for line in (demo_folder() / "probes.jsonl").read_text().splitlines()]
DEFAULT = builtin_profiles()["default"].read_text()
ANSWERED = "[properties.factual_accuracy]"

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in an empty folder: its exit code, stdout and stderr."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["toggle-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def profile(folder: Path, *, answers: bool = True, probes: str = "") -> Path:
    """The default contract on four probes a side, perhaps without the property that needs answers."""
    text = DEFAULT.replace("search = 59", "search = 4").replace("certificate = 59", "certificate = 4")
    text = text.replace("min_steps = 32", f"min_steps = 16\n{probes}")
    if not answers:
        start = text.index(ANSWERED)
        text = text[:start] + text[text.index("#", text.index("threshold", start)) :]
        text = text.replace("# P(gold token), candidate over baseline, on answer steps\n", "")
    path = folder / "few.toml"
    path.write_text(text)
    return path


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(header: str) -> str:
    rows = []
    for text in STORIES[:40]:
        *prompt, answer = text.rstrip('.!?"').split(" ")
        cells = (text, answer) if header.startswith("text") else (" ".join(prompt), answer)
        rows.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    return "\n".join([header, *rows]) + "\n"


@pytest.mark.parametrize(
    ("option", "name", "content", "answers"),
    [
        ("{}", "a.csv", table("text,answer"), True),
        ("{}", "a.csv", table("prompt,answer"), True),
        ("lambada:{}", "a.jsonl", "\n".join(json.dumps({"text": text}) for text in STORIES[:40]), True),
        ("{}", "a.txt", "\n\n".join(STORIES[:40]), False),
        ("wikitext:{}", "a.txt", "\n = A =\n" + "\n = B =\n".join(STORIES[:40]), False),
    ],
)
def test_a_config_is_judged_on_any_kind(
    call: Call, tmp_path: Path, option: str, name: str, content: str, answers: bool
) -> None:
    path = written(tmp_path, name, content)
    arguments = ("--config", "fp16", "--profile", profile(tmp_path, answers=answers), "--json")
    code, out, err = call("check", MODEL, *arguments, "--probes", option.format(path))
    assert code == 0, err
    assert json.loads(out)["avgpp"] > 99
    assert f"probes from {option.format(path)}" in err
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert any((event["stage"], event["done"], event["of"]) == ("texts", 1, 1) for event in events)


def test_several_files_are_one_set_of_probes_and_what_was_cut_is_said(call: Call, tmp_path: Path) -> None:
    half = [json.dumps({"text": text}) for text in STORIES]
    first = written(tmp_path, "a.jsonl", "\n".join(half[:20]))
    second = written(
        tmp_path, "b.jsonl", "\n".join([*half[15:30], json.dumps({"text": " ".join(STORIES[30:40])})])
    )
    few = profile(tmp_path)
    code, _, err = call(
        "check",
        MODEL,
        "--config",
        "fp16",
        "--profile",
        few,
        "--probes",
        first,
        "--probes",
        f"stories:{second}",
    )
    assert code == 0, err
    assert "31 texts; 1 cut at a sentence's end; 5 repeated" in err
    assert f"probes from {first}, stories:{second}" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json.dumps({"text": "x"}).encode("utf-16"), "expected UTF-8, got UTF-16"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", json.dumps({"text": "x", "answer": "x"}), "expected at least 18 tokens"),
        (
            "a.jsonl",
            json.dumps({"prompt": "", "answer": "x"}),
            "expected prompt to have words, got an empty one",
        ),
        ("a.jsonl", json.dumps({"text": STORIES[0], "answer": STORIES[0]}), "the prompt is empty"),
        (
            "a.jsonl",
            json.dumps({"text": " ".join(STORIES[:20]), "answer": "park"}),
            "do not fit the model's context",
        ),
        ("a.csv", "question,reply\nx,y\n", "expected columns text and answer"),
        ("a.md", "x", "its kind before it: KIND:a.md"),
        (
            "a.txt",
            "\n\n".join(STORIES[:40]),
            "reads factual, but 16 of 16 probes have no answer; the first is text ",
        ),
        ("a.jsonl", "\n".join(json.dumps({"text": t}) for t in STORIES[:6]), "expected at least 4 for the"),
    ],
)
def test_what_cannot_be_used_is_refused(
    call: Call, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = written(tmp_path, name, content)
    code, out, err = call(
        "search", MODEL, "--profile", profile(tmp_path), "--probes", path, "--trials", 1, "--json"
    )
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert message in err
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("lambda:a.jsonl", "unknown kind 'lambda'"),
        ("lambada:", "expected a path after it"),
        (".", "got a folder"),
        ("absent.csv", "cannot be read: No such file"),
        ("absent", "cannot be read: No such file"),
    ],
)
def test_what_names_nothing_is_refused(call: Call, tmp_path: Path, option: str, message: str) -> None:
    code, _, err = call(
        "check", MODEL, "--config", "fp16", "--profile", profile(tmp_path), "--probes", option
    )
    assert (code, message in err) == (2, True), err


def test_a_profiles_data_are_read_from_beside_it(call: Call, tmp_path: Path) -> None:
    written(tmp_path, "own.jsonl", "\n".join(json.dumps({"text": text}) for text in STORIES[:40]))
    few = profile(tmp_path, probes='data = ["stories:own.jsonl"]')
    code, _, err = call("check", MODEL, "--config", "fp16", "--profile", few)
    assert code == 0, err
    assert "probes of profile few: stories:own.jsonl" in err


def test_a_profiles_data_that_cannot_be_read_are_never_replaced(call: Call, tmp_path: Path) -> None:
    few = profile(tmp_path, probes='data = ["stories:gone.jsonl"]')
    code, _, err = call("check", MODEL, "--config", "fp16", "--profile", few)
    assert code == 2
    assert f"{tmp_path / 'gone.jsonl'}: cannot be read" in err
    assert f"profile {few} names in probes.data; name others with --probes [KIND:]PATH" in err
    code, _, err = call(
        "check", MODEL, "--config", "fp16", "--profile", few, "--probes", demo_folder() / "probes.jsonl"
    )
    assert code == 0, err


def test_the_command_comes_before_the_profile_and_the_profile_before_the_model(tmp_path: Path) -> None:
    few = load_profile(profile(tmp_path, probes='data = ["csv:a.csv", "hub:b"]'))
    plain = load_profile("default")
    (tmp_path / "probes.jsonl").touch()
    assert [str(source) for source in sources_for(tmp_path, few, ["text:c.txt"])[0]] == ["text:c.txt"]
    assert [str(source) for source in sources_for(tmp_path, few, [])[0]] == [f"csv:{tmp_path}/a.csv", "hub:b"]
    assert [source.name for source in sources_for(tmp_path, plain, [])[0]] == [str(tmp_path / "probes.jsonl")]
    (built_in,), said = sources_for(tmp_path / "other", plain, [])
    assert built_in.name == str(demo_folder() / "probes.jsonl")
    assert "built-in probes" in said


@pytest.mark.timeout(300)
def test_a_study_remembers_all_of_its_sources(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": text}) for text in STORIES]
    written(tmp_path / "cwd", "a.jsonl", "\n".join(lines[:20]))
    written(tmp_path / "cwd", "b.jsonl", "\n".join(lines[20:40]))
    few = profile(tmp_path)
    few.write_text(few.read_text().replace("[search]", "[search]\ntrials = 2"))
    code, out, err = call(
        "search",
        MODEL,
        "--profile",
        few,
        "--probes",
        "stories:a.jsonl",
        "--probes",
        "b.jsonl",
        "--json",
        "--store",
        f"sqlite:///{tmp_path}/s.db",
    )
    assert code in (0, 1), err
    assert len(json.loads(out)["trials"]) == 2, "the profile says how many"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = call(
        "export",
        "model-few-0",
        "--trial",
        0,
        "-o",
        tmp_path / "bundle",
        "--store",
        f"sqlite:///{tmp_path}/s.db",
    )
    assert code == 0, err
    (tmp_path / "cwd" / "b.jsonl").write_text("\n".join(lines[50:80]))
    code, _, err = call(
        "export",
        "model-few-0",
        "--trial",
        0,
        "-o",
        tmp_path / "other",
        "--store",
        f"sqlite:///{tmp_path}/s.db",
    )
    assert (code, "the probes" in err) == (2, True), err
