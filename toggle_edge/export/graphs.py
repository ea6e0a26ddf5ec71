"""Who makes which architecture's fused graph. A new one is a row in `GRAPHS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toggle_edge.errors import ExportError
from toggle_edge.export.builder import BUILT, built_skeleton
from toggle_edge.export.gpt2 import gpt2_skeleton
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.load import LanguageModel

GRAPHS: Mapping[str, Callable[[LanguageModel, Path], Skeleton]] = {
    **dict.fromkeys(BUILT, built_skeleton),
    "gpt2": lambda model, _: gpt2_skeleton(model),
}


def build_skeleton(model: LanguageModel, cache: Path) -> Skeleton:
    """A model's skeleton. What takes long to build is kept in `cache`, by the model's digest.

    Raises ExportError for an architecture that is not in `GRAPHS`, and where its graph cannot be built.
    """
    config: Any = model.module.config
    if config.model_type not in GRAPHS:
        raise ExportError(
            f"export of {model.folder}: expected an architecture among {', '.join(sorted(GRAPHS))}, got "
            f"{config.model_type!r}; others can be searched and checked, and not exported yet"
        )
    return GRAPHS[config.model_type](model, cache)
