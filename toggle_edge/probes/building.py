"""Passages -> probes: tokens, where the continuation starts, the answer steps, and what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toggle_edge.errors import ProbeError
from toggle_edge.probes.hub import open_hub
from toggle_edge.probes.kinds import READERS, Kind, Overlong, kind_of
from toggle_edge.probes.passages import Passage, last_word, sentence_ends
from toggle_edge.probes.probe import Probe
from toggle_edge.sources import HUB, ProbeSource

__all__ = ["LoadedProbes", "load_probes", "read_probes"]

PROMPT_TOKENS = 2
"""The fewest tokens that a continuation is predicted from."""


@dataclass(frozen=True)
class LoadedProbes:
    """All probes that the sources give, and what became of the other texts: how many were cut, how many were the
    same text again, how many were left out by reason."""

    probes: tuple[Probe, ...]
    cut: int = 0
    duplicates: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for people: `5,120 probes; left out: 33 longer than 256 tokens`."""
        parts = [f"{len(self.probes):,} texts"]
        if self.cut:
            parts.append(f"{self.cut:,} cut at a sentence's end")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} repeated")
        if self.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.left_out.items()))
            parts.append(f"left out: {reasons}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A text's tokens, and the characters `[start, end)` that each stands for; empty for special tokens."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def load_probes(
    source: Path | ProbeSource,
    tokenizer: Any,
    *,
    steps: int,
    context_tokens: int,
    max_tokens: int | None = None,
) -> tuple[Probe, ...]:
    """The probes of one source; see `read_probes`. A path's kind is told from the file."""
    named = source if isinstance(source, ProbeSource) else ProbeSource(None, str(source))
    loaded = read_probes(
        [named],
        tokenizer,
        steps=steps,
        context_tokens=context_tokens,
        max_tokens=context_tokens if max_tokens is None else max_tokens,
    )
    return loaded.probes


def read_probes(
    sources: Sequence[ProbeSource], tokenizer: Any, *, steps: int, context_tokens: int, max_tokens: int
) -> LoadedProbes:
    """Read every text of the sources, each text once.

    A continuation is the last `steps` tokens, or more where the answer begins earlier. Texts of kinds that are
    capped have at most `max_tokens` tokens, all at most `context_tokens`. Raises ProbeError with file and line for
    what cannot be read, for texts that people wrote as probes and that do not fit, and when nothing is left.
    """
    builder = _Builder(tokenizer, steps, context_tokens, min(max_tokens, context_tokens))
    for source in sources:
        builder.read(source)
    loaded = LoadedProbes(
        tuple(builder.probes.values()), builder.cut, builder.duplicates, dict(builder.left_out)
    )
    if not loaded.probes:
        raise ProbeError(
            f"probes {', '.join(map(str, sources))}: expected at least one probe, got none; {loaded.summary}. "
            f"A probe needs {steps + PROMPT_TOKENS} tokens: pass another --probes"
        )
    return loaded


class _Builder:
    """Collects probes and counts what became of the rest; one tokenizer and one set of limits."""

    def __init__(self, tokenizer: Any, steps: int, context_tokens: int, cap: int) -> None:
        self._tokenizer = tokenizer
        self._steps = steps
        self._context = context_tokens
        self._cap = cap
        self.probes: dict[str, Probe] = {}
        self.cut = 0
        self.duplicates = 0
        self.left_out: Counter[str] = Counter()

    def read(self, source: ProbeSource) -> None:
        name, passages = self._passages(source)
        kind = READERS[name]
        for passage in passages:
            probe = self._probe(passage, kind, f"{name} {passage.place}")
            if probe is not None and self.probes.setdefault(probe.text, probe) is not probe:
                self.duplicates += 1

    def _passages(self, source: ProbeSource) -> tuple[str, Iterator[Passage]]:
        if source.kind == HUB:
            return open_hub(source.name, self._enough)
        path = Path(source.name)
        name = source.kind or kind_of(path)
        return name, READERS[name].read(path, self._enough)

    def _enough(self, text: str) -> bool:
        # Half a prompt, half a continuation; never more than fits.
        return len(self._tokens(text).ids) >= min(2 * self._steps, self._cap)

    def _probe(self, passage: Passage, kind: Kind, origin: str) -> Probe | None:
        """The passage as a probe; None where it is left out, which is counted."""
        text, answer = passage.text, passage.answer
        tokens = self._tokens(passage.primer + text)
        most = self._cap if kind.capped else self._context
        cut = len(tokens.ids) > most
        if cut:
            if kind.overlong is Overlong.REFUSED:
                raise ProbeError(
                    f"{passage.place}: {len(tokens.ids)} tokens do not fit the model's context of {most}; shorten it"
                )
            if kind.overlong is Overlong.LEFT_OUT:
                return self._left_out(f"longer than {most} tokens")
            fitting = self._fitting(text, tokens, most)
            if fitting is None:
                return self._left_out(f"without a sentence's end within {most} tokens")
            text, tokens = fitting
        if kind.last_word:
            answer = last_word(text)
            if answer is None:
                return self._left_out("without a last word")
        if len(tokens.ids) < self._steps + PROMPT_TOKENS:
            if kind.overlong is Overlong.REFUSED:
                raise ProbeError(
                    f"{passage.place}: expected at least {self._steps + PROMPT_TOKENS} tokens (a prompt of "
                    f"{PROMPT_TOKENS} and {self._steps} steps), got {len(tokens.ids)}; lengthen it"
                )
            return self._left_out(f"shorter than {self._steps + PROMPT_TOKENS} tokens")
        predicting = [] if answer is None else _answer_tokens(tokens, answer, len(passage.primer))
        start = min([len(tokens.ids) - self._steps, *predicting])
        prompt = [low for low, high in tokens.offsets[:start] if high > low]
        if start < PROMPT_TOKENS or not prompt:
            if kind.overlong is Overlong.REFUSED:
                raise ProbeError(
                    f"{passage.place}: expected a prompt of at least {PROMPT_TOKENS} tokens before the answer, got "
                    f"{start}: the prompt is empty or a single word; write what leads to the answer"
                )
            return self._left_out("without a prompt before the answer")
        self.cut += cut
        steps = tuple(index - start for index in predicting)
        return Probe(text, tokens.ids, start, steps, origin)

    def _fitting(self, text: str, tokens: _Tokens, most: int) -> tuple[str, _Tokens] | None:
        """The text up to the last sentence's end that leaves at most `most` tokens; None where there is none."""
        limit = tokens.offsets[most - 1][1]
        for end in reversed(sentence_ends(text)):
            # Tokens at the cut may be others than in the whole text, so it is counted, not computed.
            if end <= limit and len((shorter := self._tokens(text[:end])).ids) <= most:
                return text[:end], shorter
        return None

    def _left_out(self, reason: str) -> Probe | None:
        self.left_out[reason] += 1
        return None

    def _tokens(self, text: str) -> _Tokens:
        encoded = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        return _Tokens(tuple(encoded["input_ids"]), tuple(map(tuple, encoded["offset_mapping"])))


def _answer_tokens(tokens: _Tokens, answer: tuple[int, int], shift: int) -> list[int]:
    """The tokens that hold any character of the answer.

    A leading space belongs to the token of the word that it precedes; a character in pieces to all of its tokens.
    """
    start, end = answer[0] + shift, answer[1] + shift
    return [index for index, (low, high) in enumerate(tokens.offsets) if low < end and high > start]
