"""An export needs memory for a few layers, however many there are."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import pytest
from architectures import CASES, built, saved

from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.export import Skeleton
from toggle_edge.export.onnx import export_onnx
from toggle_edge.export.weightless import WEIGHT, hollow
from toggle_edge.model.load import LanguageModel

WIDTH = 512
LARGEST = 4 * WIDTH * 4 * WIDTH
"""Bytes of the largest layer in float32."""

MEASURE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.export import build_skeleton
from toggle_edge.export.onnx import export_onnx
from toggle_edge.model import checkpoint
from toggle_edge.model.load import load_model
from toggle_edge.model.pages import Pages

# So small a file would stay in memory whole.
checkpoint.Pages = lambda path: Pages(path, kept_bytes=2**20)

def now(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

grown = []
for index, folder in enumerate(sys.argv[2:]):
    model = load_model(Path(folder), streamed=True)
    skeleton = build_skeleton(model, Path(sys.argv[1]) / "skeletons")
    bank = LayerBank(model, folder=Path(sys.argv[1]) / "layers")
    config = Config.uniform(tuple(layer.name for layer in model.layers), Format.parse("fp16"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = now("RssAnon:") + now("RssFile:")
    export_onnx(skeleton, bank.compressed(config), Path(sys.argv[1]) / str(index))
    grown.append(now("VmHWM:") - before)
print(json.dumps(grown))
"""


class Watched(Mapping[str, CompressedLayer]):
    """Layers that notice how many of those given out are still held when the next is asked for."""

    def __init__(self, layers: Mapping[str, CompressedLayer]) -> None:
        self._layers, self._given = layers, list[weakref.ref[CompressedLayer]]()
        self.most = 0

    def __getitem__(self, name: str) -> CompressedLayer:
        gc.collect()
        self.most = max(self.most, sum(each() is not None for each in self._given))
        layer = self._layers[name]
        self._given.append(weakref.ref(layer))
        return layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def test_layers_are_let_go_one_by_one(tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path) -> None:
    bank = LayerBank(tiny, memory_bytes=0)
    config = Config.uniform(tuple(layer.name for layer in tiny.layers), Format.parse("int4-g32"))
    layers = Watched(bank.compressed(config))
    export_onnx(skeleton, layers, tmp_path / "artifact")
    assert layers.most <= 2  # the bank's last one, and the one that was written last


def test_an_export_that_fails_in_its_last_layer_leaves_nothing(
    tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    names = [layer.name for layer in tiny.layers]
    formats = {name: Format.parse("int3-g64" if name == names[-1] else "int4-g32") for name in names}
    with pytest.raises(ConfigError, match="no kernel for int3-g64"):
        export_onnx(skeleton, LayerBank(tiny).compressed(Config.of(formats)), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(
    tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    class Interrupted(Watched):
        def __getitem__(self, name: str) -> CompressedLayer:
            if name.endswith("1.mlp.down_proj"):
                raise KeyboardInterrupt
            return super().__getitem__(name)

    config = Config.uniform(tuple(layer.name for layer in tiny.layers), Format.parse("fp16"))
    with pytest.raises(KeyboardInterrupt):
        export_onnx(skeleton, Interrupted(LayerBank(tiny).compressed(config)), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no peak that can be set back")
    folders = []
    for blocks in (2, 6):
        kind, options = CASES["gpt2"]
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": blocks}
        (tmp_path / str(blocks)).mkdir()
        folders.append(saved(built(kind, {**options, **sizes}), tmp_path / str(blocks)))
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "work"), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert many - few < 3 * LARGEST, f"2 blocks took {few} bytes, 6 took {many}"


def test_the_builder_sees_a_model_without_weights(tiny: LanguageModel, skeleton: Skeleton) -> None:
    module = hollow(tiny.folder)
    matrices = [each for name, each in module.named_parameters() if each.ndim == 2]
    assert {each.untyped_storage().nbytes() for each in matrices} == {4}
    norms = {name: each for name, each in module.named_parameters() if each.ndim == 1}
    assert all(bool((each == tiny.module.get_parameter(name)).all()) for name, each in norms.items())
    stored = [each for each in skeleton.graph.graph.initializer if WEIGHT.fullmatch(each.name)]
    assert set(skeleton.weights) == {each.name for each in stored}
    assert all(not onnx.numpy_helper.to_array(each).size for each in stored)
