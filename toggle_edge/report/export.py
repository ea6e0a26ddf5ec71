"""What `toggle-edge export` made, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from toggle_edge.bundle import Bundle
from toggle_edge.config import Config
from toggle_edge.export.packing import Container
from toggle_edge.report.cells import TITLE, print_entry


@dataclass(frozen=True)
class StoredLayer:
    """How a layer is stored, and what that takes in its file."""

    layer: str
    role: str
    format: str
    weights: int
    container: Container


@dataclass(frozen=True)
class ExportResult:
    """A bundle. `parity` is the largest logit difference to the searched weights or, where `activations` is not None,
    to a reference with quantised activations, which differs from them by that much; `trial` None where the config was
    not a study's, `unpacked` None where nothing was. `predicted_bytes` is None and `layers` are empty where the
    target's tools decide what is stored."""

    bundle: Bundle
    config: Config
    trial: int | None
    parity: float
    proxy_bytes: int
    predicted_bytes: int | None
    layers: tuple[StoredLayer, ...] = ()
    unpacked: Path | None = None
    activations: float | None = None
    exact_share: float | None = None


def export_json(result: ExportResult) -> dict[str, object]:
    """The one object that `toggle-edge export --json` prints."""
    return {
        "outcome": "PASS",
        "bundle": {
            "folder": str(result.bundle.folder),
            "digest": result.bundle.digest,
            "signed_by": result.bundle.signed_by,
        },
        "target": result.bundle.manifest.target,
        "trial": result.trial,
        "config_digest": result.config.digest,
        "proxy_bytes": result.proxy_bytes,
        "predicted_bytes": result.predicted_bytes,
        "artifact_bytes": result.bundle.artifact_bytes,
        "probe_bytes": result.bundle.manifest.probe_bytes,
        "parity": {
            "max_abs_logit_difference": result.parity,
            "max_abs_logit_difference_by_activations": result.activations,
            "exact_share_of_short_texts": result.exact_share,
        },
        "layers": [
            {
                "layer": each.layer,
                "role": each.role,
                "format": each.format,
                "weights": each.weights,
                "nominal_bytes": each.container.weights,
                "scale_bytes": each.container.scales,
                "zero_point_bytes": each.container.zero_points,
                "padding_bytes": each.container.padding,
                "stored_bytes": each.container.total,
            }
            for each in result.layers
        ],
        "beside_layers_bytes": _beside_layers(result),
        "unpacked": None if result.unpacked is None else str(result.unpacked),
    }


def _beside_layers(result: ExportResult) -> int | None:
    """Bytes of the artifact that are no layer's: graphs, norms, tables, settings. None where that is not known."""
    if not result.layers:
        return None
    return result.bundle.artifact_bytes - sum(each.container.total for each in result.layers)


def print_export(result: ExportResult, console: Console) -> None:
    """For people: what was written, how large it is, what to do next."""
    bundle = result.bundle
    signature = f"signed by {bundle.signed_by}" if bundle.signed_by else "NOT signed: devices will refuse it"
    print_entry(console, "bundle", f"{bundle.folder}, {bundle.digest[:12]}, {signature}")
    print_entry(console, "config", result.config.summary())
    known = result.predicted_bytes
    predicted = "" if known is None else f"predicted {known / 1e6:.2f} MB, "
    print_entry(
        console,
        "size",
        f"proxy {result.proxy_bytes / 1e6:.2f} MB (formula), {predicted}artifact "
        f"{bundle.artifact_bytes / 1e6:.2f} MB (files), probes {bundle.manifest.probe_bytes / 1e6:.2f} MB",
    )
    if result.layers:
        console.print(_containers(result))
    if result.activations is None:
        print_entry(console, "parity", f"logits within {result.parity:.1e} of the searched weights")
    else:
        share = result.exact_share
        exact = "" if share is None else f" (rounding; {share:.0%} of short texts agree)"
        print_entry(
            console,
            "parity",
            f"logits within {result.parity:.1e} of torchao's on the same codes{exact}; narrow activations move them by "
            f"up to {result.activations:.2g} from the searched weights",
        )
    if result.unpacked is not None:
        print_entry(console, "unpacked", f"{result.unpacked}, as onnxruntime and onnxruntime-genai open it")
    if result.activations is None:
        print_entry(console, "next", f"toggle-edge validate --device DEVICE --bundle {bundle.folder}")


def _containers(result: ExportResult) -> Table:
    """Layers of one role in one format are one row; what is stored beyond the weights' nominal bits is shown apart."""
    rows: dict[tuple[str, str], list[StoredLayer]] = {}
    for each in result.layers:
        rows.setdefault((each.role, each.format), []).append(each)
    table = Table(title="what layers take in MB, and what of it is container", box=SIMPLE_HEAD, **TITLE)
    table.add_column("layers")
    table.add_column("format", no_wrap=True)
    for heading in ("weights", "scales", "zero-points", "padding", "stored", "bits a weight"):
        table.add_column(heading, justify="right")
    for (role, fmt), layers in rows.items():
        name = role if len(layers) == 1 else f"{role} ×{len(layers)}"
        table.add_row(name, fmt, *_cells(layers))
    table.add_row("all layers", "", *_cells(result.layers))
    beside = _beside_layers(result)
    table.add_row("all else", "", *[""] * 4, "" if beside is None else _megabytes(beside), "")
    return table


def _cells(layers: Sequence[StoredLayer]) -> list[str]:
    parts = ("weights", "scales", "zero_points", "padding", "total")
    sums = {part: sum(getattr(each.container, part) for each in layers) for part in parts}
    bits = 8 * sums["total"] / sum(each.weights for each in layers)
    return [*map(_megabytes, sums.values()), f"{bits:.2f}"]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3f}"
