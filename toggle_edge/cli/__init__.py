"""The command line: parse, call one library function, print. One module per command group.

Heavy imports (torch, botorch, onnxruntime) happen inside commands, so that `--help` is quick.
"""

from __future__ import annotations

import sys

import typer

from toggle_edge.cli import demo
from toggle_edge.errors import ToggleEdgeError

app = typer.Typer(
    name="toggle-edge",
    help="Make language models fit edge devices under a contract that is checked on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
demo.register(app)


@app.callback()
def _commands() -> None:
    """Keeps `demo` a named command while it is the only one."""


def main() -> None:
    """Entry point. Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 ERROR, 130 interrupted.

    Exit code 1 means a verdict, so nothing unexpected may end with it.
    """
    try:
        app()
    except ToggleEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the last line of defence: see the docstring
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)
