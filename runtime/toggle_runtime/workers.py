"""One pass in a worker process: what it is asked, and its answer, checked."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Type, TypeVar

from toggle_runtime import records
from toggle_runtime.records import Manifest
from toggle_runtime.supervise import Event, WorkerError, run_worker

Result = TypeVar("Result")

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "QEMU_CPU")
"""Variables that a worker inherits; the last, so that it runs on the processor that its agent is emulated on."""


@dataclass(frozen=True)
class Workplace:
    """Where a worker works: the worker environment's folder, the laid-out bundle, and a scratch folder of its own."""

    environment: Path
    bundle: Path
    folder: Path
    output: Path


def ask_worker(
    name: str,
    manifest: Manifest,
    place: Workplace,
    kind: Type[Result],
    *,
    threads: int,
    timeout_s: float,
    on_event: Callable[[Event], None],
    on_spawn: Callable[[int], None],
    **more: Any,
) -> Result:
    """Run the pass `name` in a process of its own; return its answer. Raises WorkerError."""
    place.output.mkdir(parents=True, exist_ok=True)
    request = dict(
        more,
        environment=str(place.environment),
        bundle=str(place.bundle),
        manifest=asdict(manifest),
        output=str(place.output),
        threads=threads,
    )
    request["pass"] = name
    try:
        answer = run_worker(
            [sys.executable, "-I", "-S", str(Path(sys.argv[0]).absolute()), "worker", str(os.getpid())],
            request,
            place.folder,
            _environment(threads),
            timeout_s,
            on_event,
            on_spawn,
        )
        return records.from_data(kind, {key: value for key, value in answer.items() if key != "event"})
    except WorkerError as exc:
        raise WorkerError(exc.outcome, f"pass {name}: {exc}") from exc
    except records.RecordError as exc:
        raise WorkerError(records.ERROR, f"pass {name}: the worker's answer: {exc}") from exc


def _environment(threads: int) -> Dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return dict(kept, ORT_DISABLE_TELEMETRY="1", OMP_NUM_THREADS=str(threads))
