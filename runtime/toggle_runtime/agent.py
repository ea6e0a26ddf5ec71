"""The agent's control plane: does what one request asks, and answers it.

Request: `{"protocol": 3, "command": "...", "root": "<device folder>", ...}`. Answer: any number of
`progress` events, then exactly one `result` or `error`. Standard library only; no model code is ever
imported here, so a broken inference engine cannot keep the device from reporting that it is broken.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple, Type, TypeVar

from toggle_runtime import (
    PROTOCOL_VERSION,
    __version__,
    blobs,
    deployment,
    environments,
    facts,
    lease,
    records,
)
from toggle_runtime.collection import collect
from toggle_runtime.layout import require_layout
from toggle_runtime.pinning import restore_left
from toggle_runtime.plan import Plan
from toggle_runtime.removal import remove
from toggle_runtime.run import Collected, Run
from toggle_runtime.spool import spool_of
from toggle_runtime.succession import Succession
from toggle_runtime.supervise import WorkerError
from toggle_runtime.sweep import close_aborted, sweep
from toggle_runtime.tree import Tree
from toggle_runtime.trust import revoke, trust
from toggle_runtime.wire import RequestError, Wire

Request = Dict[str, Any]
Value = TypeVar("Value")


def answer(line: bytes, wire: Wire) -> Dict[str, Any]:
    """The final event for one request: a result, or an error with its kind and message. Raises nothing."""
    root = Path()
    try:
        request, command = _parse(line)
        root = request["root"]
        _restore_clocks(root)
        if command not in (_facts, _remove):  # looking at a device leaves nothing there, removing even less
            require_layout(root)
        return dict(command(request, wire), event="result")
    except RequestError as exc:
        return dict(exc.data, event="error", kind=exc.kind, message=str(exc))
    except records.RecordError as exc:
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


def _parse(line: bytes) -> Tuple[Request, Callable[[Request, Wire], Dict[str, Any]]]:
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
    name = _field(request, "command", str)
    if name not in COMMANDS:
        raise RequestError("request", f"command: expected one of {sorted(COMMANDS)}, got {name!r}")
    request["root"] = Path(_field(request, "root", str)).absolute()
    return request, COMMANDS[name]


def _facts(request: Request, wire: Wire) -> Dict[str, Any]:
    return {"facts": facts.gather(request["root"])}


def _trust(request: Request, wire: Wire) -> Dict[str, Any]:
    key, name = _field(request, "key", str), _field(request, "name", str)
    told = _field(request, "successions", list) if "successions" in request else []
    successions = [records.from_data(Succession, data) for data in told]
    return trust(request["root"], key, name, _flag(request, "force"), successions)


def _revoke(request: Request, wire: Wire) -> Dict[str, Any]:
    return revoke(request["root"], _field(request, "key", str), _field(request, "name", str))


def _missing(request: Request, wire: Wire) -> Dict[str, Any]:
    return blobs.missing(request["root"], _digests(request))


def _commit(request: Request, wire: Wire) -> Dict[str, Any]:
    wanted = [records.from_data(records.Blob, data) for data in _field(request, "blobs", list)]
    return blobs.commit(request["root"], wanted)


def _discard(request: Request, wire: Wire) -> Dict[str, Any]:
    return blobs.discard(request["root"], _digests(request))


def _environment(request: Request, wire: Wire) -> Dict[str, Any]:
    wheels = [records.from_data(environments.Wheel, data) for data in _field(request, "wheels", list)]
    return {"path": str(environments.prepare(request["root"], _field(request, "id", str), wheels))}


def _remove(request: Request, wire: Wire) -> Dict[str, Any]:
    return remove(request["root"], _field(request, "owner", str))


def _run(request: Request, wire: Wire) -> Dict[str, Any]:
    root, run_id = request["root"], _field(request, "run_id", str)
    owner, bundle = _field(request, "owner", str), records.Blob(_field(request, "bundle", str), 0).sha256
    plan = records.from_data(Plan, _field(request, "plan", dict))
    environment = environments.folder_of(root, _field(request, "environment", str))
    if not environment.is_dir():
        raise RequestError("environment", f"{environment} does not exist; send the command environment first")
    spool_of(root, run_id)  # a plain name
    with lease.hold(root, owner, run_id) as held:
        spool = spool_of(root, run_id, held)
        if spool.folder.exists():
            raise RequestError(
                "run", f"run {run_id} exists already; fetch its record, or choose another run_id"
            )
        sweep(root, run_id, held)
        spool.folder.mkdir(parents=True)
        try:
            spool.journal("lease", owner=owner, bundle=bundle)
            allowed = _flag(request, "allow_unsigned")
            return Run(root, run_id, bundle, environment, plan, spool, wire, Collected(), allowed).execute()
        except OSError:
            # Not even the record could be written, so this answer is all there will be: leave no half of a run.
            shutil.rmtree(spool.folder, ignore_errors=True)
            raise


def _activate(request: Request, wire: Wire) -> Dict[str, Any]:
    root = request["root"]
    wanted = deployment.Deployed(
        _field(request, "bundle", str),
        environments.folder_of(root, _field(request, "environment", str)).name,
        _field(request, "threads", int),
        time.time(),
        _flag(request, "allow_unsigned"),
    )
    with _working(request) as held:
        return deployment.activate(root, wanted, lambda event: wire.progress(**event), held)


def _rollback(request: Request, wire: Wire) -> Dict[str, Any]:
    bundle = _field(request, "bundle", str)
    with _working(request) as held:
        return deployment.roll_back(request["root"], bundle, lambda event: wire.progress(**event), held)


def _talk(request: Request, wire: Wire) -> Dict[str, Any]:
    prompt, stop = _field(request, "prompt", list), _field(request, "stop", list)
    if not all(type(token) is int for token in (*prompt, *stop)):
        raise RequestError("request", "prompt and stop: expected lists of token ids")

    def tell(event: Dict[str, Any]) -> None:
        wire.progress(**{key: event[key] for key in ("step", "token", "at") if key in event})

    with _working(request):
        try:
            return deployment.talk(request["root"], prompt, _field(request, "tokens", int), stop, tell)
        except WorkerError as exc:
            raise RequestError("worker", str(exc)) from exc


@contextmanager
def _working(request: Request) -> Iterator[lease.Lease]:
    """The device for ourselves, as a run has it: who measures must not be disturbed, nor find another bundle."""
    root, run_id = request["root"], _field(request, "run_id", str)
    spool_of(root, run_id)  # a plain name
    with lease.hold(root, _field(request, "owner", str), run_id) as held:
        sweep(root, run_id, held)
        yield held


def _abort(request: Request, wire: Wire) -> Dict[str, Any]:
    holder = lease.holder(request["root"])
    if holder.get("run_id") != _field(request, "run_id", str):
        raise RequestError("unknown", f"run {request['run_id']} is not under way on this device")
    os.kill(holder["pid"], signal.SIGTERM)
    return {"run_id": request["run_id"]}


def _fetch_record(request: Request, wire: Wire) -> Dict[str, Any]:
    root, run_id = request["root"], _field(request, "run_id", str)
    spool = spool_of(root, run_id)
    if not spool.folder.is_dir():
        raise RequestError("unknown", f"no run {run_id} on this device")
    if not spool.record_path.is_file():
        try:
            with lease.hold(root, "fetch_record", run_id) as held:
                if not spool.record_path.is_file():
                    close_aborted(spool_of(root, run_id, held), _field(request, "bundle", str))
        except RequestError as exc:
            raise RequestError("running", f"run {run_id} has no record yet: {exc}") from exc
    text = spool.record_path.read_text(encoding="utf-8")
    return spool.result(records.from_json(records.RunRecord, text))


def _fetched(request: Request, wire: Wire) -> Dict[str, Any]:
    spool = spool_of(request["root"], _field(request, "run_id", str))
    if not spool.record_path.is_file():
        raise RequestError("unknown", f"run {request['run_id']} has no record on this device")
    spool.mark_fetched()
    return {}


def _collect(request: Request, wire: Wire) -> Dict[str, Any]:
    quota = _field(request, "quota_bytes", int)
    if quota < 0:
        raise RequestError("request", f"quota_bytes: expected 0 or more, got {quota}")
    with _working(request):
        return collect(request["root"], quota)


def _digests(request: Request) -> List[str]:
    # A digest becomes a file's name: it must be one.
    found = _field(request, "digests", list)
    return [records.from_data(records.Blob, {"sha256": digest, "size": 0}).sha256 for digest in found]


def _field(request: Request, name: str, kind: Type[Value]) -> Value:
    value = request.get(name)
    if not isinstance(value, kind):
        raise RequestError("request", f"{name}: expected {kind.__name__}, got {str(value)[:60]!r}")
    return value


def _flag(request: Request, name: str) -> bool:
    return name in request and _field(request, name, bool)


COMMANDS: Dict[str, Callable[[Request, Wire], Dict[str, Any]]] = {
    "abort": _abort,
    "activate": _activate,
    "collect": _collect,
    "commit": _commit,
    "discard": _discard,
    "environment": _environment,
    "facts": _facts,
    "fetch_record": _fetch_record,
    "fetched": _fetched,
    "missing": _missing,
    "rollback": _rollback,
    "remove": _remove,
    "revoke": _revoke,
    "run": _run,
    "talk": _talk,
    "trust": _trust,
}
