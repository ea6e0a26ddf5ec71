"""Give the demo model outlier channels, as large language models have them, without changing what it computes.

    python demo/outliers.py demo/model

In three blocks every channel between up- and down-projection is rescaled by a random power of two: rows of `up`
are multiplied, columns of `down` divided, so their product stays what it was. Weights of very different size then
share a quantisation group of `down`, which is what makes few bits hard in models that were trained at scale
(SmoothQuant, arXiv 2211.10438, undoes the same thing).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

BLOCKS = (0, 2, 4)
LARGEST_POWER = 2


def add_outliers(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for block in BLOCKS:
        up = module.get_submodule(f"model.layers.{block}.mlp.up_proj").weight
        down = module.get_submodule(f"model.layers.{block}.mlp.down_proj").weight
        powers = torch.randint(-LARGEST_POWER, LARGEST_POWER + 1, (len(up),), generator=generator)
        scales = torch.pow(2.0, powers)
        with torch.no_grad():
            up.mul_(scales[:, None])
            down.div_(scales[None, :])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float16)
    add_outliers(model, args.seed)
    model.save_pretrained(args.model)


if __name__ == "__main__":
    main()
