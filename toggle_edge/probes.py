"""Data sets -> probes with answer steps, split into search and certificate probes.

A probe is a prompt followed by its continuation. The split goes by content hash, so it does not depend on the
file's order, and a probe never changes sides when lines are added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toggle_edge.errors import ProbeError


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens of prompt and continuation; `prompt_tokens` says where the continuation starts.

    Step `t` predicts token `prompt_tokens + t`. `answer_steps` are the steps that predict the gold answer;
    empty where there is none.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    answer_steps: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def continuation(self) -> tuple[int, ...]:
        return self.tokens[self.prompt_tokens :]


@dataclass(frozen=True, slots=True)
class ProbeSplit:
    """Disjoint probes: the search sees `search` only, the certificate is made on `certificate` only."""

    search: tuple[Probe, ...]
    certificate: tuple[Probe, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of both sides' tokens and answer steps."""
        both = "\n".join(probes_to_json(side) for side in (self.search, self.certificate))
        return hashlib.sha256(both.encode()).hexdigest()


def load_probes(path: Path, tokenizer: Any, *, steps: int, context_tokens: int) -> tuple[Probe, ...]:
    """Read JSON lines `{"text": ..., "answer": ...}`; the continuation is the text's last `steps` tokens.

    `answer` is optional and must be the last occurrence of those words in the text. Exact duplicates are dropped.
    Raises ProbeError with file and line for malformed lines, texts that are too short or too long.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ProbeError(f"probe file {path}: cannot be read: {exc}") from exc
    probes: dict[str, Probe] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            probe = _probe(line, f"{path}:{number}", tokenizer, steps, context_tokens)
            probes.setdefault(probe.text, probe)
    return tuple(probes.values())


def split_probes(probes: Sequence[Probe], *, search: int, certificate: int) -> ProbeSplit:
    """Split by the hash of each probe's text: even ones are for the search, odd ones for the certificate.

    Raises ProbeError when either side would have fewer probes than asked for.
    """
    sides: tuple[list[Probe], list[Probe]] = ([], [])
    for probe in sorted(probes, key=_content_hash):
        sides[int(_content_hash(probe), 16) % 2].append(probe)
    for side, wanted, name in zip(sides, (search, certificate), ("search", "certificate"), strict=True):
        if len(side) < wanted:
            raise ProbeError(
                f"probes: expected at least {wanted} for the {name} side after splitting by content, "
                f"got {len(side)} of {len(probes)}; add probes, or ask for fewer in the profile"
            )
    return ProbeSplit(tuple(sides[0][:search]), tuple(sides[1][:certificate]))


def probes_to_json(probes: Sequence[Probe]) -> str:
    """What a device needs of the probes: tokens, where the continuation starts, the answer steps."""
    return json.dumps(
        [
            {
                "tokens": list(probe.tokens),
                "prompt_tokens": probe.prompt_tokens,
                "answer_steps": list(probe.answer_steps),
            }
            for probe in probes
        ],
        separators=(",", ":"),
    )


def excerpt(tokenizer: Any, probe: Probe, step: int, *, tokens: int = 5) -> str:
    """The text around a step, the token that the step predicts in brackets: `the pressure [valve] must be`."""
    position = probe.prompt_tokens + step
    before = probe.tokens[max(0, position - tokens) : position]
    after = probe.tokens[position + 1 : position + 1 + tokens]
    # A token alone loses its leading space, so the pieces are cut from longer and longer decodings.
    left = tokenizer.decode(before, skip_special_tokens=True)
    through = tokenizer.decode((*before, probe.tokens[position]), skip_special_tokens=True)
    whole = tokenizer.decode((*before, probe.tokens[position], *after), skip_special_tokens=True)
    marked = through[len(left) :]
    space = marked[: len(marked) - len(marked.lstrip())]
    return f"{left}{space}[{marked.strip()}]{whole[len(through) :]}".replace("\n", " ")


def _probe(line: str, where: str, tokenizer: Any, steps: int, context_tokens: int) -> Probe:
    try:
        entry = json.loads(line)
        text, answer = entry["text"], entry.get("answer")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ProbeError(f'{where}: expected {{"text": ..., "answer": ...}}, got {line[:60]!r}') from exc
    if not isinstance(text, str) or not (answer is None or isinstance(answer, str)):
        raise ProbeError(f"{where}: expected text and answer to be strings")
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens, offsets = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    if len(tokens) < steps + 2:
        raise ProbeError(
            f"{where}: expected at least {steps + 2} tokens (a prompt of 2 and {steps} steps), got {len(tokens)}"
        )
    if len(tokens) > context_tokens:
        raise ProbeError(f"{where}: {len(tokens)} tokens do not fit the model's context of {context_tokens}")
    prompt_tokens = len(tokens) - steps
    answer_steps: tuple[int, ...] = ()
    if answer is not None:
        start = text.rfind(answer) if answer else -1
        if start < 0:
            raise ProbeError(f"{where}: answer {answer!r} is not in the text")
        answer_steps = tuple(
            index - prompt_tokens
            for index, (low, high) in enumerate(offsets)
            # A leading space belongs to the token of the word that it precedes.
            if low < start + len(answer) and high > start and index >= prompt_tokens
        )
        if not answer_steps:
            raise ProbeError(f"{where}: answer {answer!r} is not within the last {steps} tokens")
    return Probe(text, tokens, prompt_tokens, answer_steps)


def _content_hash(probe: Probe) -> str:
    return hashlib.sha256(probe.text.encode()).hexdigest()
