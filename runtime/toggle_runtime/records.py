"""The wire contract between host and device: what a run brings home, and, from `manifests`, what a bundle says.

Records are frozen values; `to_json` and `from_json` (from `codec`) are the only way in and out. Standard library
only, Python 3.8.

Signs and units: robustness `>= 0` is satisfied; every quantity carries its unit in its name or in `unit`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Dict, List, Optional, Tuple

from toggle_runtime.codec import RecordError as RecordError
from toggle_runtime.codec import check_path as check_path
from toggle_runtime.codec import digest_of as digest_of
from toggle_runtime.codec import from_data as from_data
from toggle_runtime.codec import from_json as from_json
from toggle_runtime.codec import require_version
from toggle_runtime.codec import to_json as to_json
from toggle_runtime.manifests import MANIFEST_VERSION as MANIFEST_VERSION
from toggle_runtime.manifests import NARROWED_SINCE as NARROWED_SINCE
from toggle_runtime.manifests import REDUCED_SINCE as REDUCED_SINCE
from toggle_runtime.manifests import Blob as Blob
from toggle_runtime.manifests import BlockShape as BlockShape
from toggle_runtime.manifests import Manifest as Manifest
from toggle_runtime.manifests import ModelShape as ModelShape
from toggle_runtime.manifests import ModeSpecification as ModeSpecification
from toggle_runtime.manifests import Signature as Signature
from toggle_runtime.manifests import signed_bytes as signed_bytes

SATISFIED, MARGINAL, VIOLATED, UNSET = "SATISFIED", "MARGINAL", "VIOLATED", "UNSET"
PASS, FAIL, ERROR, TIMEOUT, ABORTED = "PASS", "FAIL", "ERROR", "TIMEOUT", "ABORTED"
OK, DEGRADED, UNAVAILABLE = "ok", "degraded", "unavailable"

RECORD_VERSION = 4
"""Version of the run records that we write. 2 added `parity` and `signed_by`, 3 intervals and a mode's reason, 4 what
memory and energy are made of, each pass's conditions, cold loads, long prompts and runs, and the device's limits."""


@dataclass(frozen=True)
class Argmin:
    """Where a robustness was attained. `layer` is None for a signal that is not computed per layer."""

    probe: int
    step: int
    layer: Optional[int] = None


@dataclass(frozen=True)
class Verdict:
    """One property, judged over all probes at the mode's coverage.

    `robustness` is the least robustness among the best `required` probes (at coverage 1.0: among all), and
    `argmin` the place that attains it; `worst` is the least over all probes. Where robustness is known as an
    interval these are of its lower end, and `robustness_upper` is the upper end at the same rank; None in records
    of before version 3. UNSET has a reason and no robustness, and never counts as satisfied.
    """

    property: str
    verdict: str
    robustness: Optional[float] = None
    argmin: Optional[Argmin] = None
    worst: Optional[float] = None
    reason: Optional[str] = None
    robustness_upper: Optional[float] = None


@dataclass(frozen=True)
class Coverage:
    """How many probes satisfy every property at once, of how many, and how many the mode requires."""

    satisfied: int
    probes: int
    required: int


@dataclass(frozen=True)
class ModeVerdict:
    """A bundle judged under one mode: the whole specification's verdict, and each property's.

    `avgpp` is in percent, None when any signal it needs is missing. `robustness` is the joint one: the least,
    over the best `coverage.required` probes, of the minimum over properties. UNSET has a `reason`.
    """

    mode: str
    verdict: str
    robustness: Optional[float]
    coverage: Coverage
    avgpp: Optional[float]
    verdicts: List[Verdict]
    reason: Optional[str] = None


@dataclass(frozen=True)
class Generation:
    """One generation: nanoseconds to the first token, then of every later token. Warm-ups are kept, flagged."""

    first_token_ns: int
    token_ns: List[int]
    prompt_tokens: int
    warmup: bool = False


@dataclass(frozen=True)
class LatencySample:
    """One worker process: nanoseconds to load the model (files in memory), then its generations in order.

    `contexts` are generations after long prompts, told apart by `prompt_tokens`; None in records of before.
    """

    load_ns: int
    generations: List[Generation]
    contexts: Optional[List[Generation]] = None


@dataclass(frozen=True)
class ColdLoad:
    """One fresh process whose artifact was not in memory: nanoseconds to load it, then to the first token.

    Both None with a reason where its pages could not be dropped, or stayed.
    """

    load_ns: Optional[int]
    first_token_ns: Optional[int]
    reason: Optional[str] = None


@dataclass(frozen=True)
class SustainedSample:
    """Generations without a pause, and when each began, in nanoseconds since the first did."""

    starts_ns: List[int]
    generations: List[Generation]

    def __post_init__(self) -> None:
        if len(self.starts_ns) != len(self.generations):
            raise RecordError(
                f"sustained: expected a start of each of {len(self.generations)} generations, got {len(self.starts_ns)}"
            )


@dataclass(frozen=True)
class CapacitySample:
    """What the device could do at best with `threads` threads, a number for each round: bytes read and written by a
    copy a second, and operations on int8 numbers a second, two for each product."""

    copied_per_s: List[float]
    int8_per_s: List[float]
    threads: int


@dataclass(frozen=True)
class MemorySample:
    """One worker process and its children: peak resident bytes, how it was read; `peak_bytes` None with a reason if it
    was not.

    The peak holds the others, which are never added to it: `generation_peak_bytes` of the worker after it had loaded;
    and what was resident at the end, `steady_bytes`, in `anonymous_bytes`, `file_bytes` (mapped weights) and
    `shared_bytes`; `pss_bytes` counts pages that are shared with others in part. `children` were there at once at most.
    `cgroup_peak_bytes` is of all processes of its control group, page cache included. Each is None where the kernel
    does not tell, all of them in records of before version 4. `flags` say what is doubtful.
    """

    peak_bytes: Optional[int]
    method: str
    reason: Optional[str] = None
    generation_peak_bytes: Optional[int] = None
    steady_bytes: Optional[int] = None
    anonymous_bytes: Optional[int] = None
    file_bytes: Optional[int] = None
    shared_bytes: Optional[int] = None
    pss_bytes: Optional[int] = None
    children: Optional[int] = None
    cgroup_peak_bytes: Optional[int] = None
    flags: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class EnergySample:
    """One energy window. Millijoules and seconds; all None with a reason where no meter could be read.

    `idle_mw` is the mean power before and after the window; `scope` is what the meter covers (package, module).
    Since version 4: both idle levels, in mW; `step_mw`, the least power that the meter can show in this window;
    `readings` in the window and the longest time between two; `rails`, the millijoules of each rail, package or GPU,
    those too that are not part of the sum; `flags`, why the numbers are doubtful, empty where they are not.
    """

    gross_mj: Optional[float]
    idle_mw: Optional[float]
    window_s: Optional[float]
    tokens: int
    method: str
    scope: Optional[str] = None
    reason: Optional[str] = None
    idle_before_mw: Optional[float] = None
    idle_after_mw: Optional[float] = None
    step_mw: Optional[float] = None
    readings: int = 0
    largest_gap_s: Optional[float] = None
    rails: Dict[str, float] = field(default_factory=dict)
    flags: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class PassConditions:
    """What a pass ran under: `before` and `after` it, as texts (`unavailable: why` for what the device does not tell).

    `contended` and `throttled` say why the pass's times and energy are not those of a device of its own at its full
    speed; None where nothing of the kind was seen. `unknown` says what could not be looked at. `others_share` is the
    share of the cores that other processes took, None where it cannot be told.
    """

    name: str
    before: Dict[str, str]
    after: Dict[str, str]
    others_share: Optional[float] = None
    contended: Optional[str] = None
    throttled: Optional[str] = None
    unknown: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class ParitySample:
    """The graph at `accuracy_level=0` against the canary: the largest absolute difference of a logit, the most
    that is allowed, and how many logits were compared. The difference is of those sequences of the canary that agree
    best, as large a `share` of them as the canary asks for: all, unless the kernels quantise activations."""

    max_abs_logit_difference: float
    tolerance: float
    compared: int
    share: float = 1.0


@dataclass(frozen=True)
class RunRecord:
    """All that one run of one bundle on one device brings home. Raw samples, not summaries: the host computes
    intervals, so that a record can be judged again by a better method.

    `traces` is the blob of the signal traces (a NumPy `.npz`), from which the host certifies `modes` again.
    `noise_floor` is, per property, the largest change of a probe's robustness when the same artifact ran again
    with another batch size and thread count. `parity` is None where the plan had no parity pass; `signed_by` is
    the public key (hex) that the device trusts and that signed the bundle, None for an unsigned one. `passes` has the
    conditions of each pass that ran, empty in records of before version 4.
    """

    READABLE: ClassVar[Tuple[int, ...]] = (1, 2, 3, RECORD_VERSION)

    version: int
    run_id: str
    bundle: str
    outcome: str
    reason: Optional[str] = None
    modes: List[ModeVerdict] = field(default_factory=list)
    noise_floor: Dict[str, float] = field(default_factory=dict)
    latency: List[LatencySample] = field(default_factory=list)
    memory: Optional[MemorySample] = None
    energy: Optional[EnergySample] = None
    traces: Optional[Blob] = None
    conditions: Dict[str, str] = field(default_factory=dict)
    environment: Dict[str, str] = field(default_factory=dict)
    modules: List[str] = field(default_factory=list)
    parity: Optional[ParitySample] = None
    signed_by: Optional[str] = None
    passes: List[PassConditions] = field(default_factory=list)
    cold: Optional[List[ColdLoad]] = None
    sustained: Optional[SustainedSample] = None
    capacity: Optional[CapacitySample] = None

    def __post_init__(self) -> None:
        require_version(self.version, self.READABLE, "run record")


@dataclass(frozen=True)
class Measurement:
    """One measured number with its pedigree. Without a `value` the `status` is unavailable; `reason` says why, as it
    does for one that is degraded: there, but doubtful."""

    value: Optional[float]
    unit: str
    method: str
    n: int
    ci95: Optional[List[float]] = None
    status: str = OK
    reason: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.status in (OK, DEGRADED)):
            raise RecordError(f"measurement: status {self.status!r} does not fit value {self.value!r}")
        if self.status != OK and not self.reason:
            raise RecordError(f"measurement: status {self.status!r} needs a reason")


def unavailable(unit: str, method: str, reason: str) -> Measurement:
    """A quantity that could not be measured, and why."""
    return Measurement(None, unit, method, 0, None, UNAVAILABLE, reason)
