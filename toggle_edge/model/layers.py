"""A compressible layer: its name, its place in the model and its size. No torch.

Where the head shares the embedding's weights, the two are one layer: compressed once, stored once, counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Layer:
    """One compressible matrix, `rows x columns` (outputs x inputs).

    `name` is the module's in the model, so a config reads like its state dict. An expert that is a slice of a
    parameter with all experts is named as the parameter and numbered: `model.layers.0.mlp.experts.down_proj.3`.
    `role` is its place in a block (`q`, `down`, ...), `embedding` or `head`. Layers of one `group` read the same input
    and move together in a search; left empty, the layer is a group of its own. `multiplied` is False for an embedding
    that is only looked up: it costs bytes but no FLOPs. `expert` is the number of the routed expert that it belongs
    to, else None, and `activity` the share of tokens that it multiplies: active over all experts, 1.0 elsewhere.
    """

    name: str
    role: str
    rows: int
    columns: int
    multiplied: bool = True
    group: str = ""
    expert: int | None = None
    activity: float = 1.0

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.name)

    @property
    def weights(self) -> int:
        return self.rows * self.columns
