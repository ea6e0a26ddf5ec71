"""One process per pass: put the worker's environment on the path, run the pass, answer in JSON lines.

The request comes as one JSON line on stdin; progress and the result go to stdout, everything else to stderr.
Started with `python -I -S`, so that nothing but the shipped environment (numpy and the engine) can be imported.
"""

import json
import os
import sys
from pathlib import Path
from typing import IO, Any, Dict

from toggle_runtime.blobs import describe
from toggle_runtime.imports import use_environment


def main() -> int:
    """Serve one request. Returns the exit code: 0 after a result, 1 after an error."""
    answers = _protect_stdout()
    output = Path()
    try:
        request = json.loads(sys.stdin.readline())
        output = Path(request["output"])
        use_environment(Path(request["environment"]))
        from toggle_runtime import passes  # needs numpy, which is on the path only now

        result = passes.PASSES[request["pass"]](
            request, lambda **fields: _answer(answers, "progress", **fields)
        )
    except OSError as exc:
        _answer(answers, "error", message=describe(exc, output))
        return 1
    except Exception as exc:  # the control plane needs to know, whatever it was
        _answer(answers, "error", message=f"{type(exc).__name__}: {exc}")
        return 1
    _answer(answers, "result", modules=_foreign_modules(), **result)
    return 0


def _protect_stdout() -> IO[str]:
    # A stray print of a library must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def _answer(answers: IO[str], event: str, **fields: Any) -> None:
    line: Dict[str, Any] = {"event": event, **fields}
    answers.write(json.dumps(line, allow_nan=False) + "\n")
    answers.flush()


def _foreign_modules() -> Any:
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:  # Python < 3.10 cannot tell
        return sorted({name.split(".")[0] for name in sys.modules} & {"numpy", "onnxruntime", "torch"})
    tops = {name.split(".")[0] for name in sys.modules}
    return sorted(tops - standard - {"toggle_runtime", "__main__"})
