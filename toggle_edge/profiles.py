"""Profiles: a file of properties with their thresholds, modes, search bounds, probe counts and budget.

`load_profile` reads strictly: an unknown or missing key, a wrong type or a number out of range is a
`ProfileError` that names the file and the key. Formulas are read as text here; `specification` checks them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.config import MOST_SPARSITY, PRUNERS, QUANTISERS, Format, nearest_with_kernel
from toggle_edge.errors import ConfigError, ProbeError, ProfileError
from toggle_edge.sources import ProbeSource
from toggle_edge.strict_tables import Table, nearest, one_of
from toggle_edge.targets import has_kernel_somewhere

__all__ = [
    "BUDGET_KEYS",
    "MODES",
    "REMOVABLE_PARTS",
    "Mode",
    "ProbeCounts",
    "Profile",
    "SearchBounds",
    "builtin_profiles",
    "load_profile",
]

MODES = ("strict", "optimal", "relaxed")
BUDGET_KEYS = ("artifact_bytes", "memory_bytes", "ttft_ms", "decode_ms_p50", "energy_mj_per_token")
"""Measurements that a budget may limit, each from above."""

BLOCKS, KV_GROUPS, CHANNELS = REMOVABLE_PARTS = ("blocks", "kv_groups", "channels")
"""What of a model's structure a search may be let remove."""

DEFAULT_TRIALS = 60
MAX_PROFILE_BYTES = 1 << 20

MOST_IDS = 2**16 - 1
"""Ids of a row are counted in two bytes where they are stored."""

_SECTIONS = ("properties", "modes", "search", "probes", "budget", "default_mode")
_THRESHOLD = re.compile(r"\bthreshold\b")


@dataclass(frozen=True, slots=True)
class Mode:
    """What a mode asks for: AvgPP in percent, share of probes that must satisfy, how far thresholds relax."""

    avgpp: float
    coverage: float
    relax: float


@dataclass(frozen=True, slots=True)
class ProbeCounts:
    """How many probes search and certificate use, and the fewest steps that each must have.

    Each mode's winner is chosen on at most `selection` further probes, 0 being none of its own: then the search's
    choose.
    Of each certificate probe's baseline a device is sent at most `probe_bytes` bytes: the `distribution_ids` most
    likely tokens of a step and the `attention_ids` largest weights of an attention row, or fewer where fewer do.
    Free texts are cut to `max_tokens`. `data` are the sources that are used when the command names none, as
    `sources.ProbeSource` reads them; relative paths start at the profile's file.
    """

    search: int
    certificate: int
    min_steps: int
    selection: int = 0
    probe_bytes: int = 8 * 2**20
    distribution_ids: int = 1024
    attention_ids: int = 512
    max_tokens: int = 256
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchBounds:
    """What a search may vary beside the formats, and how far; nothing more by default.

    Formats of the menu have `least_bits` to `most_bits` bits, None being no bound. `sparsities` are the shares of zeros
    above 0 that are offered where zeros pay; None are the target's. `structure` is what may be removed, some of
    `REMOVABLE_PARTS`, and `keep` are the shares of its kv groups and channels that a block may keep beside all of them.
    """

    least_bits: int | None = None
    most_bits: int | None = None
    sparsities: tuple[float, ...] | None = None
    structure: tuple[str, ...] = ()
    keep: tuple[float, ...] = (0.75, 0.5)


@dataclass(frozen=True, slots=True)
class Profile:
    """A contract and the bounds of the search for it.

    `path` is the file that it was read from. `properties` maps each property to its formula's text with the
    threshold filled in, before any mode relaxes it. `formats` is the menu the search draws from, as texts.
    `budget` maps some of `BUDGET_KEYS` to upper limits; an absent one is unlimited. `trials` is how many configs a
    search evaluates when the command does not say, `quantiser` how codes and scales are chosen, `pruner` which weights
    become zero where a config asks for that.
    """

    name: str
    path: Path
    properties: Mapping[str, str]
    modes: Mapping[str, Mode]
    default_mode: str
    formats: tuple[str, ...]
    probes: ProbeCounts
    budget: Mapping[str, float]
    trials: int = DEFAULT_TRIALS
    quantiser: str = QUANTISERS[0]
    pruner: str = PRUNERS[0]
    bounds: SearchBounds = SearchBounds()

    @property
    def content(self) -> dict[str, object]:
        """What the profile asks for, whatever its file is called and however it is laid out.

        Without `trials`: a study that goes on for longer is the same study. And without `quantiser` and `pruner`, which
        studies remember by name.
        """
        content = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("name", "path", "trials", "quantiser", "pruner")
        }
        if self.bounds == SearchBounds():
            # A study that began before profiles had bounds goes on.
            del content["bounds"]
        return content

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()


def builtin_profiles() -> dict[str, Path]:
    """The profiles that come with toggle-edge, by name: of an installed wheel, else of the checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "_data" / "profiles"
    folder = packed if packed.is_dir() else package.parent / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a built-in profile by name, or any profile by a path that ends in `.toml` or has a separator.

    Raises ProfileError naming the file, the key, what was expected and the nearest known key.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and path.suffix != ".toml" and path.name == name_or_path:
        known = builtin_profiles()
        if name_or_path not in known:
            raise ProfileError(
                f"profile: expected {one_of(known)} or a path to a .toml file, got {name_or_path!r}"
                f"{nearest(name_or_path, known)}"
            )
        path = known[name_or_path]
    try:
        # One byte more than allowed tells a larger file, without reading it.
        with path.open("rb") as stream:
            content = stream.read(MAX_PROFILE_BYTES + 1)
    except OSError as exc:
        raise ProfileError(f"{path}: expected a readable profile: {exc.strerror}") from exc
    if len(content) > MAX_PROFILE_BYTES:
        raise ProfileError(f"{path}: expected a profile of at most {MAX_PROFILE_BYTES} bytes, got more")
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as exc:  # its own errors, and those of numbers with too many digits
        raise ProfileError(f"{path}: expected TOML in UTF-8: {exc}") from exc
    return _profile(Table(path, "", data))


def _profile(table: Table) -> Profile:
    table.only(_SECTIONS)
    properties = table.table("properties")
    modes = table.table("modes")
    modes.only(MODES)
    search = table.table("search")
    search.only(("bits", "formats", "keep", "pruner", "quantiser", "sparsities", "structure", "trials"))
    probes = table.table("probes")
    probes.only([field.name for field in dataclasses.fields(ProbeCounts)])
    budget = table.table("budget") if "budget" in table.data else Table(table.path, "budget", {})
    budget.only(BUDGET_KEYS)
    if not properties.data:
        raise properties.error("", "expected at least one property, as in [properties.coherence]")
    default_mode = table.text("default_mode")
    if default_mode not in MODES:
        raise table.error(
            "default_mode", f"expected {one_of(MODES)}, got {default_mode!r}{nearest(default_mode, MODES)}"
        )
    return Profile(
        name=table.path.stem,
        path=table.path.absolute(),
        properties={name: _property(properties.table(name)) for name in properties.data},
        modes={name: _mode(modes.table(name)) for name in MODES},
        default_mode=default_mode,
        formats=_formats(search),
        quantiser=_choice(search, "quantiser", QUANTISERS),
        pruner=_choice(search, "pruner", PRUNERS),
        probes=_probe_counts(probes),
        budget={key: budget.number(key, 0.0, math.inf) for key in budget.data},
        trials=search.count("trials") if "trials" in search.data else DEFAULT_TRIALS,
        bounds=_bounds(search),
    )


def _probe_counts(table: Table) -> ProbeCounts:
    optional = {
        field.name: table.count(field.name)
        for field in dataclasses.fields(ProbeCounts)
        if field.default is not dataclasses.MISSING
        and field.name in table.data
        and field.name not in ("data", "selection")
    }
    for key in ("distribution_ids", "attention_ids"):
        if optional.get(key, 1) > MOST_IDS:
            raise table.error(key, f"expected a whole number from 1 to {MOST_IDS}, got {optional[key]}")
    counts = ProbeCounts(table.count("search"), table.count("certificate"), table.count("min_steps"))
    selection = table.count("selection", least=0) if "selection" in table.data else 2 * counts.certificate
    counts = dataclasses.replace(counts, **{**optional, "selection": selection}, data=_data(table))
    if counts.max_tokens < counts.min_steps + 2:
        raise table.error(
            "max_tokens",
            f"expected at least min_steps + 2 = {counts.min_steps + 2}, since a probe has a prompt too; got "
            f"{counts.max_tokens}",
        )
    return counts


def _data(table: Table) -> tuple[str, ...]:
    value = table.data.get("data", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise table.error(
            "data", f'expected a list such as ["lambada:test.jsonl", "hub:NAME"], got {value!r}'
        )
    for item in value:
        try:
            ProbeSource.parse(item, table.path.parent)
        except ProbeError as exc:
            raise table.error("data", str(exc)) from exc
    if len(set(value)) < len(value):
        raise table.error("data", f"expected each data set once, got {value!r}")
    return tuple(value)


def _property(table: Table) -> str:
    """The formula's text with `threshold` replaced by its value."""
    table.only(("formula", "threshold"))
    formula = table.text("formula")
    if "threshold" not in table.data:
        if _THRESHOLD.search(formula):
            raise table.error("threshold", "expected a number, since the formula names it; got nothing")
        return formula
    threshold = table.number("threshold", -math.inf, math.inf)
    if not _THRESHOLD.search(formula):
        raise table.error("formula", f"expected it to name `threshold`, which is given; got {formula!r}")
    return _THRESHOLD.sub(repr(threshold), formula)


def _mode(table: Table) -> Mode:
    table.only(("avgpp", "coverage", "relax"))
    mode = Mode(
        table.number("avgpp", 0.0, 100.0), table.number("coverage", 0.0, 1.0), table.number("relax", 0.0, 1.0)
    )
    if mode.coverage == 0.0:
        raise table.error(
            "coverage", "expected a share above 0: a mode that asks for no probe promises nothing"
        )
    if mode.relax == 1.0:
        raise table.error(
            "relax", "expected less than 1: lower thresholds times 0 hold whatever is measured; 0.2 is 20 %"
        )
    return mode


def _choice(table: Table, key: str, known: tuple[str, ...]) -> str:
    """One of `known`, the first where the key is absent."""
    name = table.text(key) if key in table.data else known[0]
    if name not in known:
        raise table.error(key, f"expected {one_of(known)}, got {name!r}{nearest(name, known)}")
    return name


def _formats(table: Table) -> tuple[str, ...]:
    value = table.value("formats")
    if not isinstance(value, list) or not value:
        raise table.error("formats", f'expected a list such as ["int4-g32", "fp16"], got {value!r}')
    for item in value:
        try:
            fmt = Format.parse(str(item))
        except ConfigError as exc:
            raise table.error("formats", str(exc)) from exc
        if not has_kernel_somewhere(fmt):
            raise table.error(
                "formats",
                f"no target has a kernel for {fmt}; the nearest format with one is {nearest_with_kernel(fmt)}",
            )
    if len(set(value)) < len(value):
        raise table.error("formats", f"expected each format once, got {value!r}")
    return tuple(value)


def _bounds(search: Table) -> SearchBounds:
    bits = search.table("bits") if "bits" in search.data else Table(search.path, "search.bits", {})
    bits.only(("least", "most"))
    least, most = (bits.count(key) if key in bits.data else None for key in ("least", "most"))
    if least is not None and most is not None and least > most:
        raise bits.error("least", f"expected at most search.bits.most, which is {most}; got {least}")
    structure = _parts(search)
    keep = _shares(
        search, "keep", 0.0, 1.0, "above 0 and below 1, such as [0.75, 0.5]; all is always offered"
    )
    if keep is not None and not {KV_GROUPS, CHANNELS} & set(structure):
        raise search.error(
            "keep",
            "says how much of its kv groups and channels a block keeps, and search.structure has neither: add one of "
            "them there, or remove this",
        )
    return SearchBounds(
        least,
        most,
        # Just above the most, so that the most itself may be named.
        _shares(
            search,
            "sparsities",
            0.0,
            math.nextafter(MOST_SPARSITY, 1.0),
            f"above 0 and up to {MOST_SPARSITY}",
        ),
        structure,
        SearchBounds().keep if keep is None else keep,
    )


def _parts(search: Table) -> tuple[str, ...]:
    value = search.data.get("structure", [])
    if not isinstance(value, list):
        raise search.error(
            "structure", f"expected a list with some of {', '.join(REMOVABLE_PARTS)}, got {value!r}"
        )
    for item in value:
        if item not in REMOVABLE_PARTS:
            raise search.error(
                "structure",
                f"expected {one_of(REMOVABLE_PARTS)}, got {item!r}{nearest(str(item), REMOVABLE_PARTS)}",
            )
    if len(set(value)) < len(value):
        raise search.error("structure", f"expected each part once, got {value!r}")
    return tuple(part for part in REMOVABLE_PARTS if part in value)


def _shares(search: Table, key: str, above: float, below: float, expected: str) -> tuple[float, ...] | None:
    """A list of distinct shares from the largest down, None where the key is absent."""
    if key not in search.data:
        return None
    value = search.data[key]
    if not isinstance(value, list):
        raise search.error(key, f"expected a list of shares {expected}; got {value!r}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float) or not above < item < below:
            raise search.error(key, f"expected shares {expected}; got {item!r}")
    if len(set(value)) < len(value):
        raise search.error(key, f"expected each share once, got {value!r}")
    return tuple(sorted(map(float, value), reverse=True))
