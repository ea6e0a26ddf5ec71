"""Who makes which architecture's fused graph. A new one is a row in `GRAPHS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toggle_edge.errors import ExportError
from toggle_edge.export.builder import BUILT, built_skeleton, refused_heads
from toggle_edge.export.gpt2 import gpt2_skeleton
from toggle_edge.export.narrowing import SANDWICHED, biased
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
    if (why := unknown_graph(model)) is not None:
        raise ExportError(f"export of {model.folder}: {why}")
    return GRAPHS[config.model_type](model, cache)


def unknown_graph(model: LanguageModel) -> str | None:
    """Why nobody here makes the model's graph; None where somebody does."""
    config: Any = model.module.config
    if config.model_type in GRAPHS:
        return None
    return (
        f"expected an architecture among {', '.join(sorted(GRAPHS))}, got {config.model_type!r}; others can be "
        "searched and checked, and not exported yet"
    )


def why_not(model: LanguageModel, part: str) -> str | None:
    """Why a model that lost some of a part of its structure could not be exported, as far as that is known before its
    graph is built: `blocks`, `kv_groups` or `channels`. None where nothing is against it."""
    config: Any = model.module.config
    if (why := unknown_graph(model)) is not None:
        return why
    if config.model_type in BUILT and (why := refused_heads(model)) is not None:
        return why
    if config.model_type in SANDWICHED:
        return f"{config.model_type} norms what attention adds alone"
    if part in biased(model.anatomy):
        return "matrices that it narrows have biases"
    return None
