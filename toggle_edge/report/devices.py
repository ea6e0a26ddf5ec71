"""What `toggle-edge device add`, `doctor` and `remove` found and did, and how it is shown."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import PASS

from toggle_edge.fleet.doctor import Examination
from toggle_edge.fleet.findings import BROKEN, HERE, LIMITED, OK, UNKNOWN
from toggle_edge.fleet.registration import Added
from toggle_edge.fleet.removal import Removed
from toggle_edge.report.cells import TITLE, print_entry, print_outcome

_STYLES = {OK: "green", LIMITED: "yellow", BROKEN: "red", UNKNOWN: "red"}


def added_json(added: Added) -> dict[str, object]:
    """The one object that `toggle-edge device add --json` prints."""
    return {
        "outcome": PASS,
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


def examination_json(examination: Examination) -> dict[str, object]:
    """The one object that `toggle-edge device doctor --json` prints."""
    return {
        "outcome": examination.outcome,
        "device": examination.device.name,
        "findings": [
            {
                "name": each.name,
                "state": each.state,
                "found": each.found,
                "fix": None if each.fix is None else {"where": each.fix.where, "command": each.fix.command},
            }
            for each in examination.findings
        ],
    }


def print_examination(examination: Examination, console: Console) -> None:
    """A table of findings, then the commands by the machine that they are for, each on a line of its own to copy."""
    device = examination.device
    table = Table(box=SIMPLE_HEAD, title=f"{device.name}  {device.labels.get('board', '')}".rstrip(), **TITLE)
    table.add_column("", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", ratio=1)
    for each in examination.findings:
        table.add_row(each.name, Text(each.state, style=_STYLES[each.state]), Text(each.found))
    console.print(table)
    fixes = [(each.name, each.fix) for each in examination.findings if each.fix is not None]
    for where in sorted({fix.where for _, fix in fixes}, reverse=True):
        console.print(Text("On this host:" if where == HERE else f"On {device.name}:", style="bold"))
        for name, fix in fixes:
            if fix.where == where:
                console.print(Text(f"  {name:<10} {fix.command}"), soft_wrap=True)
    limited = [each.name for each in examination.findings if each.state == LIMITED]
    broken = [each.name for each in examination.findings if each.state == BROKEN]
    if examination.outcome == PASS:
        but = f", but look at {', '.join(limited)}" if limited else ""
        print_outcome(console, PASS, f"validate works there{but}.")
    else:
        print_outcome(console, examination.outcome, f"validate does not work there: {', '.join(broken)}.")


def removed_json(removed: Removed) -> dict[str, object]:
    """The one object that `toggle-edge device remove --json` prints."""
    cleaned = removed.cleaned
    return {
        "outcome": PASS,
        "device": removed.name,
        "removed": None if cleaned is None else cleaned.removed,
        "left": None if cleaned is None else cleaned.left,
        "reason": removed.reason,
        "file": None if removed.file is None else str(removed.file),
    }


def print_removed(removed: Removed, console: Console) -> None:
    """What is gone there and here, and what is not."""
    if removed.cleaned is None:
        told = f"nothing was removed there: {removed.reason}"
    else:
        kept = f"; left what is not ours: {', '.join(removed.cleaned.left)}" if removed.cleaned.left else ""
        told = f"removed {', '.join(removed.cleaned.removed) or 'nothing, there was nothing'}{kept}"
    print_entry(console, "there", told)
    print_entry(
        console,
        "here",
        f"deleted {removed.file}" if removed.file else "its file is part of toggle-edge and stays",
    )
