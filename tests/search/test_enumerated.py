"""The true front of a real model that is small enough to try every config: the search finds nearly all of it.

The model is that of `benchmarks/enumerated.py`, the first two blocks of a trained one; fewer units are free, and fewer
probes are read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from toggle_edge.config import Format

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"
MENU = tuple(Format.parse(text) for text in ("int4-g32", "int8-g64", "fp16"))
WHOLE = (
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.mlp_input",
    "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.mlp_input",
)


@pytest.fixture
def enumerated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark, on one thread: a model this small gains nothing from more."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import enumerated

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield enumerated
    torch.set_num_threads(threads)


@pytest.mark.skipif(not MODEL.is_dir(), reason="needs ../shared/models/stories260K")
def test_the_true_front_of_a_trained_model_is_found(enumerated: Any, tmp_path: Path) -> None:
    """The oracle is enumeration: 5 units of 3 formats, 243 configs, of which 60 are tried."""
    problem = enumerated.problem_of(
        SHARED,
        enumerated.save_first_blocks(MODEL, tmp_path / "two-blocks"),
        tmp_path / "evaluations.sqlite",
        MENU,
        menus=dict.fromkeys(WHOLE, MENU[-1:]),
        counts={enumerated.SEARCH: 8},
        steps=16,
        tokens=48,
    )
    assert problem.model.shape.layers == 2
    everything = list(enumerated.every(problem))
    assert len(everything) == 3**5
    volumes = enumerated.Volumes(problem)
    whole = volumes.of(everything)
    assert all(whole.values()), "in every mode there is a front to find"
    shares = volumes.shares(enumerated.searched(problem, seed=0, trials=60, probes=8), whole)
    assert statistics.fmean(shares.values()) >= 0.95, shares
    assert min(shares.values()) >= 0.9, shares
    assert set(volumes.shares(everything, whole).values()) == {1.0}
    blind = volumes.shares(enumerated.at_random(everything, 60, seed=0), whole)
    assert statistics.fmean(blind.values()) < 0.9, "a front that anybody finds would prove nothing"
