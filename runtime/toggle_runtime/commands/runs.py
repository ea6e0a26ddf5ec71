"""Commands about runs: begin one, end one, bring its record home."""

import os
import shutil
import signal
from typing import Any, Dict

from toggle_runtime import environments, lease
from toggle_runtime.plan import Plan
from toggle_runtime.records import Blob, RunRecord, from_data, from_json
from toggle_runtime.requests import Request, field, flag
from toggle_runtime.run import Collected, Run
from toggle_runtime.spool import spool_of
from toggle_runtime.sweep import close_aborted, sweep
from toggle_runtime.wire import RequestError, Wire


def run(request: Request, wire: Wire) -> Dict[str, Any]:
    root, run_id = request["root"], field(request, "run_id", str)
    owner, bundle = field(request, "owner", str), Blob(field(request, "bundle", str), 0).sha256
    plan = from_data(Plan, field(request, "plan", dict))
    environment = environments.folder_of(root, field(request, "environment", str))
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
            allowed = flag(request, "allow_unsigned")
            return Run(root, run_id, bundle, environment, plan, spool, wire, Collected(), allowed).execute()
        except OSError:
            # Not even the record could be written, so this answer is all there will be: leave no half of a run.
            shutil.rmtree(spool.folder, ignore_errors=True)
            raise


def abort(request: Request, wire: Wire) -> Dict[str, Any]:
    holder = lease.holder(request["root"])
    if holder.get("run_id") != field(request, "run_id", str):
        raise RequestError("unknown", f"run {request['run_id']} is not under way on this device")
    os.kill(holder["pid"], signal.SIGTERM)
    return {"run_id": request["run_id"]}


def fetch_record(request: Request, wire: Wire) -> Dict[str, Any]:
    root, run_id = request["root"], field(request, "run_id", str)
    spool = spool_of(root, run_id)
    if not spool.folder.is_dir():
        raise RequestError("unknown", f"no run {run_id} on this device")
    if not spool.record_path.is_file():
        try:
            with lease.hold(root, "fetch_record", run_id) as held:
                if not spool.record_path.is_file():
                    close_aborted(spool_of(root, run_id, held), field(request, "bundle", str))
        except RequestError as exc:
            raise RequestError("running", f"run {run_id} has no record yet: {exc}") from exc
    text = spool.record_path.read_text(encoding="utf-8")
    return spool.result(from_json(RunRecord, text))


def fetched(request: Request, wire: Wire) -> Dict[str, Any]:
    spool = spool_of(request["root"], field(request, "run_id", str))
    if not spool.record_path.is_file():
        raise RequestError("unknown", f"run {request['run_id']} has no record on this device")
    spool.mark_fetched()
    return {}
