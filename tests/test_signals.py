"""Signals: host and device agree, and both agree with an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from toggle_runtime import signals as device
from toggle_runtime.trace_files import read_traces, write_traces

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe
from toggle_edge.reading import greedy_texts, perplexity
from toggle_edge.signals import baseline_outputs, traces_of


@pytest.fixture(scope="module")
def candidate(tiny: LanguageModel) -> torch.nn.Module:
    layers = tuple(layer.name for layer in tiny.layers)
    return LayerBank(tiny).assemble(Config.uniform(layers, Format(4, 32)))


def test_host_and_device_compute_the_same_signals(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    baseline = baseline_outputs(tiny.module, probes, free_running=True)
    # A candidate's own greedy text has its first other choice where its choices along the baseline's have it.
    ours = baseline_outputs(candidate, probes, free_running=True)
    for probe, reference, outputs, host in zip(
        probes, baseline, ours, traces_of(candidate, probes, baseline), strict=True
    ):
        answer = np.isin(np.arange(probe.steps), probe.answer_steps)
        trace = device.trace_of(reference, outputs, np.array(probe.continuation), answer)
        assert trace.signals.keys() == host.signals.keys()
        for name, values in trace.signals.items():
            np.testing.assert_allclose(values, host.signals[name], rtol=0, atol=1e-12, err_msg=name)
        assert trace.layers.keys() == host.layers.keys() == {"attention", "attention_far", "context"}
        for name, rows in trace.layers.items():
            np.testing.assert_allclose(rows, host.layers[name], rtol=0, atol=1e-12, err_msg=name)
        assert (trace.answer == host.answer).all()


def test_signals_agree_with_scipy(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    probe = probes[0]
    trace = traces_of(candidate, [probe], baseline_outputs(tiny.module, [probe]))[0]
    tokens = torch.tensor([probe.tokens])
    step = probe.answer_steps[0]
    position = probe.prompt_tokens + step - 1
    results = [
        module(input_ids=tokens, output_attentions=True, output_hidden_states=True)
        for module in (tiny.module, candidate)
    ]
    base, ours = (r.logits[0, position].double().softmax(-1).numpy() for r in results)
    distance = scipy.spatial.distance.jensenshannon(base, ours, base=2)
    assert trace.signals["jsd"][step] == pytest.approx(distance**2, abs=1e-9)
    gold = probe.tokens[position + 1]
    assert trace.signals["factual"][step] == pytest.approx(ours[gold] / base[gold], rel=1e-5)
    hidden = [r.hidden_states[-1][0, position].double().numpy() for r in results]
    assert trace.signals["context"][step] == pytest.approx(
        1 - scipy.spatial.distance.cosine(*hidden), abs=1e-6
    )
    per_layer = [
        1
        - scipy.spatial.distance.cosine(
            *(r.attentions[layer][0, :, position].flatten().double() for r in results)
        )
        for layer in range(tiny.shape.layers)
    ]
    assert trace.signals["attention"][step] == pytest.approx(np.mean(per_layer), abs=1e-6)
    np.testing.assert_allclose(trace.layers["attention"][:, step], per_layer, atol=1e-6)
    assert trace.signals["attention_min"][step] == pytest.approx(min(per_layer), abs=1e-6)
    far = [
        1
        - scipy.spatial.distance.cosine(
            *(r.attentions[layer][0, :, position, : position - 16].flatten().double() for r in results)
        )
        for layer in range(tiny.shape.layers)
    ]
    assert trace.signals["attention_far"][step] == pytest.approx(np.mean(far), abs=1e-6)
    states = [
        1
        - scipy.spatial.distance.cosine(*(r.hidden_states[layer + 1][0, position].double() for r in results))
        for layer in range(tiny.shape.layers)
    ]
    np.testing.assert_allclose(trace.layers["context"][:, step], states, atol=1e-6)
    assert trace.signals["context_min"][step] == pytest.approx(min(states), abs=1e-6)


SHARED = Path(__file__).parents[2] / "shared" / "models"


def padded_outputs(module: torch.nn.Module, probes: tuple[Probe, ...], side: str) -> list[device.Outputs]:
    """Every probe's outputs from one batch, padded on one side and told so, as a device might run it."""
    longest = max(len(probe.tokens) for probe in probes) - 1
    rows, masks = [], []
    for probe in probes:
        room = longest - len(probe.tokens) + 1
        row, mask = [*probe.tokens[:-1]], [1] * (len(probe.tokens) - 1)
        rows.append([0] * room + row if side == "left" else row + [0] * room)
        masks.append([0] * room + mask if side == "left" else mask + [0] * room)
    mask = torch.tensor(masks)
    with torch.inference_mode():
        result = module(
            input_ids=torch.tensor(rows),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    outputs = []
    for index, probe in enumerate(probes):
        keys = len(probe.tokens) - 1
        start = longest - keys if side == "left" else 0
        steps = slice(start + probe.prompt_tokens - 1, start + keys)
        outputs.append(
            device.Outputs(
                result.logits[index, steps].numpy(),
                np.stack([rows[index, :, steps, start : start + keys].numpy() for rows in result.attentions]),
                np.stack([rows[index, steps].numpy() for rows in result.hidden_states[1:]]),
            )
        )
    return outputs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["tiny", "gpt2", "stories260K", "stories-gpt2-1M", "wiki-llama-5M"])
def test_host_and_device_agree_on_ragged_prompts_padded_on_either_side(
    name: str, side: str, tiny: LanguageModel, gpt2: LanguageModel
) -> None:
    if name in ("tiny", "gpt2"):
        model = {"tiny": tiny, "gpt2": gpt2}[name]
    elif (SHARED / name).is_dir():
        model = load_model(SHARED / name)
    else:
        pytest.skip(f"the shared model {name} is not beside the checkout")
    generator = np.random.default_rng(0)
    probes = tuple(
        Probe("", tuple(generator.integers(3, 500, size=prompt + steps).tolist()), prompt, (steps - 1,))
        for prompt, steps in ((40, 12), (3, 9), (61, 4), (25, 12))
    )
    layers = tuple(layer.name for layer in model.layers)
    candidate = LayerBank(model).assemble(Config.uniform(layers, Format.parse("int4-axis")))
    host = traces_of(candidate, probes, baseline_outputs(model.module, probes))
    baseline, ours = (padded_outputs(module, probes, side) for module in (model.module, candidate))
    assert min(trace.signals["jsd"].max() for trace in host) > 1e-4
    for probe, whole, outputs, trace in zip(probes, baseline, ours, host, strict=True):
        gold = np.array(probe.continuation)
        answer = np.isin(np.arange(probe.steps), probe.answer_steps)
        numpy_trace = device.trace_of(whole, outputs, gold, answer)
        assert numpy_trace.signals.keys() == trace.signals.keys()
        for signal, values in numpy_trace.signals.items():
            np.testing.assert_allclose(values, trace.signals[signal], rtol=1e-5, atol=1e-5, err_msg=signal)


def test_the_greedy_text_is_what_generate_writes(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    texts = greedy_texts(tiny.module, probes)
    for probe, text in zip(probes, texts, strict=True):
        written = tiny.module.generate(
            torch.tensor([probe.tokens[: probe.prompt_tokens]]),
            attention_mask=torch.ones((1, probe.prompt_tokens), dtype=torch.long),
            do_sample=False,
            max_new_tokens=probe.steps,
            min_new_tokens=probe.steps,
            pad_token_id=0,
            eos_token_id=-1,
        )
        assert text.tolist() == written[0, probe.prompt_tokens :].tolist()


def test_departure_is_where_a_free_running_candidate_leaves_the_baselines_text(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    baseline = baseline_outputs(tiny.module, probes, free_running=True)
    for own in traces_of(tiny.module, probes, baseline):
        assert (own.signals["departure"] == len(own.answer)).all()
    ours = greedy_texts(candidate, probes)
    left = []
    for trace, text, reference in zip(traces_of(candidate, probes, baseline), ours, baseline, strict=True):
        both = zip(text, reference.choices, strict=True)
        step = next((step for step, (a, b) in enumerate(both) if a != b), len(text))
        assert trace.signals["departure"].tolist() == [step] * len(text)
        left.append(step)
    assert min(left) < max(len(trace) for trace in ours)
    assert "departure" not in traces_of(candidate, probes, baseline_outputs(tiny.module, probes))[0].signals


def test_a_choice_among_broken_logits_is_undecided() -> None:
    text = np.array([5, 6, 7])
    for ours, expected in (
        ([5, 6, 7], 3.0),
        ([5, 9, -1], 1.0),
        ([5, -1, 9], np.nan),
        ([-1, 6, 7], np.nan),
    ):
        np.testing.assert_array_equal(device.departure(text, np.array(ours)), [expected] * 3)
    np.testing.assert_array_equal(
        device.departure(np.array([5, -1, -1]), np.array([5, -1, -1])), [np.nan] * 3
    )


def test_a_probe_without_a_far_key_lacks_the_signal(tiny: LanguageModel) -> None:
    near = Probe("", tuple(range(10, 22)), 4, ())
    further = Probe("", tuple(range(10, 40)), 4, ())
    probes = (near, further)
    first, second = traces_of(tiny.module, probes, baseline_outputs(tiny.module, probes))
    assert "attention_far" not in first.signals
    # The query of step t stands at 3 + t; the first with a key more than 16 back is the one at 17.
    assert second.signals["attention_far"][:14].tolist() == [1.0] * 14


def test_the_baseline_against_itself_is_perfect(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    for trace in traces_of(tiny.module, probes, baseline_outputs(tiny.module, probes)):
        assert trace.signals["jsd"].max() < 1e-9
        assert trace.signals["attention"].min() > 1 - 1e-9
        assert trace.signals["context"].min() > 1 - 1e-9


def test_factual_is_one_off_the_answer_and_absent_without_one(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    traces = traces_of(candidate, probes, baseline_outputs(tiny.module, probes))
    assert all("factual" in trace.signals for trace in traces[:-1])
    assert "factual" not in traces[-1].signals
    for trace in traces[:-1]:
        assert (trace.signals["factual"][~trace.answer] == 1.0).all()
        assert (trace.signals["factual"][trace.answer] != 1.0).all()


def test_batching_changes_nothing(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    baseline = baseline_outputs(tiny.module, probes)
    together = traces_of(candidate, probes, baseline)
    for index, probe in enumerate(probes):
        alone = traces_of(candidate, [probe], [baseline[index]])[0]
        for name, values in alone.signals.items():
            np.testing.assert_allclose(values, together[index].signals[name], rtol=0, atol=1e-5)


def test_a_broken_candidate_gives_nan_and_not_a_number_that_passes(
    tiny: LanguageModel, probes: tuple[Probe, ...]
) -> None:
    layers = tuple(layer.name for layer in tiny.layers)
    broken = LayerBank(tiny).assemble(Config.uniform(layers, FP16))
    with torch.no_grad():
        broken.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] = float("nan")
    trace = traces_of(broken, probes[:1], baseline_outputs(tiny.module, probes[:1]))[0]
    assert np.isnan(trace.signals["jsd"]).any()


def test_perplexity_is_the_exponent_of_the_mean_loss(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    losses = []
    for probe in probes:
        tokens = torch.tensor([probe.tokens])
        logits = tiny.module(input_ids=tokens).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none"))
    assert perplexity(tiny.module, [probe.tokens for probe in probes]) == pytest.approx(
        float(torch.cat(losses).mean().exp()), rel=1e-5
    )


def test_traces_survive_the_way_home(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    traces = traces_of(candidate, probes, baseline_outputs(tiny.module, probes))
    write_traces(tmp_path / "traces.npz", traces, traces[:3])
    whole = traces[0]
    wider = {name: values + 0.1 for name, values in whole.signals.items()}
    traces[0] = device.Trace(whole.lower, wider, whole.answer, whole.layers)
    write_traces(tmp_path / "traces.npz", traces, traces[:3])
    back, repeated = read_traces(tmp_path / "traces.npz")
    assert len(back) == len(probes)
    assert len(repeated) == 3
    for sent, came in zip(traces, back, strict=True):
        for part in ("lower", "upper", "layers"):
            ours, theirs = getattr(sent, part), getattr(came, part)
            assert ours.keys() == theirs.keys()
            assert all((ours[name] == theirs[name]).all() for name in ours)
        assert sent.is_exact == came.is_exact
    assert [trace.is_exact for trace in back[:2]] == [False, True]
    with pytest.raises(device.SignalsError, match="these are intervals"):
        _ = back[0].signals


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_traces_file_is_refused(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...], tmp_path: Path, kept: float
) -> None:
    path = tmp_path / "traces.npz"
    write_traces(path, traces_of(candidate, probes[:2], baseline_outputs(tiny.module, probes[:2])), [])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(device.SignalsError):
        read_traces(path)


def test_arrays_that_would_need_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    np.savez(path, **{"run.0.answer": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(device.SignalsError, match="plain arrays"):
        read_traces(path)


def plain_arrays() -> dict[str, np.ndarray]:
    return {
        "run.0.answer": np.zeros(4, dtype=bool),
        "run.0.layers.attention": np.zeros((2, 4)),
        "run.0.lower.jsd": np.zeros(4),
        "run.0.upper.jsd": np.zeros(4),
    }


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("run.0.lower.jsd", np.zeros(3), "expected 4 float64 values"),
        ("run.0.layers.attention", np.zeros((2, 3)), "expected 4 float64 values"),
        ("run.0.layers.attention", np.zeros(4), "float64 ends of a signal"),
        ("run.0.lower.jsd", np.zeros(4, dtype=np.float32), "float64 ends of a signal"),
        ("run.0.lower.jsd", np.ones(4), "at most the upper ones"),
        ("run.0.lower.context", np.zeros(4), "a lower and an upper end of each"),
        ("run.0.middle.jsd", np.zeros(4), "float64 ends of a signal"),
        ("run.0.answer", np.zeros(4), "a row of booleans"),
        ("run.1.lower.jsd", np.zeros(4), "expected 4 arrays of whole traces, got 5"),
        ("other", np.zeros(4), "expected 4 arrays of whole traces, got 5"),
    ],
)
def test_traces_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    path = tmp_path / "traces.npz"
    np.savez(path, **plain_arrays())
    assert len(read_traces(path)[0]) == 1
    np.savez(path, **{**plain_arrays(), name: values})
    with pytest.raises(device.SignalsError, match=message):
        read_traces(path)
