"""The entry of the shipped `.pyz`: `serve` answers one request of the host, `worker` runs one pass, `validate` is for a
person at the device, without a host."""

import sys
from typing import List


def main(argv: List[str]) -> int:
    """Dispatch `serve`, `worker <pid of its agent>`, or `validate`. Returns the exit status, 2 for anything else."""
    if argv == ["serve"]:
        from toggle_runtime.serving import serve

        return serve()
    if argv[:1] == ["validate"]:
        from toggle_runtime.alone import main as validate

        return validate(argv[1:])
    if len(argv) == 2 and argv[0] == "worker":
        from toggle_runtime.supervise import die_with_parent

        die_with_parent(int(argv[1]))
        # The only place that names the worker: everything that it imports stays out of the control plane.
        from toggle_runtime import worker

        return int(worker.main() or 0)
    sys.stderr.write(
        "usage: python3 toggle-agent.pyz validate BUNDLE   (--help says more)\n"
        "       python3 -I -S toggle-agent.pyz serve < request.json\n"
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
