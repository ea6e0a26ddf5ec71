"""Keys of a host over time: a new one follows with the old one's word, a revoked one signs nothing that is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_workers import make_bundle
from toggle_runtime.succession import Succession, succeeds
from toggle_runtime.trust import key_id

from toggle_edge import keyring, signing
from toggle_edge.bundle import read_bundle
from toggle_edge.errors import BundleError, SigningKeyError
from toggle_edge.keyring import keys, revoke, rotate, successions
from toggle_edge.signing import signing_key, trusted_keys


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "keys"


def test_a_host_without_keys_has_none_and_asking_makes_none(home: Path) -> None:
    assert keys() == []
    assert successions() == []
    assert not home.exists()


def test_a_new_key_signs_and_the_old_ones_bundles_are_still_taken(home: Path, tmp_path: Path) -> None:
    old = signing_key()
    before = make_bundle(tmp_path / "before")
    retired, new = rotate()
    assert (retired.key, retired.name) == (old.public, old.name)
    assert new.public != old.public
    assert (new.name, signing_key()) == (f"{old.name}.2", new)
    assert trusted_keys() == {old.public: old.name, new.public: new.name}
    assert [(each.name, each.role) for each in keys()] == [(new.name, "signing"), (old.name, "trusted")]
    assert read_bundle(before.folder).signed_by == old.name
    assert read_bundle(make_bundle(tmp_path / "after").folder).signed_by == new.name
    assert (home / "signing.pem").stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in home.iterdir()) == [
        "signing.pem",
        "signing.pub",
        "successions.json",
        "trusted",
    ]


def test_every_link_of_a_chain_is_signed_by_the_key_before() -> None:
    first = signing_key()
    second = rotate()[1]
    third = rotate()[1]
    assert third.name == f"{first.name}.3"
    chain = successions()
    assert [(each.old, each.new) for each in chain] == [
        (first.public, second.public),
        (second.public, third.public),
    ]
    assert succeeds(third.public, [first.public], chain)
    assert succeeds(third.public, [second.public], chain)
    assert not succeeds(third.public, [first.public], chain[1:]), "a link is missing"
    assert not succeeds(third.public, [first.public], chain[::-1]), "links count in their order"
    assert not succeeds(first.public, [third.public], chain), "it leads one way"
    assert not succeeds("11" * 32, [first.public], chain)
    for change in ({"new": "11" * 32}, {"name": "other"}, {"signature": chain[1].signature}):
        altered = Succession(**{**vars(chain[0]), **change})
        assert not succeeds(altered.new, [first.public], [altered])


@pytest.mark.parametrize("cut", ["write_durably:1", "write_durably:2", "replace:2", "write_durably:3"])
def test_a_rotation_that_was_cut_goes_on_with_the_same_new_key(
    home: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    old = signing_key()
    what, _, number = cut.partition(":")
    counted = [0]

    class CutError(Exception):
        pass

    def cutting(real: object) -> object:
        def go(*arguments: object, **more: object) -> object:
            counted[0] += 1
            if counted[0] == int(number):
                raise CutError
            return real(*arguments, **more)  # type: ignore[operator]

        return go

    with monkeypatch.context() as patch:
        if what == "replace":
            patch.setattr(Path, "replace", cutting(Path.replace))
        else:
            patch.setattr(keyring, "write_durably", cutting(keyring.write_durably))
        with pytest.raises(CutError):
            rotate()
    usable = signing_key()  # never without a key, whatever was cut
    new = rotate()[1] if usable.public == old.public else usable
    chain = successions()
    assert len(chain) == 1
    assert (chain[0].old, chain[0].new) == (old.public, new.public)
    assert set(trusted_keys()) == {old.public, new.public}


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_revoked_keys_bundles_are_taken_no_more(tmp_path: Path, by: str) -> None:
    old = signing_key()
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(SigningKeyError, match="is what this host signs with; run `toggle-edge keys rotate`"):
        revoke(old.name)
    new = rotate()[1]
    gone = revoke(old.name if by == "name" else key_id(old.public))
    assert (gone.key, gone.role) == (old.public, "revoked")
    assert trusted_keys() == {new.public: new.name}
    assert [(each.name, each.role) for each in keys()] == [(new.name, "signing"), (old.name, "revoked")]
    with pytest.raises(
        BundleError, match=rf"signed by key {key_id(old.public)} \({old.name}\), which was revoked"
    ):
        read_bundle(bundle.folder)
    with pytest.raises(BundleError, match="was revoked"):
        read_bundle(bundle.folder, allow_unsigned=True)
    with pytest.raises(SigningKeyError, match="no key is called"):
        revoke(old.name)


def test_a_key_that_is_not_known_or_not_told_apart_is_refused(home: Path) -> None:
    own = signing_key()
    with pytest.raises(
        SigningKeyError, match=rf"no key is called 'nobody'; name one by its id: .*\({own.name}\)"
    ):
        revoke("nobody")
    for number in (1, 2):
        (home / "trusted" / f"{number}.pub").write_text(f"ed25519 {str(number) * 64} ann@desk\n")
    with pytest.raises(SigningKeyError, match="2 keys are called 'ann@desk'; name one by its id"):
        revoke("ann@desk")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 10_000, '[{"old": "x"}]', "\x00"])
def test_damaged_successions_are_named(home: Path, text: str) -> None:
    signing_key()
    (home / "successions.json").write_text(text)
    with pytest.raises(SigningKeyError, match=r"successions\.json: expected a list of successions"):
        successions()


def test_the_folder_may_be_given(tmp_path: Path, home: Path) -> None:
    other = tmp_path / "other"
    signing_key(other)
    rotate(other)
    assert len(keys(other)) == 2
    assert signing.trusted_keys() == {}
    assert not home.exists()
