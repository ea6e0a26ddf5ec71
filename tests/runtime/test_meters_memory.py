"""Peak memory of processes that take known amounts, against the kernel's own second account of it."""

from pathlib import Path

import pytest
from toggle_runtime.meters import memory


def test_peak_memory_agrees_with_the_kernel() -> None:
    resource = pytest.importorskip("resource")
    sample = memory.peak_of_this_process()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # an independent way to the same counter
    assert sample.peak_bytes == pytest.approx(peak_kib * 1024, rel=0.05)


def test_peak_memory_is_read_in_bytes() -> None:
    assert memory.peak_bytes("VmPeak:\t9 kB\nVmHWM:\t  123 kB\nVmRSS:\t1 kB\n") == 123 * 1024


@pytest.mark.parametrize("text", ["", "VmHWM:\n", "VmHWM: x kB\n", "VmHWM: 12\n", "VmRSS: 12 kB\n"])
def test_no_peak_is_none_with_a_reason(tmp_path: Path, text: str) -> None:
    status = tmp_path / "status"
    status.write_text(text)
    sample = memory.peak_of_this_process(status)
    assert sample.peak_bytes is None
    assert sample.reason
    assert memory.peak_of_this_process(tmp_path / "none").reason
