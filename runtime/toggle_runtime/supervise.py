"""One worker process, from its first line to its certain end.

The worker is not trusted to answer, to stay small or to die: its lines are limited, its time is limited, and
its whole process group is killed when it is done, whatever came of it.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from toggle_runtime.kills import oom_kills, why_killed
from toggle_runtime.records import ERROR, TIMEOUT

MAX_LINE_BYTES = 16 << 20
EXIT_GRACE_S = 10.0
_STDERR_BYTES = 64 << 10
_STDERR_LINES = 20
_PR_SET_PDEATHSIG = 1

Event = Dict[str, Any]


class WorkerError(Exception):
    """A pass that gave no result. `outcome` is ERROR or TIMEOUT."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def run_worker(
    command: List[str],
    request: Event,
    folder: Path,
    environment: Dict[str, str],
    timeout_s: float,
    on_event: Callable[[Event], None],
    on_spawn: Callable[[int], None],
) -> Event:
    """Spawn the worker in `folder` and its own process group, hand it `request`, return its result event.

    `on_event` sees each of its events as it comes. Raises WorkerError when the worker reports an error,
    dies, runs out of time, or prints anything that is not its protocol.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    conversation = _Conversation(process, (json.dumps(request) + "\n").encode("utf-8"), on_event)
    try:
        on_spawn(process.pid)
        conversation.run(time.monotonic() + timeout_s, timeout_s)
        return conversation.verdict()
    finally:
        conversation.close()
        _kill_group(process)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` dies: a killed agent leaves no worker behind.

    Best effort: systems without prctl go without.
    """
    try:
        import ctypes  # not every small Python has it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


class _Conversation:
    """The three pipes of a worker, served by one thread so that no side can block the other."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", request: bytes, on_event: Callable[[Event], None]
    ) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the worker process needs all three pipes")
        self._process = process
        self._request = request
        self._on_event = on_event
        self._line = bytearray()
        self._stderr = b""
        self._result: Optional[Event] = None
        self._kills_before = oom_kills()
        self._answered = 0.0
        self._error: Optional[str] = None
        self._streams = [process.stdin, process.stdout, process.stderr]
        self._selector = selectors.DefaultSelector()
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)
        self._selector.register(process.stdin, selectors.EVENT_WRITE, self._write)
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read_stdout)
        self._selector.register(process.stderr, selectors.EVENT_READ, self._read_stderr)

    def run(self, deadline: float, timeout_s: float) -> None:
        while True:
            exited = self._process.poll() is not None
            ready = self._selector.select(0.0 if exited else min(0.2, max(0.0, deadline - time.monotonic())))
            for key, _ in ready:
                key.data()
            if exited and not any(key.fileobj is not self._process.stdin for key, _ in ready):
                return  # dead, and its pipes are drained
            if time.monotonic() >= deadline:
                if self._result is not None:
                    return  # it answered and does not exit: `verdict` has its result, the group is killed
                raise WorkerError(TIMEOUT, f"no result within {timeout_s:g} s{self._tail()}")
            if self._result is not None:
                deadline = min(deadline, self._answered + EXIT_GRACE_S)

    def verdict(self) -> Event:
        code = self._process.poll()
        if code is not None and code < 0:
            raise WorkerError(ERROR, f"{why_killed(-code, self._kills_before)}{self._tail()}")
        if self._error is not None:
            raise WorkerError(ERROR, f"{self._error}{self._tail()}")
        if code:
            raise WorkerError(ERROR, f"the worker exited with status {code}{self._tail()}")
        if self._result is None:
            raise WorkerError(ERROR, f"the worker ended without a result{self._tail()}")
        return self._result

    def close(self) -> None:
        self._selector.close()
        for stream in self._streams:
            try:
                stream.close()
            except BrokenPipeError:
                continue  # closing flushes; a dead worker's stdin has nobody to flush to

    def _write(self) -> None:
        try:
            written = os.write(self._streams[0].fileno(), self._request)
        except BrokenPipeError:
            written = len(self._request)  # a worker that died unread; its exit status says why
        self._request = self._request[written:]
        if not self._request:
            self._selector.unregister(self._streams[0])
            self._streams[0].close()

    def _read_stdout(self) -> None:
        data = os.read(self._streams[1].fileno(), 1 << 16)
        if not data:
            self._selector.unregister(self._streams[1])
            return
        first, *others = data.split(b"\n")
        self._line += first
        for following in others:
            complete, self._line = bytes(self._line), bytearray(following)
            self._take(complete)
        if len(self._line) > MAX_LINE_BYTES:
            raise WorkerError(ERROR, f"the worker printed a line longer than {MAX_LINE_BYTES} bytes")

    def _read_stderr(self) -> None:
        data = os.read(self._streams[2].fileno(), 1 << 16)
        if not data:
            self._selector.unregister(self._streams[2])
        self._stderr = (self._stderr + data)[-_STDERR_BYTES:]

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line.decode("utf-8"))
            kind = event["event"]
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise WorkerError(
                ERROR, f"expected a JSON event from the worker, got {line[:80]!r}{self._tail()}"
            ) from exc
        if kind == "progress":
            self._on_event(event)
        elif kind == "result" and self._result is None:
            self._result, self._answered = event, time.monotonic()
            self._on_event(event)
        elif kind == "error":
            self._error = str(event.get("message", "the worker reported an error without a message"))
        else:
            raise WorkerError(ERROR, f"unexpected event {kind!r} from the worker")

    def _tail(self) -> str:
        lines = self._stderr.decode("utf-8", "replace").strip().splitlines()[-_STDERR_LINES:]
        return "; its stderr ends: " + "\n".join(lines) if lines else ""


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS denies the signal to a group of zombies
        process.poll()
    process.wait()
