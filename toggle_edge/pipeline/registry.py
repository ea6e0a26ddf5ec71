"""`toggle-edge device add`, `doctor` and `remove`: devices become known, are examined, and are forgotten."""

from __future__ import annotations

from toggle_edge.errors import DeviceFileError, TransportError
from toggle_edge.fleet.device import Device, device_path, is_shipped, load_device
from toggle_edge.fleet.doctor import Examination, examine
from toggle_edge.fleet.host_keys import Offer
from toggle_edge.fleet.registration import Added, AddOptions, add_device
from toggle_edge.fleet.removal import Cleaned, Removed, clean
from toggle_edge.fleet.transport import connect
from toggle_edge.signing import trusted_keys

__all__ = ["AddOptions", "Added", "Offer", "Removed", "add_device", "examined", "remove_device"]


def examined(name: str) -> Examination:
    """Examine a registered device with the keys that this host knows. Raises DeviceFileError for an unknown one."""
    return examine(load_device(name), trusted_keys())


def remove_device(name: str, *, keep_files: bool = False, forget: bool = False) -> Removed:
    """Clean a device and delete its file. `keep_files`: only the file goes; `forget`: it goes even if nobody answers.

    Raises DeviceFileError for an unknown device, TransportError when it cannot be reached, AgentError when it refuses
    (a run holds it, or its root is not ours): then nothing has changed here.
    """
    device, path = load_device(name), device_path(name)
    cleaned, reason = None, None
    if keep_files:
        reason = "its files were to be kept"
    else:
        try:
            cleaned = _cleaned(device)
        except TransportError as exc:
            if not forget:
                raise type(exc)(
                    f"{exc}; nothing was removed. To forget a device that is gone: "
                    f"toggle-edge device remove {name} --forget"
                ) from exc
            reason = str(exc)
    if is_shipped(path):
        return Removed(device.name, cleaned, reason, None)
    try:
        path.unlink()
    except OSError as exc:
        raise DeviceFileError(f"{path}: cannot be deleted: {exc}") from exc
    return Removed(device.name, cleaned, reason, path)


def _cleaned(device: Device) -> Cleaned:
    transport = connect(device)
    try:
        return clean(transport, device)
    finally:
        transport.close()
