"""Who makes which architecture's fused graph. One that is written by hand is a row in `GRAPHS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toggle_edge.errors import ExportError
from toggle_edge.export.builder import BUILT, HEAD_SIZE_STEP, PACKED, PACKED_STEP, built_skeleton
from toggle_edge.export.general import GENERAL, general_skeleton, why_not_traced
from toggle_edge.export.gpt2 import gpt2_skeleton
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.load import LanguageModel

GRAPHS: Mapping[str, Callable[[LanguageModel, Path], Skeleton]] = {
    **dict.fromkeys(BUILT, built_skeleton),
    **dict.fromkeys(GENERAL, general_skeleton),
    "gpt2": lambda model, _: gpt2_skeleton(model),
}


WHOLE_ONLY = ("gemma2", *GENERAL)
"""Those of whose graphs nothing can be taken out yet: norms come after what is added, too, or they are traced."""


def why_not(model: LanguageModel) -> str | None:
    """Why a model has no skeleton, known before one is built; None where it may have one."""
    config: Any = model.module.config
    if config.model_type not in GRAPHS:
        return (
            f"expected an architecture among {', '.join(sorted(GRAPHS))}, got {config.model_type!r}; others can be "
            "searched and checked, and not exported yet"
        )
    step = PACKED_STEP if config.model_type in PACKED else HEAD_SIZE_STEP
    if config.model_type in (*BUILT, *GENERAL) and model.shape.head_size % step:
        return (
            f"the fused attention kernel takes heads of a multiple of {step}, this model's are of size "
            f"{model.shape.head_size}"
        )
    return why_not_traced() if config.model_type in GENERAL else None


def build_skeleton(model: LanguageModel, cache: Path) -> Skeleton:
    """A model's skeleton. What takes long to build is kept in `cache`, by the model's digest.

    Raises ExportError for an architecture that is not in `GRAPHS`, and where its graph cannot be built.
    """
    if (why := why_not(model)) is not None:
        raise ExportError(f"export of {model.folder}: {why}")
    config: Any = model.module.config
    return GRAPHS[config.model_type](model, cache)
