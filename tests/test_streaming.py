"""A model that is read layer by layer is the same model: bit for bit, and never more of it at once than one layer."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CASES, built, saved
from safetensors.torch import load_file, save_file
from toggle_runtime.records import ModeSpecification

from toggle_edge.compress import candidate as candidates
from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration
from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import ConfigError, ModelError
from toggle_edge.evaluate import Evaluator
from toggle_edge.model import load
from toggle_edge.model.load import LanguageModel, damaged_weights, load_model, require_whole
from toggle_edge.model.memory import available_bytes
from toggle_edge.model.streaming import Slot, shared_copy, slots_of, stream
from toggle_edge.probes import Probe
from toggle_edge.signals import baseline_outputs

SPECIFICATION = {
    "optimal": ModeSpecification(
        {"coherence": "always (jsd <= 0.25)", "staying": "always (departure >= 4)"}, 0.95, 95.0
    )
}
INT4 = Format(4, 16)


@pytest.fixture(scope="session", params=sorted(CASES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(built(*CASES[request.param]), tmp_path_factory.mktemp(f"streamed-{request.param}"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(built(*CASES["llama_tied"]), tmp_path_factory.mktemp("streamed"))


def texts(count: int = 5) -> list[Probe]:
    torch.manual_seed(1)
    rows = [torch.randint(3, 500, (30 - index,)).tolist() for index in range(count)]
    return [Probe(str(index), tuple(row), 12, (2,)) for index, row in enumerate(rows)]


def uniform(model: LanguageModel, fmt: Format) -> Config:
    return Config.uniform(tuple(layer.name for layer in model.layers), fmt)


def assert_same_outputs(first: torch.nn.Module, second: torch.nn.Module, probes: list[Probe]) -> None:
    pairs = zip(baseline_outputs(first, probes), baseline_outputs(second, probes), strict=True)
    for one, other in pairs:
        assert (one.logits == other.logits).all()
        assert (one.attention == other.attention).all()
        assert (one.hidden == other.hidden).all()


def test_every_architecture_streamed_is_the_model_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    plain, streamed = load_model(folder), load_model(folder, streamed=True)
    assert streamed.streamed
    assert not plain.streamed
    assert (streamed.layers, streamed.shape, streamed.digest) == (plain.layers, plain.shape, plain.digest)
    assert streamed.kept_parameters == plain.kept_parameters
    for layer in plain.layers:
        assert torch.equal(streamed.weight(layer), plain.weight(layer)), layer.name
    assert damaged_weights(streamed) == ()
    assert_same_outputs(plain.module, streamed.module, texts())
    # What is streamed, and nothing else, is nowhere between passes.
    slots = {slot.name for slot in slots_of(streamed.module, streamed.layers)}
    assert {name for name, each in streamed.module.named_parameters() if each.is_meta} == slots
    config = Config.of({layer.name: INT4 if index % 3 else FP16 for index, layer in enumerate(plain.layers)})
    first, second = (LayerBank(each, folder=tmp_path / "layers") for each in (plain, streamed))
    assert_same_outputs(first.assemble(config), second.assemble(config), texts())


@pytest.mark.parametrize("held", [True, False])
def test_an_evaluation_is_the_same_streamed_lent_or_held(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    expected = None
    if not held:
        monkeypatch.setattr(candidates, "HELD_BYTES", 0)
    for streamed in (False, True):
        model = load_model(llama, streamed=streamed)
        evaluator = Evaluator(model, LayerBank(model), texts(), SPECIFICATION)
        found = [evaluator.evaluate(uniform(model, fmt)) for fmt in (INT4, FP16, Format(8, 16), INT4)]
        assert found[0] == found[3]
        expected = expected or found
        assert found == expected


class Watch:
    """A supply that knows how many of the weights it gave out are still somewhere."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights
        self.given: list[weakref.ref[np.ndarray]] = []
        self.most = 0
        self.order: list[str] = []

    def __call__(self, slot: Slot) -> torch.Tensor:
        gc.collect()
        # The tensor, and whatever shares its storage, keeps this array alive.
        array = self.weights[slot.name].numpy().copy()
        self.given.append(weakref.ref(array))
        self.order.append(slot.name)
        self.most = max(self.most, sum(reference() is not None for reference in self.given))
        return torch.from_numpy(array)


def test_at_most_one_layer_is_there_at_a_time(llama: Path) -> None:
    plain = load_model(llama)
    watch = Watch({name: each.data for name, each in plain.module.named_parameters()})
    twin = shared_copy(plain.module)
    stream(twin, slots_of(twin, plain.layers), watch)
    assert_same_outputs(plain.module, twin, texts())
    assert watch.most == 1
    # The tied embedding is looked up first and multiplied last; all others have their turn once a pass.
    assert len(watch.order) == len(plain.layers) + 1
    assert watch.order[0] == watch.order[-1]
    gc.collect()
    assert not any(reference() for reference in watch.given)


def test_a_pass_that_fails_leaves_no_weights_behind(llama: Path) -> None:
    model = load_model(llama, streamed=True)
    name = "model.layers.1.mlp.up_proj"

    def fail(*_: object) -> None:
        raise RuntimeError("stop here")

    hook = model.module.get_submodule(name).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        model.module(torch.tensor([[5, 6, 7]]))
    hook.remove()
    slots = {slot.name for slot in slots_of(model.module, model.layers)}
    assert {name for name, each in model.module.named_parameters() if each.is_meta} == slots


def test_a_shared_copy_shares_what_it_does_not_stream(llama: Path) -> None:
    model = load_model(llama, streamed=True)
    twin = shared_copy(model.module)
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    for name, each in model.module.named_parameters(remove_duplicate=False):
        assert theirs[name] is each
    # The copy has none of the hooks that fill the model: using it as it is fails loudly.
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        twin(torch.tensor([[5, 6, 7]]))


def test_a_large_candidate_shares_everything_with_the_baseline_that_is_not_compressed(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "HELD_BYTES", 0)
    model = load_model(llama)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    module = LayerBank(model).assemble(uniform(model, INT4))
    layers = {f"{layer.name}.weight" for layer in model.layers}
    for name, each in model.module.named_parameters():
        own = module.get_parameter(name)
        assert own.is_meta if name in layers else own is each
    module(torch.tensor([[5, 6, 7]]))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_cannot_be_compressed_is_said_before_the_model_runs(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    folder = copied(llama, tmp_path / "wide", weights)
    monkeypatch.setattr(candidates, "HELD_BYTES", 0)
    model = load_model(folder)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.up_proj: .*fp16"):
        LayerBank(model).assemble(uniform(model, FP16))


def copied(folder: Path, to: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """The folder with other weights, in one file or in several with an index."""
    to.mkdir(parents=True)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (to / path.name).write_bytes(path.read_bytes())
    if shards == 1:
        save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
        return to
    where = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(sorted(weights))}
    for file in set(where.values()):
        part = {name: weights[name] for name in weights if where[name] == file}
        save_file(part, to / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_and_precisions_are_read_as_they_are_in_memory(
    llama: Path, tmp_path: Path, dtype: torch.dtype, shards: int
) -> None:
    weights = {name: each.to(dtype) for name, each in load_file(llama / "model.safetensors").items()}
    folder = copied(llama, tmp_path / "model", weights, shards)
    # Some repositories have their weights a second time, in a form of their own.
    save_file({"other": torch.zeros(3)}, folder / "consolidated.safetensors")
    assert_same_outputs(load_model(folder).module, load_model(folder, streamed=True).module, texts())


def test_a_prefix_that_the_files_lack_is_added(llama: Path, tmp_path: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    folder = copied(
        llama, tmp_path / "bare", {name.removeprefix("model."): each for name, each in stored.items()}
    )
    assert_same_outputs(load_model(folder).module, load_model(folder, streamed=True).module, texts())


def test_streamed_calibration_counts_no_padding(tmp_path: Path) -> None:
    for name in ("llama_tied", "qwen2_moe", "opt"):
        folder = saved(built(*CASES[name]), tmp_path / name)
        sequences = [probe.tokens for probe in texts()]
        plain, streamed = (load_model(folder, streamed=each) for each in (False, True))
        first, second = Calibration(plain, sequences), Calibration(streamed, sequences)
        assert first.digest == second.digest
        seen = 0
        for layer in plain.layers:
            one, other = (each.statistics(layer.name, gram=True) for each in (first, second))
            assert (one is None) == (other is None)
            if one is None or other is None:
                continue
            seen += 1
            assert one.tokens == other.tokens
            torch.testing.assert_close(other.mean_square, one.mean_square, rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(other.gram, one.gram, rtol=1e-4, atol=1e-6)
        assert seen > 5


def test_streamed_calibration_reads_the_model_once_for_many_texts(llama: Path) -> None:
    model = load_model(llama, streamed=True)
    passes = []
    model.module.register_forward_pre_hook(lambda *_: passes.append(1))
    Calibration(model, [probe.tokens for probe in texts(8)]).statistics("model.layers.0.mlp.up_proj")
    assert len(passes) == 2  # one for all texts, and a short one to see who shares an input


def test_files_that_lack_a_weight_or_have_another_shape_are_refused(llama: Path, tmp_path: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    lacking = copied(llama, tmp_path / "lacking", {key: each for key, each in stored.items() if key != name})
    with pytest.raises(ModelError, match=f"missing {name}"):
        load_model(lacking, streamed=True)
    other = copied(llama, tmp_path / "other", {**stored, name: stored[name][:-1].clone()})
    model = load_model(other, streamed=True)
    with pytest.raises(ModelError, match="not of one model"):
        model.module(torch.tensor([[5, 6]]))
    norm = "model.norm.weight"
    small = copied(llama, tmp_path / "small", {**stored, norm: stored[norm][:-1].clone()})
    with pytest.raises(ModelError, match="not of one model"):
        load_model(small, streamed=True)
    tied = copied(
        llama, tmp_path / "tied", {**stored, "lm_head.weight": stored["model.embed_tokens.weight"] + 1}
    )
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_model(tied, streamed=True)
    whole = llama / "model.safetensors"
    cut = copied(llama, tmp_path / "cut", stored)
    (cut / "model.safetensors").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(cut, streamed=True)


def test_a_quantised_model_is_not_streamed(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "quantised", load_file(llama / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised already"):
        load_model(folder, streamed=True)


def test_damage_is_found_in_files_too(llama: Path, tmp_path: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    stored[name][2, 3] = torch.nan
    model = load_model(copied(llama, tmp_path / "damaged", stored), streamed=True)
    assert damaged_weights(model) == (name,)
    with pytest.raises(ModelError, match="k_proj"):
        require_whole(model)


def test_what_does_not_fit_is_streamed_and_the_environment_may_say_otherwise(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(each.numel() for each in load_file(llama / "model.safetensors").values())
    for free, expected in ((8 * weights, False), (8 * weights - 1, True), (None, False)):
        monkeypatch.setattr(load, "available_bytes", lambda free=free: free)
        assert load_model(llama).streamed is expected
    monkeypatch.setattr(load, "available_bytes", lambda: 0)
    monkeypatch.setenv("TOGGLE_EDGE_STREAM", "never")
    assert "in memory, as told" in load_model(llama).placement
    monkeypatch.setattr(load, "available_bytes", lambda: 10**15)
    monkeypatch.setenv("TOGGLE_EDGE_STREAM", "always")
    assert load_model(llama).placement.startswith("weights read from disk layer by layer, as told")
    monkeypatch.setenv("TOGGLE_EDGE_STREAM", "perhaps")
    with pytest.raises(ConfigError, match="TOGGLE_EDGE_STREAM"):
        load_model(llama)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 5000 * 1024),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "3000000\n",
                "sys/fs/cgroup/a/memory.current": "1000000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 70000\nactive_file 30000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "900000\n",
            },
            2_100_000,
        ),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "5:cpu,memory:/box\n0::/\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1500000\n",
                "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "7\n",
            },
            500_400,
        ),
        (  # inside a container the path is the host's
            {
                **MEMINFO,
                "proc/self/cgroup": "5:memory:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2500000\n",
            },
            0,
        ),
    ],
)
def test_available_memory_is_the_least_of_machine_and_control_groups(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert available_bytes(tmp_path) == expected
