"""Ed25519 verification: the RFC's vectors, and `cryptography` as an independent oracle."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.ed25519 import verify

L = 2**252 + 27742317777372353535851937790883648493

# RFC 8032, section 7.1: tests 1, 2, 3 and SHA(abc), as (public, message, signature).
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
        "454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
        "3dca179c138ac17ad9bef1177331a704",
    ),
]

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
