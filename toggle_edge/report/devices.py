"""What `toggle-edge device add`, `doctor` and `remove` found and did, and how it is shown."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from toggle_edge.fleet.registration import Added
from toggle_edge.report.cells import print_entry


def added_json(added: Added) -> dict[str, object]:
    """The one object that `toggle-edge device add --json` prints."""
    return {
        "outcome": "PASS",
        "device": added.device.name,
        "file": str(added.path),
        "target": added.device.target,
        "wheels": dict(added.choice.wheels),
        "note": added.choice.note,
        "host_key": added.device.host_key or None,
        "labels": dict(added.device.labels),
        "capabilities": dict(added.device.capabilities),
    }


def print_added(added: Added, console: Console) -> None:
    device, facts = added.device, added.facts
    wheels = ", ".join(f"{name} {version}" for name, version in added.choice.wheels.items())
    console.print(Text(f"{device.name}  {device.labels.get('board', facts.hostname)}", style="bold"))
    print_entry(
        console,
        "system",
        f"{facts.system} {facts.release}, {facts.machine}, {facts.cpus} cores, "
        f"{facts.memory_bytes / 1e9:.1f} GB memory, {facts.free_disk_bytes / 1e9:.1f} GB free",
    )
    print_entry(console, "worker", f"Python {facts.python}, {wheels or 'no wheels'}: target {device.target}")
    for key in ("formats", "memory", "energy", "governor"):
        print_entry(console, key, str(device.capabilities[key]))
    if added.choice.note:
        print_entry(console, "note", added.choice.note)
    print_entry(console, "file", str(added.path))
    print_entry(console, "next", f"toggle-edge device doctor {device.name}")
