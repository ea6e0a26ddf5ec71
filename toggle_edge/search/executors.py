"""Who evaluates: this process, several local ones, or an engine that is plugged in. The search does not notice."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
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

    Use it as a context manager: leaving it ends the processes. Raises SearchError on less than one worker.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise SearchError(f"executor: expected 1 or more workers, got {workers}")
        # Not forked: torch's threads do not survive that.
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def map(self, evaluate: Evaluate, configs: Iterable[Config]) -> Iterator[Evaluated]:
        return self._pool.map(evaluate, configs)

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
