"""One request of the host: read, answered, with a sign of life from the first moment on."""

import signal
import sys
from typing import BinaryIO, Optional

from toggle_runtime.wire import Heartbeat, Wire

MAX_REQUEST_BYTES = 16 << 20

REQUEST_WAIT_S = 120
"""How long a request may take to come. Over a link that died it never does, and nobody else would end this agent."""


def serve(stdin: Optional[BinaryIO] = None) -> int:
    """Answer one request. Returns 0 when an answer was given, even if it is an error event."""
    # Read first: under sshd, stdin and stdout are one socket, and the wire makes it non-blocking. The size is
    # limited so that garbage cannot exhaust a small device.
    signal.alarm(REQUEST_WAIT_S)
    line = (stdin or sys.stdin.buffer).readline(MAX_REQUEST_BYTES)
    signal.alarm(0)
    wire = Wire.take_stdout()
    # A closed SSH session must not end a run that is under way; its result is fetched later.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Heartbeat(wire):
            # Compiled from its sources each time, which a slow device under load needs longer for than a host
            # bears silence.
            from toggle_runtime.agent import answer

            event = answer(line, wire)
        wire.final(event)
    finally:
        wire.close()
    return 0
