"""How often a certificate's bound is wrong: on random certificate probes out of a pool whose true share is known.

`python benchmarks/certificates.py [--model FOLDER] [--probes FILE] [--splits 200]`, with OMP_NUM_THREADS=1. Every
candidate is evaluated once on the whole pool; then certificate probes are drawn from it again and again, and a bound
is wrong when it exceeds the pool's share. Lines of FILE without an answer are cut, and answered by their last word.

Two ways to draw: a split leaves each probe on one side, so that a small pool is known the better the more of it was
drawn; `anew` puts each probe back, as if from endless prompts, which is what the bound assumes, and the harder case.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from toggle_runtime.records import Coverage, ModeSpecification
from toggle_runtime.verdicts import per_probe_robustness

from toggle_edge.certify.bounds import ALONE, Division, coverage_bound, of_tried
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe, load_probes
from toggle_edge.profiles import load_profile
from toggle_edge.specification import specification_of
from toggle_edge.statistics import clopper_pearson_lower

ROOT = Path(__file__).parents[1]
UNIFORM = ("int6-axis", "int5-axis", "int4-g16", "int4-g32", "int4-g64", "int4-g128", "int4-axis")
LOW, HIGH = Format.parse("int4-g32"), Format.parse("int8-g64")
TOKENS = 128
MANY = 20_000

Specification = Mapping[str, ModeSpecification]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


class Pool(NamedTuple):
    """`satisfied` is candidates x modes x probes; `cost` one number for each candidate."""

    names: list[str]
    cost: list[float]
    satisfied: Bools


def plain_texts(path: Path, tokenizer: Any, folder: Path) -> Path:
    """The file as probes: texts without an answer are cut to `TOKENS` tokens, their last word is the answer."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "answer" not in entry:
            offsets = tokenizer(entry["text"], return_offsets_mapping=True)["offset_mapping"][:TOKENS]
            # The cut may fall within a word: what is left of that is dropped.
            words = entry["text"][: offsets[-1][1]].rsplit(None, 1)[0]
            entry = {"text": words, "answer": words.rsplit(None, 1)[-1]}
        entries.append(json.dumps(entry))
    probes = folder / "probes.jsonl"
    probes.write_text("\n".join(entries), encoding="utf-8")
    return probes


def mixes(
    layers: tuple[str, ...], shares: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[tuple[str, Config]]:
    """Random configs with about these shares of layers in four bits, the others in eight."""
    for share in shares:
        low = rng.random(len(layers)) < share
        formats = {layer: LOW if lower else HIGH for layer, lower in zip(layers, low, strict=True)}
        yield f"{LOW} in {low.sum()} of {len(layers)} layers", Config.of(formats)


class Judge:
    """Judges candidates on every probe of the pool, under every mode."""

    def __init__(self, model: LanguageModel, probes: tuple[Probe, ...], specification: Specification) -> None:
        self._model, self._specification = model, specification
        self._evaluator = Evaluator(model, LayerBank(model), probes, specification)

    def pool(self, candidates: Iterable[tuple[str, Config]]) -> Pool:
        names, cost, rows = [], [], []
        for name, config in candidates:
            traces = self._evaluator.traces(config)
            joint = [
                np.min([per_probe_robustness(text, traces) for text in mode.properties.values()], axis=0)
                for mode in self._specification.values()
            ]
            names.append(name)
            cost.append(predicted_cost(self._model.layers, config, self._model.kept_parameters).proxy_flops)
            rows.append(np.array(joint) >= 0)  # NaN is not
        return Pool(names, cost, np.array(rows))


def draws(size: int, probes: int, times: int, rng: np.random.Generator, *, anew: bool) -> Counts:
    """times x probes indices into the pool."""
    if anew:
        return rng.integers(size, size=(times, probes))
    return np.array([rng.permutation(size)[:probes] for _ in range(times)])


def bounds_of(probes: int, division: Division) -> NDArray[np.float64]:
    """The stated bound for each number of satisfied probes."""
    return np.array(
        [coverage_bound("", Coverage(k, probes, k), division).lower_bound for k in range(probes + 1)]
    )


def counts_in(satisfied: Bools, drawn: Counts) -> Counts:
    """For candidates x modes x probes: candidates x modes x draws, how many of the drawn probes satisfy."""
    return np.stack([np.sum(mode[:, drawn], axis=-1) for mode in satisfied.swapaxes(0, 1)], axis=1)


def selection_errors(
    pool: Pool, specification: Specification, counts: Counts, probes: int, table: NDArray[np.float64]
) -> Bools:
    """modes x draws: whether the bound of the cheapest candidate that passes on these probes is wrong."""
    share = pool.satisfied.mean(axis=-1)
    cheapest = np.argsort(pool.cost, kind="stable")
    errors = []
    for mode, name in enumerate(specification):
        required = max(1, int(np.ceil(specification[name].coverage * probes - 1e-9)))
        passes = counts[cheapest, mode] >= required
        chosen = cheapest[np.argmax(passes, axis=0)]
        stated = table[np.take_along_axis(counts[:, mode], chosen[np.newaxis], axis=0)[0]]
        errors.append(passes.any(axis=0) & (stated > share[chosen, mode]))
    return np.array(errors)


def one_by_one(pool: Pool, modes: list[str], tested: Mapping[str, Counts], n: int) -> None:
    """One candidate and one mode, named before: wrong bounds, beside those of two rules that are wrong too often."""
    rules: dict[str, Callable[[int], float]] = {
        "stated": lambda k: coverage_bound("", Coverage(k, n, k), ALONE).lower_bound,
        "at 80 %": lambda k: clopper_pearson_lower(k, n, 0.80),
        "plain share": lambda k: k / n,
    }
    tables = {name: np.array([rule(k) for k in range(n + 1)]) for name, rule in rules.items()}
    head("one candidate, one mode", "true share", *(f"{name}, {rule}" for name in tested for rule in tables))
    shares = pool.satisfied.mean(axis=-1)
    for row, name in enumerate(pool.names):
        for column, mode in enumerate(modes):
            share = shares[row, column]
            if 0.5 <= share <= 0.99 and mode != "optimal":  # which has strict's formulas, hence its numbers
                errors = (
                    table[counts[row, column]] > share
                    for counts in tested.values()
                    for table in tables.values()
                )
                line(f"{name}, {mode}", f"{share:.3f}", *map(shown, errors))


def modes_at_once(pool: Pool, specification: Specification, tested: Mapping[str, Counts], n: int) -> None:
    """One candidate, its bounds under all modes stated together."""
    divisions = {"not divided": ALONE, "as stated": of_tried(1, specification)}
    head("one candidate, three modes at once", *(f"{name}, {rule}" for name in tested for rule in divisions))
    shares = pool.satisfied.mean(axis=-1)[..., np.newaxis]
    for row, name in enumerate(pool.names):
        if shares[row].min() >= 0.5:
            errors = (
                (bounds_of(n, division)[counts[row]] > shares[row]).any(axis=0)
                for counts in tested.values()
                for division in divisions.values()
            )
            line(name, *map(shown, errors))


def selected(pool: Pool, specification: Specification, tested: Mapping[str, Counts], n: int) -> None:
    """The cheapest that passes on the same probes, for each mode and for the three at once."""
    m = len(pool.names)
    for mode, shares in zip(specification, pool.satisfied.mean(axis=-1).T, strict=True):
        print(f"{mode}, true shares: {', '.join(f'{share:.2f}' for share in sorted(shares))}")
    divisions = {
        "not divided": ALONE,
        "among candidates": Division(m, "candidates"),
        "among both, as stated": of_tried(m, specification),
    }
    head(f"cheapest of {m} that passes", "mode", *tested)
    for words, division in divisions.items():
        table = bounds_of(n, division)
        errors = {
            name: selection_errors(pool, specification, counts, n, table) for name, counts in tested.items()
        }
        for row, mode in enumerate(specification):
            line(f"{words} ({division.statements})", mode, *(shown(each[row]) for each in errors.values()))
        line(
            f"{words} ({division.statements})", "any", *(shown(each.any(axis=0)) for each in errors.values())
        )


def shown(errors: Bools) -> str:
    return f"{errors.sum()} of {len(errors)}" if len(errors) < MANY else f"{100 * errors.mean():.2f} %"


def line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def head(*cells: str) -> None:
    print()
    line(*cells)
    line(*("---" for _ in cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--probes", type=Path, default=ROOT / "demo" / "probes.jsonl")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--certificate", type=int, default=59, help="probes that a bound rests on")
    parser.add_argument("--candidates", type=int, default=24, help="among which the cheapest is selected")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    profile = load_profile("default")
    specification = specification_of(profile)
    model = load_model(options.model)
    with tempfile.TemporaryDirectory(prefix="toggle-edge-certificates-") as folder:
        path = plain_texts(options.probes, model.tokenizer, Path(folder))
        context = model.shape.context_tokens
        probes = load_probes(path, model.tokenizer, steps=profile.probes.min_steps, context_tokens=context)
    rng = np.random.default_rng(options.seed)
    layers = tuple(layer.name for layer in model.layers)
    judge = Judge(model, probes, specification)
    uniform = judge.pool((text, Config.uniform(layers, Format.parse(text))) for text in UNIFORM)
    mixed = judge.pool(mixes(layers, np.linspace(0.1, 1.0, options.candidates), rng))
    n, size = options.certificate, len(probes)
    print(f"{options.model.name}: {size} probes, of which {n} are drawn, {options.splits} or {MANY} times.")
    print(f"By chance 5 % are at most {binom.ppf(0.975, options.splits, 0.05):.0f} of {options.splits}.")
    samples = {
        ("anew" if anew else "split") + (f" {MANY}" if times == MANY else ""): draws(
            size, n, times, rng, anew=anew
        )
        for times, anew in ((options.splits, False), (options.splits, True), (MANY, True))
    }
    counts = {name: counts_in(uniform.satisfied, drawn) for name, drawn in samples.items()}
    one_by_one(uniform, list(specification), counts, n)
    modes_at_once(uniform, specification, counts, n)
    print("\nThe candidates, from few layers in four bits to all.")
    counts = {name: counts_in(mixed.satisfied, drawn) for name, drawn in samples.items()}
    selected(mixed, specification, counts, n)


if __name__ == "__main__":
    main()
