"""The agent as it is shipped, with coverage running in it and in its workers.

Asked for by TOGGLE_EDGE_COVERAGE, which names coverage's configuration file. The archive then runs the runtime's
sources where they lie, so that what is measured on the "device" adds up with what the tests measure in-process.
Only interpreters of the host's own version can load its coverage; under others the agent runs unmeasured.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import toggle_runtime

SETTING = "TOGGLE_EDGE_COVERAGE"
_MAIN = """import sys

def measure():
    import atexit
    import os

    known = set(sys.modules)
    sys.path.append(SITE)
    try:
        import coverage
    except ImportError:
        return
    finally:
        sys.path.remove(SITE)
    where = {"source": [RUNTIME + "/toggle_runtime"], "omit": ["*/overrides/*"]}
    measured = coverage.Coverage(config_file=CONFIG, data_file=DATA, data_suffix=True, **where)
    measured.start()
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # its way to reach subprocesses, which tests would see
    # Out of sight: the agent reports every module that is not its own, and tests hold it to that.
    foreign = [name for name in set(sys.modules) - known if name.partition(".")[0] not in sys.stdlib_module_names]
    hidden = {name: sys.modules.pop(name) for name in foreign}

    def save():
        measured.stop()
        sys.modules.update(hidden)
        sys.path.append(SITE)
        measured.save()

    atexit.register(save)

if sys.version_info[:2] == VERSION:
    measure()
    sys.path.insert(0, RUNTIME)
    import toggle_runtime
    archive = [entry for entry in sys.path if entry.endswith(".pyz")]
    if archive:
        toggle_runtime.__path__.insert(0, archive[0] + "/overrides/toggle_runtime")

from toggle_runtime.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


@cache
def measured(archive: bytes, config: str) -> bytes:
    """The archive with an entry that measures; a module of it that differs from the sources is kept, unmeasured."""
    import coverage  # a tool of `make coverage`, which the tests do without otherwise

    runtime = Path(toggle_runtime.__file__).parents[1]
    settings = {
        "CONFIG": config,
        "DATA": os.environ.get("COVERAGE_FILE", str(Path(config).parent / ".coverage")),
        "RUNTIME": str(runtime),
        "SITE": str(Path(coverage.__file__).parents[1]),
        "VERSION": tuple(sys.version_info[:2]),
    }
    main = "".join(f"{name} = {value!r}\n" for name, value in settings.items()) + _MAIN
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as original,
        zipfile.ZipFile(buffer, "w") as changed,
    ):
        for member in original.infolist():
            data = original.read(member)
            changed.writestr(member, main.encode() if member.filename == "__main__.py" else data)
            source = runtime / member.filename
            if member.filename != "__main__.py" and (not source.is_file() or source.read_bytes() != data):
                changed.writestr(zipfile.ZipInfo(f"overrides/{member.filename}"), data)
    return buffer.getvalue()


def measure_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every agent that is installed from now on measure itself, where that is asked for."""
    config = os.environ.get(SETTING)
    if config is None:
        return
    from toggle_edge.fleet import agent_client

    plain: Callable[..., str] = agent_client.install

    def install(*args: object, **options: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            archive = measured(agent_client.agent_archive(), config)
            patch.setattr(agent_client, "agent_archive", lambda: archive)
            return plain(*args, **options)

    monkeypatch.setattr(agent_client, "install", install)
