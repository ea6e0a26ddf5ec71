"""Meters against a fake sysfs whose joules we know, and against psutil for memory."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime import meters
from toggle_runtime.meters import memory, rapl
from toggle_runtime.meters.sampler import Mark, Sampler, power_mw

RANGE = 262_143_328_850


class FakeRapl:
    """Two packages, their sub-zones, psys, and the mmio twin of the first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zone("intel-rapl:0", "package-0", 1000)
        self.zone("intel-rapl:0:0", "core", 7_000_000)
        self.zone("intel-rapl:1", "package-1", 2000)
        self.zone("intel-rapl:2", "psys", 9_000_000)
        self.zone("intel-rapl-mmio:0", "package-0", 5_000_000)

    def zone(self, folder: str, name: str, energy_uj: int) -> None:
        path = self.root / "class" / "powercap" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (path / "energy_uj").write_text(f"{energy_uj}\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeRapl:
    return FakeRapl(tmp_path)


def test_only_packages_count_each_once(sysfs: FakeRapl) -> None:
    assert [zone.name for zone in rapl.zones(sysfs.root)] == ["package-0", "package-1"]
    counter = rapl.Counter(sysfs.root)
    sysfs.zone("intel-rapl:0", "package-0", 1000 + 3_000_000)
    sysfs.zone("intel-rapl:1", "package-1", 2000 + 500_000)
    sysfs.zone("intel-rapl-mmio:0", "package-0", 99_000_000)
    sysfs.zone("intel-rapl:2", "psys", 99_000_000)
    assert counter.read_mj() == 3500.0
    assert counter.read_mj() == 3500.0


def test_a_wrap_loses_nothing(sysfs: FakeRapl) -> None:
    sysfs.zone("intel-rapl:0", "package-0", RANGE - 1_000_000)
    counter = rapl.Counter(sysfs.root)
    sysfs.zone("intel-rapl:0", "package-0", 2_000_000)
    assert counter.read_mj() == 3000.0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, RANGE - 1), st.integers(0, RANGE - 1))
def test_delta_is_the_energy_modulo_the_range(before: int, spent: int) -> None:
    assert rapl.delta_uj(before, (before + spent) % RANGE, RANGE) == spent


def test_no_powercap_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    meter, reason = meters.find_energy(tmp_path)
    assert meter is None
    assert "no /sys/class/powercap" in reason


def test_one_unreadable_package_makes_the_sum_unavailable(sysfs: FakeRapl) -> None:
    (sysfs.root / "class/powercap/intel-rapl:1/energy_uj").unlink()
    meter, reason = meters.find_energy(sysfs.root)
    assert meter is None
    assert "cannot read RAPL" in reason


def test_garbage_is_unavailable_not_zero(sysfs: FakeRapl) -> None:
    (sysfs.root / "class/powercap/intel-rapl:1/energy_uj").write_text("\n")
    assert "cannot read RAPL" in (rapl.unavailable(sysfs.root) or "")


def test_a_permission_error_names_the_fix(sysfs: FakeRapl, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(zone: rapl.Zone) -> int:
        raise PermissionError(13, "Permission denied", str(zone.path))

    monkeypatch.setattr(rapl, "read_uj", denied)  # root may read everything, so the file mode cannot say no
    reason = rapl.unavailable(sysfs.root)
    assert reason is not None
    assert reason.startswith("permission: ")
    assert "fix:" in reason


def test_a_readable_meter_is_found(sysfs: FakeRapl) -> None:
    assert meters.find_energy(sysfs.root) == (rapl, "")


def test_the_sampler_sees_each_wrap_of_a_long_window(
    sysfs: FakeRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toggle_runtime.meters.sampler.INTERVAL_S", 0.01)
    spent = 0
    with Sampler(rapl.Counter(sysfs.root)) as sampler:
        start = sampler.mark()
        for _ in range(4):  # 0.6 of the range each time: two marks alone could not tell how often it wrapped
            spent += RANGE * 6 // 10
            path = sysfs.root / "class/powercap/intel-rapl:0/energy_uj"
            partial = path.with_suffix(".new")
            partial.write_text(str((1000 + spent) % RANGE))
            partial.replace(path)
            time.sleep(0.1)
        end = sampler.mark()
    assert start is not None
    assert end is not None
    assert sampler.gap is None
    assert end.energy_mj - start.energy_mj == pytest.approx(spent / 1000)


def test_a_failed_read_is_a_gap(sysfs: FakeRapl) -> None:
    with Sampler(rapl.Counter(sysfs.root)) as sampler:
        (sysfs.root / "class/powercap/intel-rapl:0/energy_uj").unlink()
        assert sampler.mark() is None
    assert sampler.gap is not None


def test_power_is_energy_over_time() -> None:
    assert power_mw(Mark(1.0, 500.0), Mark(3.0, 2500.0)) == 1000.0


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
