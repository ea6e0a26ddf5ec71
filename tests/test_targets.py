"""What a target offers is what its kernels read; what they do not is refused with the nearest that they do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toggle_edge.config import AXIS, FP16, FP32, Config, Format, nearest_with_kernel
from toggle_edge.errors import ConfigError
from toggle_edge.targets import GROUPS, TARGETS, has_kernel_somewhere, menu_of, target_named

formats = st.one_of(
    st.sampled_from([FP16, FP32]),
    st.builds(Format, st.integers(2, 16), st.sampled_from([*GROUPS, AXIS]), st.booleans()),
)
targets = st.sampled_from(list(TARGETS.values()))


@given(formats, targets, st.sampled_from(["q", "embedding"]))
def test_the_nearest_format_is_one_of_the_targets_and_loses_no_bits(
    fmt: Format, target: object, role: str
) -> None:
    assert isinstance(target, type(TARGETS["paper"]))
    nearest = target.nearest(fmt, role)
    assert nearest in target.formats(role)
    assert nearest.bits >= fmt.bits or (fmt == FP32 and nearest == FP16)
    if fmt in target.formats(role):
        assert nearest == fmt


@given(formats)
def test_the_onnx_menu_is_what_the_exporter_accepts(fmt: Format) -> None:
    assert (fmt in TARGETS["onnx-cpu"].matrices) == (nearest_with_kernel(fmt) == fmt)


def test_menus_belong_to_their_targets() -> None:
    for target in TARGETS.values():
        assert set(target.menu) <= target.matrices & target.embeddings
        assert target.sparsities[0] == 0.0
    paper = TARGETS["paper"]
    assert [fmt.bits for fmt in paper.menu] == list(range(2, 17))
    assert paper.sparsities == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert all(target.sparsities == (0.0,) for target in TARGETS.values() if target is not paper)


def test_a_search_draws_from_what_was_asked_for_and_is_there() -> None:
    asked = [Format(2, 64), Format(4, 32), Format(8, AXIS), FP16]
    assert menu_of(TARGETS["onnx-cpu"], asked) == (Format(2, 64), Format(4, 32), FP16)
    assert menu_of(TARGETS["executorch-xnnpack"], asked) == (Format(4, 32), Format(8, AXIS), FP16)
    assert menu_of(TARGETS["paper"], asked) == TARGETS["paper"].menu


def test_a_menu_with_nothing_in_common_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"onnx-cuda has no kernel for any of int2-g64.*has one for: int4-g64"
    ):
        menu_of(TARGETS["onnx-cuda"], [Format(2, 64)])
    with pytest.raises(ConfigError, match="in an embedding"):
        menu_of(TARGETS["executorch-xnnpack"], [Format(2, 64)], "embedding")


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"onnx-cpu, onnx-cpu-1\.23, onnx-cpu-1\.19, .*, paper, got 'tpu'"):
        target_named("tpu")


def test_no_hardware_has_three_bits() -> None:
    assert not has_kernel_somewhere(Format(3, 64))
    assert has_kernel_somewhere(Format(8, AXIS))


def test_a_config_is_refused_for_its_first_layer_without_a_kernel() -> None:
    config = Config.of({"a": Format(4, 32), "b": Format(2, 64)})
    TARGETS["onnx-cpu"].require(config, {"a": "q", "b": "embedding"})
    with pytest.raises(ConfigError, match=r"b: onnx-cpu-1\.23 has no kernel for int2-g64; .* is int4-g64$"):
        TARGETS["onnx-cpu-1.23"].require(config, {"a": "q", "b": "embedding"})
    TARGETS["executorch-xnnpack"].require(Config.of({"a": Format(2, 32)}), {"a": "embedding"})
    with pytest.raises(ConfigError, match=r"is int4-g32$"):
        TARGETS["executorch-xnnpack"].require(Config.of({"a": Format(2, 32)}), {"a": "q"})
