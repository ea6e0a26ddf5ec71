"""A model's weights in its safetensors files: which stored tensors make which parameter, read one at a time.

Names and shapes in the files are not always the module's (older names, a prefix more or less, one tensor per expert
where the module has them in one). transformers knows the rules; they are applied here parameter by parameter, where
its own loader applies them to all at once.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from toggle_edge.errors import ModelError
from toggle_edge.model.pages import Pages


@dataclass
class _Recipe:
    """The stored tensors that make a parameter, by the pattern that they match, and what makes it of them."""

    converter: WeightConverter | None
    sources: list[tuple[str, str]] = field(default_factory=list)


class Checkpoint:
    """The files of a folder, for a module built from its config. Parameters are named as the module names them.

    `missing` are those that no file has. Tied parameters go by any of their names.
    """

    def __init__(self, folder: Path, module: Any) -> None:
        self._module = module
        self._files: dict[str, Any] = {}
        self._pages: dict[str, Pages] = {}
        self._where: dict[str, Path] = {}
        for path in weight_files(folder):
            opened: Any = safe_open(path, framework="pt")
            self._files[str(path)] = opened
            self._pages[str(path)] = Pages(path)
            self._where.update(dict.fromkeys(opened.keys(), path))
        self._recipes = self._found(sorted(self._where, key=dot_natural_key))
        self._aliases = _aliases(module)
        names = [name for name, _ in module.named_parameters()]
        names += [name for name in module.state_dict() if name in dict(module.named_buffers())]
        self.missing = tuple(
            sorted(name for name in names if not self._recipes.keys() & set(self.aliases(name)))
        )
        self._require_equal_ties(folder)

    def _require_equal_ties(self, folder: Path) -> None:
        """Where the files have a tied parameter under several names, transformers compares them."""
        for names in {self.aliases(name) for name in self._recipes}:
            first, *others = [name for name in names if name in self._recipes] or [""]
            for other in others:
                if not torch.equal(self._read(first), self._read(other)):
                    raise ModelError(
                        f"model folder {folder}: config.json says that {other} is {first}, but they differ in the "
                        'files; set "tie_word_embeddings" to false in config.json'
                    )

    def read(self, name: str, expert: int | None = None) -> torch.Tensor:
        """A parameter in float32, or of one that holds all experts only that one's. Not to be written to.

        What is stored in float32 is a view into the file. Raises KeyError when no file has it.
        """
        for alias in self.aliases(name):
            if alias in self._recipes:
                return self._read(alias, expert)
        raise KeyError(name)

    def _read(self, name: str, expert: int | None = None) -> torch.Tensor:
        made, recipe = self._recipes[name]
        if recipe.converter is None:
            ((_, key),) = recipe.sources
            stored = self._stored(key) if expert is None else self._slice(key, expert)
            return stored.to(torch.float32)
        per_expert = _merges_experts(recipe.converter)
        wanted = recipe.sources if expert is None or not per_expert else _one_of_each(recipe.sources, expert)
        converter = copy.deepcopy(recipe.converter)
        for pattern, key in wanted:
            # Called when the conversion wants it; its annotation knows futures only.
            later: Any = functools.partial(self._stored, key)
            converter.add_tensor(made, key, pattern, later)
        values: Any = converter.convert(made, model=self._module, config=self._module.config)[name]
        values = (values[0] if isinstance(values, list) else values).to(torch.float32)
        chosen: torch.Tensor = values if expert is None else values[0 if per_expert else expert]
        return chosen

    def aliases(self, name: str) -> tuple[str, ...]:
        """All names of a parameter, its own among them."""
        return self._aliases.get(name, (name,))

    def _stored(self, key: str) -> torch.Tensor:
        values: torch.Tensor = self._files[str(self._where[key])].get_tensor(key)
        self._pages[str(self._where[key])].note(values)
        return values

    def _slice(self, key: str, index: int) -> torch.Tensor:
        values: torch.Tensor = self._files[str(self._where[key])].get_slice(key)[index]
        self._pages[str(self._where[key])].note(values)
        return values

    def _found(self, keys: Sequence[str]) -> dict[str, tuple[str, _Recipe]]:
        """By parameter: the name that its conversion goes by, and the recipe."""
        rules = get_model_conversion_mapping(self._module)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        prefix, known = self._module.base_model_prefix, self._module.state_dict()
        found: dict[str, tuple[str, _Recipe]] = {}
        for key in keys:
            name, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, pattern = rename_source_key(key, [], [], prefix, known)
            if name not in known:
                continue
            converter = None if pattern is None else by_pattern[pattern]
            _, recipe = found.setdefault(name, (name, _Recipe(converter)))
            recipe.sources.append((pattern or key, key))
            first, *others = [""] if converter is None else converter.target_patterns
            for target in others:
                # One stored tensor may hold several parameters; the conversion makes them all.
                found.setdefault(name.replace(first, target), (name, recipe))
        return found


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers would read: one, or those that an index names. Others may hold the same again."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        raise ModelError(
            f"model folder {folder}: expected model.safetensors or model.safetensors.index.json; save it with "
            "model.save_pretrained"
        )
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return tuple(folder / name for name in sorted(set(names)))


def stored_weights(folder: Path) -> int:
    """How many numbers the files hold, by their headers. Tied parameters are stored once."""
    count = 0
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as opened:
            count += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return count


def _aliases(module: Any) -> Mapping[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(same) for same in names.values() for name in same}


def _merges_experts(converter: WeightConverter) -> bool:
    """Whether each expert has tensors of its own, which are stacked first: then one can be made without the others."""
    first = converter.operations[0]
    return type(first).__name__ == "MergeModulelist" and getattr(first, "dim", None) == 0


def _one_of_each(sources: Sequence[tuple[str, str]], index: int) -> list[tuple[str, str]]:
    """Of every pattern's tensors, which lie in the order of experts, that of one expert."""
    by_pattern: dict[str, list[str]] = {}
    for pattern, key in sources:
        by_pattern.setdefault(pattern, []).append(key)
    return [(pattern, keys[index]) for pattern, keys in by_pattern.items()]
