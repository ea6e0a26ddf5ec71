"""A device in memory, for tests: files in a dictionary, and an agent that is a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from toggle_edge.errors import TransportError, TransportLostError
from toggle_edge.fleet.transport import Completed, Feed, LineSplitter, OnLine, nothing_more

Answer = Callable[[dict[str, Any]], Iterable[dict[str, Any] | bytes]]
"""From a request to what the agent prints: events, or raw bytes where it should misbehave."""


class FakeTransport:
    """Keeps every request in `requests`, and in `fed` what the last one was fed with: after each event all there is.

    After `cut_after` bytes of that the link is lost, once.
    """

    def __init__(self, answer: Answer, cut_after: int | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[dict[str, Any]] = []
        self.fed = b""
        self.closed = False
        self._answer = answer
        self.cut_after = cut_after

    def run(
        self,
        command: Sequence[str],
        stdin: bytes,
        on_line: OnLine,
        timeout_s: float,
        feed: Feed = nothing_more,
    ) -> Completed:
        if command[-1] == "serve" and command[-2] not in self.files:
            return Completed(2, f"can't open file {command[-2]!r}: no such file")
        question = json.loads(stdin)
        self.requests.append(question)
        self.fed = b""
        lines = LineSplitter(on_line)
        for event in self._answer(question):
            lines.feed(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")
            while piece := feed():
                self._take(piece)
        lines.end()
        return Completed(0, "")

    def upload(self, local: Path, remote: str) -> None:
        self.files[remote] = local.read_bytes()

    def download(self, remote: str, local: Path, max_bytes: int) -> None:
        if remote not in self.files:
            raise TransportError(f"fake: no such file {remote}")
        if len(self.files[remote]) > max_bytes:
            raise TransportError(
                f"{remote}: expected at most {max_bytes} bytes, got {len(self.files[remote])}"
            )
        local.write_bytes(self.files[remote])

    def size(self, remote: str) -> int | None:
        return len(self.files[remote]) if remote in self.files else None

    def mkdirs(self, remote: str) -> None:
        """Folders are implied by file names."""

    def rename(self, source: str, target: str) -> None:
        self.files[target] = self.files.pop(source)

    def close(self) -> None:
        self.closed = True

    def _take(self, piece: bytes) -> None:
        self.fed += piece
        if self.cut_after is not None and len(self.fed) > self.cut_after:
            self.fed, self.cut_after = self.fed[: self.cut_after], None
            raise TransportLostError("fake: the link was lost")
