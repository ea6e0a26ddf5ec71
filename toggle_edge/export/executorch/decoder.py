"""A causal LM written out for XNNPACK: a method that decodes from a key-value cache, one that gives what signals need.

Runs only in the process that lowers. transformers' own modules trace to graphs that fall into a dozen delegated parts
per block, each of which costs seconds of lowering and a hand-over on the device. Written in the operators that XNNPACK
has, a block is about one part: means and rotations are multiplications by a constant, attention is two products of
3-d matrices, and queries that share a key are rows of one product, so that no key is ever copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

UNSEEN = -1e9
"""What is added to the score of a key that a query must not see: softmax makes it exactly 0."""

Projection = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""1 x tokens x width -> queries, keys and values, each 1 x tokens x heads * size."""


@dataclass
class Place:
    """Where the tokens of a call are: what their queries may see, and how far they are turned (None: not at all)."""

    mask: torch.Tensor
    cosine: torch.Tensor | None
    sine: torch.Tensor | None


class RootMeanSquare(torch.nn.Module):
    """The norm of Llama. The mean is a product with a row of 1/width: XNNPACK has no such mean at a dynamic length."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.register_buffer("share", torch.full((1, len(weight)), 1.0 / len(weight)))
        self._epsilon = epsilon

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        share: torch.Tensor = self.share  # type: ignore[assignment]
        return values * torch.rsqrt(functional.linear(values * values, share) + self._epsilon) * self.weight


class Centred(RootMeanSquare):
    """The norm of GPT-2, which takes the mean away first and adds a bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> None:
        super().__init__(weight, epsilon)
        self.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        share: torch.Tensor = self.share  # type: ignore[assignment]
        return super().forward(values - functional.linear(values, share)) + self.bias


class Block(torch.nn.Module):
    """One block: attention with `groups` keys of `size`, then the MLP, each behind a norm and added to the stream."""

    def __init__(
        self,
        norms: tuple[torch.nn.Module, torch.nn.Module],
        project: torch.nn.Module,
        out: torch.nn.Module,
        mlp: torch.nn.Module,
        *,
        groups: int,
        size: int,
        head_norms: tuple[torch.nn.Module, torch.nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.before, self.between = norms
        self.project, self.out, self.mlp = project, out, mlp
        self.query_norm, self.key_norm = head_norms or (torch.nn.Identity(), torch.nn.Identity())
        self.groups, self.size = groups, size
        # x @ turn is (-x2, x1) for the halves x1, x2 of x: one term in each sum, so it is exact.
        half = torch.eye(size // 2)
        zero = torch.zeros_like(half)
        turn = torch.cat([torch.cat([zero, -half], 1), torch.cat([half, zero], 1)], 0)
        self.register_buffer("turn", turn, persistent=False)

    def forward(
        self,
        stream: torch.Tensor,
        place: Place,
        cached: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after the block, and the attention rows: groups x (heads of a group * tokens) x keys."""
        query, key, value = self.project(self.before(stream))
        query = self._turned(self.query_norm(self._heads(query)), place).transpose(0, 1)
        key = self._turned(self.key_norm(self._heads(key)), place).transpose(0, 1)
        key, value = cached(key, self._heads(value).transpose(0, 1))
        # Heads of a group lie one after the other, so that their queries are rows of one matrix.
        tokens, shared = stream.shape[1], query.shape[0] // self.groups
        query = query.contiguous().view(self.groups, shared * tokens, self.size)
        scores = torch.bmm(query, key.transpose(1, 2)) * self.size**-0.5 + place.mask
        rows = torch.softmax(scores, dim=-1)
        seen = torch.bmm(rows, value).view(self.groups, shared, tokens, self.size)
        joined = seen.permute(2, 0, 1, 3).reshape(1, tokens, self.groups * shared * self.size)
        stream = stream + self.out(joined)
        return stream + self.mlp(self.between(stream)), rows

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        """1 x tokens x heads * size -> tokens x heads x size."""
        tokens, width = values.shape[1:]
        return values.reshape(tokens, width // self.size, self.size)

    def _turned(self, heads: torch.Tensor, place: Place) -> torch.Tensor:
        if place.cosine is None or place.sine is None:
            return heads
        turn: torch.Tensor = self.turn  # type: ignore[assignment]
        return heads * place.cosine + functional.linear(heads, turn) * place.sine


class Decoder(torch.nn.Module):
    """All of a model's blocks. `rotation` holds cosines and sines by position, `positions` a learned embedding of them;
    a model has the one or the other. `shared` heads read each key."""

    def __init__(
        self,
        embedding: torch.nn.Module,
        blocks: list[Block],
        norm: torch.nn.Module,
        head: torch.nn.Module,
        *,
        capacity: int,
        shared: int,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        positions: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = embedding, norm, head
        self.blocks = torch.nn.ModuleList(blocks)
        self.capacity, self.shared, self.turns = capacity, shared, rotation is not None
        self.register_buffer("places", torch.arange(capacity), persistent=False)
        for name, table in (("cosines", rotation and rotation[0]), ("sines", rotation and rotation[1])):
            self.register_buffer(name, None if table is None else table[:capacity].clone(), persistent=False)
        self.register_buffer(
            "learned", None if positions is None else positions[:capacity].detach().clone(), persistent=False
        )

    @property
    def quantises_activations(self) -> bool:
        """Whether some matrices are multiplied with activations of fewer bits than float32's."""
        return any(getattr(each, "narrows_activations", False) for each in self.modules())

    @property
    def has_halves(self) -> bool:
        """Whether some matrices are multiplied in float16."""
        return any(getattr(each, "is_half", False) for each in self.modules())

    def begin(
        self, ids: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, Place]:
        """The stream before the first block, and where its tokens are among `keys`."""
        stream = self.embedding(ids)
        if self.learned is not None:
            stream = stream + functional.embedding(positions, self.learned)  # type: ignore[arg-type]
        mask = torch.where(keys[None, :] <= positions[:, None], 0.0, UNSEEN)
        if not self.turns:
            return stream, Place(mask.repeat(self.shared, 1), None, None)
        cosine = functional.embedding(positions, self.cosines).unsqueeze(1)  # type: ignore[arg-type]
        sine = functional.embedding(positions, self.sines).unsqueeze(1)  # type: ignore[arg-type]
        return stream, Place(mask.repeat(self.shared, 1), cosine, sine)


class Decoding(torch.nn.Module):
    """`ids` (1 x tokens) at `positions` (tokens, consecutive) -> logits, 1 x tokens x vocabulary.

    Keys and values of up to `capacity` tokens stay in buffers between calls. What lies behind the last position is
    never seen, so a new text begins by writing at position 0 again.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        for number, block in enumerate(decoder.blocks):
            for part in ("keys", "values"):
                empty = torch.zeros(int(block.groups), decoder.capacity, int(block.size))  # type: ignore[arg-type]
                self.register_buffer(f"{part}_{number}", empty, persistent=False)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        stream, place = self.decoder.begin(ids, positions, self.decoder.places)  # type: ignore[arg-type]
        for number, block in enumerate(self.decoder.blocks):

            def cached(
                key: torch.Tensor, value: torch.Tensor, number: int = number
            ) -> tuple[torch.Tensor, torch.Tensor]:
                keys, values = getattr(self, f"keys_{number}"), getattr(self, f"values_{number}")
                keys.index_copy_(1, positions, key)
                values.index_copy_(1, positions, value)
                return keys, values

            stream, _ = block(stream, place, cached)
        return self.decoder.head(self.decoder.norm(stream))  # type: ignore[no-any-return]


class Signals(torch.nn.Module):
    """`ids` (1 x tokens) at `positions` (0, 1, …) -> logits; each block's attention rows; the stream after each block,
    1 x tokens x width, that after the last one normed."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stream, place = self.decoder.begin(ids, positions, positions)
        rows, states = [], []
        for block in self.decoder.blocks:
            stream, seen = block(stream, place, lambda key, value: (key, value))
            rows.append(seen)
            states.append(stream)
        states[-1] = self.decoder.norm(stream)
        return (self.decoder.head(states[-1]), *rows, *states)
