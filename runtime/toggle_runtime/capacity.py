"""What the device could do at best: bytes copied and int8 multiplications a second, with as many threads as the engine.

A token of a language model reads every weight once, so the memory sets the pace of decoding; a prompt multiplies many
tokens with each weight, so the arithmetic does. How near a run comes to either is worth knowing before tuning it.
"""

import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import List, Sequence, Tuple

import numpy as np

from toggle_runtime.records import CapacitySample

COPIED_BYTES = 64 << 20
ROWS, WIDTH = 256, 1024
ROUNDS = 12
_REPEATED_S = 0.05

_OPSET, _IR_VERSION = 13, 8
_UINT8, _INT8, _INT32 = 2, 3, 6


def measure(threads: int) -> CapacitySample:
    """Both, `ROUNDS` times. What disturbs a round makes it slower, so the best one is the limit."""
    return CapacitySample(copied_per_second(threads), multiplied_per_second(threads), threads)


def copied_per_second(threads: int) -> List[float]:
    """Bytes read and written by a copy between two buffers that no cache holds, a round each."""
    source = np.ones(COPIED_BYTES // 8)
    target = np.zeros_like(source)
    cuts = np.linspace(0, len(source), threads + 1).astype(int).tolist()
    parts = list(zip(cuts, cuts[1:]))
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            # numpy lets go of the interpreter while it copies.
            list(pool.map(lambda part: np.copyto(target[slice(*part)], source[slice(*part)]), parts))
            found.append(2 * source.nbytes / (time.perf_counter() - began))
    return found


def multiplied_per_second(threads: int) -> List[float]:
    """Multiplications and additions of int8 numbers by the engine's own kernel, two for each product, a round each.

    numpy has no such kernel: its loop over int8 is far slower than any engine, so it would be no limit. Empty where the
    worker environment has no onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        return []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        product_graph(ROWS, WIDTH), options, providers=["CPUExecutionProvider"]
    )
    feed = {"a": np.ones((ROWS, WIDTH), np.uint8)}
    session.run(None, feed)
    found = []
    for _ in range(ROUNDS):
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < _REPEATED_S:
            session.run(None, feed)
            runs += 1
        found.append(2.0 * ROWS * WIDTH * WIDTH * runs / (time.perf_counter() - began))
    return found


def product_graph(rows: int, width: int) -> bytes:
    """A serialised graph: `a`, uint8 of `rows x width`, times a constant int8 `width x width`, int32.

    The device has no package that writes graphs; this one is a handful of protobuf fields (onnx.proto3).
    """
    weights = np.resize(np.arange(-64, 64, dtype=np.int8), width * width).tobytes()
    constant = b"".join(
        [_number(1, width), _number(1, width), _number(2, _INT8), _bytes(8, b"b"), _bytes(9, weights)]
    )
    node = b"".join([_bytes(1, b"a"), _bytes(1, b"b"), _bytes(2, b"c"), _bytes(4, b"MatMulInteger")])
    graph = b"".join(
        [
            _bytes(1, node),
            _bytes(2, b"product"),
            _bytes(5, constant),
            _bytes(11, _value(b"a", _UINT8, (rows, width))),
            _bytes(12, _value(b"c", _INT32, (rows, width))),
        ]
    )
    opset = _bytes(1, b"") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def _value(name: bytes, kind: int, shape: Tuple[int, ...]) -> bytes:
    dimensions: Sequence[bytes] = [_bytes(1, _number(1, size)) for size in shape]
    tensor = _number(1, kind) + _bytes(2, b"".join(dimensions))
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return encoded + struct.pack("B", value)
