"""The wire contract: what goes out comes back equal, and nothing else is taken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.records import (
    Argmin,
    Blob,
    Coverage,
    Generation,
    LatencySample,
    Measurement,
    ModeVerdict,
    ParitySample,
    RecordError,
    RunRecord,
    Verdict,
    check_path,
    from_json,
    to_json,
    unavailable,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 10**12)
verdicts = st.builds(
    Verdict,
    st.text(max_size=9),
    st.sampled_from(["SATISFIED", "MARGINAL", "VIOLATED", "UNSET"]),
    st.none() | finite,
    st.none() | st.builds(Argmin, counts, counts, st.none() | counts),
    st.none() | finite,
    st.none() | st.text(max_size=9),
)
modes = st.builds(
    ModeVerdict,
    st.text(max_size=9),
    st.just("SATISFIED"),
    st.none() | finite,
    st.builds(Coverage, counts, counts, counts),
    st.none() | finite,
    st.lists(verdicts, max_size=3),
)
records = st.builds(
    RunRecord,
    st.sampled_from(RunRecord.READABLE),
    st.text(max_size=9),
    st.text(max_size=9),
    st.just("PASS"),
    modes=st.lists(modes, max_size=3),
    noise_floor=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    latency=st.lists(
        st.builds(
            LatencySample,
            counts,
            st.lists(st.builds(Generation, counts, st.lists(counts, max_size=3), counts)),
        ),
        max_size=2,
    ),
    conditions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    parity=st.none() | st.builds(ParitySample, finite, finite, counts),
    signed_by=st.none() | st.text(max_size=9),
)


@settings(max_examples=60, deadline=None)
@given(records)
def test_a_record_comes_back_equal(record: RunRecord) -> None:
    assert from_json(RunRecord, to_json(record)) == record


@settings(max_examples=60, deadline=None)
@given(records, st.data())
def test_a_truncated_record_is_refused(record: RunRecord, data: st.DataObject) -> None:
    text = to_json(record)
    with pytest.raises(RecordError):
        from_json(RunRecord, text[: data.draw(st.integers(0, len(text) - 1))])


BASE = json.loads(to_json(RunRecord(1, "run", "bundle", "PASS")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 5}, "this side reads 1, 2, 3 and 4, got 5; it was written by a newer toggle-edge"),
        ({"version": 0}, "got 0; write it anew"),
        ({"version": "1"}, "this side reads 1, 2, 3 and 4"),
        ({"version": True}, "this side reads 1, 2, 3 and 4"),
        ({"outcome": 3}, "RunRecord.outcome: expected str"),
        ({"later": 1}, "unknown key 'later'"),
        ({"latency": {}}, "RunRecord.latency: expected a list"),
        ({"latency": [{"load_ns": 1.5, "generations": []}]}, r"latency\[0\].load_ns: expected int"),
        ({"latency": [{"load_ns": True, "generations": []}]}, "expected int"),
        ({"traces": {"sha256": "A" * 64, "size": 1}}, "64 lower-case hex"),
        ({"traces": {"sha256": "a" * 64, "size": -1}}, "bytes >= 0"),
        ({"noise_floor": {"coherence": "0.1"}}, "noise_floor.coherence: expected a number"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_json(RunRecord, json.dumps({**BASE, **change}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + 400 * "0"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    text = json.dumps({**BASE, "noise_floor": {"coherence": 0.5}}).replace("0.5", number)
    with pytest.raises(RecordError, match="finite"):
        from_json(RunRecord, text)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecordError, match="missing key 'outcome'"):
        from_json(RunRecord, json.dumps({k: v for k, v in BASE.items() if k != "outcome"}))


def test_nan_does_not_leave_either() -> None:
    with pytest.raises(RecordError, match="finite"):
        to_json(RunRecord(1, "run", "bundle", "PASS", noise_floor={"coherence": float("nan")}))


def test_deep_nesting_does_not_crash_the_reader() -> None:
    with pytest.raises(RecordError):
        from_json(RunRecord, "[" * 100_000)


@pytest.mark.parametrize(
    "path",
    ["..", "../a", "a/../b", "/a", "a//b", "a/", "", "~/a", "-rf", "a b", "a\n", "a\\b", ".hidden", "ü"],
)
def test_paths_that_could_leave_the_bundle_are_refused(path: str) -> None:
    with pytest.raises(RecordError, match="inside the bundle"):
        check_path(path)


def test_plain_paths_are_taken() -> None:
    assert check_path("artifact/weights/model.layers.0.mlp.up_proj.bin")


def test_a_measurement_is_either_a_value_or_a_reason() -> None:
    assert unavailable("ms", "clock", "no clock").value is None
    with pytest.raises(RecordError, match="does not fit"):
        Measurement(None, "ms", "clock", 1)
    with pytest.raises(RecordError, match="does not fit"):
        Measurement(0.0, "ms", "clock", 0, status="unavailable", reason="no clock")
    with pytest.raises(RecordError, match="needs a reason"):
        Measurement(None, "ms", "clock", 0, status="unavailable")


def test_a_blob_has_a_real_digest() -> None:
    with pytest.raises(RecordError):
        Blob("abc", 3)
