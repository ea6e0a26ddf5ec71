"""Records <-> JSON, strictly. A reader takes nothing on trust: an unknown version, an unknown or missing key, a
wrong type, a NaN or an infinity raises `RecordError` with the path of the offending field.

A record that is sent or kept has a `version` and names in `READABLE` the versions that its reader understands.
"""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any, Dict, List, Tuple, Type, TypeVar, Union, get_type_hints

LEFT_OUT = frozenset({"capacity", "cold", "contexts", "kept", "sustained"})
"""Keys that came later and are left out where they hold nothing, so that what was written, named and signed before they
were is still written the same."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

Record = TypeVar("Record")


class RecordError(ValueError):
    """A record is not what the format says: the message holds the field's path, what was expected, what came."""


def to_json(record: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN, keys of `LEFT_OUT` only where they say something. Equal records
    give equal bytes.

    Raises RecordError when a number is not finite.
    """
    try:
        return json.dumps(
            dataclasses.asdict(record, dict_factory=_object),
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
            ensure_ascii=False,
        )
    except ValueError as exc:
        raise RecordError(f"{type(record).__name__}: expected finite numbers: {exc}") from exc


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    return {key: value for key, value in pairs if value is not None or key not in LEFT_OUT}


def from_json(kind: Type[Record], text: str) -> Record:
    """Read one record strictly. Raises RecordError on malformed JSON or any field that does not fit."""
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise RecordError(f"{kind.__name__}: expected JSON, got {text[:60]!r}: {exc}") from exc
    return from_data(kind, data)


def from_data(kind: Type[Record], data: Any) -> Record:
    """Like `from_json`, from already parsed JSON."""
    decoded: Record = _decode(kind, data, kind.__name__)
    return decoded


def digest_of(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as a bundle's name is made from its manifest."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_path(path: str) -> str:
    """Return `path` if it stays inside the bundle: relative, `/`-separated, plain names, no `..`.

    Raises RecordError otherwise: a manifest comes over the wire, and a path from it is written to disk.
    """
    if len(path) > 240 or not all(_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        raise RecordError(f"path: expected a relative path of plain names inside the bundle, got {path!r}")
    return path


def require_version(version: Any, readable: Tuple[int, ...], what: str) -> None:
    """Raises RecordError, naming the side to upgrade, for a version that is not among `readable`."""
    if isinstance(version, int) and not isinstance(version, bool) and version in readable:
        return
    newer = isinstance(version, int) and version > max(readable)
    remedy = "it was written by a newer toggle-edge: upgrade this side" if newer else "write it anew"
    *earlier, last = [str(number) for number in readable]
    known = f"{', '.join(earlier)} and {last}" if earlier else last
    raise RecordError(f"{what} version: this side reads {known}, got {version!r}; {remedy}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _decode(kind: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    origin: Any = getattr(kind, "__origin__", None)
    arguments: Any = getattr(kind, "__args__", ())
    if origin is Union:  # Optional[X]: the only union in our records
        return None if data is None else _decode(arguments[0], data, path)
    if origin is list:
        _expect(isinstance(data, list), "a list", data, path)
        return [_decode(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(data)]
    if origin is dict:
        _expect(isinstance(data, dict), "an object", data, path)
        return {
            _text(key, path): _decode(arguments[1], value, f"{path}.{key}") for key, value in data.items()
        }
    if kind is float:
        _expect(isinstance(data, (int, float)) and not isinstance(data, bool), "a number", data, path)
        try:
            number = float(data)
        except OverflowError:  # JSON's integers have no limit
            number = math.inf
        _expect(math.isfinite(number), "a finite number", data, path)
        return number
    _expect(
        isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), kind.__name__, data, path
    )
    return _text(data, path) if kind is str else data


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    _expect(isinstance(data, dict), "an object", data, path)
    # The version first: an unknown version explains every other difference.
    readable = getattr(kind, "READABLE", None)
    if readable is not None and "version" in data:
        require_version(data["version"], readable, path)
    every_hint = get_type_hints(kind)
    hints = {each.name: every_hint[each.name] for each in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RecordError(f"{path}: unknown key {unknown[0]!r}; known: {sorted(hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecordError(f"{path}: missing key {missing[0]!r}")
    return kind(**{key: _decode(hints[key], value, f"{path}.{key}") for key, value in data.items()})


def _text(data: str, path: str) -> str:
    # JSON can spell half of a surrogate pair, which nothing can print or write afterwards.
    try:
        data.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise RecordError(f"{path!a}: expected text that is UTF-8, got {ascii(data)[:60]}") from exc
    return data


def _expect(condition: bool, wanted: str, data: Any, path: str) -> None:
    if not condition:
        raise RecordError(f"{path}: expected {wanted}, got {str(data)[:60]!r} ({type(data).__name__})")
