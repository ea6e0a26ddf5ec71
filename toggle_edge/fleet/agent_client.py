"""The host's side of the agent's protocol: install the agent, send one request, read its events."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import toggle_runtime
from toggle_runtime.wire import HEARTBEAT

from toggle_edge.cache import cache_folder, locked
from toggle_edge.errors import AgentError, TransportError, TransportLostError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.transport import Completed, Feed, Transport, nothing_more

Event = dict[str, Any]
OnProgress = Callable[[Event], None]

DEFAULT_TIMEOUT_S = 600.0

_MAIN = """import sys

if sys.version_info < (3, 8):  # said in words that every Python can read
    sys.stderr.write("toggle-agent needs Python 3.8 or later, this is %d.%d\\n" % sys.version_info[:2])
    sys.exit(2)

from toggle_runtime.__main__ import main

sys.exit(main(sys.argv[1:]))
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_STDERR_LINES = 20
_MESSAGE = 8000


def ignore_progress(event: Event) -> None:
    """The progress callback of a caller that does not care."""


@cache
def agent_archive() -> bytes:
    """The `.pyz` made from the installed `toggle_runtime`. Equal sources give equal bytes."""
    package = Path(toggle_runtime.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "__main__.py", _MAIN.encode())
        for path in sorted(package.rglob("*.py")):
            _add(archive, f"toggle_runtime/{path.relative_to(package).as_posix()}", path.read_bytes())
    return buffer.getvalue()


def agent_path(device: Device) -> str:
    """Where the agent lies on a device, which is made from its digest."""
    return f"{device.root}/agent/{hashlib.sha256(agent_archive()).hexdigest()}.pyz"


def is_installed(transport: Transport, device: Device) -> bool:
    """Whether our agent lies there whole."""
    return transport.size(agent_path(device)) == len(agent_archive())


def install(transport: Transport, device: Device, *, anew: bool = False) -> str:
    """Put the agent on the device unless it is there; return its path.

    `anew` replaces what lies there, whatever it looks like. Raises AgentError when what was written does not read
    back as what was sent.
    """
    archive, path = agent_archive(), agent_path(device)
    if not anew and is_installed(transport, device):
        return path
    with _one_at_a_time(device):
        return _install(transport, device, archive, path)


@contextmanager
def _one_at_a_time(device: Device) -> Iterator[None]:
    """Among the processes of this host, which write the same part: one would read back what the other began."""
    place = f"{device.user}@{device.host}:{device.port}/{device.root}"
    lock = cache_folder() / "locks" / hashlib.sha256(place.encode()).hexdigest()[:32]
    with ExitStack() as held:
        with suppress(OSError):  # where the cache cannot be written
            held.enter_context(locked(lock))
        yield


def _install(transport: Transport, device: Device, archive: bytes, path: str) -> str:
    transport.mkdirs(f"{device.root}/agent")
    # A name of this host's own: two hosts may install at once, a running agent must not see half a file, and what a
    # killed process of this host left half-written is overwritten by the next one.
    part = f"{path}.{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}.part"
    with tempfile.TemporaryDirectory() as folder:
        sent, back = Path(folder) / "sent", Path(folder) / "back"
        sent.write_bytes(archive)
        try:
            transport.upload(sent, part)
            transport.download(part, back, len(archive))
            whole = back.read_bytes() == archive
            if whole:
                transport.rename(part, path)
        except TransportLostError:
            raise
        except TransportError:
            # Another process of this host was faster, and has renamed what both of us wrote.
            if not is_installed(transport, device):
                raise
            return path
    if not whole:
        raise AgentError(
            f"device {device.name!r}: the agent was sent as {Path(path).name} and reads back differently; "
            "check the device's storage"
        )
    return path


def request(
    transport: Transport,
    device: Device,
    command: str,
    *,
    on_progress: OnProgress = ignore_progress,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    feed: Feed = nothing_more,
    **fields: Any,
) -> Event:
    """Send one command to the agent and return its result event. Raises AgentError for an error event too."""
    event = exchange(
        transport, device, command, on_progress=on_progress, timeout_s=timeout_s, feed=feed, **fields
    )
    if event["event"] == "error":
        raise AgentError(f"device {device.name!r}: {command}: {event.get('kind')}: {event.get('message')}")
    return event


def exchange(
    transport: Transport,
    device: Device,
    command: str,
    *,
    on_progress: OnProgress = ignore_progress,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    feed: Feed = nothing_more,
    **fields: Any,
) -> Event:
    """Like `request`, but an error event is returned, for callers that act on its `kind`.

    An agent of another protocol at our agent's place is replaced by ours, once; if it then still speaks another
    one, that is an AgentError.
    """
    event = _converse(transport, device, command, fields, on_progress, timeout_s, feed, anew=False)
    if event.get("kind") == "protocol":
        event = _converse(transport, device, command, fields, on_progress, timeout_s, feed, anew=True)
    if event.get("kind") == "protocol":
        raise AgentError(
            f"device {device.name!r}: this host speaks protocol {toggle_runtime.PROTOCOL_VERSION}, the agent there "
            f"{event.get('protocol')!r} (version {event.get('agent_version')!r}), although it was just replaced; "
            f"remove {device.root}/agent on the device, and check that nothing else answers there"
        )
    return event


def _converse(
    transport: Transport,
    device: Device,
    command: str,
    fields: Event,
    on_progress: OnProgress,
    timeout_s: float,
    feed: Feed,
    *,
    anew: bool,
) -> Event:
    path = install(transport, device, anew=True) if anew else agent_path(device)
    question = {
        **fields,
        "protocol": toggle_runtime.PROTOCOL_VERSION,
        "command": command,
        "root": device.root,
    }
    final: list[Event] = []

    def take(line: bytes) -> None:
        event = _parse(line, device)
        if final:
            raise AgentError(
                f"device {device.name!r}: the agent went on after its final event: {line[:80]!r}"
            )
        if event["event"] != "progress":
            final.append(event)
        elif event.get("step") != HEARTBEAT:  # that one is for the transport, which watches for silence
            on_progress(event)

    def ask() -> Completed:
        line = (json.dumps(question) + "\n").encode()
        return transport.run([device.python, "-I", "-S", path, "serve"], line, take, timeout_s, feed)

    completed = ask()
    # Looked for only where it does not answer: to look first would cost every request a round trip or two.
    if not final and completed.status and not is_installed(transport, device):
        install(transport, device, anew=True)
        completed = ask()
    if not final:
        tail = "\n".join(completed.stderr.strip().splitlines()[-_STDERR_LINES:])
        raise AgentError(
            f"device {device.name!r}: {command}: expected a result from the agent, but it ended with status "
            f"{completed.status}; its stderr: {tail or 'empty'}; check that {device.python!r} is a "
            "Python 3.8 or later there"
        )
    return final[0]


def _parse(line: bytes, device: Device) -> Event:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or event.get("event") not in ("progress", "result", "error"):
        raise AgentError(
            f"device {device.name!r}: expected a JSON event from the agent, got {line[:80]!r}; "
            "does the login shell print something?"
        )
    if event["event"] == "error":
        # It is shown to people, and must not command their terminal or flood it.
        shown = "".join(c if c.isprintable() or c in "\n\t" else " " for c in str(event.get("message")))
        event["message"] = shown[:_MESSAGE]
    return event


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # Fixed time, mode and method: the bytes depend on the sources alone.
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.create_system = 3
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, data)
