"""Where a model computes."""

from __future__ import annotations

import torch


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of the model's weights. Weights that are read from disk when they are used lie nowhere till then."""
    places = (parameter.device for parameter in module.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))
