"""What `toggle-edge deploy`, `rollback` and `run` did, and how it is shown."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from rich.console import Console
from toggle_runtime.deployment import Deployment
from toggle_runtime.records import PASS

from toggle_edge.fleet.active import Conversation
from toggle_edge.fleet.device import Device
from toggle_edge.report.cells import print_entry, print_outcome
from toggle_edge.report.validation import ValidationResult, print_validation, validation_json


@dataclass(frozen=True)
class DeployResult:
    """A validation and, where it passed, what is deployed now; None where nothing was switched. `asked` is the device
    as the command named it."""

    asked: str
    validation: ValidationResult
    deployment: Deployment | None

    @property
    def outcome(self) -> str:
        return self.validation.outcome


@dataclass(frozen=True)
class RollbackResult:
    device: Device
    deployment: Deployment


@dataclass(frozen=True)
class BesideBaseline:
    """The baseline's own greedy continuation, and how many of its first tokens the device's are equal to."""

    text: str
    tokens: int
    agreeing: int


@dataclass(frozen=True)
class TalkedResult:
    """A prompt and what the device made of it."""

    device: Device
    prompt: str
    text: str
    said: Conversation
    baseline: BesideBaseline | None

    @property
    def ttft_ms(self) -> float:
        return self.said.token_ns[0] / 1e6

    @property
    def decode_ms(self) -> float | None:
        """The median of the later tokens; None where there is none."""
        later = self.said.token_ns[1:]
        return statistics.median(later) / 1e6 if later else None


def deploy_json(result: DeployResult) -> dict[str, object]:
    """The one object that `toggle-edge deploy --json` prints."""
    return {**validation_json(result.validation), "deployed": _deployment_json(result.deployment)}


def rollback_json(result: RollbackResult) -> dict[str, object]:
    """The one object that `toggle-edge rollback --json` prints."""
    return {
        "outcome": PASS,
        "device": {"name": result.device.name, "transport": result.device.transport},
        "deployed": _deployment_json(result.deployment),
    }


def talked_json(result: TalkedResult) -> dict[str, object]:
    """The one object that `toggle-edge run --json` prints."""
    said = result.said
    return {
        "outcome": PASS,
        "device": {"name": result.device.name, "transport": result.device.transport},
        "bundle": {"digest": said.bundle},
        "prompt": result.prompt,
        "text": result.text,
        "tokens": said.tokens,
        "stopped": said.stopped,
        "ttft_ms": result.ttft_ms,
        "decode_ms_p50": result.decode_ms,
        "baseline": None if result.baseline is None else dataclasses.asdict(result.baseline),
    }


def print_deploy(result: DeployResult, console: Console) -> None:
    """For people: the validation, then what is active."""
    print_validation(result.validation, console)
    if result.deployment is None:
        print_entry(console, "active", "nothing was switched: only what passes is")
        return
    _print_active(result.deployment, console)
    print_entry(console, "next", f'toggle-edge run --device {result.asked} "Once upon a time"')


def print_rollback(result: RollbackResult, console: Console) -> None:
    """For people: what is active now."""
    _print_active(result.deployment, console)
    print_outcome(console, PASS, f"{result.device.name} is back on what it had before")


def print_talked(result: TalkedResult, console: Console) -> None:
    """For people, after the text itself: how fast it came, and the baseline's text beside it."""
    console.print()
    decode = "" if result.decode_ms is None else f", then {result.decode_ms:.1f} ms/token"
    print_entry(
        console,
        "device",
        f"{result.device.name}, bundle {result.said.bundle[:12]}: first token {result.ttft_ms:.0f} ms{decode} "
        "(one run, without load: validate measures)",
    )
    if result.baseline is not None:
        print_entry(console, "baseline", result.baseline.text)
        print_entry(
            console,
            "agreement",
            f"the first {result.baseline.agreeing} of {result.baseline.tokens} tokens are the same",
        )


def _print_active(deployment: Deployment, console: Console) -> None:
    print_entry(console, "active", deployment.active.bundle[:12])
    before = (
        deployment.previous.bundle[:12] if deployment.previous else "nothing: there is none to go back to"
    )
    print_entry(console, "before", before)


def _deployment_json(deployment: Deployment | None) -> dict[str, object] | None:
    return None if deployment is None else dataclasses.asdict(deployment)
