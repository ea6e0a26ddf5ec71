"""Certification: the device's verdict is not believed; RTAMT judges again the traces that came home.

Every number of the claim is computed a second time, by other code on another monitor. Any difference, missing
or additional entry makes the certificate say `certified=False` and name both numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from toggle_runtime.records import ModeSpecification, ModeVerdict
from toggle_runtime.signals import Trace
from toggle_runtime.stl import FormulaError

from toggle_edge.certify.bounds import (
    ALONE,
    CoverageBound,
    Division,
    coverage_bound,
    of_selected,
    of_tried,
)
from toggle_edge.certify.recomputation import avgpp_of, mode_verdict_of, noise_floor_of
from toggle_edge.certify.series import TOLERANCE, differences_of, series_of
from toggle_edge.errors import CertificationError

__all__ = [
    "ALONE",
    "Certificate",
    "CoverageBound",
    "Division",
    "certify",
    "coverage_bound",
    "of_selected",
    "of_tried",
]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whether the claim is what the traces say, where it is not, and the bound of each mode that is stated.

    `certified` means that the claim is true, not that it is favourable: an agreed VIOLATED or UNSET is
    certified too. `differences` says by property how far the two monitors are apart at most, over both runs, all
    probes and modes.
    """

    certified: bool
    disagreements: tuple[str, ...]
    bounds: Mapping[str, CoverageBound]
    differences: Mapping[str, float]


def certify(
    record_modes: Sequence[ModeVerdict],
    specification: Mapping[str, ModeSpecification],
    traces: Sequence[Trace],
    repeated: Sequence[Trace],
    noise_floor: Mapping[str, float],
    *,
    candidates: int,
    stated: Sequence[str] | None = None,
    jobs: int = 1,
) -> Certificate:
    """Judge a run again and compare with what its record claims.

    `traces` and `repeated` are both runs of the artifact, one entry per probe in the bundle's order;
    `candidates` is how many were judged on these probes. `stated` are the modes that get a bound, None being
    all: they are stated together, so each weakens the others. Numbers may differ by 1e-9, everything else must
    be equal; of an UNSET verdict's reason only the presence is compared. A claim without traces, or whose two
    runs differ in probes, is not certified. RTAMT runs in `jobs` processes.

    Raises CertificationError when a formula of the specification cannot be read or RTAMT fails.
    """
    texts = sorted({text for mode in specification.values() for text in mode.properties.values()})
    try:
        first, second = series_of(texts, (traces, repeated), jobs)
        differences = differences_of(specification, [(traces, first), (repeated, second)])
    except FormulaError as exc:
        raise CertificationError(f"certify: the specification cannot be read: {exc}") from exc
    floors = noise_floor_of(specification, first, second)
    percent = avgpp_of(specification, traces)
    claims = {claim.mode: claim for claim in record_modes}
    modes = [
        mode_verdict_of(name, mode, first, traces, floors, percent, claims.get(name))
        for name, mode in specification.items()
    ]
    disagreements = (
        *_gaps(specification, traces, repeated),
        *_repetitions(record_modes),
        *_differences(_claim(record_modes, noise_floor), _claim(modes, floors)),
        *(
            f"{name}: the monitors are {difference} apart"
            for name, difference in differences.items()
            if not difference <= TOLERANCE
        ),
    )
    bounded = {name: mode for name, mode in specification.items() if stated is None or name in stated}
    division = of_tried(candidates, bounded)
    bounds = {
        verdict.mode: coverage_bound(verdict.mode, verdict.coverage, division)
        for verdict in modes
        if verdict.mode in bounded
    }
    return Certificate(not disagreements, disagreements, bounds, differences)


def _gaps(
    specification: Mapping[str, ModeSpecification], traces: Sequence[Trace], repeated: Sequence[Trace]
) -> Iterator[str]:
    """What is missing to certify anything, since an empty claim about nothing would agree with itself."""
    if not specification:
        yield "specification: expected at least one mode, got none"
    if not traces:
        yield "traces: expected one per probe, got none"
    if len(traces) != len(repeated):
        yield f"traces: expected both runs to have the same probes, got {len(traces)} and {len(repeated)}"


def _repetitions(modes: Sequence[ModeVerdict]) -> Iterator[str]:
    """Entries that a claim makes twice: flattened, the second would hide the first."""
    names = [mode.mode for mode in modes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: claimed {names.count(name)} times"
    for mode in modes:
        keys = [verdict.property for verdict in mode.verdicts]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            yield f"{mode.mode}.{key}: claimed {keys.count(key)} times"


def _claim(modes: Sequence[ModeVerdict], noise_floor: Mapping[str, float]) -> dict[str, object]:
    """Every leaf of the verdicts by a path for people, so that a field added later is compared too."""
    flat: dict[str, object] = {f"noise_floor.{name}": floor for name, floor in noise_floor.items()}
    for mode in modes:
        data = asdict(mode)
        verdicts = data.pop("verdicts")
        data["reason"] = "given" if data["reason"] else None
        flat.update(_leaves(mode.mode, data))
        for verdict in verdicts:
            verdict["reason"] = "given" if verdict["reason"] else None
            flat.update(_leaves(f"{mode.mode}.{verdict['property']}", verdict))
    return flat


def _leaves(path: str, data: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(f"{path}.{key}", value)
        else:
            yield f"{path}.{key}", value


def _differences(claimed: Mapping[str, object], recomputed: Mapping[str, object]) -> Iterator[str]:
    for path in sorted({*claimed, *recomputed}):
        if path not in recomputed:
            yield f"{path}: claimed {claimed[path]!r}, the traces give nothing of that name"
        elif path not in claimed:
            yield f"{path}: not claimed, recomputed {recomputed[path]!r}"
        elif not _equal(claimed[path], recomputed[path]):
            yield f"{path}: claimed {claimed[path]!r}, recomputed {recomputed[path]!r}"


def _equal(claimed: object, recomputed: object) -> bool:
    if isinstance(claimed, float) and isinstance(recomputed, float):
        return abs(claimed - recomputed) <= TOLERANCE  # NaN and inf are never equal to anything
    return claimed == recomputed
