"""What is active on a device: switch a bundle in, go back to the one before, talk to it.

All of it may be asked again after a lost link: the agent switches at most once, and only what is healthy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from toggle_runtime.deployment import Deployment, TalkResult
from toggle_runtime.records import Manifest, RecordError, from_data, from_json

from toggle_edge.bundle import MAX_MANIFEST_BYTES, Bundle
from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import Event, OnProgress, ignore_progress
from toggle_edge.fleet.deploy import prepare_environment
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.session import Connect, Session
from toggle_edge.fleet.transport import Transport
from toggle_edge.signing import signer, trusted_keys

MAX_TOKENIZER_BYTES = 64 << 20
TOKENIZER = "tokenizer/"


@dataclass(frozen=True)
class Conversation:
    """What a device answered: token ids, nanoseconds until each (the first includes the prompt), and the bundle."""

    tokens: list[int]
    token_ns: list[int]
    stopped: bool
    bundle: str


def switch_in(
    device: Device,
    bundle: Bundle,
    *,
    allow_unsigned: bool = False,
    wheels: list[WheelFile] | None = None,
    on_progress: OnProgress = ignore_progress,
    connect: Connect = transports.connect,
) -> Deployment:
    """Make `bundle`, whose files the device has, the active one, if it is healthy there; return what is deployed then.

    Raises AgentError where it is not healthy; then what was active before still is.
    """
    session = Session(device, connect)
    try:
        identifier = session.through(
            lambda link: prepare_environment(link, device, wheels, on_progress, bundle.manifest.target),
            on_progress,
        )
        event = session.ask(
            "activate",
            {
                "bundle": bundle.digest,
                "environment": identifier,
                "threads": device.threads,
                "allow_unsigned": allow_unsigned,
            },
            on_progress=on_progress,
        )
        return _deployment(event, device)
    finally:
        session.close()


def roll_back(
    device: Device,
    *,
    on_progress: OnProgress = ignore_progress,
    connect: Connect = transports.connect,
) -> Deployment:
    """Switch back to the bundle before. Raises AgentError where there is none, or it is not healthy any more."""
    session = Session(device, connect)
    try:
        before = session.through(lambda link: deployed_on(link, device), on_progress)
        if before is None or before.previous is None:
            raise AgentError(f"device {device.name!r}: nothing was deployed there before what is active now")
        wanted = before.previous.bundle
        try:
            return _deployment(session.ask("rollback", {"bundle": wanted}, on_progress=on_progress), device)
        except AgentError:
            # An agent may be killed after it switched and before it said so. Whoever then asks again goes forward.
            now = session.through(lambda link: deployed_on(link, device), on_progress)
            if now is None or now.active.bundle != wanted:
                raise
            return now
    finally:
        session.close()


def talk(
    device: Device,
    prompt: Sequence[int],
    tokens: int,
    stop: Sequence[int],
    on_token: Callable[[int], None],
    *,
    connect: Connect = transports.connect,
) -> Conversation:
    """Have the active bundle continue `prompt` greedily; `on_token` hears of every token, in order and once."""
    session = Session(device, connect)
    told = 0

    def hear(event: Event) -> None:
        nonlocal told
        token = event.get("token")
        # Events may be dropped on a slow link; the result has them all.
        if event.get("step") == "token" and event.get("at") == told and told < tokens and _is_token(token):
            told += 1
            on_token(token)

    try:
        event = session.ask(
            "talk", {"prompt": list(prompt), "tokens": tokens, "stop": list(stop)}, on_progress=hear
        )
    finally:
        session.close()
    try:
        data = {key: value for key, value in event.items() if key not in ("event", "bundle")}
        result, bundle = from_data(TalkResult, data), str(event.get("bundle"))
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: talk: {exc}") from exc
    found = len(result.tokens)
    if not (0 < found <= tokens and found == len(result.token_ns) and all(map(_is_token, result.tokens))):
        raise AgentError(
            f"device {device.name!r}: talk: expected 1 to {tokens} tokens and a time for each, got {found} and "
            f"{len(result.token_ns)}"
        )
    for token in result.tokens[told:]:
        on_token(token)
    return Conversation(result.tokens, result.token_ns, result.stopped, bundle)


def _is_token(token: object) -> TypeGuard[int]:
    return type(token) is int and 0 <= token < 2**31


def deployed_on(transport: Transport, device: Device) -> Deployment | None:
    """What is deployed there, None where nothing is. Raises AgentError where the device cannot tell."""
    facts = facts_of(transport, device)
    if facts.deployment_problem is not None:
        raise AgentError(f"device {device.name!r}: {facts.deployment_problem}")
    return facts.deployed


def fetch_tokenizer(device: Device, folder: Path, *, connect: Connect = transports.connect) -> Manifest:
    """The active bundle's manifest, and its tokenizer's files in `folder`.

    Verified by digests and by a signature that this host trusts: the device's word is not enough to read its files.
    Raises FleetError where nothing is deployed, SignatureError for a stranger's bundle.
    """
    transport = connect(device)
    try:
        deployment = deployed_on(transport, device)
        if deployment is None:
            raise FleetError(
                f"device {device.name!r}: nothing is deployed there; toggle-edge deploy --device {device.name} first"
            )
        active = deployment.active
        path = folder / "manifest.json"
        _fetch(transport, device, active.bundle, path, MAX_MANIFEST_BYTES)
        try:
            manifest = from_json(Manifest, path.read_text(encoding="utf-8"))
        except (RecordError, UnicodeDecodeError) as exc:
            raise AgentError(f"device {device.name!r}: its manifest cannot be read: {exc}") from exc
        if manifest.signature is not None or not active.allow_unsigned:
            signer(manifest, trusted_keys())
        found = {name: blob for name, blob in manifest.files.items() if name.startswith(TOKENIZER)}
        if not found:
            raise FleetError(
                f"device {device.name!r}: the bundle {active.bundle[:12]} has no tokenizer; export the model with one"
            )
        for name, blob in found.items():
            _fetch(transport, device, blob.sha256, folder / Path(name).name, MAX_TOKENIZER_BYTES)
        return manifest
    finally:
        transport.close()


def _fetch(transport: Transport, device: Device, digest: str, local: Path, limit: int) -> None:
    transport.download(f"{device.root}/blobs/sha256/{digest}", local, limit)
    with local.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        local.unlink()
        raise AgentError(f"device {device.name!r}: {local.name}: expected sha256 {digest}, got {found}")


def _deployment(event: Event, device: Device) -> Deployment:
    try:
        return from_data(Deployment, event.get("deployment"))
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: what is deployed: {exc}") from exc
