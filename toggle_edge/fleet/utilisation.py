"""How much of what the device could do at best a run reached: of its memory in decoding, of its arithmetic in prefill.

Every token reads all weights that multiply and what the cache holds; a prompt multiplies each of its tokens with all of
them. An embedding that is only looked up counts for neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from toggle_runtime.records import Manifest, Measurement, RunRecord, unavailable

from toggle_edge.config import Format
from toggle_edge.errors import ToggleEdgeError
from toggle_edge.fleet.latency import kept, why_missing

WEIGHTS = "artifact/weights/"
_HEADS = ("lm_head", "embed_out", "output", "head")
_WITHIN_BLOCK = re.compile(r"\.\d+\.")
_CACHE_BYTES = 4
"""The cache is float32 on all targets so far."""

_GPU = "onnx-cuda"


def utilisation(
    record: RunRecord, manifest: Manifest | None, speeds: Mapping[str, Measurement]
) -> dict[str, Measurement]:
    """The device's limits, and the shares of them that the speeds of the run come to, 0 to 1.

    `manifest` says what a token reads; without one, or without limits, the shares are `unavailable`.
    """
    limits = _limits(record, manifest)
    if manifest is None:
        sizes: tuple[float, float] | str = "the bundle's manifest is not at hand"
    else:
        sizes = _sizes(record, manifest)
    memory, arithmetic = limits["copy_bytes_per_s"], limits["int8_operations_per_s"]
    read, multiplied = sizes if not isinstance(sizes, str) else (sizes, sizes)
    prefill = max(
        (name for name in speeds if name.startswith("prefill_tokens_per_s")),
        key=lambda name: int(name.rpartition("_")[2]) if name[-1].isdigit() else 0,
    )
    return {
        **limits,
        "decode_bandwidth_share": _share(
            speeds["decode_tokens_per_s"],
            read,
            memory,
            "bytes read for a token x tokens/s over copy_bytes_per_s",
        ),
        "prefill_compute_share": _share(
            speeds[prefill], multiplied, arithmetic, f"2 x weights x {prefill} over int8_operations_per_s"
        ),
    }


def bytes_per_token(manifest: Manifest, context: float) -> float:
    """Bytes that decoding a token reads when `context` tokens precede it."""
    weights = sum(size for layer, size in _weights(manifest).items() if _multiplies(layer, manifest))
    groups = sum(len(block.kv_groups) for block in manifest.model.blocks)
    return weights + 2.0 * groups * manifest.model.head_size * _CACHE_BYTES * context


def multiplied_weights(manifest: Manifest) -> float:
    """About how many weights a token is multiplied with: sizes of files over the bits of a weight and its scale.

    Raises ToggleEdgeError for a format that is not known.
    """
    count = 0.0
    for layer, size in _weights(manifest).items():
        if layer in manifest.config and _multiplies(layer, manifest):
            fmt = Format.parse(manifest.config[layer])
            group = fmt.group or 0
            scale = 32.0 / group if group > 0 and not fmt.is_float else 0.0
            count += 8.0 * size / (fmt.bits + scale)
    return count


def _weights(manifest: Manifest) -> dict[str, int]:
    return {
        path[len(WEIGHTS) :].removesuffix(".bin").removesuffix(".ptd"): blob.size
        for path, blob in manifest.files.items()
        if path.startswith(WEIGHTS)
    }


def _multiplies(layer: str, manifest: Manifest) -> bool:
    """Whether all of a layer is read for each token: not an embedding beside a head of its own."""
    outside = [name for name in manifest.config if not _WITHIN_BLOCK.search(name)]
    if layer not in outside:
        return True
    heads = [name for name in outside if name.rpartition(".")[2] in _HEADS]
    return layer in heads if heads else True


def _sizes(record: RunRecord, manifest: Manifest) -> tuple[float, float] | str:
    made = [generation for sample in record.latency for generation in kept(sample)]
    if not made:
        return why_missing(record, "the run has no timed generations")
    if not _weights(manifest):
        return "the bundle does not hold its weights layer by layer"
    context = sum(each.prompt_tokens + len(each.token_ns) / 2 for each in made) / len(made)
    try:
        return bytes_per_token(manifest, context), 2.0 * multiplied_weights(manifest)
    except ToggleEdgeError as exc:
        return str(exc)


def _limits(record: RunRecord, manifest: Manifest | None) -> dict[str, Measurement]:
    sample = record.capacity
    found = {}
    for name, unit, what in (
        ("copy_bytes_per_s", "bytes/s", "bytes read and written by a copy that no cache holds"),
        ("int8_operations_per_s", "1/s", "the engine's uint8 x int8 product, two operations a product"),
    ):
        if sample is None:
            found[name] = unavailable(unit, what, why_missing(record, "the run has no capacity pass"))
        elif manifest is not None and manifest.target == _GPU:
            found[name] = unavailable(unit, what, "the GPU's own limits are not measured, only the CPU's")
        else:
            rounds = sample.copied_per_s if name == "copy_bytes_per_s" else sample.int8_per_s
            method = f"best of {len(rounds)} rounds, {sample.threads} threads; {what}"
            if not rounds or not max(rounds) > 0.0:
                found[name] = unavailable(
                    unit, method, "the worker environment has nothing to measure it with"
                )
            else:
                found[name] = Measurement(max(rounds), unit, method, len(rounds))
    return found


def _share(speed: Measurement, work: float | str, limit: Measurement, method: str) -> Measurement:
    if isinstance(work, str):
        return unavailable("1", method, work)
    if speed.value is None or limit.value is None:
        return unavailable("1", method, speed.reason or limit.reason or "not measured")
    factor = work / limit.value
    ends = None if speed.ci95 is None else [end * factor for end in speed.ci95]
    reason = speed.reason
    if speed.value * factor > 1.0:
        reason = (
            "more than the limit: it was measured while the device was busy; remove limits.json from its root"
        )
    return Measurement(speed.value * factor, "1", method, speed.n, ends, reason=reason)
