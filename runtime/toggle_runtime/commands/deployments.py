"""Commands about what is deployed: switch to it, switch back, talk to it."""

import time
from typing import Any, Dict

from toggle_runtime import deployment, environments
from toggle_runtime.commands.leased import leased
from toggle_runtime.requests import Request, field, flag
from toggle_runtime.supervise import WorkerError
from toggle_runtime.wire import RequestError, Wire


def activate(request: Request, wire: Wire) -> Dict[str, Any]:
    root = request["root"]
    wanted = deployment.Deployed(
        field(request, "bundle", str),
        environments.folder_of(root, field(request, "environment", str)).name,
        field(request, "threads", int),
        time.time(),
        flag(request, "allow_unsigned"),
    )
    with leased(request) as held:
        return deployment.activate(root, wanted, lambda event: wire.progress(**event), held)


def rollback(request: Request, wire: Wire) -> Dict[str, Any]:
    bundle = field(request, "bundle", str)
    with leased(request) as held:
        return deployment.roll_back(request["root"], bundle, lambda event: wire.progress(**event), held)


def talk(request: Request, wire: Wire) -> Dict[str, Any]:
    prompt, stop = field(request, "prompt", list), field(request, "stop", list)
    if not all(type(token) is int for token in (*prompt, *stop)):
        raise RequestError("request", "prompt and stop: expected lists of token ids")

    def tell(event: Dict[str, Any]) -> None:
        wire.progress(**{key: event[key] for key in ("step", "token", "at") if key in event})
        if wire.is_gone:  # unlike a run's, nobody fetches this answer later
            raise RequestError("link", "the host that asked is gone")

    with leased(request):
        try:
            return deployment.talk(request["root"], prompt, field(request, "tokens", int), stop, tell)
        except WorkerError as exc:
            raise RequestError("worker", str(exc)) from exc
