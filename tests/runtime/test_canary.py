"""The canary compares all that it holds, refuses what would compare less; a graph is made exact byte by byte."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime import canary
from toggle_runtime.backends.onnx import exact_graph
from toggle_runtime.canary import Canary, compare, ids_at, read_canary, stride_for, write_canary
from toggle_runtime.signals import SignalsError

VOCABULARY = 11
LOGITS = np.random.default_rng(0).normal(size=(2, 4, VOCABULARY)).astype(np.float32)
TOKENS = np.arange(8, dtype=np.int64).reshape(2, 4)


def whole(logits: np.ndarray = LOGITS) -> Canary:
    return Canary(TOKENS, 2, 1, logits)


def test_a_canary_reads_back_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_canary(tmp_path / name, whole())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = read_canary(tmp_path / "one", VOCABULARY)
    assert (read.prompt_tokens, read.stride) == (2, 1)
    np.testing.assert_array_equal(read.logits, LOGITS)
    np.testing.assert_array_equal(read.tokens, TOKENS)


def test_the_difference_is_the_largest_anywhere() -> None:
    changed = LOGITS.copy()
    changed[1, 2, 7] += 0.5
    sample = compare(whole(), changed, VOCABULARY)
    assert sample.max_abs_logit_difference == pytest.approx(0.5)
    assert (sample.tolerance, sample.compared) == (canary.TOLERANCE, LOGITS.size)
    assert compare(whole(), LOGITS, VOCABULARY).max_abs_logit_difference == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_parity(value: float) -> None:
    changed = LOGITS.copy()
    changed[0, 0, 0] = value
    with pytest.raises(SignalsError, match="position 0 are not finite"):
        compare(whole(), changed, VOCABULARY)


@pytest.mark.parametrize(
    "logits",
    [LOGITS[..., :-1], LOGITS[:, :-1], LOGITS[:1], np.concatenate([LOGITS, LOGITS], axis=-1), LOGITS.ravel()],
)
def test_a_graph_with_fewer_or_more_logits_has_no_parity(logits: np.ndarray) -> None:
    with pytest.raises(SignalsError, match=r"expected logits \(2, 4, 11\)"):
        compare(whole(), logits, VOCABULARY)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40))
def test_every_id_is_compared_where_there_are_as_many_positions_as_strides(
    vocabulary: int, stride: int
) -> None:
    kept = [ids_at(position, stride, vocabulary) for position in range(stride)]
    assert sorted(np.concatenate(kept).tolist()) == list(range(vocabulary))
    assert max(map(len, kept)) == -(-vocabulary // stride)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 300_000))
def test_a_canary_never_outgrows_its_limit(positions: int, vocabulary: int) -> None:
    stride = stride_for(positions, vocabulary)
    assert positions * vocabulary / stride <= canary.MAX_LOGITS
    assert stride == 1 or positions * vocabulary / (stride - 1) > canary.MAX_LOGITS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[..., :-1]}, "expected logits"),
        ({"logits": LOGITS.astype(np.float64)}, "finite float32"),
        ({"logits": np.full_like(LOGITS, np.nan)}, "finite float32"),
        ({"tokens": TOKENS + 10}, "token ids below 11"),
        ({"tokens": TOKENS - 1}, "token ids below 11"),
        ({"tokens": TOKENS[0]}, "rows of token ids"),
        ({"prompt_tokens": 4}, "a prompt shorter"),
        ({"prompt_tokens": 0}, "a prompt shorter"),
        ({"stride": 3, "logits": LOGITS[..., :4]}, "with stride 3"),
        ({"stride": 0}, "expected logits"),
    ],
)
def test_a_canary_that_would_compare_less_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    fields = {"tokens": TOKENS, "prompt_tokens": 2, "stride": 1, "logits": LOGITS, **change}
    write_canary(tmp_path / "canary.npz", Canary(**fields))  # type: ignore[arg-type]
    with pytest.raises(SignalsError, match=message):
        read_canary(tmp_path / "canary.npz", VOCABULARY)


def test_a_missing_or_truncated_canary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignalsError, match=r"whole \.npz"):
        read_canary(tmp_path / "absent.npz", VOCABULARY)
    write_canary(tmp_path / "canary.npz", whole())
    (tmp_path / "canary.npz").write_bytes((tmp_path / "canary.npz").read_bytes()[:-40])
    with pytest.raises(SignalsError, match=r"whole \.npz"):
        read_canary(tmp_path / "canary.npz", VOCABULARY)


def test_a_level_that_is_neither_is_refused() -> None:
    marker = b"\x0a\x0eaccuracy_level\x18"
    assert (
        exact_graph(b"a" + marker + b"\x04b" + marker + b"\x00c")
        == b"a" + marker + b"\x00b" + marker + b"\x00c"
    )
    assert exact_graph(b"no such node") == b"no such node"
    for rest in (b"\x01", b""):
        with pytest.raises(ValueError, match="accuracy_level 0 or 4"):
            exact_graph(b"a" + marker + rest)


SHORT = Canary(
    np.arange(24, dtype=np.int64).reshape(12, 2) % VOCABULARY,
    1,
    1,
    np.zeros((12, 2, VOCABULARY), np.float32),
    0.25,
)


@given(st.lists(st.floats(0.0, 2.0, width=32), min_size=12, max_size=12))
@settings(deadline=None, max_examples=50)
def test_where_a_share_is_enough_the_worst_of_the_best_counts(differences: list[float]) -> None:
    logits = SHORT.logits + np.array(differences, np.float32)[:, None, None]
    sample = compare(SHORT, logits, VOCABULARY)
    assert sample.max_abs_logit_difference == pytest.approx(sorted(differences)[2], abs=1e-6)
    assert (sample.share, sample.tolerance) == (0.25, canary.TOLERANCE)


def test_a_number_that_is_none_spoils_every_share() -> None:
    logits = SHORT.logits.copy()
    logits[11, 1, 3] = np.nan
    with pytest.raises(SignalsError, match="not finite"):
        compare(SHORT, logits, VOCABULARY)


def test_float16_is_allowed_its_last_bits_and_no_more(tmp_path: Path) -> None:
    half = dataclasses.replace(whole(4.0 * LOGITS), is_half=True)
    write_canary(tmp_path / "half", half)
    read = read_canary(tmp_path / "half", VOCABULARY)
    assert read.is_half
    assert read.tolerance == pytest.approx(float(np.abs(4.0 * LOGITS).max()) / 64)
    assert dataclasses.replace(half, logits=1e4 * LOGITS).tolerance == canary.MAX_TOLERANCE
    assert dataclasses.replace(half, logits=0.0 * LOGITS).tolerance == canary.TOLERANCE


@pytest.mark.parametrize("share", [0.0, 0.2, 1.1, np.nan, -1.0])
def test_a_canary_that_asks_for_too_little_is_refused(share: float, tmp_path: Path) -> None:
    write_canary(tmp_path / "canary", dataclasses.replace(SHORT, share=share))
    with pytest.raises(SignalsError, match=r"share of 0\.25 to 1"):
        read_canary(tmp_path / "canary", VOCABULARY)


@pytest.mark.parametrize(
    ("change", "target", "layers", "taken"),
    [
        ({}, "onnx-cpu", ("int4-g32",), True),
        ({"share": 0.25}, "onnx-cpu", ("int4-g32",), False),
        ({"is_half": True}, "onnx-cpu", ("fp16",), False),
        ({"share": 0.25}, "executorch-xnnpack", ("int4-g32",), True),
        ({"is_half": True}, "executorch-xnnpack", ("int4-g32",), False),
        ({"is_half": True, "share": 0.25}, "executorch-xnnpack", ("int4-g32", "fp16"), True),
    ],
)
def test_a_canary_may_not_ask_for_less_than_its_kernels_can_do(
    change: dict[str, Any], target: str, layers: tuple[str, ...], taken: bool
) -> None:
    asked = dataclasses.replace(whole(16.0 * LOGITS), **change)
    if taken:
        canary.require_strict(asked, target, layers)
        return
    with pytest.raises(SignalsError, match=f"a bundle for {target} may not allow"):
        canary.require_strict(asked, target, layers)


def test_only_float16_layers_of_executorch_widen_what_a_record_may_claim() -> None:
    for target, layers, widest in (
        ("onnx-cpu", ("fp16", "int4-g32"), canary.TOLERANCE),
        ("executorch-xnnpack", ("int4-g32", "fp32"), canary.TOLERANCE),
        ("executorch-xnnpack", ("int4-g32", "fp16"), canary.MAX_TOLERANCE),
    ):
        assert canary.widest_tolerance(target, layers) == widest
