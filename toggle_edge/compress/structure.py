"""Which kv groups and channels stay when a config keeps fewer, and how much each block does.

A channel's importance is the norm of what it adds to the stream: the norm of its column in the matrix that reads it
(`down`), times the root mean square of its values over the calibration texts. A kv group's is the same over the columns
of `o` that read its query heads, added up as squares. It is the score of Wanda (Sun et al., arXiv 2306.11695) for whole
columns. One ranking serves every count, so that keeping fewer keeps a part of what more would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toggle_edge.compress.calibration import Calibration
from toggle_edge.errors import ConfigError
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.recording import block_streams
from toggle_edge.model.remaining import (
    CHANNEL_COLUMNS,
    GROUP_COLUMNS,
    GROUP_ROWS,
    Anatomy,
    block_of,
    require_fits,
)
from toggle_edge.model.removal import cut, kept_columns
from toggle_edge.structure import Kept, KeptBlock, Structure


class Ranking:
    """A model's kv groups and channels by importance, each block's computed when it is first asked for.

    Without a calibration, the norms of weights alone decide.
    """

    def __init__(self, model: LanguageModel, calibration: Calibration | None = None) -> None:
        self._model, self._calibration = model, calibration
        self._orders: dict[str, tuple[int, ...]] = {}

    def kept(self, structure: Structure) -> Kept:
        """The structure resolved. Raises ConfigError when it does not fit the model."""
        anatomy = self._model.anatomy
        require_fits(anatomy, structure)
        remaining = [block for block in range(anatomy.blocks) if block not in structure.removed_blocks]
        return Kept(anatomy.blocks, tuple(self._kept_block(anatomy, structure, block) for block in remaining))

    def weight(self, layer: Layer, kept: int) -> torch.Tensor:
        """What a layer's weights are, outputs x inputs, once its block keeps so many kv groups or channels; 0 is all.
        Not to be written to."""
        whole = self._model.weight(layer)
        return cut(whole, layer, self._model.anatomy, self._narrowed(layer, kept)) if kept else whole

    def columns(self, layer: Layer, kept: int) -> list[int] | None:
        """Which inputs of the layer remain then, None for all."""
        return kept_columns(layer, self._model.anatomy, self._narrowed(layer, kept)) if kept else None

    def _narrowed(self, layer: Layer, kept: int) -> KeptBlock:
        block = block_of(layer.name) or 0
        of_groups = layer.role in (*GROUP_ROWS, *GROUP_COLUMNS)
        counts = ((block, kept),)
        structure = Structure(kv_groups=counts) if of_groups else Structure(channels=counts)
        return self._kept_block(self._model.anatomy, structure, block)

    def _kept_block(self, anatomy: Anatomy, structure: Structure, block: int) -> KeptBlock:
        groups = self._first(
            anatomy, block, GROUP_COLUMNS, anatomy.kept_groups(block, structure), anatomy.kv_groups
        )
        inner = anatomy.channels(block)
        channels = self._first(
            anatomy, block, CHANNEL_COLUMNS, anatomy.kept_channels(block, structure), inner
        )
        return KeptBlock(block, groups, channels)

    def _first(
        self, anatomy: Anatomy, block: int, roles: tuple[str, ...], count: int, units: int
    ) -> tuple[int, ...]:
        if count == units:
            return tuple(range(units))
        (layer,) = (each for each in anatomy.layers if each.role in roles and block_of(each.name) == block)
        if layer.name not in self._orders:
            self._orders[layer.name] = self._order(layer, units)
        return tuple(sorted(self._orders[layer.name][:count]))

    def _order(self, layer: Layer, units: int) -> tuple[int, ...]:
        # In float64 by parts: a large matrix is not copied at twice its size.
        weight = self._model.weight(layer)
        parts = (weight[start : start + 1024] for start in range(0, len(weight), 1024))
        squares = torch.stack([part.double().square().sum(dim=0) for part in parts]).sum(dim=0)
        statistics = None if self._calibration is None else self._calibration.statistics(layer.name)
        if statistics is not None:
            squares = squares * statistics.mean_square.to(squares)
        scores = squares.reshape(units, -1).sum(dim=1)
        if not bool(torch.isfinite(scores).all()):
            raise ConfigError(
                f"structure: {layer.name}: expected finite weights to rank by, got a NaN or an infinity; "
                "the model is damaged"
            )
        # Stable, so that of equal ones the first stays.
        return tuple(scores.argsort(descending=True, stable=True).tolist())


def block_importance(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """How much each block turns the stream: 1 - cosine of its input and output, mean over tokens (ShortGPT, Men et al.,
    arXiv 2403.03853). Blocks near 0 do least. Raises ConfigError without a sequence, or for an empty one."""
    if not sequences or not all(sequences):
        raise ConfigError("block importance: expected one or more texts of at least one token")
    sums, tokens = [0.0] * model.anatomy.blocks, 0

    def see(block: int, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        sums[block] += float((1.0 - cosine).sum())

    with block_streams(model.module, see), torch.inference_mode():
        for sequence in sequences:
            model.module(input_ids=torch.tensor([list(sequence)]), use_cache=False)
            tokens += len(sequence)
    return tuple(each / tokens for each in sums)


def structure_menu(anatomy: Anatomy, shares: Sequence[float]) -> dict[int, tuple[Structure, ...]]:
    """What a search may offer of each block: by share of it that stays, its MLP narrowed to it or its heads to the
    nearest number of kv groups (at least one), and the block removed. Options that would keep all are left out.

    Raises ConfigError on a share outside 0 to 1 (exclusive).
    """
    if odd := [share for share in shares if not 0.0 < share < 1.0]:
        raise ConfigError(f"structure: expected shares above 0 and below 1 to keep, got {odd[0]!r}")
    menu = {}
    for block in range(anatomy.blocks):
        groups = {max(1, round(share * anatomy.kv_groups)) for share in shares} - {anatomy.kv_groups}
        inner = anatomy.channels(block)
        channels = {max(1, round(share * inner)) for share in shares} - {inner}
        options = [Structure(kv_groups=((block, count),)) for count in sorted(groups, reverse=True)]
        options += [Structure(channels=((block, count),)) for count in sorted(channels, reverse=True)]
        if anatomy.blocks > 1:
            options.append(Structure(removed_blocks=(block,)))
        menu[block] = tuple(options)
    return menu
