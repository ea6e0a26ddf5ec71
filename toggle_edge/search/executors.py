"""Who evaluates: this process, several local ones, or an engine that is plugged in. The search does not notice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.search.trial import Observation

Evaluated = tuple[Observation, Mapping[str, object]]


class Evaluate(Protocol):
    """config -> what an evaluation yields and its payload. Depends on nothing but the config and its own state."""

    def __call__(self, config: Config, /) -> Evaluated: ...


class Executor(Protocol):
    """Evaluates configs. A later one may be done first; results come in the order of the configs."""

    def map(self, evaluate: Evaluate, configs: Iterable[Config]) -> Iterator[Evaluated]: ...


class InProcess:
    """One config after the other, here."""

    def map(self, evaluate: Evaluate, configs: Iterable[Config]) -> Iterator[Evaluated]:
        return map(evaluate, configs)


class LocalProcesses:
    """Several processes on this machine. `evaluate` is pickled for each config, so it should carry what is needed to
    load a model (and keep it in its process) rather than the model.

    Use it as a context manager: leaving it ends the processes, at once where an error or an interrupt is the reason;
    and they end when this process does, however it ends. An interrupt from the terminal reaches this process alone.
    Raises SearchError on less than one worker, and from `map` when a worker ends without an answer.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise SearchError(f"executor: expected 1 or more workers, got {workers}")
        # Not forked: torch's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        followed, self._held = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(workers, context, initializer=_follow, initargs=(followed,))

    def map(self, evaluate: Evaluate, configs: Iterable[Config]) -> Iterator[Evaluated]:
        try:
            with _interrupts_held():
                results = self._pool.map(evaluate, configs)
            yield from results
        except BrokenProcessPool as exc:
            raise SearchError(
                "executor: expected an answer of every worker, one ended without: killed, or out of memory. Recorded "
                "trials stay; repeat the command to go on, with fewer workers if memory is short"
            ) from exc

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # What they still compute nobody will read, and it may take minutes.
            self._held.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._held.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Within it interrupts wait; processes that are started here never see one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed, which only the parent holds."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(1)
