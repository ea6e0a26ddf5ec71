"""What is deployed on the device: one bundle that answers, and the one before it, to go back to.

`ROOT/deployment.json` names both and is replaced in one step, after the bundle has been verified, laid out under
`ROOT/deployed/DIGEST` and has generated a few tokens. So at every moment the active bundle is the old one or the new
one, whole; an attempt that fails or is killed switches nothing.
"""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from toggle_runtime import records
from toggle_runtime.blobs import write_durably
from toggle_runtime.bundles import lay_out, read_manifest, verified_manifest
from toggle_runtime.codec import require_version
from toggle_runtime.environments import folder_of
from toggle_runtime.lease import Lease
from toggle_runtime.records import Blob, Manifest, RecordError, from_data
from toggle_runtime.supervise import Event, WorkerError
from toggle_runtime.wire import RequestError
from toggle_runtime.workers import Workplace, ask_worker

HEALTH_PROMPT, HEALTH_TOKENS = 8, 4
TALK_TIMEOUT_S = 600.0
MAX_STATE_BYTES = 64 << 10


@dataclass(frozen=True)
class Deployed:
    """One bundle that was switched in. `since` is the device's clock then, in seconds since 1970."""

    bundle: str
    environment: str
    threads: int
    since: float
    allow_unsigned: bool = False

    def __post_init__(self) -> None:
        Blob(self.bundle, 0)  # it becomes a path
        if self.threads < 1:
            raise RecordError(f"deployment: threads: expected at least 1, got {self.threads}")


@dataclass(frozen=True)
class Deployment:
    """What `deployment.json` holds. `previous` is None after the first deployment."""

    version: int
    active: Deployed
    previous: Optional[Deployed] = None

    READABLE = (1,)

    def __post_init__(self) -> None:
        require_version(self.version, self.READABLE, "deployment")


@dataclass(frozen=True)
class TalkResult:
    """What the pass `talk` must answer: the tokens, and nanoseconds until each since the one before."""

    tokens: List[int]
    token_ns: List[int]
    load_ns: int
    stopped: bool
    modules: List[str]


def read_deployment(root: Path) -> Optional[Deployment]:
    """What is deployed, None where nothing ever was. Raises RequestError, kind `deployment`, where that is damaged."""
    path = root / "deployment.json"
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_STATE_BYTES)
    except FileNotFoundError:
        return None
    try:
        return from_data(Deployment, json.loads(data.decode("utf-8")))
    except (ValueError, RecursionError, RecordError) as exc:
        raise RequestError(
            "deployment", f"{path}: cannot be read: {exc}; deploy again, nothing else is lost"
        ) from exc


def activate(root: Path, wanted: Deployed, tell: Callable[[Event], None], held: Lease) -> Dict[str, Any]:
    """Switch `wanted` in, if it is healthy, under the lease. Raises RequestError, kind `health` or `digest`."""
    try:
        known = read_deployment(root)
    except RequestError:
        known = None  # damaged: what is deployed now replaces it
    health = _check(root, wanted, tell)
    if known is not None and known.active.bundle == wanted.bundle:
        deployment = dataclasses.replace(known, active=wanted)
    else:
        deployment = Deployment(1, wanted, known.active if known is not None else None)
    return _switch(root, deployment, health, held)


def roll_back(root: Path, bundle: str, tell: Callable[[Event], None], held: Lease) -> Dict[str, Any]:
    """Switch to the bundle that was active before, which the host takes to be `bundle`; the one that is active now is
    then the one before. Where `bundle` is active already, nothing is done: the host asks again after a lost link.

    Raises RequestError where there is none, or it is not healthy any more.
    """
    known = read_deployment(root)
    if known is not None and known.active.bundle == bundle:
        return {"deployment": dataclasses.asdict(known)}
    if known is None or known.previous is None:
        raise RequestError(
            "deployment",
            "nothing was deployed here before what is active now" if known else "nothing is deployed here",
        )
    if known.previous.bundle != bundle:
        raise RequestError(
            "deployment",
            f"expected {known.previous.bundle[:12]} to go back to, the host asks for {bundle[:12]}: another host "
            "deployed meanwhile; look at `toggle-edge device show` and ask again",
        )
    wanted = dataclasses.replace(known.previous, since=time.time())
    health = _check(root, wanted, tell)
    return _switch(root, Deployment(1, wanted, known.active), health, held)


def talk(
    root: Path, prompt: List[int], tokens: int, stop: List[int], tell: Callable[[Event], None]
) -> Dict[str, Any]:
    """Have the active bundle continue `prompt` by at most `tokens` tokens, greedily, until one of `stop`.

    Call under the lease. `tell` hears of each token. Raises RequestError where nothing is deployed, WorkerError.
    """
    known = read_deployment(root)
    if known is None:
        raise RequestError("deployment", "nothing is deployed here; deploy a bundle first")
    manifest = _laid_out(root, known.active)
    result = _generate(root, known.active, manifest, prompt, tokens, stop, tell)
    return dict(dataclasses.asdict(result), bundle=known.active.bundle)


def describe(root: Path) -> Dict[str, Any]:
    """What is deployed, for `facts`, and what is wrong with the file that says so; either may be None."""
    try:
        known = read_deployment(root)
    except RequestError as exc:
        return {"deployed": None, "deployment_problem": str(exc)}
    return {"deployed": known and dataclasses.asdict(known), "deployment_problem": None}


def deployed_folder(root: Path, bundle: str) -> Path:
    return root / "deployed" / bundle


def _check(root: Path, wanted: Deployed, tell: Callable[[Event], None]) -> TalkResult:
    """Verify every byte, lay the bundle out anew, and have it generate."""
    tell({"step": "verifying"})
    manifest = _laid_out(root, wanted, anew=True)
    tell({"step": "health"})
    prompt = [min(3, manifest.model.vocabulary - 1)] * HEALTH_PROMPT
    try:
        return _generate(root, wanted, manifest, prompt, HEALTH_TOKENS, [], lambda event: None)
    except WorkerError as exc:
        raise RequestError(
            "health", f"bundle {wanted.bundle[:12]} does not answer, nothing was switched: {exc}"
        ) from exc


def _switch(root: Path, deployment: Deployment, health: TalkResult, held: Lease) -> Dict[str, Any]:
    text = json.dumps(dataclasses.asdict(deployment), sort_keys=True)
    with held.fenced():
        write_durably(root / "deployment.json", text.encode("utf-8"))
    kept = {each.bundle for each in (deployment.active, deployment.previous) if each is not None}
    for folder in (root / "deployed").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return {"deployment": dataclasses.asdict(deployment), "health": dataclasses.asdict(health)}


def _laid_out(root: Path, wanted: Deployed, *, anew: bool = False) -> Manifest:
    """The bundle's manifest, its folder there. What is laid out was verified; `anew` verifies and lays out again."""
    folder = deployed_folder(root, wanted.bundle)
    if folder.is_dir() and not anew:
        return read_manifest(root, wanted.bundle, allow_unsigned=wanted.allow_unsigned)[0]
    manifest, _ = verified_manifest(root, wanted.bundle, allow_unsigned=wanted.allow_unsigned)
    partial = folder.with_name(f"{wanted.bundle}.{os.getpid()}.tmp")
    lay_out(root, manifest, partial)
    # A kill in between leaves no folder, and then it is made again from what is stored.
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return manifest


def _generate(
    root: Path,
    chosen: Deployed,
    manifest: Manifest,
    prompt: List[int],
    tokens: int,
    stop: List[int],
    tell: Callable[[Event], None],
) -> TalkResult:
    folder = deployed_folder(root, chosen.bundle)
    environment = folder_of(root, chosen.environment)
    if not environment.is_dir():
        raise WorkerError(
            records.ERROR, f"the worker environment {environment} is gone; deploy the bundle again"
        )
    scratch = root / "talk"
    scratch.mkdir(exist_ok=True)
    return ask_worker(
        "talk",
        manifest,
        Workplace(environment, folder, scratch, scratch / "output"),
        TalkResult,
        threads=chosen.threads,
        timeout_s=TALK_TIMEOUT_S,
        on_event=lambda event: tell(event) if event["event"] == "progress" else None,
        on_spawn=lambda pid: None,
        prompt=prompt,
        tokens=tokens,
        stop=stop,
    )
