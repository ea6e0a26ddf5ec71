"""Ed25519 verification: the RFC's vectors, and `cryptography` as an independent oracle."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from rfc8032 import VECTORS
from toggle_runtime.ed25519 import verify

L = 2**252 + 27742317777372353535851937790883648493

slow = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(public: str, message: str, signature: str) -> None:
    assert verify(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))
    assert not verify(bytes.fromhex(public), bytes.fromhex(message) + b"\0", bytes.fromhex(signature))


def signed(seed: bytes, message: bytes) -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.public_key().public_bytes_raw(), key.sign(message)


@slow
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_what_cryptography_signs_is_valid(seed: bytes, message: bytes) -> None:
    public, signature = signed(seed, message)
    assert verify(public, message, signature)


@slow
@given(st.binary(min_size=32, max_size=32), st.integers(0, (32 + 64 + 16) * 8 - 1))
def test_any_flipped_bit_makes_it_invalid(seed: bytes, bit: int) -> None:
    message = b"sixteen bytes..."
    public, signature = signed(seed, message)
    whole = bytearray(public + signature + message)
    whole[bit // 8] ^= 1 << bit % 8
    assert not verify(bytes(whole[:32]), bytes(whole[96:]), bytes(whole[32:96]))


@slow
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.binary(min_size=64, max_size=64))
def test_a_wrong_key_and_random_bytes_are_judged_as_cryptography_does(
    seed: bytes, message: bytes, noise: bytes
) -> None:
    public, signature = signed(seed, message)
    other, _ = signed(bytes(31) + seed[:1], message)
    for key, candidate in ((other, signature), (public, noise), (public, signature[:32] + noise[:32])):
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(candidate, message)
            holds = True
        except InvalidSignature:
            holds = False
        assert verify(key, message, candidate) == holds


@slow
@given(st.binary(min_size=32, max_size=32), st.integers(1, 15))
def test_a_response_beyond_the_order_is_refused_although_the_equation_holds(seed: bytes, times: int) -> None:
    public, signature = signed(seed, b"message")
    response = int.from_bytes(signature[32:], "little") + times * L
    if response < 2**256:
        assert not verify(public, b"message", signature[:32] + response.to_bytes(32, "little"))


def test_encodings_that_are_not_canonical_or_not_on_the_curve_are_refused() -> None:
    public, signature = signed(bytes(32), b"message")
    for encoding in (
        (2**255 - 19).to_bytes(32, "little"),  # y = p stands for 0 a second time
        (2**255 - 1).to_bytes(32, "little"),
        (2).to_bytes(32, "little"),  # no x has this y
        (1 | 1 << 255).to_bytes(32, "little"),  # x = 0 has no odd sign
    ):
        assert not verify(encoding, b"message", signature)
        assert not verify(public, b"message", encoding + signature[32:])


@pytest.mark.parametrize(("public", "signature"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_wrong_lengths_are_refused(public: int, signature: int) -> None:
    assert not verify(bytes(public), b"", bytes(signature))
