"""`python3 toggle-agent.pyz validate BUNDLE`: a bundle measured and judged on the device, with no host anywhere.

The verdict is this device's own. The run is kept as any other, and judged again at home by `toggle-edge import`.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

from toggle_runtime import __version__, blobs, lease, processes, records, trust
from toggle_runtime.engines import Engine, find
from toggle_runtime.findings import judged, print_result
from toggle_runtime.ingest import ingest, keep_contract, open_bundle
from toggle_runtime.layout import require_layout
from toggle_runtime.plan import ONLY_IF_ASKED, PASS_NAMES, Plan
from toggle_runtime.records import Manifest, RecordError, RunRecord
from toggle_runtime.run import Collected, Run
from toggle_runtime.spool import Spool, spool_of
from toggle_runtime.sweep import sweep
from toggle_runtime.wire import RequestError

EXIT_CODES = {records.PASS: 0, records.FAIL: 1}
"""Every other outcome exits 3: it could not be done or measured."""

_BAD_INPUT = ("request", "trust")
_ALWAYS = ("parity", "verify")
_MEASURING = tuple(name for name in PASS_NAMES if name not in (*_ALWAYS, *ONLY_IF_ASKED))


class Console:
    """Tells a person on stderr how far things are."""

    def __init__(self) -> None:
        self._last = ""

    def progress(self, **fields: Any) -> None:
        line = " ".join(str(fields[key]) for key in ("pass", "step", "done") if key in fields)
        if "step" in fields and line != self._last:
            self._last = line
            _say(line)


def main(argv: List[str]) -> int:
    """Validate and tell. Returns the status: 0 PASS, 1 FAIL, 2 bad arguments or files, 3 ERROR, 130 interrupted."""
    options = _parser().parse_args(argv)
    interrupted: List[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        os.kill(os.getpid(), signal.SIGTERM)  # on which a run ends with a record

    signal.signal(signal.SIGTERM, _raise_interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        result = _validate(options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was measured\n")
        return 130
    except RequestError as exc:
        return _refused(str(exc), options.json, 2 if exc.kind in _BAD_INPUT else 3)
    except RecordError as exc:
        return _refused(str(exc), options.json, 2)
    except OSError as exc:
        return _refused(blobs.describe(exc, options.root), options.json, 3)
    if options.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print_result(result, sys.stdout)
    return 130 if interrupted else EXIT_CODES.get(result["outcome"], 3)


def _validate(options: argparse.Namespace) -> Dict[str, Any]:
    root, folder = options.root.absolute(), options.bundle
    manifest, digest = open_bundle(folder)
    mode = options.mode or manifest.default_mode
    if mode not in manifest.specification:
        raise RecordError(
            f"--mode: expected one of {', '.join(sorted(manifest.specification))}, got {mode!r}"
        )
    if options.output is not None and options.output.exists():
        raise RecordError(f"--output: expected a new file, {options.output} exists; choose another name")
    if not manifest.target.startswith("onnx"):
        raise RecordError(
            f"{folder}: the agent alone runs bundles for onnxruntime, this one is for {manifest.target}; validate it "
            "from a host"
        )
    passes = [*_ALWAYS, *(name for name in _MEASURING if name not in options.without)]
    plan = Plan(passes, threads=options.threads)
    require_layout(root)
    if options.key is not None:
        for key, name in trust.read_key(options.key).items():
            trust.trust(root, key, name, True)
            _say(f"this device trusts bundles signed by {name} ({trust.key_id(key)}) from now on")
    if options.allow_unsigned and manifest.signature is None:
        _say("this bundle is NOT signed: nobody vouches for what is run now")
    signed_by = trust.require_signature(root, manifest, allow_unsigned=options.allow_unsigned)
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    with lease.hold(root, _owner(), run_id) as held:
        sweep(root, run_id, held)
        _say("copying and verifying the bundle")
        ingest(root, folder, manifest, digest)
        engine = find(root, [*options.wheels, *_beside(folder)])
        spool = spool_of(root, run_id, held)
        spool.folder.mkdir(parents=True)
        spool.journal("lease", owner=held.owner, bundle=digest)
        wire = Console()
        Run(
            root, run_id, digest, engine.folder, plan, spool, wire, Collected(), options.allow_unsigned
        ).execute()
        keep_contract(root, spool, manifest, digest)
    record = records.from_json(RunRecord, spool.record_path.read_text(encoding="utf-8"))
    if options.output is not None:
        _pack(spool, options.output)
    return _result(record, manifest, mode, engine, spool, options, _signer(root, signed_by))


def _result(
    record: RunRecord,
    manifest: Manifest,
    mode: str,
    engine: Engine,
    spool: Spool,
    options: argparse.Namespace,
    signed_by: Optional[str],
) -> Dict[str, Any]:
    outcome, reason, verdict = judged(record, manifest, mode)
    return {
        "outcome": outcome,
        "reason": reason,
        "mode": mode,
        "certified": False,
        "bundle": {"digest": record.bundle, "signed_by": signed_by},
        "device": {"name": socket.gethostname(), "agent_version": __version__},
        "engine": dict(engine.versions, found=engine.found),
        "run": record.run_id,
        "run_folder": str(spool.folder),
        "carried": None if options.output is None else str(options.output.absolute()),
        "verdict": verdict,
        "record": json.loads(records.to_json(record)),
    }


def _pack(spool: Spool, path: Path) -> None:
    """One file with all that `toggle-edge import` needs, whole or not there."""
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(str(partial), "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(spool.folder.rglob("*")):
            if each.is_file() and each.name != "journal.jsonl":
                archive.write(str(each), each.relative_to(spool.folder).as_posix())
    blobs.sync_file(partial)
    partial.replace(path)


def _beside(bundle: Path) -> List[Path]:
    """Where people put wheels that belong to a bundle."""
    around = bundle.absolute().parent
    return [bundle / "wheels", bundle, around / "wheels", around]


def _signer(root: Path, key: Optional[str]) -> Optional[str]:
    return None if key is None else trust.trusted_keys(root).get(key, trust.key_id(key))


def _owner() -> str:
    user = os.environ.get("USER") or f"user{os.getuid()}"
    return f"{user[:64]}@{socket.gethostname()[:64]}:{os.getpid()}:{processes.started(os.getpid())}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _refused(message: str, as_json: bool, code: int) -> int:
    _say(f"error: {message}")
    if as_json:
        print(json.dumps({"outcome": "ERROR", "error": {"message": message}, "exit_code": code}))
    return code


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _threads(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1024:
        raise argparse.ArgumentTypeError("expected 1 to 1024")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toggle-agent.pyz validate",
        description="Measure a bundle on this device and check its contract here. Exits 0 for PASS, 1 for FAIL, 2 for "
        "bad arguments or files, 3 when it could not be done or measured.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="A bundle's folder, as export writes it.")
    add("--mode", help="strict, optimal or relaxed. Default: the bundle's.")
    add(
        "--root",
        type=Path,
        default=Path.home() / "toggle-edge",
        help="Our folder here. Default: toggle-edge in your home.",
    )
    add(
        "--key",
        type=Path,
        metavar="FILE",
        help="Trust this public key from now on: one line, ed25519 HEX NAME.",
    )
    add("--allow-unsigned", action="store_true", help="Take a bundle without a signature.")
    add(
        "--wheels",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="Where wheels of numpy and onnxruntime lie. Default: beside the bundle.",
    )
    add("--threads", type=_threads, default=1, help="Threads of the engine. Default: 1.")
    add(
        "--without",
        action="append",
        default=[],
        choices=_MEASURING,
        help="Do not measure this; repeatable.",
    )
    add(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="Also pack the run into this new file, to carry it home.",
    )
    add("--json", action="store_true", help="Print one JSON object on stdout.")
    return parser
