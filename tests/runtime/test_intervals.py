"""Reduced baselines: what is kept, real models inside their intervals, and what is refused."""

import dataclasses

import mpmath
import numpy as np
import pytest
from reductions import UNCAPPED, random_outputs
from toggle_runtime.attention_rows import cosine_bounds, reduce_attention
from toggle_runtime.directions import direction_bounds, reduce_directions
from toggle_runtime.distributions import divergence_bounds, reduce_distributions
from toggle_runtime.intervals import bounds_of
from toggle_runtime.ragged import heaviest
from toggle_runtime.reduction import Limits, reduce_baseline, reduced_bytes
from toggle_runtime.reduction_files import read_reduced, write_reduced
from toggle_runtime.signals import SIGNALS, Outputs, SignalsError
from toggle_runtime.stl import parse, robustness, robustness_bounds

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.signals import baseline_outputs, traces_of

USUAL = ("jsd", "attention", "context", "factual")
ANSWER = np.array([False, True, True, False])


@pytest.fixture
def outputs():
    return random_outputs(np.random.default_rng(7))


@pytest.fixture
def reduced(outputs):
    return reduce_baseline(outputs[0], outputs[2], 5, SIGNALS, Limits(window=3))


@pytest.mark.parametrize("kind", [Format(8, 32), Format(4, 32), Format(2, 64)], ids=str)
def test_a_real_candidate_is_inside_and_its_verdict_no_less_pessimistic(tiny, probes, kind):
    layers = tuple(layer.name for layer in tiny.layers)
    candidate = LayerBank(tiny).assemble(Config.uniform(layers, kind))
    baseline = baseline_outputs(tiny.module, probes, free_running=True)
    properties = ("always (jsd <= 0.25)", "always (attention >= 0.7)", "eventually[0,4] (context >= 0.7)")
    host = traces_of(candidate, probes, baseline)
    for probe, whole, ours, trace in zip(
        probes, baseline, baseline_outputs(candidate, probes, free_running=True), host, strict=True
    ):
        gold = np.array(probe.continuation)
        part = reduce_baseline(whole, gold, probe.prompt_tokens, SIGNALS)
        # The candidate's own greedy text stands for its choices along the baseline's: equal up to the departure.
        bounds = bounds_of(part, ours, gold, trace.answer)
        assert bounds.lower.keys() == trace.signals.keys() >= {*SIGNALS} - {"factual"}
        for name, values in trace.signals.items():
            # The host rounds too, and is none the less what the device must not contradict.
            assert (bounds.lower[name] <= values).all(), name
            assert (values <= bounds.upper[name]).all(), name
        for text in properties:
            least, most, _ = robustness_bounds(parse(text), bounds.lower, bounds.upper)
            assert least <= robustness(parse(text), trace.signals)[0] <= most
        assert (bounds.upper["jsd"] - bounds.lower["jsd"]).max() < 0.01
        assert (bounds.upper["context"] - bounds.lower["context"]).max() < 0.02


def test_a_divergence_in_fifty_digits_is_inside_an_interval_of_everything_kept():
    generator = np.random.default_rng(3)
    first, second = (generator.normal(size=(5, 30)).astype(np.float32) * 4 for _ in range(2))
    lower, upper = divergence_bounds(reduce_distributions(first, 0.0, 30), second)
    with mpmath.workdps(50):
        for step in range(5):
            p, q = ([mpmath.exp(float(x)) for x in row] for row in (first[step], second[step]))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            bits = sum(
                (a * mpmath.log(2 * a / (a + b), 2) + b * mpmath.log(2 * b / (a + b), 2)) / 2
                for a, b in zip(p, q, strict=True)
            )
            assert lower[step] <= bits <= upper[step]
            assert upper[step] - lower[step] < 1e-6


def test_the_fewest_ids_are_kept_that_leave_the_tail():
    chances = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    logits = np.log(chances)[[3, 0, 4, 2, 1]].astype(np.float32)[np.newaxis]
    for tail, ids in (
        (0.6, [1]),
        (0.21, [1, 4]),
        (0.06, [1, 3, 4]),
        (0.011, [0, 1, 3, 4]),
        (0.0, [0, 1, 2, 3, 4]),
    ):
        part = reduce_distributions(logits, tail, 1024)
        assert part.ids.tolist() == ids
        assert part.counts.tolist() == [len(ids)]
    assert reduce_distributions(logits, 0.0, 2).ids.tolist() == [1, 4]
    assert reduce_distributions(logits, 0.0, 2).tail == pytest.approx([0.2], abs=1e-6)


def test_rows_keep_as_many_as_each_needs():
    weights = np.array([[1.0, 4.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    counts, ids = heaviest(weights, np.array([1.0, 0.0, 0.0]), 3)
    assert counts.tolist() == [2, 0, 3]
    assert ids[:2].tolist() == [1, 2]
    assert ids.dtype == np.uint16
    assert heaviest(np.ones((1, 2**16 + 1)), np.zeros(1), 1)[1].dtype == np.uint32


def test_equal_models_are_near_perfect(outputs):
    baseline, _, gold = outputs
    bounds = bounds_of(reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=3)), baseline, gold, ANSWER)
    assert bounds.lower["jsd"].max() < 1e-9
    assert bounds.upper["jsd"].max() < 2e-3
    assert bounds.lower["context_min"].min() > 1 - 1e-3
    assert bounds.lower["attention"].min() > 1 - 0.02
    np.testing.assert_allclose(bounds.lower["factual"], 1.0, atol=1e-9)
    for name, upper in bounds.upper.items():
        assert (bounds.lower[name] <= upper).all()


def test_removed_structure_preserves_nothing(outputs):
    baseline, candidate, gold = outputs
    candidate.attention[0] = 0  # a removed layer: its rows are zero
    candidate.hidden[1, 2] = 0
    bounds = bounds_of(reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=3)), candidate, gold, ANSWER)
    assert (bounds.upper["attention_min"] == 0).all()
    assert (bounds.upper["attention"] <= 0.5 + 1e-9).all()
    assert bounds.lower["context"][2] == bounds.upper["context"][2] == 0
    baseline.hidden[1, 3] = 0
    bounds = bounds_of(reduce_baseline(baseline, gold, 5, ["context"]), candidate, gold, ANSWER)
    assert bounds.lower["context"][3] == bounds.upper["context"][3] == 0


def test_a_removed_head_counts_as_zeros():
    rows = np.full((1, 2, 1, 2), 0.5, dtype=np.float32)
    without = rows.copy()
    without[0, 1] = 0
    lower, upper = cosine_bounds(reduce_attention(rows, 0.0, 4), without)
    assert lower[0, 0] == pytest.approx(2**-0.5, abs=1e-4)
    assert lower[0, 0] <= 2**-0.5 <= upper[0, 0]


def test_far_keys_alone_decide_attention_far():
    rows = np.zeros((1, 1, 2, 6), dtype=np.float32)
    rows[0, 0, :, 0], rows[0, 0, :, 3] = 0.25, 0.75
    others = rows.copy()
    others[0, 0, :, 3], others[0, 0, :, 4] = 0.0, 0.75  # near keys of the queries 4 and 5
    both = [
        Outputs(np.zeros((2, 4), np.float32), each, np.ones((1, 2, 3), np.float32)) for each in (rows, others)
    ]
    gold = np.zeros(2, dtype=np.int64)
    bounds = bounds_of(
        reduce_baseline(both[0], gold, 5, ["attention_far", "attention"], Limits(window=2)),
        both[1],
        gold,
        np.zeros(2, bool),
    )
    assert bounds.upper["attention"].max() < 0.2
    assert bounds.lower["attention_far"].min() > 1 - 1e-3
    # With a window of 1 the key 3 is far from query 5 but not from query 4.
    bounds = bounds_of(
        reduce_baseline(both[0], gold, 5, ["attention_far"], Limits(window=1)),
        both[1],
        gold,
        np.zeros(2, bool),
    )
    assert bounds.lower["attention_far"][0] > 1 - 1e-3
    assert bounds.upper["attention_far"][1] < 0.4


def test_steps_without_far_keys_are_1_and_a_probe_without_any_lacks_the_signal(outputs):
    baseline, candidate, gold = outputs
    bounds = bounds_of(reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=5)), candidate, gold, ANSWER)
    # Queries stand at 4 to 7; only from the query at 6 on is there a key more than 5 back.
    assert (
        bounds.lower["attention_far"][:2].tolist() == bounds.upper["attention_far"][:2].tolist() == [1.0, 1.0]
    )
    assert (bounds.upper["attention_far"][2:] < 1.0).any()
    nearer = reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=7))
    assert "attention_far" not in bounds_of(nearer, candidate, gold, ANSWER).lower


def test_a_probe_without_an_answer_lacks_factual(outputs, reduced):
    bounds = bounds_of(reduced, outputs[1], outputs[2], np.zeros(4, dtype=bool))
    assert "factual" not in bounds.lower
    bounds = bounds_of(reduced, outputs[1], outputs[2], ANSWER)
    assert bounds.lower["factual"][~ANSWER].tolist() == [1.0, 1.0]


def test_a_ratio_beyond_float64_is_unknown():
    logits = np.array([[0.0, -3000.0]] * 2, dtype=np.float32)
    flat = np.zeros((2, 2), dtype=np.float32)
    gold = np.array([1, 1])
    both = [
        Outputs(each, np.ones((1, 1, 2, 3), np.float32) / 4, np.ones((1, 2, 3), np.float32))
        for each in (logits, flat)
    ]
    for baseline, candidate, expected in ((both[0], both[1], np.nan), (both[1], both[0], 0.0)):
        part = reduce_baseline(baseline, gold, 2, ["factual"])
        bounds = bounds_of(part, candidate, gold, np.array([True, False]))
        np.testing.assert_allclose(bounds.upper["factual"], [expected, 1.0], atol=1e-200)
        np.testing.assert_allclose(bounds.lower["factual"], [expected, 1.0], atol=0)


def test_outliers_cost_their_own_block_only():
    generator = np.random.default_rng(0)
    state = generator.normal(size=(1, 4096)).astype(np.float32)
    plain = reduce_directions(state).error[0]
    state[0, 7] = 300.0
    assert reduce_directions(state).error[0] < 0.05
    assert plain < 0.01
    lower, _ = direction_bounds(reduce_directions(state), state)
    assert lower[0] > 1 - 1e-3


def test_only_what_is_asked_for_is_kept(outputs):
    baseline, candidate, gold = outputs
    for wanted, part in (
        ("jsd", "distribution"),
        ("factual", "gold_log"),
        ("context", "hidden"),
        ("departure", "choices"),
    ):
        reduced = reduce_baseline(baseline, gold, 5, [wanted])
        kept = {
            field.name for field in dataclasses.fields(reduced) if getattr(reduced, field.name) is not None
        }
        assert kept == {"shape", "gold", part}
        assert bounds_of(reduced, candidate, gold, ANSWER).lower.keys() == {wanted}
    assert reduce_baseline(baseline, gold, 5, ["context"]).hidden.codes.shape == (1, 4, 70)
    assert reduce_baseline(baseline, gold, 5, ["context_min"]).hidden.codes.shape == (2, 4, 70)


def test_the_bytes_of_a_large_model_are_stated_and_capped():
    large = {"vocabulary": 128_256, "layers": 32, "heads": 32, "keys": 512, "steps": 64, "width": 4096}
    usual = reduced_bytes(signals=USUAL, **large)
    # What docs/reductions.md states.
    assert usual == 5_049_576
    assert reduced_bytes(signals=SIGNALS, **large) == 17_934_312
    assert usual < Limits().probe_bytes < reduced_bytes(signals=SIGNALS, **large)


def test_a_probe_over_the_cap_is_refused_before_it_is_reduced(outputs):
    baseline, _, gold = outputs
    needed = reduced_bytes(40, 2, 3, 8, 4, 70, USUAL)
    assert reduce_baseline(baseline, gold, 5, USUAL, Limits(probe_bytes=needed))
    with pytest.raises(SignalsError, match=r"probe_bytes = \d+.*lower attention_ids or distribution_ids"):
        reduce_baseline(baseline, gold, 5, USUAL, Limits(probe_bytes=needed - 1))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("logits", lambda x: x[:, :-1]),
        ("logits", lambda x: x[:-1]),
        ("logits", lambda x: x.astype(np.float64)),
        ("attention", lambda x: x[:1]),
        ("attention", lambda x: x[:, :1]),
        ("attention", lambda x: x[..., :-1]),
        ("attention", lambda x: x.astype(np.float16)),
        ("hidden", lambda x: x[:1]),
        ("hidden", lambda x: x[-1]),
        ("choices", lambda x: x[:-1]),
        ("choices", lambda x: None),
        ("hidden", lambda x: x[..., :-1]),
    ],
)
def test_a_candidate_of_another_shape_is_refused(outputs, reduced, part, change):
    _, candidate, gold = outputs
    other = dataclasses.replace(candidate, **{part: change(getattr(candidate, part))})
    with pytest.raises(SignalsError, match=f"{part}: expected"):
        bounds_of(reduced, other, gold, ANSWER)


def test_another_probes_tokens_or_answer_are_refused(outputs, reduced):
    _, candidate, gold = outputs
    with pytest.raises(SignalsError, match="continuation"):
        bounds_of(reduced, candidate, (gold + 1) % 40, ANSWER)
    with pytest.raises(SignalsError, match="answer"):
        bounds_of(reduced, candidate, gold, ANSWER[:3])


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_weights_that_no_softmax_gives_are_refused(outputs, reduced, weight):
    baseline, candidate, gold = outputs
    candidate.attention[1, 1, 1, 1] = weight
    with pytest.raises(SignalsError, match="weights from 0 to 1"):
        bounds_of(reduced, candidate, gold, ANSWER)
    with pytest.raises(SignalsError, match="weights from 0 to 1"):
        reduce_baseline(candidate, gold, 5, ["attention"])
    assert reduce_baseline(baseline, gold, 5, ["attention"])


def test_a_baseline_that_does_not_fit_is_refused(outputs):
    baseline, _, gold = outputs
    padded = np.pad(baseline.attention, ((0, 0), (0, 0), (0, 0), (0, 2)))
    wide = dataclasses.replace(baseline, attention=padded)
    assert reduce_baseline(wide, gold, 5, SIGNALS).keys == 8
    padded[0, 0, 0, 9] = 0.1
    last = dataclasses.replace(baseline, hidden=baseline.hidden[-1:])
    forced = dataclasses.replace(baseline, choices=None)
    cases = [
        (wide, gold, 5, SIGNALS, UNCAPPED, "zeros beyond"),
        (baseline, gold, 6, SIGNALS, UNCAPPED, "at least 9 keys"),
        (last, gold, 5, ["context_min"], UNCAPPED, "states of all layers"),
        (forced, gold, 5, ["departure"], UNCAPPED, "greedy text of 4 tokens"),
        (baseline, gold[:3], 5, SIGNALS, UNCAPPED, "expected 3 steps"),
        (baseline, gold + 40, 5, SIGNALS, UNCAPPED, "tokens below 40"),
        (baseline, gold, 5, ["jds"], UNCAPPED, "expected some of jsd.*got jds"),
        (baseline, gold, 5, [], UNCAPPED, "got none"),
        (baseline, gold, 5, SIGNALS, Limits(distribution_ids=0), "1 to 65535"),
        (baseline, gold, 5, SIGNALS, Limits(window=-1), "window"),
        (baseline, gold, 5, SIGNALS, Limits(tail_mass=float("nan")), "tail_mass"),
    ]
    for whole, tokens, prompt, signals, limits, message in cases:
        with pytest.raises(SignalsError, match=message):
            reduce_baseline(whole, tokens, prompt, signals, limits)


def changed(name, change):
    return pytest.param(name, change, id=f"{name}-{change.__code__.co_firstlineno}")


def doubled(ids):
    ids[1] = ids[0]
    return ids


def at(index, value):
    def change(array):
        array.reshape(-1)[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shape", lambda x: x[:4]),
        ("shape", at(0, 39)),
        ("shape", at(2, 2)),
        ("shape", at(3, 4)),
        ("shape", at(4, -1)),
        ("gold", at(0, -1)),
        ("gold", lambda x: x[:3]),
        ("gold", lambda x: x.astype(np.int32)),
        ("gold_log", at(0, 0.5)),
        ("gold_log", lambda x: x[:3]),
        ("distribution.counts", at(0, 0)),
        ("distribution.counts", lambda x: x.astype(np.int64)),
        ("distribution.ids", doubled),
        ("distribution.ids", lambda x: x[::-1]),
        ("distribution.ids", at(-1, 40)),
        ("distribution.probabilities", at(0, 0.0)),
        ("distribution.probabilities", at(0, np.nan)),
        ("distribution.probabilities", lambda x: x / 2),
        ("distribution.tail", at(0, -0.1)),
        ("distribution.tail", at(0, 0.5)),
        ("attention.counts", lambda x: x[:1]),
        ("attention.ids", doubled),
        ("attention.codes", lambda x: x // 2),
        ("attention.codes", lambda x: x[:-1]),
        ("attention.unit", at(0, -1.0)),
        ("attention.norm", at(0, np.inf)),
        ("attention.norm", lambda x: x * 1.5),
        ("attention.rest", at(0, np.nan)),
        ("attention.rest", at(0, 1.0)),
        ("attention.error", lambda x: x.astype(np.float64)),
        ("attention_far.counts", lambda x: x[:, :2]),
        ("hidden.codes", lambda x: x[:, :3]),
        ("hidden.codes", lambda x: x.astype(np.int16)),
        ("hidden.scales", at(0, np.inf)),
        ("hidden.scales", lambda x: x[..., :1]),
        ("hidden.error", at(0, 1.5)),
        ("hidden.error", lambda x: x[:1]),
        ("choices", at(0, 40)),
        ("choices", at(0, -2)),
        ("choices", lambda x: x[:3]),
    ],
)
def test_a_file_that_does_not_fit_is_refused(reduced, tmp_path, name, change):
    path = tmp_path / "baseline.npz"
    write_reduced(path, [reduced])
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays)
    assert len(read_reduced(path)) == 1
    arrays[f"0.{name}"] = change(arrays[f"0.{name}"])
    np.savez(path, **arrays)
    with pytest.raises(SignalsError, match="expected"):
        read_reduced(path)


@pytest.mark.parametrize("name", ["0.gold", "0.attention.error", "0.distribution.tail"])
def test_a_file_that_lacks_an_array_or_has_another_is_refused(reduced, tmp_path, name):
    path = tmp_path / "baseline.npz"
    write_reduced(path, [reduced, reduced])
    assert len(read_reduced(path)) == 2
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{key: values for key, values in arrays.items() if key != name})
    with pytest.raises(SignalsError, match="lacks"):
        read_reduced(path)
    np.savez(path, **arrays, other=np.zeros(1))
    with pytest.raises(SignalsError, match="expected 50 arrays of 2 probes, got 51"):
        read_reduced(path)


def test_equal_baselines_give_equal_bytes(outputs, tmp_path):
    paths = [tmp_path / "first.npz", tmp_path / "second.npz"]
    for path in paths:
        write_reduced(path, [reduce_baseline(outputs[0], outputs[2], 5, SIGNALS)])
    assert paths[0].read_bytes() == paths[1].read_bytes()
