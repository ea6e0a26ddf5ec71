"""What an export is compared with is computed once for the same candidate, and never taken for another one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ParityError
from toggle_edge.export import Made, Request, whole
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.export.whole import export_graph
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe


@dataclasses.dataclass
class Bench:
    """A model's candidates, a shelf, and how often one was compared."""

    model: LanguageModel
    bank: LayerBank
    skeleton: Skeleton
    probe: Probe
    folder: Path
    compared: list[Path]

    def request(self, text: str = "int4-g32") -> Request:
        config = Config.uniform(tuple(layer.name for layer in self.model.layers), Format.parse(text))
        return Request(
            self.model,
            config,
            self.bank.compressed(config),
            None,
            lambda: self.bank.assemble(config),
            self.probe.tokens,
            self.probe.prompt_tokens,
            self.folder / "shelf",
        )

    def export(self, request: Request, name: str, target: str = "onnx-cpu") -> Made:
        return export_graph(self.skeleton, request, self.folder / name, target=target)


@pytest.fixture
def bench(
    tiny: LanguageModel,
    bank: LayerBank,
    skeleton: Skeleton,
    probes: tuple[Probe, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    bench = Bench(tiny, bank, skeleton, probes[0], tmp_path, [])
    compare = whole._compare

    def counted(artifact, shape, request, folder):  # type: ignore[no-untyped-def]
        bench.compared.append(artifact.folder)
        compare(artifact, shape, request, folder)

    monkeypatch.setattr(whole, "_compare", counted)
    return bench


def test_the_same_candidate_is_compared_once(bench: Bench) -> None:
    first, again = bench.export(bench.request(), "first"), bench.export(bench.request(), "again")
    assert len(bench.compared) == 1
    assert dataclasses.replace(again, artifact=first.artifact, canary=first.canary) == first
    assert again.artifact.files == first.artifact.files
    for name in first.artifact.files:
        assert (again.artifact.folder / name).read_bytes() == (first.artifact.folder / name).read_bytes()
    assert again.canary.read_bytes() == first.canary.read_bytes()
    assert {path.name for path in bench.folder.iterdir()} == {
        "shelf",
        "first",
        "first.npz",
        "again",
        "again.npz",
    }


def test_a_candidate_that_is_not_compared_is_not_assembled(bench: Bench) -> None:
    bench.export(bench.request(), "first")
    unwanted = dataclasses.replace(bench.request(), assemble=lambda: pytest.fail("assembled again"))
    bench.export(unwanted, "again")


@pytest.mark.parametrize("what", ["format", "target", "tokens", "prompt", "weights", "sources"])
def test_another_candidate_is_compared(what: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request, target = bench.request(), "onnx-cpu"
    bench.export(request, "first")
    if what == "format":
        request = bench.request("int8-g32")
    elif what == "target":
        target = "onnx-cpu-1.23"
    elif what == "tokens":
        request = dataclasses.replace(request, tokens=[*request.tokens[:-1], (request.tokens[-1] + 1) % 512])
    elif what == "prompt":
        request = dataclasses.replace(request, prompt_tokens=request.prompt_tokens - 1)
    elif what == "weights":
        other = LayerBank(bench.model, quantiser="hqq").compressed(request.config)
        with pytest.raises(ParityError):  # against what the other quantiser chose
            bench.export(dataclasses.replace(request, layers=other), "other")
        assert len(bench.compared) == 2
        return
    else:
        monkeypatch.setattr(whole, "_makers", lambda: "another version")
    bench.export(request, "other", target)
    assert len(bench.compared) == 2


def test_what_failed_is_not_kept(bench: Bench) -> None:
    damaged = bench.bank.assemble(bench.request("int2-g16").config)
    request = dataclasses.replace(bench.request(), assemble=lambda: damaged)
    for name in ("first", "second"):
        with pytest.raises(ParityError, match="is not what was searched"):
            bench.export(request, name)
    bench.export(bench.request(), "right")
    assert len(bench.compared) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_text("[]")])
def test_a_damaged_comparison_is_made_again(damage: Callable[[Path], object], bench: Bench) -> None:
    first = bench.export(bench.request(), "first")
    entries = sorted(path for path in (bench.folder / "shelf").glob("??/*/*") if path.is_file())
    assert len(entries) == 3
    for number, path in enumerate(entries):
        damage(path)
        again = bench.export(bench.request(), f"again-{number}")
        assert len(bench.compared) == number + 2, path.name
        assert again.parity == first.parity
        assert np.array_equal(*(np.load(each.canary)["logits"] for each in (again, first)))


def test_nothing_is_kept_without_a_shelf(bench: Bench) -> None:
    request = dataclasses.replace(bench.request(), shelf=None)
    bench.export(request, "first")
    bench.export(request, "again")
    assert len(bench.compared) == 2
    assert not (bench.folder / "shelf").exists()
