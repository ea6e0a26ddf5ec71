"""Entries on disk: made once, whole or not there, whatever happens to the process that makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from toggle_edge.compress.entries import EntryKey, entry, weights_digest
from toggle_edge.compress.quantise import CompressedLayer, dequantise, quantise
from toggle_edge.config import Format

FILLER = """
import os, sys, time
from pathlib import Path
import torch
from toggle_edge.compress.entries import EntryKey, entry
from toggle_edge.compress.quantise import quantise
from toggle_edge.config import Format

folder, name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def make(index):
    def made():
        with (folder / "made.txt").open("a") as log:
            log.write(f"{index} {name} {os.getpid()}\\n")
        time.sleep(0.03)
        return quantise(torch.full((4, 64), float(index)), Format(4, 32))
    return made

print("ready", flush=True)
for index in range(40):
    entry(folder / "bank", EntryKey(f"w{index}", "int4-g32"), make(index))
print("done", flush=True)
"""


def layer(seed: int = 0) -> CompressedLayer:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    return quantise(weight, Format(4, 32))


def never() -> CompressedLayer:
    raise AssertionError("it is there already")


def equal(first: CompressedLayer, second: CompressedLayer) -> bool:
    return torch.equal(dequantise(first), dequantise(second)) and first.format == second.format


@pytest.mark.parametrize("text", ["int2-g64", "int4-g32", "int8-axis", "fp16", "fp32"])
def test_what_is_kept_comes_back_bit_by_bit(tmp_path: Path, text: str) -> None:
    weight = torch.randn(5, 70)
    made = quantise(weight, Format.parse(text))
    key = EntryKey(weights_digest(weight), text)
    assert entry(tmp_path, key, lambda: made) is made
    back = entry(tmp_path, key, never)
    assert (back.format, back.rows, back.columns) == (made.format, 5, 70)
    assert back.codes.dtype == made.codes.dtype
    assert torch.equal(back.codes, made.codes)
    assert equal(back, made)


def test_a_weight_that_is_no_number_survives(tmp_path: Path) -> None:
    weight = torch.ones(2, 32)
    weight[0, 0] = torch.nan
    key = EntryKey("nan", "int4-g32")
    entry(tmp_path, key, lambda: quantise(weight, Format(4, 32)))
    assert bool(torch.isnan(dequantise(entry(tmp_path, key, never))[0]).all())


def test_everything_it_depends_on_is_another_entry(tmp_path: Path) -> None:
    keys = [
        EntryKey("a", "int4-g32"),
        EntryKey("b", "int4-g32"),
        EntryKey("a", "int4-g64"),
        EntryKey("a", "int4-g32", "hqq"),
        EntryKey("a", "int4-g32", "rtn", "texts"),
    ]
    assert len({key.digest for key in keys}) == len(keys)
    weight = torch.arange(12.0).reshape(3, 4)
    digests = {
        weights_digest(each) for each in (weight, weight + 1, weight.T.contiguous(), weight.reshape(4, 3))
    }
    assert len(digests) == 4
    assert weights_digest(weight.T) == weights_digest(weight.T.contiguous())


@pytest.mark.parametrize("position", [10, 200, -1])
def test_a_file_that_rotted_is_made_again(tmp_path: Path, position: int) -> None:
    key, good = EntryKey("a", "int4-g32"), layer()
    entry(tmp_path, key, lambda: good)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    assert entry(tmp_path, key, lambda: good) is good
    assert equal(entry(tmp_path, key, never), good)


@pytest.mark.parametrize("kept", [0, 7, 300])
def test_a_truncated_file_is_made_again(tmp_path: Path, kept: int) -> None:
    key, good = EntryKey("a", "int4-g32"), layer()
    entry(tmp_path, key, lambda: good)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    assert entry(tmp_path, key, lambda: good) is good


def test_another_entrys_file_is_not_taken(tmp_path: Path) -> None:
    entry(tmp_path, EntryKey("a", "int4-g32"), lambda: layer(0))
    (path,) = tmp_path.rglob("*.safetensors")
    other = EntryKey("b", "int4-g32")
    place = tmp_path / other.digest[:2] / f"{other.digest}.safetensors"
    place.parent.mkdir(exist_ok=True)
    path.rename(place)
    fresh = layer(1)
    assert entry(tmp_path, other, lambda: fresh) is fresh


def test_what_cannot_be_kept_is_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "bank").write_text("a file")
    made = layer()
    assert entry(tmp_path / "bank", EntryKey("a", "int4-g32"), lambda: made) is made


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    made = layer()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert entry(tmp_path, EntryKey("a", "int4-g32"), lambda: made) is made
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]


def test_two_processes_fill_one_bank_and_a_killed_one_harms_nothing(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", FILLER, str(tmp_path), name], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    victim, survivor = start("victim"), start("survivor")
    deadline = time.monotonic() + 60
    log = tmp_path / "made.txt"
    while not (log.is_file() and "victim" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert survivor.communicate(timeout=60)[0] == "done\n"
    lines = [line.split() for line in log.read_text().splitlines()]
    made = [index for index, name, _ in lines if name == "survivor"]
    assert len(made) == len(set(made)), "nothing is computed twice by who survives"
    both = {index for index, name, _ in lines if name == "victim"} & set(made)
    assert len(both) <= 1, "but what the victim was at"
    for index in range(40):
        whole = entry(tmp_path / "bank", EntryKey(f"w{index}", "int4-g32"), never)
        assert torch.allclose(dequantise(whole), torch.full((4, 64), float(index)), rtol=1e-6)
    late = start("late")
    assert late.communicate(timeout=60)[0] == "done\n"
    assert "late" not in log.read_text()
    victim.stdout.close() if victim.stdout else None


def test_a_file_is_verified_once_and_again_when_it_changed(tmp_path: Path) -> None:
    key, seals = EntryKey("w0", "int4-g32"), set()
    entry(tmp_path, key, layer)
    (path,) = tmp_path.rglob("*.safetensors")
    entry(tmp_path, key, never, seals)
    assert len(seals) == 1
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    made = []
    found = entry(tmp_path, key, lambda: made.append(1) or layer(), seals)
    assert made
    assert torch.equal(found.codes, layer().codes)
