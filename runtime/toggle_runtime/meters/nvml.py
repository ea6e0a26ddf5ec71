"""Energy of NVIDIA GPUs through the driver's own library, by ctypes: nothing has to be installed for it.

On Jetson the library loads and then knows nothing, so what counts is a field that was read; on Tegra the rails' sensors
are there instead, and this meter is never chosen.
"""

from typing import Any, Callable, List, Optional, Sequence

from toggle_runtime.meters.meter import Channel, Meter, Taken, UnavailableError
from toggle_runtime.tree import Tree

NAME = "nvml"
METHOD = "NVML, summed over the device's GPUs"

WINDOW_S = 5.0
PERIOD_S = 0.1
_LIBRARY = "libnvidia-ml.so.1"


def open_meter(tree: Tree, load: Optional[Callable[[str], Any]] = None) -> Meter:
    """Energy counters where every GPU has one, else powers. Raises UnavailableError with NVML's own words."""
    if any(each.startswith("nvidia,tegra") for each in tree.compatible()):
        raise UnavailableError("this is a Tegra: its NVML tells no power, the board's rails do")
    if load is None and tree.known("proc/driver/nvidia/version") is None:
        raise UnavailableError("no NVIDIA driver on this device")
    import ctypes  # only where there may be such a GPU: it costs the agent memory

    try:
        library = (load or ctypes.CDLL)(_LIBRARY)
    except OSError as exc:
        raise UnavailableError(f"{_LIBRARY}: {exc}") from exc
    _ask(library, "nvmlInit_v2")
    count = ctypes.c_uint()
    _ask(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        gpu = ctypes.c_void_p()
        _ask(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(gpu))
        gpus.append(gpu)
    if not gpus:
        raise UnavailableError("NVML knows no GPU on this device")

    def energies() -> List[float]:
        return [
            _number(library, "nvmlDeviceGetTotalEnergyConsumption", gpu, ctypes.c_ulonglong()) for gpu in gpus
        ]

    def powers() -> List[float]:
        return [_number(library, "nvmlDeviceGetPowerUsage", gpu, ctypes.c_uint()) for gpu in gpus]

    try:
        energies()
        counts, read = True, energies
    except UnavailableError:
        powers()
        counts, read = False, powers
    return _meter(len(gpus), counts, read)


def _meter(gpus: int, counts: bool, read: Callable[[], Sequence[float]]) -> Meter:
    what = "energy counter" if counts else "power, trapezoids over the readings' times"
    return Meter(
        name=NAME,
        method=f"{METHOD}; {what}",
        scope="gpu",
        # A counter of millijoules; powers are shown in milliwatts, and renewed within a tenth of a second.
        channels=tuple(Channel(f"gpu{index}", step=1.0) for index in range(gpus)),
        read=lambda: Taken(tuple(read())),
        period_s=PERIOD_S,
        least_window_s=WINDOW_S,
        plausible_mw=(1e3, 1e7),
        counts=counts,
        averages=counts,
    )


def _number(library: Any, function: str, gpu: Any, value: Any) -> float:
    import ctypes

    _ask(library, function, gpu, ctypes.byref(value))
    return float(value.value)


def _ask(library: Any, function: str, *arguments: Any) -> None:
    """Raises UnavailableError, naming the field, when NVML does not answer with success."""
    try:
        status = int(getattr(library, function)(*arguments))
    except AttributeError:
        raise UnavailableError(f"this driver's NVML has no {function}") from None
    if status:
        raise UnavailableError(f"{function}: {_REASONS.get(status, f'NVML error {status}')}")


_REASONS = {
    1: "NVML is not initialised",
    3: "not supported by this GPU",
    4: "permission: not for this user",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU was lost",
}
