"""A run's folder on the device: its journal while it goes, its record when it is done.

Everything is on disk before it is told to anyone, so that a cut link, a killed agent or a power cut loses
neither the results nor the knowledge of how far the run came.
"""

import json
import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Optional

from toggle_runtime import records
from toggle_runtime.blobs import blob_of, write_durably
from toggle_runtime.lease import Lease
from toggle_runtime.wire import RequestError

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Spool:
    """The folder of one run. Who writes into it while the run goes, or ends it, has the device's lease."""

    folder: Path
    lease: Optional[Lease] = None

    @property
    def record_path(self) -> Path:
        return self.folder / "record.json"

    @property
    def traces_path(self) -> Path:
        return self.folder / "traces.npz"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def journal_path(self) -> Path:
        return self.folder / "journal.jsonl"

    def journal(self, step: str, **fields: Any) -> None:
        """Append one step, durably, with the lease's token. Raises RequestError where the lease was taken."""
        entry = dict(fields, step=step, wall_s=time.time(), monotonic_s=time.monotonic())
        if self.lease is not None:
            entry["token"] = self.lease.token
        with self._fenced(), self.journal_path.open("ab") as stream:
            stream.write((json.dumps(entry, sort_keys=True) + "\n").encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())

    def last_step(self) -> str:
        """The last step that was journalled whole, or `none`."""
        steps = self._journalled("step")
        return steps[-1] if steps else "none"

    def bundle_digest(self) -> str:
        """The bundle that the journal says was to be run, or `unknown`."""
        bundles = self._journalled("bundle")
        return bundles[0] if bundles else "unknown"

    def _journalled(self, key: str) -> List[str]:
        values: List[str] = []
        try:
            with self.journal_path.open(encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    entry = json.loads(line) if line.endswith("}\n") else {}
                    if key in entry:
                        values.append(str(entry[key]))
        except (OSError, ValueError):
            return values
        return values

    def mark_fetched(self) -> None:
        """Note that a host has the record and the traces, verified."""
        self.journal("fetched")

    def was_fetched(self) -> bool:
        """Whether the run has a record and a host has it: then losing the folder loses nothing."""
        return self.record_path.is_file() and "fetched" in self._journalled("step")

    def keep(self, record: records.RunRecord) -> Dict[str, Any]:
        """Write the record durably, once, and return the event that tells of it. Raises RequestError where the lease
        was taken: then whoever took it has closed this run."""
        with self._fenced():
            write_durably(self.record_path, records.to_json(record).encode("utf-8"))
        self.journal("record", outcome=record.outcome)
        return self.result(record)

    def _fenced(self) -> ContextManager[None]:
        return nullcontext() if self.lease is None else self.lease.fenced()

    def result(self, record: records.RunRecord) -> Dict[str, Any]:
        """The result event of a finished run: where its files are, and what they must hash to."""
        kept = blob_of(self.record_path)
        traces = record.traces
        return {
            "run_id": record.run_id,
            "outcome": record.outcome,
            "reason": record.reason,
            "record": {"path": str(self.record_path), "sha256": kept.sha256, "size": kept.size},
            "traces": traces
            and {"path": str(self.traces_path), "sha256": traces.sha256, "size": traces.size},
        }


def spool_of(root: Path, run_id: str, lease: Optional[Lease] = None) -> Spool:
    """Raises RequestError for a run id that is not a plain name."""
    if not _RUN_ID.fullmatch(run_id):
        raise RequestError(
            "request", f"run_id: expected up to 80 letters, digits, dots and dashes, got {run_id!r}"
        )
    return Spool(root / "runs" / run_id, lease)
