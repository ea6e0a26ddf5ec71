"""The device for ourselves, as a run has it: who measures must not be disturbed, nor find another bundle."""

from contextlib import contextmanager
from typing import Iterator

from toggle_runtime.lease import Lease, hold
from toggle_runtime.requests import Request, field
from toggle_runtime.spool import spool_of
from toggle_runtime.sweep import sweep


@contextmanager
def leased(request: Request) -> Iterator[Lease]:
    """Hold the lease for the request's `owner` and `run_id`, and clear away what killed ones left."""
    root, run_id = request["root"], field(request, "run_id", str)
    spool_of(root, run_id)  # a plain name
    with hold(root, field(request, "owner", str), run_id) as held:
        sweep(root, run_id, held)
        yield held
