"""Parity on the device: the right weights pass, and one wrong bit of one code does not, signed or not."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from toggle_runtime import canary, passes
from toggle_runtime.backends.onnx import GRAPH, SIGNALS_GRAPH, exact_graph, write_exact_graph
from toggle_runtime.canary import TOLERANCE
from toggle_runtime.plan import Plan
from toggle_runtime.records import Manifest, digest_of, to_json

from toggle_edge.bundle import MANIFEST, Bundle, read_bundle
from toggle_edge.config import Config, Format
from toggle_edge.export.canary import canary_of
from toggle_edge.export.graphs import build_skeleton
from toggle_edge.export.parity import with_accuracy_level
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.packing import export as export_bundle
from toggle_edge.pipeline.packing import write_probes
from toggle_edge.pipeline.preparing import Prepared, prepare
from toggle_edge.profiles import load_profile
from toggle_edge.report.progress import silent
from toggle_edge.signing import sign, signing_key
from toggle_edge.sources import ProbeSource

FLIPS = 100
INT4, INT8 = Format(4, 32), Format(8, 64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = demo_folder()
    profile = load_profile("default")
    few = dataclasses.replace(profile, probes=dataclasses.replace(profile.probes, search=1, certificate=2))
    return prepare(folder / "model", few, [ProbeSource(None, str(folder / "probes.jsonl"))], silent)


@pytest.fixture(scope="module")
def bundle(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model with 4-bit and 8-bit layers in turn, as a signed bundle."""
    work = tmp_path_factory.mktemp("work")
    formats = {layer: INT8 if index % 6 == 5 else INT4 for index, layer in enumerate(prepared.layers)}
    skeleton = build_skeleton(prepared.model, work / "skeletons")
    extra = write_probes(prepared, work / "probes")
    exported = export_bundle(
        prepared, Config.of(formats), skeleton, extra, work / "bundle", key=signing_key()
    )
    return exported.bundle


@pytest.fixture(scope="module")
def run_folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's files as the agent lays them out for a run, copied so that they may be changed."""
    folder = tmp_path_factory.mktemp("run")
    for path, blob in bundle.manifest.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.blob_path(blob.sha256), folder / path)
    return folder


def parity(bundle: Bundle, folder: Path) -> float:
    """What the worker's parity pass says of the files in `folder`."""
    manifest = dataclasses.asdict(bundle.manifest)
    request = {"manifest": manifest, "bundle": str(folder), "threads": 1}
    sample = passes.parity(request, lambda **fields: None)["sample"]
    assert sample["compared"] == 2 * 64 * bundle.manifest.model.vocabulary
    return float(sample["max_abs_logit_difference"])


def code_bytes(prepared: Prepared, bundle: Bundle, layer: str) -> int:
    """Bytes of a 4-bit layer's codes, which lie at the beginning of its file."""
    matrix = next(each for each in prepared.model.layers if each.name == layer)
    assert matrix.columns % 32 == 0
    return matrix.rows * matrix.columns // 2


def test_the_exported_graph_is_within_rounding(bundle: Bundle, run_folder: Path) -> None:
    assert parity(bundle, run_folder) < TOLERANCE / 3


def test_every_one_of_100_random_flipped_bits_is_caught(
    prepared: Prepared, bundle: Bundle, run_folder: Path
) -> None:
    generator = np.random.default_rng(2026)
    layers = [layer for layer, text in bundle.manifest.config.items() if text == str(INT4)]
    sizes = np.array([code_bytes(prepared, bundle, layer) for layer in layers], dtype=float)
    missed, least = [], np.inf
    for _ in range(FLIPS):
        layer = str(generator.choice(layers, p=sizes / sizes.sum()))
        path = run_folder / "artifact" / "weights" / f"{layer}.bin"
        content = bytearray(path.read_bytes())
        position = int(generator.integers(code_bytes(prepared, bundle, layer)))
        bit = int(generator.integers(8))
        content[position] ^= 1 << bit
        path.write_bytes(content)
        difference = parity(bundle, run_folder)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        least = min(least, difference)
        if difference <= TOLERANCE:
            missed.append((layer, position, bit, difference))
    assert not missed, f"{len(missed)} of {FLIPS}"
    # Far from the tolerance, so that this does not hang on a lucky seed.
    assert least > 3 * TOLERANCE


def test_a_signed_bundle_with_one_wrong_code_ends_as_an_error_on_the_device(
    prepared: Prepared, bundle: Bundle, tmp_path: Path
) -> None:
    wrong = resigned(bundle, tmp_path / "wrong", lambda content: content[1000] ^ 4)
    assert read_bundle(wrong.folder).signed_by == signing_key().name, "nothing else is wrong with it"
    device = Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)
    plan = Plan(["parity", "verify"], pass_timeout_s=120.0)
    record = run_bundle(device, wrong, plan, tmp_path / "home").record
    assert record.outcome == "ERROR"
    assert str(record.reason).startswith("parity: the artifact does not compute what was searched")
    assert record.parity is not None
    assert record.parity.max_abs_logit_difference > TOLERANCE
    assert record.modes == [], "nothing more is run"


def resigned(bundle: Bundle, folder: Path, change: Callable[[bytearray], int]) -> Bundle:
    """A copy with one changed byte of the first layer's codes, its digests and signature made to fit."""
    shutil.copytree(bundle.folder, folder)
    path = "artifact/weights/model.layers.0.self_attn.q_proj.bin"
    old = bundle.manifest.files[path]
    content = bytearray(bundle.blob_path(old.sha256).read_bytes())
    content[1000] = change(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(content)
    files = {**bundle.manifest.files, path: dataclasses.replace(old, sha256=digest)}
    manifest: Manifest = sign(signing_key(), dataclasses.replace(bundle.manifest, files=files))
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
    return Bundle(digest_of(to_json(manifest)), manifest, folder, signing_key().name)


@pytest.mark.parametrize("name", [GRAPH, SIGNALS_GRAPH])
def test_a_graph_is_made_exact_as_an_editor_of_graphs_would(run_folder: Path, name: str) -> None:
    path = run_folder / "artifact" / name
    edited = with_accuracy_level(onnx.load(path, load_external_data=False), 0)
    patched = onnx.ModelProto.FromString(exact_graph(path.read_bytes()))
    assert patched == edited
    levels = [a.i for node in patched.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels
    assert set(levels) == {0}


def test_making_a_graph_exact_changes_no_file_that_others_share(run_folder: Path, tmp_path: Path) -> None:
    shared = tmp_path / "blob"
    shared.write_bytes(b"another bundle's")
    (tmp_path / GRAPH).write_bytes((run_folder / "artifact" / GRAPH).read_bytes())
    (tmp_path / "exact.onnx").hardlink_to(shared)
    assert write_exact_graph(tmp_path) == "exact.onnx"
    assert shared.read_bytes() == b"another bundle's"
    assert (tmp_path / "exact.onnx").read_bytes() == exact_graph((tmp_path / GRAPH).read_bytes())


def test_a_bundle_without_a_canary_has_no_parity(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="canary"):
        parity(bundle, tmp_path)


def test_large_vocabularies_keep_every_nth_logit(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "MAX_LOGITS", 10_000)
    kept = canary_of(tiny.module, range(20), vocabulary=512, context_tokens=256)
    assert kept.stride == 7
    assert kept.logits.shape == (2, 64, 74)
    with torch.inference_mode():
        logits = tiny.module(torch.from_numpy(kept.tokens)).logits.numpy()
    assert canary.compare(kept, logits, 512).max_abs_logit_difference < 1e-5
    logits[1, 63, 511] += 1.0
    covered = {(p, int(i)) for p in range(128) for i in canary.ids_at(p, 7, 512)}
    expected = 1.0 if (127, 511) in covered else 0.0
    assert canary.compare(kept, logits, 512).max_abs_logit_difference == pytest.approx(expected, abs=1e-5)


def test_a_short_context_makes_a_short_canary(tiny: LanguageModel) -> None:
    kept = canary_of(tiny.module, [5, 6, 7], vocabulary=512, context_tokens=16)
    assert kept.tokens.shape == (2, 16)
    assert kept.tokens[0].tolist() == [5, 6, 7] * 5 + [5]
    assert kept.prompt_tokens == 8
