"""The agent's control plane: does what one request asks, and answers it.

Request: `{"protocol": 4, "command": "...", "root": "<device folder>", ...}`. Answer: any number of
`progress` events, then exactly one `result` or `error`. Standard library only; no model code is ever
imported here, so a broken inference engine cannot keep the device from reporting that it is broken.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

from toggle_runtime import PROTOCOL_VERSION, __version__, blobs
from toggle_runtime.codec import RecordError
from toggle_runtime.layout import require_layout
from toggle_runtime.pinning import restore_left
from toggle_runtime.requests import Request, field
from toggle_runtime.tree import Tree
from toggle_runtime.wire import RequestError, Wire

Command = Callable[[Request, Wire], Dict[str, Any]]

COMMANDS = {
    "abort": "runs",
    "activate": "deployments",
    "collect": "store",
    "environment": "device",
    "facts": "device",
    "fetch_record": "runs",
    "fetched": "runs",
    "packages": "device",
    "receive": "store",
    "remove": "device",
    "revoke": "device",
    "rollback": "deployments",
    "run": "runs",
    "talk": "deployments",
    "trust": "device",
}
"""By command, the module of `commands` that has the function of that name: only that one is loaded, since an agent
compiles what it imports at each start."""

_LOOKS = ("facts", "packages", "remove")
"""Looking at a device leaves nothing there, removing even less."""


def answer(line: bytes, wire: Wire) -> Dict[str, Any]:
    """The final event for one request: a result, or an error with its kind and message. Raises nothing."""
    root = Path()
    try:
        request, command = _parse(line)
        root = request["root"]
        _restore_clocks(root)
        if request["command"] not in _LOOKS:
            require_layout(root)
        return dict(command(request, wire), event="result")
    except RequestError as exc:
        return dict(exc.data, event="error", kind=exc.kind, message=str(exc))
    except RecordError as exc:
        return {"event": "error", "kind": "request", "message": str(exc)}
    except OSError as exc:
        return {"event": "error", "kind": "system", "message": blobs.describe(exc, root)}
    except Exception as exc:
        # The protocol promises an answer even for our own mistakes; the trace goes to stderr.
        traceback.print_exc()
        return {"event": "error", "kind": "internal", "message": f"{type(exc).__name__}: {exc}"}


def _restore_clocks(root: Path) -> None:
    """Those that a killed run has pinned. Where they cannot be, a device must still answer: what a run was under is in
    its conditions."""
    try:
        restore_left(root, Tree())
    except OSError as exc:
        print(f"clocks that a killed run pinned stay pinned: {exc}", file=sys.stderr)


def _parse(line: bytes) -> Tuple[Request, Command]:
    try:
        request = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise RequestError("request", f"expected one JSON object on stdin, got {line[:60]!r}: {exc}") from exc
    if not isinstance(request, dict):
        raise RequestError("request", f"expected one JSON object on stdin, got {line[:60]!r}")
    theirs = request.get("protocol")
    if theirs != PROTOCOL_VERSION:
        newer = isinstance(theirs, int) and theirs > PROTOCOL_VERSION
        raise RequestError(
            "protocol",
            f"this agent (version {__version__}) speaks protocol {PROTOCOL_VERSION}, the host {theirs!r}; "
            f"upgrade {'the agent on this device' if newer else 'toggle-edge on the host'}",
            protocol=PROTOCOL_VERSION,
            agent_version=__version__,
        )
    name = field(request, "command", str)
    if name not in COMMANDS:
        raise RequestError("request", f"command: expected one of {sorted(COMMANDS)}, got {name!r}")
    request["root"] = Path(field(request, "root", str)).absolute()
    module = importlib.import_module(f"toggle_runtime.commands.{COMMANDS[name]}")
    command: Command = getattr(module, name)
    return request, command
