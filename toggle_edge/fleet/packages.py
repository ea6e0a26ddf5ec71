"""A device's own numpy and onnxruntime, in place of wheels that we ship: what its vendor built for it, with CUDA, say.

`packages` of a device file names the folder. Whether they work is seen on the device, by importing them there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from toggle_runtime.engines import NEEDED

from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet.agent_client import Event, OnProgress, ignore_progress, request
from toggle_edge.fleet.capabilities import choose_runtime, is_by_runtime
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import EXECUTORCH
from toggle_edge.fleet.transport import Transport

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,40}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")


def look_at_packages(transport: Transport, device: Device) -> dict[str, str]:
    """The versions of the device's own packages. Nothing changes there. Raises AgentError where they do not work."""
    return _versions(request(transport, device, "packages", packages=device.packages), device)


def adopt_packages(
    transport: Transport, device: Device, target: str, on_progress: OnProgress = ignore_progress
) -> str:
    """Make the device's own packages a worker environment for bundles of `target`; return its id.

    Raises AgentError where they do not work, FleetError where they are not what the target is for.
    """
    event = request(transport, device, "environment", on_progress=on_progress, packages=device.packages)
    require_packages(device, target, _versions(event, device))
    identifier = event.get("id")
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        raise AgentError(f"device {device.name!r}: environment: expected an id, got {identifier!r:.80}")
    return identifier


def require_packages(device: Device, target: str, versions: Mapping[str, str]) -> None:
    """Raises FleetError where bundles for `target` do not run with these versions."""
    if target == EXECUTORCH:
        raise FleetError(
            f"device {device.name!r}: packages: bundles for {EXECUTORCH} bring their own runner; leave `packages` "
            "out of the device file"
        )
    wanted = choose_runtime(versions["onnxruntime"])
    if is_by_runtime(target) and wanted != target:
        raise FleetError(
            f"device {device.name!r}: packages: onnxruntime {versions['onnxruntime']} in {device.packages} is what "
            f"{wanted or 'no target'} is for, not {target}; "
            + (f"export for {wanted}, and set it as `target`" if wanted else "install a newer one there")
        )


def _versions(event: Event, device: Device) -> dict[str, str]:
    found = event.get("versions")
    told = found if isinstance(found, dict) and set(found) == set(NEEDED) else {}
    if not told or not all(isinstance(each, str) and _VERSION.fullmatch(each) for each in told.values()):
        raise AgentError(
            f"device {device.name!r}: packages: expected versions of {' and '.join(NEEDED)}, got {found!r:.80}"
        )
    return {name: told[name] for name in NEEDED}
