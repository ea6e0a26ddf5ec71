"""The command line: parse, call one library function, print. One module per command group.

Heavy imports (torch, botorch, onnxruntime) happen inside commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback

import typer
from typer.exceptions import TyperException

from toggle_edge.cli import alone, certify, demo, deploy, device, keys, search, sensitivity
from toggle_edge.cli.interrupts import watch
from toggle_edge.errors import ToggleEdgeError

app = typer.Typer(
    name="toggle-edge",
    help="Make language models fit edge devices under a contract that is checked on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (demo, search, sensitivity, device, deploy, certify, alone, keys):
    commands.register(app)


def main() -> None:
    """Entry point. Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 ERROR, 130 interrupted.

    Exit code 1 means a verdict, so nothing unexpected may end with it.
    """
    watch()
    if not os.environ.get("TOGGLE_EDGE_DEBUG"):
        # It logs the trace of each broken connection, which we report in our words.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        # Not standalone: typer would end with 1 on a closed pipe or an end of file, which is no verdict.
        code = app(standalone_mode=False)
    except TyperException as error:
        message = error.format_message()  # empty where the help was shown instead
        return _told(error, f"{message}; see --help", 2) if message else 2
    except ToggleEdgeError as error:
        return _told(error, str(error), error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what was recorded is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except SystemExit:  # typer's way out when whoever reads our output has gone
        return 3
    except Exception as error:  # the last line of defence: see `main`
        return _told(error, f"unexpected {type(error).__name__}: {error}; {_REPORT}", 3)
    return code if isinstance(code, int) else 0


_REPORT = "this is a defect of toggle-edge: please report it, with what TOGGLE_EDGE_DEBUG=1 shows"


def _told(error: Exception, message: str, code: int) -> int:
    """Say what went wrong: for people on stderr, and with --json as the one object on stdout too."""
    if os.environ.get("TOGGLE_EDGE_DEBUG"):
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    if "--json" in sys.argv[1:]:
        entry = {"type": type(error).__name__, "message": message}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"outcome": "ERROR", "error": entry, "exit_code": code}), flush=True)
    return code
