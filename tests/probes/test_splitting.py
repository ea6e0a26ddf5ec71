"""The two sides: who is on which, and that no text is nearly on both."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.errors import ProbeError
from toggle_edge.probes import Probe, split_probes
from toggle_edge.probes.similarity import NEAR, NearTexts, containment, shingles
from toggle_edge.probes.splitting import sides_of

DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = [
    first + second for first in "bdfgklmnprst" for second in ("al", "en", "or", "ist", "um", "ay", "ock")
]


def numbered(count: int) -> list[Probe]:
    return [Probe(f"text {i}", (1, 2, 3), 1, ()) for i in range(count)]


def test_sides_are_disjoint_and_do_not_depend_on_order_or_additions() -> None:
    split = split_probes(numbered(80), search=20, certificate=20)
    assert not {p.text for p in split.search} & {p.text for p in split.certificate}
    assert split_probes(numbered(80)[::-1], search=20, certificate=20) == split
    grown = split_probes(numbered(160), search=40, certificate=40)
    assert not {p.text for p in grown.search} & {p.text for p in split.certificate}
    assert not {p.text for p in split.search} & {p.text for p in grown.certificate}


def test_selection_probes_are_like_no_other_and_at_most_so_many() -> None:
    texts = [" ".join(random.Random(i).choices(WORDS, k=24)) for i in range(60)]
    twins = [text + " once more" for text in texts]
    plain = split_probes(probes_of([*texts, *twins]), search=8, certificate=8)
    split = split_probes(probes_of([*texts, *twins]), search=8, certificate=8, selection=500)
    assert (split.search, split.certificate) == (plain.search, plain.certificate)
    assert split.digest != plain.digest
    assert 5 < len(split.selection) < 30
    sides = [*split.search, *split.certificate, *split.selection]
    for first, second in itertools.combinations(sides, 2):
        if second in split.selection:
            assert similarity(first.text, second.text) < NEAR
    few = split_probes(probes_of([*texts, *twins]), search=8, certificate=8, selection=5)
    assert few.selection == split.selection[:5]


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(ProbeError, match="expected at least 50 for the"):
        split_probes(numbered(60), search=50, certificate=50)


def probes_of(texts: Sequence[str]) -> list[Probe]:
    return [Probe(text, (1, 2, 3), 1, ()) for text in dict.fromkeys(texts)]


def similarity(first: str, second: str) -> float:
    """Containment again, from the definition, with lists and loops."""
    runs = []
    for text in (first, second):
        words = re.sub(r"[^\w\s]|_", " ", re.sub(r"(?<=\w)['’](?=\w)", "", text.casefold())).split()
        five = [" ".join(words[i : i + 5]) for i in range(len(words)) if i + 5 <= len(words)]
        runs.append(sorted(set(five or [" ".join(words)])))
    smaller, larger = sorted(runs, key=len)
    return sum(run in larger for run in smaller) / len(smaller)


def edited(text: str, random_: random.Random) -> str:
    """A copy with at most one word in fifteen changed, another case and punctuation, perhaps a sentence more."""
    words = text.split()
    for index in range(random_.randrange(15), len(words), 15):
        words[index] = random_.choice(["other", "changed", words[index][::-1] + "x"])
    words = [word + random_.choice(["", "", ",", "!", " -"]) for word in words]
    if random_.random() < 0.5:
        words = [word.upper() if random_.random() < 0.3 else word for word in words]
    more = " ".join(random_.choices(WORDS, k=random_.randrange(4, 30))).capitalize() + "."
    return random_.choice([" ".join(words), f"{' '.join(words)} {more}", f"{more} {' '.join(words)}"])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), copies=st.integers(1, 4))
def test_edited_copies_never_land_on_both_sides(seed: int, copies: int) -> None:
    random_ = random.Random(seed)
    originals = [" ".join(random_.choices(WORDS, k=random_.randrange(30, 90))) for _ in range(8)]
    family: dict[str, int] = {}
    for number, original in enumerate(originals):
        # Copies of the original, not of each other: edits of edits may go as far as one likes.
        for text in (original, *(edited(original, random_) for _ in range(copies))):
            family[text] = number
    search, certificate = sides_of(probes_of(list(family)))
    for first, second in itertools.product(search, certificate):
        assert similarity(first.text, second.text) < NEAR
    for first, second in itertools.combinations(certificate, 2):
        assert similarity(first.text, second.text) < NEAR
    for original in originals:
        if original in {probe.text for probe in search}:
            assert family[original] not in {family[probe.text] for probe in certificate}


def test_without_the_comparison_copies_would_be_on_both_sides() -> None:
    random_ = random.Random(0)
    texts = [" ".join(random_.choices(WORDS, k=60)) for _ in range(20)]
    copies = [edited(text, random_) for text in texts]

    def odd(text: str) -> bool:
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2 == 1

    assert sum(odd(text) != odd(copy) for text, copy in zip(texts, copies, strict=True)) > 4


def test_the_certificate_side_stays_what_the_hash_drew() -> None:
    random_ = random.Random(1)
    texts = [" ".join(random_.choices(WORDS, k=50)) for _ in range(40)]
    plain = sides_of(probes_of(texts))
    search, certificate = sides_of(probes_of([*texts, *(f"Indeed, {probe.text}" for probe in plain[1])]))
    dropped = [f"Indeed, {probe.text}" for probe in plain[1]]
    kept_or_copied = {text.removeprefix("Indeed, ") for text in (probe.text for probe in certificate)}
    assert kept_or_copied == {probe.text for probe in plain[1]}
    assert not {probe.text for probe in search} & set(dropped)


def test_what_was_dropped_is_counted() -> None:
    random_ = random.Random(2)
    texts = [" ".join(random_.choices(WORDS, k=50)) for _ in range(40)]
    split = split_probes(probes_of([*texts, *(text + "!" for text in texts)]), search=5, certificate=5)
    search, certificate = sides_of(probes_of([*texts, *(text + "!" for text in texts)]))
    assert split.near_duplicates == 80 - len(search) - len(certificate) >= 20


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("ab c.,'", max_size=40), min_size=2, max_size=8))
def test_the_index_finds_what_comparing_all_pairs_finds(texts: list[str]) -> None:
    near = NearTexts()
    for text in texts[1:]:
        near.add(shingles(text))
    expected = any(containment(shingles(texts[0]), shingles(text)) >= NEAR for text in texts[1:])
    assert near.near(shingles(texts[0])) == expected


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("One two three four five six", "one, TWO three -- four five; six!", 1.0),
        ("don't go there at all now", "Dont go there at all now", 1.0),
        ("a b c d e f", "a b c d e x", 0.5),
        ("a b c d e", "a b c d e f g h i j", 1.0),
        ("a b", "A, b.", 1.0),
        ("a b", "a b c", 0.0),
        ("...", "???", 0.0),
    ],
)
def test_containment_is_of_the_smaller_in_the_larger(first: str, second: str, value: float) -> None:
    assert containment(shingles(first), shingles(second)) == value
    assert containment(shingles(second), shingles(first)) == value


def real_texts(name: str) -> list[str]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/{name}")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [f"{row['Question']} {row['Best Answer']}" for row in csv.DictReader(stream)]
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("tinystories/stories.jsonl", (0, 10)),
        ("lambada/lambada_test.jsonl", (10, 200)),
        ("truthfulqa/TruthfulQA.csv", (5, 120)),
    ],
)
def test_no_pair_of_a_real_data_set_crosses(name: str, dropped: tuple[int, int]) -> None:
    probes = probes_of(real_texts(name))
    search, certificate = sides_of(probes)
    assert dropped[0] <= len(probes) - len(search) - len(certificate) <= dropped[1]
    random_ = random.Random(0)
    # Brute force on samples, and on all of the pairs that share any run of five words would be the index again.
    for first in random_.sample(search, 60):
        assert all(similarity(first.text, other.text) < NEAR for other in random_.sample(certificate, 60))
    assert len(search) > 0.4 * len(probes)
    assert len(certificate) > 0.4 * len(probes)
