"""The sides: the search sees one, certificates are made on the other, and no text is nearly on both.

The split goes by content hash, so it does not depend on the file's order, and a probe never changes sides when lines
are added. Selection probes are of the search's side: they choose among its trials, and certificates must see neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from toggle_edge.errors import ProbeError
from toggle_edge.probes.probe import Probe, probes_to_json
from toggle_edge.probes.similarity import NearTexts, shingles

__all__ = ["ProbeSplit", "sides_of", "split_probes"]


@dataclass(frozen=True, slots=True)
class ProbeSplit:
    """Disjoint probes: trials are judged on `search`, the choice among them on `selection`, certificates on
    `certificate`.

    `near_duplicates` were dropped of all probes to keep it so.
    """

    search: tuple[Probe, ...]
    certificate: tuple[Probe, ...]
    near_duplicates: int = 0
    selection: tuple[Probe, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all sides' tokens and answer steps."""
        sides = (self.search, self.certificate, self.selection)
        return hashlib.sha256("\n".join(map(probes_to_json, sides)).encode()).hexdigest()


def split_probes(probes: Sequence[Probe], *, search: int, certificate: int, selection: int = 0) -> ProbeSplit:
    """The first so many of each side, in the order of their hashes; of the search's, then at most `selection` more.

    Raises ProbeError when search or certificate would have fewer probes than asked for.
    """
    seen, judges = sides_of(probes)
    dropped = len(probes) - len(seen) - len(judges)
    for side, wanted, name in ((seen, search, "search"), (judges, certificate, "certificate")):
        if len(side) < wanted:
            raise ProbeError(
                f"probes: expected at least {wanted} for the {name} side after splitting by content, "
                f"got {len(side)} of {len(probes)} ({dropped} near-duplicates dropped); "
                "add probes, or ask for fewer in the profile"
            )
    others = _unlike(seen[:search], seen[search:], selection)
    return ProbeSplit(tuple(seen[:search]), tuple(judges[:certificate]), dropped, others)


def sides_of(probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Both sides whole, by the hash of each probe's text: even ones are for the search, odd ones for the certificate.

    Of near-duplicates (`similarity.NEAR`) within the certificate side the first by hash stays, since the bound assumes
    independent draws. Of those on different sides the search's is dropped, so that the certificate side remains
    what the hash drew.
    """
    sides: tuple[list[Probe], list[Probe]] = ([], [])
    for probe in sorted(probes, key=_content_hash):
        sides[int(_content_hash(probe), 16) % 2].append(probe)
    drawn = NearTexts()
    judges: list[Probe] = []
    for probe in sides[1]:
        runs = shingles(probe.text)
        if not drawn.near(runs):
            drawn.add(runs)
            judges.append(probe)
    # Near any that may be drawn, not only those drawn now: a larger certificate never meets what a search has seen.
    return [probe for probe in sides[0] if not drawn.near(shingles(probe.text))], judges


def _unlike(known: Sequence[Probe], others: Sequence[Probe], most: int) -> tuple[Probe, ...]:
    """The first of `others`, at most so many, that are no near-duplicates of `known` or of each other."""
    drawn, kept = NearTexts(), list[Probe]()
    for probe in known:
        drawn.add(shingles(probe.text))
    for probe in others:
        if len(kept) == most:
            break
        runs = shingles(probe.text)
        if not drawn.near(runs):
            drawn.add(runs)
            kept.append(probe)
    return tuple(kept)


def _content_hash(probe: Probe) -> str:
    return hashlib.sha256(probe.text.encode()).hexdigest()
