"""The command line: parse, call one library function, print. One module per command group.

Heavy imports (torch, botorch, onnxruntime) happen inside commands, so that `--help` is quick.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from toggle_edge.cli import demo, device, search
from toggle_edge.errors import ToggleEdgeError

app = typer.Typer(
    name="toggle-edge",
    help="Make language models fit edge devices under a contract that is checked on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (demo, search, device):
    commands.register(app)


def main() -> None:
    """Entry point. Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 ERROR, 130 interrupted.

    Exit code 1 means a verdict, so nothing unexpected may end with it.
    """
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        # Not standalone: typer would end with 1 on a closed pipe or an end of file, which is no verdict.
        code = app(standalone_mode=False)
    except TyperException as error:
        if error.format_message():  # empty where the help was shown instead
            print(f"error: {error.format_message()}; see --help", file=sys.stderr)
        return 2
    except ToggleEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit:  # typer's way out when whoever reads our output has gone
        return 3
    except Exception as error:  # the last line of defence: see `main`
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return code if isinstance(code, int) else 0
