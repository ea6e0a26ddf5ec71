"""Make probes.jsonl: story beginnings by the teacher, cut after a sentence; the answer is the last word.

The seed is none of the training corpus's. Near duplicates are dropped, and so is any beginning that shares a
run of 32 tokens with the corpus. Nothing is chosen by how the demo model fares on it.

    python demo/make_probes.py --teacher ../shared/models/stories260K --work WORK
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from train import sample
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

SEED = 2_000_003  # neither a training nor the held-out seed
SHORTEST, LONGEST = 68, 96  # tokens, the start token not counted
RUN = 32  # so long a run of tokens shared with the corpus counts as copied
SENTENCE_END = re.compile(r"[ \n]([A-Za-z]{3,})[.!?]\Z")


def beginning(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, str] | None:
    """The longest beginning within bounds that ends with a word and a full stop, outside direct speech."""
    for end in range(LONGEST + 1, SHORTEST, -1):
        ids = tokens[:end]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        found = SENTENCE_END.search(text)
        if not found or text.count('"') % 2 or set(ids[1:]) & set(tokenizer.all_special_ids):
            continue
        if tokenizer(text).input_ids == ids:  # the model must read what the teacher wrote
            return {"text": text, "answer": found[1]}
    return None


def word_runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def token_runs(rows: np.ndarray) -> set[bytes]:
    return {row[i : i + RUN].tobytes() for row in rows for i in range(len(row) - RUN + 1)}


def distinct(
    probes: Iterator[dict[str, str]], known: set[bytes], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, str]]:
    """Drop what the corpus contains, and what shares half of all runs of five words with another probe."""
    kept: list[set[tuple[str, ...]]] = []
    for probe in probes:
        ids = np.array([tokenizer(probe["text"]).input_ids], dtype=np.int16)
        runs = word_runs(probe["text"])
        if token_runs(ids) & known or any(len(runs & other) >= 0.5 * len(runs | other) for other in kept):
            continue
        kept.append(runs)
        yield probe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="folder of stories260K")
    parser.add_argument("--work", type=Path, required=True, help="folder in which train.py left its corpus")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "probes.jsonl")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()

    corpora = sorted(args.work.glob("corpus-*.npy"))
    if not corpora:
        raise SystemExit(f"expected corpus-*.npy in {args.work}, found none: run train.py first")
    known = set().union(*(token_runs(np.load(path)) for path in corpora))
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    stories = sample(teacher, 4 * args.count, LONGEST + 2, args.temperature, SEED).tolist()
    begun = (beginning(story, tokenizer) for story in stories)
    probes = list(distinct((probe for probe in begun if probe), known, tokenizer))[: args.count]
    if len(probes) < args.count:
        raise SystemExit(
            f"expected {args.count} probes, got {len(probes)} of {len(stories)} stories: sample more"
        )
    args.out.write_text("".join(json.dumps(probe) + "\n" for probe in probes), encoding="utf-8")


if __name__ == "__main__":
    main()
