"""What each quantiser costs in quality: perplexity and AvgPP of two story models, 2 to 8 bits, per row and in groups.

`OMP_NUM_THREADS=1 python benchmarks/quantisers.py`. Needs the models and stories beside the checkout, in ../shared;
what is absent is skipped and said. Calibration texts come from one end of the file, the judged ones from the other.
Every block matrix has the format; the embedding, which is also the head, stays fp16 as in GPTQ's own tables, unless
`--embedding` gives it the format too. Ends with 1 where, at 3 or 4 bits without `--embedding`, `gptq` does not save at
least 30 % of the perplexity that `rtn` adds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.quantise import QUANTISERS
from toggle_edge.config import FP16, Config, Format
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe, load_probes
from toggle_edge.profiles import load_profile
from toggle_edge.reading import perplexity
from toggle_edge.signals import traces_of
from toggle_edge.specification import specification_of

SHARED = Path(__file__).parents[2] / "shared"
MODELS = ("stories260K", "stories-gpt2-1M")
GRAINS = ("axis", "g32")
TOKENS, STEPS = 256, 32
SAVED, PROMISED_BITS = 0.30, (3, 4)
NOISE = 0.005


@dataclass(frozen=True)
class Texts:
    """Token sequences to calibrate on and to judge by, and probes made of the judged stories."""

    calibration: list[list[int]]
    judged: list[list[int]]
    probes: tuple[Probe, ...]


def read_texts(model: LanguageModel, path: Path, calibration: int, judged: int, probes: int) -> Texts:
    """The file's first stories and its last, cut to `TOKENS` tokens; repeated stories are dropped first."""
    lines = path.read_text(encoding="utf-8").splitlines()
    stories = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    if calibration + max(judged, probes) > len(stories):
        raise SystemExit(
            f"{path}: expected stories to calibrate on that are not judged, got {len(stories)} in all"
        )
    encoded = [model.tokenizer(story, return_offsets_mapping=True) for story in stories]
    tokens = [entry["input_ids"][:TOKENS] for entry in encoded]
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for story, entry in zip(stories[-probes:], encoded[-probes:], strict=True):
            # The cut may fall within a word: what is left of that is dropped.
            words = story[: entry["offset_mapping"][:TOKENS][-1][1]].rsplit(None, 1)[0]
            lines.append(json.dumps({"text": words, "answer": words.rsplit(None, 1)[-1]}))
        written = Path(folder) / "probes.jsonl"
        written.write_text("\n".join(lines), encoding="utf-8")
        made = load_probes(written, model.tokenizer, steps=STEPS, context_tokens=TOKENS)
    return Texts(tokens[:calibration], tokens[-judged:], made)


class Judge:
    """One model, its texts, and what each quantiser makes of it."""

    def __init__(self, model: LanguageModel, texts: Texts, *, embedding: bool) -> None:
        self._model, self._texts, self._embedding = model, texts, embedding
        self._calibration = Calibration(model, texts.calibration)
        specification = specification_of(load_profile("default"))
        self._evaluator = Evaluator(model, LayerBank(model), texts.probes, specification)
        self.perplexity = perplexity(model.module, texts.judged)

    def row(self, quantiser: str, fmt: Format) -> tuple[float, float, float]:
        """Perplexity added, AvgPP in percent, and seconds to quantise."""
        bank = LayerBank(self._model, quantiser=quantiser, calibration=self._calibration)
        config = Config.of(
            {
                layer.name: FP16 if layer.role == "embedding" and not self._embedding else fmt
                for layer in self._model.layers
            }
        )
        start = time.perf_counter()
        module = bank.assemble(config)
        seconds = time.perf_counter() - start
        added = perplexity(module, self._texts.judged) - self.perplexity
        traces = traces_of(module, self._texts.probes, self._evaluator.baseline)
        found = self._evaluator.judged(config, traces)
        return added, float("nan") if found.avgpp is None else found.avgpp, seconds


def print_model(judge: Judge, bits: Sequence[int], grains: Sequence[str]) -> bool:
    """Print a model's table. Whether gptq saved what is promised wherever it is promised."""
    print("| format | " + " | ".join(QUANTISERS) + " | gptq saves |")
    print("|---|" + "---|" * (len(QUANTISERS) + 1))
    kept, seconds = True, dict.fromkeys(QUANTISERS, 0.0)
    for grain in grains:
        for each in bits:
            fmt = Format.parse(f"int{each}-{grain}")
            rows = {name: judge.row(name, fmt) for name in QUANTISERS}
            saved = 1 - rows["gptq"][0] / rows["rtn"][0]
            kept &= saved >= SAVED or each not in PROMISED_BITS
            for name, (_, _, took) in rows.items():
                seconds[name] += took
            # What rtn adds is too little to speak of shares where it is within half a percent.
            shown = f"{saved:.0%}" if rows["rtn"][0] > NOISE * judge.perplexity else "–"
            cells = (f"{added:+.3g}, {avgpp:.2f} %" for added, avgpp, _ in rows.values())
            print(f"| {fmt} | " + " | ".join(cells) + f" | {shown} |", flush=True)
    each_took = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items())
    print(f"\nSeconds to quantise, all formats: {each_took}.\n")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)))
    parser.add_argument("--grains", nargs="+", default=list(GRAINS))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--calibration", type=int, default=128, help="stories to calibrate on")
    parser.add_argument("--judged", type=int, default=100, help="stories for the perplexity")
    parser.add_argument("--probes", type=int, default=40, help="probes for AvgPP, of the judged stories")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of models and data")
    parser.add_argument("--embedding", action="store_true", help="give the embedding the format too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()  # stories longer than the context are cut after they are encoded
    kept = True
    for name in arguments.models:
        folder = arguments.shared / "models" / name
        stories = arguments.shared / "data" / "tinystories" / "stories.jsonl"
        absent = [str(path) for path in (folder, stories) if not path.exists()]
        if absent:
            print(f"{name}: skipped, for lack of {' and '.join(absent)}")
            continue
        model = load_model(folder)
        texts = read_texts(model, stories, arguments.calibration, arguments.judged, arguments.probes)
        judge = Judge(model, texts, embedding=arguments.embedding)
        tokens = sum(len(sequence) - 1 for sequence in texts.judged)
        print(
            f"**{name}**: perplexity {judge.perplexity:.3f} over {tokens:,} tokens of {len(texts.judged)} stories; "
            f"cells: perplexity added, AvgPP of {len(texts.probes)} probes.\n"
        )
        kept &= print_model(judge, arguments.bits, arguments.grains)
    return int(not kept and not arguments.embedding)


if __name__ == "__main__":
    sys.exit(main())
