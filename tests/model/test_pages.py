"""What was read of a mapped file does not gather in memory, and reads the same again."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from toggle_edge.model.pages import Pages

MIB = 2**20


def file_pages() -> int:
    """Bytes of mapped files in this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not say")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(MIB, generator=generator) for i in range(16)}
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_what_was_read_is_given_back_and_reads_the_same(path: Path) -> None:
    with safe_open(path, framework="pt") as opened:
        pages, sums, views = Pages(path, kept_bytes=8 * MIB), {}, {}
        gc.collect()
        before = file_pages()
        for name in opened.keys():  # noqa: SIM118  (not a mapping)
            views[name] = opened.get_tensor(name)
            sums[name] = float(views[name].double().sum())
            pages.note(views[name])
        assert file_pages() - before < 24 * MIB, "64 MiB were read, 8 are kept"
        assert {name: float(view.double().sum()) for name, view in views.items()} == sums


def test_all_stays_that_is_less_than_what_is_kept(path: Path) -> None:
    with safe_open(path, framework="pt") as opened:
        pages, before = Pages(path), file_pages()
        for name in opened.keys():  # noqa: SIM118
            view = opened.get_tensor(name)
            view.sum()
            pages.note(view)
        assert file_pages() - before > 48 * MIB


def test_memory_that_is_no_files_is_left_alone(path: Path) -> None:
    pages = Pages(path, kept_bytes=0)
    values = [torch.ones(MIB) for _ in range(4)]
    for each in values:
        pages.note(each)
    assert all(bool((each == 1).all()) for each in values)
