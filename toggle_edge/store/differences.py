"""What keeps a study from going on: how what it was started with differs from what is asked for now, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from toggle_edge.store.rows import StudyIdentity

IDENTIFYING = {
    "model_digest": "the model's content",
    "profile": "the profile",
    "profile_digest": "the profile's content",
    "probes_digest": "the probes' content",
    "target": "the target",
    "seed": "the seed",
    "quantiser": "the quantiser",
    "pruner": "the pruner",
    "batch": "the number of trials in a batch",
}
"""What must be equal for trials to be comparable, in words. A file may move."""

PLACES = {"model_digest": "model_folder", "profile_digest": "profile_path", "probes_digest": "probes_path"}
"""Where the content lies that a digest is of."""

MOST_KEYS = 6
"""So many keys of a profile are named one by one."""

_NOT_THERE = object()


def differences(study: Mapping[str, object], identity: StudyIdentity) -> list[str]:
    """What of a study's row differs from `identity`, a sentence each: of content its digests, where it lay and lies
    and, of a profile, the keys that changed."""
    return [
        f"{what} was {_short(study[key])}, is now {_short(getattr(identity, key))}"
        + _places(study, identity, key)
        + (_changed_keys(study, identity) if key == "profile_digest" else "")
        for key, what in IDENTIFYING.items()
        if study[key] != getattr(identity, key)
    ]


def _places(study: Mapping[str, object], identity: StudyIdentity, key: str) -> str:
    if key not in PLACES or study[PLACES[key]] is None:
        return ""
    before, now = (
        str(each).replace("\n", ", ") for each in (study[PLACES[key]], getattr(identity, PLACES[key]))
    )
    return f" ({now} has changed)" if before == now else f" ({before}, now {now})"


def _changed_keys(study: Mapping[str, object], identity: StudyIdentity) -> str:
    before = study["profile_content"]
    if not isinstance(before, Mapping) or identity.profile_content is None:
        return ""
    old = dict(_leaves(before))
    new = dict(_leaves(json.loads(json.dumps(identity.profile_content))))
    changed = [key for key in {**old, **new} if old.get(key, _NOT_THERE) != new.get(key, _NOT_THERE)]
    told = [
        f"{key} was {_value(old.get(key, _NOT_THERE))}, is now {_value(new.get(key, _NOT_THERE))}"
        for key in changed[:MOST_KEYS]
    ]
    more = [f"and {len(changed) - MOST_KEYS} keys more"] if len(changed) > MOST_KEYS else []
    return f": {', '.join([*told, *more])}" if told else ""


def _leaves(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """What a profile says, by keys such as `modes.strict.coverage`."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: object) -> str:
    return "absent" if value is _NOT_THERE else json.dumps(value)


def _short(value: object) -> str:
    if value is None:
        return "not noted (by an older toggle-edge)"
    return f"{str(value)[:12]!r}" if len(str(value)) == 64 else repr(value)
