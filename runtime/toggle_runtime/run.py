"""One run: a bundle, verified blob by blob, measured pass by pass in fresh processes, and its record."""

import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Type, TypeVar

from toggle_runtime import limits, meters, records
from toggle_runtime.blobs import blob_of, describe
from toggle_runtime.bundles import lay_out, verified_manifest
from toggle_runtime.conditions import Snapshot, pass_conditions, snapshot
from toggle_runtime.energy import SETTLED_PERIODS, Span, Spans, energy_sample, no_energy
from toggle_runtime.facts import cpu_model
from toggle_runtime.meters.sampling import Recording, Sampler
from toggle_runtime.pinning import pinned
from toggle_runtime.plan import (
    CONTEXT_RESTARTS,
    LOADED,
    CapacityResult,
    ColdResult,
    EnergyResult,
    LatencyResult,
    MemoryResult,
    ParityResult,
    Plan,
    SustainedResult,
    VerifyResult,
)
from toggle_runtime.records import (
    CapacitySample,
    ColdLoad,
    EnergySample,
    LatencySample,
    Manifest,
    MemorySample,
    ModeVerdict,
    ParitySample,
    PassConditions,
    SustainedSample,
)
from toggle_runtime.spool import Spool
from toggle_runtime.supervise import Event, WorkerError
from toggle_runtime.tree import Tree
from toggle_runtime.wire import Listener
from toggle_runtime.workers import Workplace, ask_worker

Result = TypeVar("Result")


class AbortedError(Exception):
    """Somebody asked for the end of this run."""


@dataclass
class Collected:
    """The fields of the record as they come in."""

    modes: List[ModeVerdict] = field(default_factory=list)
    noise_floor: Dict[str, float] = field(default_factory=dict)
    latency: List[LatencySample] = field(default_factory=list)
    memory: Optional[MemorySample] = None
    energy: Optional[EnergySample] = None
    traces: Optional[records.Blob] = None
    environment: Dict[str, str] = field(default_factory=dict)
    modules: List[str] = field(default_factory=list)
    parity: Optional[ParitySample] = None
    signed_by: Optional[str] = None
    passes: List[PassConditions] = field(default_factory=list)
    cold: Optional[List[ColdLoad]] = None
    sustained: Optional[SustainedSample] = None
    capacity: Optional[CapacitySample] = None


@dataclass(frozen=True)
class Run:
    """Everything that the steps of one run share. `environment` is the worker environment's folder;
    `allow_unsigned` lets a bundle without a signature run, but none with a wrong one; `tree` are the kernel's files."""

    root: Path
    run_id: str
    bundle: str
    environment: Path
    plan: Plan
    spool: Spool
    wire: Listener
    collected: Collected
    allow_unsigned: bool = False
    tree: Tree = field(default_factory=Tree)

    def execute(self) -> Dict[str, Any]:
        """Go through all steps; whatever happens, a record is kept. Returns the result event."""
        before = snapshot(self.tree)
        signal.signal(signal.SIGTERM, _raise_aborted)
        outcome, reason = records.ERROR, None  # type: str, Optional[str]
        try:
            manifest, self.collected.signed_by = verified_manifest(
                self.root, self.bundle, allow_unsigned=self.allow_unsigned
            )
            self.spool.journal("verified", files=len(manifest.files))
            self._materialise(manifest)
            with pinned(self.root, self.tree) if self.plan.pin_clocks else nullcontext():
                for name in self.plan.passes:
                    self._measure(name, manifest)
            outcome, reason = _judge(manifest, self.collected)
        except WorkerError as exc:
            outcome, reason = exc.outcome, str(exc)
        except AbortedError:
            outcome, reason = records.ABORTED, "the run was aborted by request"
        except ValueError as exc:
            reason = str(exc)
        except OSError as exc:
            reason = describe(exc, self.root)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # too late to abort: the record is being written
            shutil.rmtree(self.spool.bundle, ignore_errors=True)
            shutil.rmtree(self.spool.output, ignore_errors=True)
        record = records.RunRecord(
            version=records.RECORD_VERSION,
            run_id=self.run_id,
            bundle=self.bundle,
            outcome=outcome,
            reason=reason,
            conditions=_conditions(before, snapshot(self.tree)),
            **vars(self.collected),
        )
        return self.spool.keep(record)

    def _measure(self, name: str, manifest: Manifest) -> None:
        self.wire.progress(step="started", **{"pass": name})
        before = snapshot(self.tree)
        try:
            PASSES[name](self, manifest)
        finally:
            # After the workers have ended and been waited for: only then is their time counted as ours.
            self.collected.passes.append(pass_conditions(name, before, snapshot(self.tree)))

    def _materialise(self, manifest: Manifest) -> None:
        lay_out(self.root, manifest, self.spool.bundle)
        self.spool.journal("materialised")

    def worker(
        self,
        name: str,
        manifest: Manifest,
        kind: Type[Result],
        on_event: Callable[[Event], None] = lambda event: None,
        **more: Any,
    ) -> Result:
        """Run one worker process of the pass `name`; return its answer, checked. Raises WorkerError."""
        plan = self.plan

        def tell(event: Event) -> None:
            on_event(event)
            if event["event"] == "progress":
                shown = {k: v for k, v in event.items() if k in ("step", "done", "of")}
                self.wire.progress(**dict(shown, **{"pass": name}))

        result = ask_worker(
            name,
            manifest,
            Workplace(self.environment, self.spool.bundle, self.spool.folder, self.spool.output),
            kind,
            threads=plan.threads,
            timeout_s=plan.pass_timeout_s + (plan.sustained_s if name == "sustained" else 0.0),
            on_event=tell,
            on_spawn=lambda pid: self.spool.journal("spawn", **{"pass": name, "pid": pid}),
            generations=plan.generations,
            warmups=plan.warmups,
            tokens=plan.tokens,
            **more,
        )
        self.spool.journal("exit", **{"pass": name})
        return result


def _parity(run: Run, manifest: Manifest) -> None:
    sample = run.worker("parity", manifest, ParityResult).sample
    run.collected.parity = sample
    # Written so that no number that is not one passes, and no comparison of nothing.
    if not (sample.max_abs_logit_difference <= sample.tolerance and sample.compared > 0):
        raise WorkerError(
            records.ERROR,
            f"parity: the artifact does not compute what was searched: logits differ by "
            f"{sample.max_abs_logit_difference:.3g} from the canary, at most {sample.tolerance:g} is rounding; "
            "nothing more was run, export the bundle again",
        )


def _verify(run: Run, manifest: Manifest) -> None:
    result = run.worker("verify", manifest, VerifyResult)
    source = run.spool.output / records.check_path(result.traces)
    if source.is_symlink() or not source.is_file():
        raise WorkerError(records.ERROR, f"pass verify: expected the traces in {result.traces}: no such file")
    source.replace(run.spool.traces_path)
    collected = run.collected
    collected.modes, collected.noise_floor = result.modes, result.noise_floor
    collected.modules, collected.environment = result.modules, result.environment
    collected.traces = blob_of(run.spool.traces_path)


def _latency(run: Run, manifest: Manifest) -> None:
    for restart in range(run.plan.restarts):
        run.wire.progress(step="restart", done=restart, of=run.plan.restarts, **{"pass": "latency"})
        contexts = run.plan.contexts if restart < CONTEXT_RESTARTS else []
        result = run.worker("latency", manifest, LatencyResult, contexts=contexts)
        run.collected.latency.append(result.sample)


def _cold(run: Run, manifest: Manifest) -> None:
    found: List[ColdLoad] = []
    run.collected.cold = found
    for restart in range(run.plan.colds):
        run.wire.progress(step="restart", done=restart, of=run.plan.colds, **{"pass": "cold"})
        found.append(run.worker("cold", manifest, ColdResult).sample)


def _sustained(run: Run, manifest: Manifest) -> None:
    result = run.worker("sustained", manifest, SustainedResult, seconds=run.plan.sustained_s)
    run.collected.sustained = result.sample


def _capacity(run: Run, manifest: Manifest) -> None:
    under = limits.circumstances(run.environment.name, run.plan.threads)
    run.collected.capacity = limits.known_capacity(run.root, under)
    if run.collected.capacity is None:
        before = snapshot(run.tree)
        sample = run.worker("capacity", manifest, CapacityResult).sample
        conditions = pass_conditions("capacity", before, snapshot(run.tree))
        limits.keep_capacity(run.root, under, sample, conditions)
        run.collected.capacity = sample


def _memory(run: Run, manifest: Manifest) -> None:
    run.collected.memory = run.worker("memory", manifest, MemoryResult).sample


def _energy(run: Run, manifest: Manifest) -> None:
    meter, reason = meters.open_energy(run.tree, manifest.target, run.plan.meter, run.plan.energy_window_s)
    if meter is None:
        run.collected.energy = no_energy(reason)
        return
    recording = Recording(meter)
    borders: Dict[str, float] = {}

    def border(event: Event) -> None:
        if event["event"] == "result":
            borders["end"] = recording.take()
        elif event.get("step") == LOADED and "start" not in borders:
            borders["start"] = recording.take()

    with Sampler(recording):
        before = _idle(recording, run.plan.idle_s)
        result = run.worker(
            "energy", manifest, EnergyResult, on_event=border, seconds=run.plan.energy_window_s
        )
        time.sleep(SETTLED_PERIODS * meter.period_s)
        after = _idle(recording, run.plan.idle_s)
    work = (borders["start"], borders["end"]) if len(borders) == 2 else None
    run.collected.energy = energy_sample(recording, Spans(before, work, after), result.tokens)


PASSES: Dict[str, Callable[[Run, Manifest], None]] = {
    "parity": _parity,
    "verify": _verify,
    "capacity": _capacity,
    "cold": _cold,
    "latency": _latency,
    "sustained": _sustained,
    "memory": _memory,
    "energy": _energy,
}


def _raise_aborted(*_: object) -> None:
    raise AbortedError


def _idle(recording: Recording, seconds: float) -> Optional[Span]:
    if seconds == 0:
        return None
    begun = recording.take()
    time.sleep(seconds)
    return begun, recording.take()


def _judge(manifest: Manifest, collected: Collected) -> "tuple[str, Optional[str]]":
    """Outcome and reason: the default mode's verdict, if a verdict was asked for."""
    if collected.traces is None:
        return records.PASS, "measured only: the plan has no verify pass"
    for mode in collected.modes:
        if mode.mode == manifest.default_mode:
            if mode.verdict in (records.SATISFIED, records.MARGINAL):
                return records.PASS, None
            if mode.verdict == records.VIOLATED:
                return records.FAIL, f"mode {mode.mode} is violated"
            return records.ERROR, f"mode {mode.mode} is {mode.verdict}: {mode.reason or 'no reason given'}"
    return records.ERROR, f"the worker did not judge the default mode {manifest.default_mode!r}"


def _conditions(before: Snapshot, after: Snapshot) -> Dict[str, str]:
    joined = {"cpu_model": cpu_model()}
    for key, value in after.texts.items():
        joined[f"{key}_before"], joined[f"{key}_after"] = before.texts[key], value
    return joined
