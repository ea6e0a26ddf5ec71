"""The input rail of newer Jetson boards (Thor): an INA238, whose hwmon driver computes power itself, in microwatts."""

from typing import List

from toggle_runtime.meters.meter import Channel, Meter, Taken, UnavailableError, denied
from toggle_runtime.tree import Tree

NAME = "ina238"
METHOD = "INA238 power of the input rail, trapezoids over the readings' times"

FASTEST_S = 0.02
WINDOW_S = 10.0
MOST_APART = 0.25
"""Power, voltage and current are read one after the other, so they differ a little; not by a factor."""


def open_meter(tree: Tree) -> Meter:
    """The rail VIN. Raises UnavailableError, OSError or ValueError; where the chip's voltage times its current is not
    its power, the driver has another unit, and nothing is read."""
    folders = [each for each in tree.glob("sys/class/hwmon/hwmon*") if tree.known(f"{each}/name") == NAME]
    if not folders:
        raise UnavailableError("no ina238 below /sys/class/hwmon on this device")
    chosen = _input_of(tree, folders)
    path = f"{chosen}/power1_input"

    def read() -> Taken:
        try:
            power_mw = tree.integer(path, again=True) / 1000
        except PermissionError as exc:
            raise denied(path, "sudo chmod a+r on it, until the next boot") from exc
        if power_mw < 0:
            raise ValueError(f"/{path}: expected a power of 0 or more, got {power_mw:.0f} mW")
        return Taken((power_mw,))

    _require_microwatts(tree, chosen, read().values[0])
    interval = tree.known(f"{chosen}/update_interval") or "0"
    update_s = int(interval) / 1000 if interval.isdigit() else 0.0
    return Meter(
        name=NAME,
        method=METHOD,
        scope="module (VIN)",
        channels=(Channel("VIN"),),
        read=read,
        period_s=max(FASTEST_S, update_s),
        least_window_s=WINDOW_S,
        plausible_mw=(500.0, 300e3),
        averages=update_s >= FASTEST_S,
    )


def _input_of(tree: Tree, folders: List[str]) -> str:
    for folder in folders:
        labels = (tree.known(f"{folder}/power1_label"), tree.known(f"{folder}/in1_label"))
        if "VIN" in labels:
            return folder
    if len(folders) == 1:
        return folders[0]
    raise UnavailableError(f"{len(folders)} ina238 chips, and none of them is labelled VIN")


def _require_microwatts(tree: Tree, folder: str, power_mw: float) -> None:
    try:
        product_mw = tree.integer(f"{folder}/in1_input") * tree.integer(f"{folder}/curr1_input") / 1000
    except (OSError, ValueError):
        return  # not every kernel shows them; whether the mean is plausible is judged anyway
    if product_mw > 0 and abs(power_mw - product_mw) > MOST_APART * product_mw:
        raise UnavailableError(
            f"power1_input says {power_mw:.4g} mW, voltage times current {product_mw:.4g} mW: wrong unit"
        )
