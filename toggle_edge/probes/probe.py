"""One probe: tokens of prompt and continuation, and the steps that predict the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens of prompt and continuation; `prompt_tokens` says where the continuation starts.

    Step `t` predicts token `prompt_tokens + t`. `answer_steps` are the steps that predict the gold answer;
    empty where there is none. `text` is what sets the probe apart: without a primer that all of its data set share.
    `origin` says for messages where it comes from, kind first.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    answer_steps: tuple[int, ...]
    origin: str = field(default="", compare=False)

    @property
    def steps(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def continuation(self) -> tuple[int, ...]:
        return self.tokens[self.prompt_tokens :]


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
