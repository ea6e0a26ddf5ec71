"""Ed25519 signatures, verification only (RFC 8032, section 5.1), in plain integers.

A device needs no cryptography package for this: one signature is verified per run, in a few milliseconds. Nothing
here is secret, so it need not run in constant time. As strict as OpenSSL: encodings must be canonical, and
`S` below the group's order, so that nobody can make a second valid signature from a first.
"""

import hashlib
from typing import Optional, Tuple

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)

_Point = Tuple[int, int, int, int]
"""Extended homogeneous coordinates: x = X/Z, y = Y/Z, x * y = T/Z."""

_NEUTRAL = (0, 1, 1, 0)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) of `message` was made with the private half of `public` (32 bytes).

    False for anything malformed; raises nothing.
    """
    if len(public) != 32 or len(signature) != 64:
        return False
    key, commitment = _decompress(public), _decompress(signature[:32])
    response = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or response >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + public + message).digest()
    challenge = int.from_bytes(digest, "little") % _L
    return _equal(_multiply(response, _BASE), _add(commitment, _multiply(challenge, key)))


def _recover_x(y: int, odd: int) -> Optional[int]:
    """The x of that parity on the curve `-x^2 + y^2 = 1 + d x^2 y^2`; None where there is none."""
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and odd):
        return None
    return _P - x if x & 1 != odd else x


def _decompress(encoded: bytes) -> Optional[_Point]:
    value = int.from_bytes(encoded, "little")
    y, odd = value & ((1 << 255) - 1), value >> 255
    if y >= _P:
        return None
    x = _recover_x(y, odd)
    return None if x is None else (x, y, 1, x * y % _P)


def _add(left: _Point, right: _Point) -> _Point:
    a = (left[1] - left[0]) * (right[1] - right[0]) % _P
    b = (left[1] + left[0]) * (right[1] + right[0]) % _P
    c = 2 * left[3] * right[3] * _D % _P
    d = 2 * left[2] * right[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(factor: int, point: _Point) -> _Point:
    result = _NEUTRAL
    while factor:
        if factor & 1:
            result = _add(result, point)
        point = _add(point, point)
        factor >>= 1
    return result


def _equal(left: _Point, right: _Point) -> bool:
    return (left[0] * right[2] - right[0] * left[2]) % _P == 0 and (
        left[1] * right[2] - right[1] * left[2]
    ) % _P == 0


def _base() -> _Point:
    y = 4 * pow(5, _P - 2, _P) % _P
    x = _recover_x(y, 0) or 0
    return (x, y, 1, x * y % _P)


_BASE = _base()
