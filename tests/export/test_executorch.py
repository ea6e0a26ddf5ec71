"""ExecuTorch: our codes, lowered in a process of their own, compute what torchao computes; on the runner too."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CASES, built, saved
from lowerings import MIXED, NARROW, PROMPT, TOKENS, request_of
from runners import answers, why_not_run
from toggle_runtime.canary import read_canary

from toggle_edge.compress.quantise import quantise
from toggle_edge.config import FP16, Format
from toggle_edge.errors import ConfigError, ExportError, ParityError
from toggle_edge.export import EXPORTERS, Made
from toggle_edge.export.executorch import exporting, overlay
from toggle_edge.export.executorch.exporting import require_kernels, why_not
from toggle_edge.export.executorch.job import Job, read_job, write_job
from toggle_edge.export.executorch.runner import runner
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.structure import Kept, KeptBlock


@pytest.mark.timeout(900)
def test_programs_compute_what_torchao_computes(made: dict[str, Made]) -> None:
    for name, each in made.items():
        files = [path for path in each.artifact.files if path.startswith("weights/")]
        assert "model.pte" in each.artifact.files
        assert each.artifact.files.keys() == {"model.pte", *files}, name
        assert each.activations is not None
        assert each.parity <= 5 * each.activations + 1e-4, name
    # Nothing is quantised here, so nothing is explained away.
    assert made["gpt2"].parity <= 1e-4
    assert made["gpt2"].activations is not None
    assert made["gpt2"].activations <= 1e-4
    assert made["llama"].activations is not None
    assert made["llama"].activations > 1e-4


@pytest.mark.timeout(900)
def test_each_layer_has_a_file_that_candidates_share(
    models: dict[str, LanguageModel], made: dict[str, Made]
) -> None:
    whole, narrow = made["llama"].artifact, made["narrowed"].artifact
    expected = {f"weights/{layer.name}.ptd" for layer in models["llama"].layers} | {"weights/shared.ptd"}
    assert {path for path in whole.files if path.startswith("weights/")} == expected
    same = {
        path
        for path in whole.files
        if path in narrow.files and (whole.folder / path).read_bytes() == (narrow.folder / path).read_bytes()
    }
    cut = {
        f"weights/{layer.name}.ptd"
        for layer, other in zip(models["llama"].layers, models["llama"].remaining(NARROW), strict=True)
        if layer != other
    }
    assert len(cut) == 7
    assert same == expected - cut, "layers that structure does not touch, and norms"


@pytest.mark.timeout(900)
def test_the_same_candidate_is_lowered_once(
    models: dict[str, LanguageModel],
    made: dict[str, Made],
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "_run", lambda folder: pytest.fail("lowered again"))
    request = dataclasses.replace(request_of(models["gpt2"], ("fp32",)), shelf=kept)
    again = exporting.export(None, request, tmp_path / "again")
    first = made["gpt2"]
    assert dataclasses.replace(again, artifact=first.artifact, canary=first.canary) == first
    assert again.artifact.files.keys() == first.artifact.files.keys()
    for name in first.artifact.files:
        assert (again.artifact.folder / name).read_bytes() == (first.artifact.folder / name).read_bytes()
    assert again.canary.read_bytes() == first.canary.read_bytes()
    other = dataclasses.replace(request_of(models["gpt2"], ("fp16",)), shelf=kept)
    with pytest.raises(pytest.fail.Exception, match="lowered again"):
        exporting.export(None, other, tmp_path / "other")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", ["llama", "narrowed", "gpt2"])
def test_the_runner_reproduces_the_canary_and_the_reference(
    name: str, machine: str, made: dict[str, Made], tmp_path: Path
) -> None:
    if (why := why_not_run(machine)) is not None:
        pytest.skip(why)
    each = made[name]
    canary = read_canary(each.canary, 512)
    row = canary.tokens[0].tolist()
    ids = " ".join(map(str, row))
    requests = (
        f"generate 12 {' '.join(map(str, TOKENS[:PROMPT]))}",
        f"logits {tmp_path}/logits {canary.prompt_tokens} {ids}",
        f"signals {tmp_path}/signals {ids}",
    )
    loaded, generated, written, signals = answers(machine, each.artifact.folder, *requests)
    assert loaded["threads"] == 1
    assert loaded["ns"] > 0
    assert len(generated["ns"]) == len(generated["tokens"]) == 12
    assert all(ns > 0 for ns in generated["ns"])
    logits = np.fromfile(tmp_path / "logits", np.float32).reshape(written["shape"])
    assert logits.shape == (len(row), 512)
    difference = np.abs(logits - canary.logits[0])
    # On this machine it is the program that was compared; elsewhere activations may round otherwise.
    assert difference.max() <= max(2 * each.parity, 1e-4 if name == "gpt2" else 0.1)
    shapes = [tuple(shape) for shape in signals["shapes"]]
    rows, states = shapes[1:3], shapes[3:]
    assert shapes[0] == (1, len(row), 512)
    assert states == [(1, len(row), 64)] * 2
    flat = np.fromfile(tmp_path / "signals", np.float32)
    assert flat.size == sum(int(np.prod(shape)) for shape in shapes)
    attention = flat[int(np.prod(shapes[0])) :][: int(np.prod(rows[0]))].reshape(rows[0])
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)
    # A query sees itself and what is before it; heads of a group lie one after the other.
    assert not np.triu(attention.reshape(-1, len(row), len(row)), 1).any()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_tokens_are_the_same_on_both_architectures(
    name: str, made: dict[str, Made], tmp_path: Path
) -> None:
    for machine in ("x86_64", "aarch64"):
        if (why := why_not_run(machine)) is not None:
            pytest.skip(why)
    folder, ids = made[name].artifact.folder, TOKENS[:PROMPT]
    request = f"generate 16 {' '.join(map(str, ids))}"
    one, other = (answers(machine, folder, request)[1]["tokens"] for machine in ("x86_64", "aarch64"))
    first = next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
    if name == "gpt2" or first is None:
        assert one == other
        return
    # Where activations are rounded, two tokens that are about equally likely may change places, and nothing else.
    read = " ".join(map(str, [*ids, *one[:first]]))
    written = answers("x86_64", folder, f"logits {tmp_path}/logits {PROMPT} {read}")[1]
    last = np.fromfile(tmp_path / "logits", np.float32).reshape(written["shape"])[-1]
    assert last[one[first]] - last[other[first]] <= 0.2


@pytest.mark.timeout(900)
def test_the_runner_refuses_what_it_cannot_do(made: dict[str, Made], tmp_path: Path) -> None:
    if (why := why_not_run("x86_64")) is not None:
        pytest.skip(why)
    folder = made["gpt2"].artifact.folder
    for request, said in (
        ("dance 1", "expected generate, stream, logits or signals"),
        ("generate 0 1", "whole number from 1"),
        ("generate 4", "expected token ids"),
        ("generate 4 1 x", "got 'x'"),
        (f"logits {tmp_path}/none/file 1 1 2", "cannot write"),
        (f"logits {tmp_path}/file 3 1 2", "longer than the ids"),
        ("generate 100 1", "ExecuTorch error"),  # more than the cache holds
        ("generate 2 " + "1 " * 2**19, "1 MiB"),
    ):
        error = answers("x86_64", folder, request)[-1]
        assert error["event"] == "error"
        assert said in error["message"], request
    assert "whole number" in answers("x86_64", folder, threads="many")[-1]["message"]
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.pte").write_bytes((folder / "model.pte").read_bytes())
    assert answers("x86_64", tmp_path)[-1]["event"] == "error", "a program without its weights"


@pytest.mark.timeout(900)
def test_a_candidate_that_is_not_what_was_searched_is_refused(
    models: dict[str, LanguageModel], lowering: None, tmp_path: Path
) -> None:
    request = request_of(models["llama"], ("fp32",))

    def damaged(input_ids: torch.Tensor, use_cache: bool) -> Any:
        found = models["llama"].module(input_ids=input_ids, use_cache=use_cache)
        found.logits[0, 3, 5] += 3e-4
        return found

    other: Any = type("Damaged", (torch.nn.Module,), {"forward": staticmethod(damaged)})()
    other.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ParityError, match=r"expected values within 0\.0001 of the model's"):
        exporting.export(None, dataclasses.replace(request, assemble=lambda: other), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.timeout(900)
def test_a_program_with_one_wrong_code_does_not_pass(
    models: dict[str, LanguageModel], lowering: None, made: dict[str, Made], tmp_path: Path
) -> None:
    """The gate for quantised activations, which must not take a wrong weight for a value between two steps."""
    request = request_of(models["llama"], MIXED)
    tokens, folder = tuple(TOKENS), made["llama"].artifact.folder
    logits = request.candidate(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]
    job = Job(
        request.model.folder, request.model.digest, request.layers, None, 64, 64, tokens, PROMPT, logits
    )
    write_job(job, tmp_path)
    script = tmp_path / "gate.py"
    script.write_text(GATE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(folder)],
        env=exporting.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-800:]
    assert lines[0] == "right: passed"
    assert all("ParityError" in line for line in lines[1:]), lines
    assert len(lines) == 5


GATE = """
import shutil, sys
from pathlib import Path
from toggle_edge.errors import ParityError
from toggle_edge.export.executorch.families import decoder_of
from toggle_edge.export.executorch.job import read_job
from toggle_edge.export.executorch.parity import Program, check_program
from toggle_edge.model.load import load_model

work, artifact = map(Path, sys.argv[1:])
job = read_job(work)
model = load_model(job.model)
decoder, _ = decoder_of(model.module, job.layers, embedding="model.embed_tokens", tied=True, capacity=job.capacity)


def tried(name, file, kind=Program):
    copy = work / name
    shutil.copytree(artifact, copy)
    if file:
        path = copy / "weights" / file
        content = bytearray(path.read_bytes())
        # The last tensor's bytes but one end the file, before padding.
        place = max(index for index, value in enumerate(content[:-300]) if value)
        content[place] ^= 0x40
        path.write_bytes(bytes(content))
    try:
        check_program(kind(copy, copy), decoder, job.tokens, job.prompt_tokens, job.logits)
        print(f"{name}: passed")
    except ParityError as exc:
        print(f"{name}: ParityError: {exc}")


class Silent(Program):
    # Right in all but the last number of the last hidden state.
    def run(self, *asked):
        found = super().run(*asked)
        if len(found) > 1:
            found[-1].view(-1)[-1] = float("nan")
        return found


tried("right", None)
tried("a number that is not one", None, Silent)
tried("embedding", "model.embed_tokens.ptd")
tried("int8", "model.layers.0.self_attn.o_proj.ptd")
tried("fp16", "model.layers.0.mlp.gate_proj.ptd")
"""


def test_formats_without_a_kernel_are_refused_with_the_nearest(tiny: LanguageModel) -> None:
    layer, embedding = Layer("layer", "q", 8, 64), Layer("embedding", "embedding", 8, 64, multiplied=False)
    tied = dataclasses.replace(embedding, multiplied=True)
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))

    def refused(of: Layer, text: str, *, quantiser: str = "rtn", narrow: bool = True) -> str:
        stored = quantise(weight, Format.parse(text), quantiser=quantiser, narrow_scales=narrow)
        with pytest.raises(ConfigError) as caught:
            require_kernels({of.name: stored}, {of.name: of})
        return str(caught.value)

    assert refused(layer, "int4-g64").endswith("for is int4-g32")
    assert refused(layer, "int2-g32").endswith("for is int4-g32")
    assert refused(layer, "int8-g32").endswith("for is int8-axis")
    assert refused(layer, "int9-g32").endswith("for is fp16")
    assert refused(embedding, "int3-g32").endswith("for is int4-g32")
    said = refused(tied, "int2-g32")
    assert "its head is multiplied by it; the nearest format" in said
    assert said.endswith("for is int4-g32")
    assert "choose a smaller group" in refused(embedding, "int4-g128")
    assert "lies between two codes" in refused(layer, "int4-g32", quantiser="seq")
    assert "positive scales only" in refused(layer, "int4-g32", narrow=False)
    for text in ("int4-g32", "int4-g128", "int8-axis", "fp16", "fp32"):
        stored = quantise(weight, Format.parse(text), narrow_scales=True)
        require_kernels({"layer": stored}, {"layer": layer})


def test_only_architectures_that_are_written_out_are_taken(
    tmp_path: Path, tiny: LanguageModel, gpt2: LanguageModel
) -> None:
    assert why_not(tiny) is None
    assert why_not(gpt2) is None
    kind, options = CASES["mistral"]
    other = load_model(saved(built(kind, options), tmp_path))
    assert "expected an architecture among gpt2, llama" in str(why_not(other))
    with pytest.raises(ExportError, match="got 'mistral'"):
        exporting.begin(other, tmp_path)


def test_a_job_arrives_as_it_was_sent(tiny: LanguageModel, tmp_path: Path) -> None:
    layers = {
        "a": quantise(torch.randn(4, 70), Format(4, 32)),
        "b.c": quantise(torch.randn(4, 8), FP16),
    }
    kept = Kept(3, (KeptBlock(0, (0, 2), (1,)), KeptBlock(2, (1,), (0, 1))))
    job = Job(tmp_path, "digest", layers, kept, 64, 32, (1, 2), 1, torch.randn(2, 5))
    write_job(job, tmp_path)
    found = read_job(tmp_path)
    assert dataclasses.replace(found, layers={}, logits=job.logits) == dataclasses.replace(job, layers={})
    assert torch.equal(found.logits, job.logits)
    for name, layer in layers.items():
        for part in dataclasses.fields(layer):
            one, other = getattr(layer, part.name), getattr(found.layers[name], part.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert b"pickle" not in (tmp_path / "job.json").read_bytes()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path))
    return tmp_path


def test_an_overlay_that_cannot_be_fetched_says_what_to_do(offline: Path) -> None:
    with pytest.raises(ExportError, match="connect this host to a package index once, or copy that folder"):
        overlay.overlay()
    assert [path.name for path in (offline / "executorch").iterdir()] == ["lock"], "nothing half made is left"


def test_a_runner_needs_a_compiler(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner.__globals__, "sdk", lambda machine: offline)
    monkeypatch.setenv("PATH", str(offline))
    with pytest.raises(
        ExportError, match=r"expected a C\+\+ compiler for aarch64 \(aarch64-linux-gnu-g\+\+\)"
    ):
        runner("aarch64")
    with pytest.raises(ExportError, match="expected one of x86_64, aarch64, got 'armv7l'"):
        overlay.sdk("armv7l")


def test_the_host_never_imports_executorch() -> None:
    code = "import sys, json, toggle_edge.pipeline.exporting; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "executorch" not in loaded
    assert "executorch-xnnpack" in EXPORTERS
    # What may import it runs in the other process alone.
    folder = Path(exporting.__file__).parent
    inside = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] in ("executorch", "torchao") for name in names):
                inside.add(path.stem)
    assert inside == {"parity", "programs", "weights"}
