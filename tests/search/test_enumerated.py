"""The true front of a real model that is small enough to try every config: the search finds nearly all of it.

The model is what `benchmarks/enumerated.py` uses, the first two blocks of a trained one, with fewer units and probes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"
TRIALS = 40


@pytest.fixture(scope="module")
def enumerated() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import enumerated

        return enumerated
