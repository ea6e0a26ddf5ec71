"""What `toggle-edge export` made, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from toggle_edge.bundle import Bundle
from toggle_edge.config import Config
from toggle_edge.report.cells import print_entry


@dataclass(frozen=True)
class ExportResult:
    """A bundle. `parity` is the largest logit difference to the searched weights or, where `activations` is not None,
    to a reference with quantised activations, which differs from them by that much; `trial` None where the config was
    not a study's."""

    bundle: Bundle
    config: Config
    trial: int | None
    parity: float
    proxy_bytes: int
    activations: float | None = None


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
        "artifact_bytes": result.bundle.artifact_bytes,
        "probe_bytes": result.bundle.manifest.probe_bytes,
        "parity": {
            "max_abs_logit_difference": result.parity,
            "max_abs_logit_difference_by_activations": result.activations,
        },
    }


def print_export(result: ExportResult, console: Console) -> None:
    """For people: what was written, how large it is, what to do next."""
    bundle = result.bundle
    signature = f"signed by {bundle.signed_by}" if bundle.signed_by else "NOT signed: devices will refuse it"
    print_entry(console, "bundle", f"{bundle.folder}, {bundle.digest[:12]}, {signature}")
    print_entry(console, "config", result.config.summary())
    print_entry(
        console,
        "size",
        f"proxy {result.proxy_bytes / 1e6:.2f} MB (formula), artifact {bundle.artifact_bytes / 1e6:.2f} MB (files), "
        f"probes {bundle.manifest.probe_bytes / 1e6:.2f} MB",
    )
    if result.activations is None:
        print_entry(console, "parity", f"logits within {result.parity:.1e} of the searched weights")
    else:
        print_entry(
            console,
            "parity",
            f"logits within {result.parity:.1e} of torchao's on the same codes; int8 activations move them by up to "
            f"{result.activations:.2g} from the searched weights",
        )
    print_entry(console, "next", f"toggle-edge validate --device DEVICE --bundle {bundle.folder}")
