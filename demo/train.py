"""Make the demo model: a Llama of 2.5 M parameters, distilled from stories260K on text by that teacher.

The teacher samples stories from its start token. The student then reads them and learns the teacher's whole
next-token distribution at every position, not only the token that was drawn. Both share one tokenizer, so the
soft targets need no mapping; the teacher costs a tenth of the student, so they are computed on the fly. No
other text is read. Everything is seeded; the model card has the commands that made the weights.

    python demo/train.py --teacher ../shared/models/stories260K --work WORK
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

HELD_OUT_STORIES = 128
HELD_OUT_SEED = 1_000_003  # far from the training seeds, which count up from --corpus-seed
GENERATE_BATCH = 512


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train: linear warm-up, then a cosine down to a twentieth of the peak."""

    steps: int
    peak_rate: float
    warmup: int

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def student_config(teacher: PreTrainedModel) -> LlamaConfig:
    """The teacher's vocabulary and special tokens on a wider body.

    Every width is a multiple of 64, so that it divides into quantisation groups of 32 and 64.
    """
    return LlamaConfig(
        vocab_size=teacher.config.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=teacher.config.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=teacher.config.bos_token_id,
        eos_token_id=teacher.config.eos_token_id,
    )


@torch.inference_mode()
def sample(teacher: PreTrainedModel, rows: int, length: int, temperature: float, seed: int) -> Tensor:
    """`rows` sequences of `length` tokens that the teacher draws from its start token onwards.

    A story ends with the start token of the next, as in the teacher's own training, so a row may hold two.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = StaticCache(config=teacher.config, max_cache_len=length)
    tokens = torch.full((rows, length), teacher.config.bos_token_id)
    for position in range(length - 1):
        latest = tokens[:, position : position + 1]
        logits = teacher(latest, past_key_values=cache, use_cache=True).logits[:, -1] / temperature
        # The Gumbel-max trick: the largest of noisy logits is a draw from their softmax, but cheaper.
        noise = torch.empty_like(logits).exponential_(generator=generator).log_()
        tokens[:, position + 1] = (logits - noise).argmax(-1)
    return tokens


def corpus(teacher: PreTrainedModel, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Training and held-out rows, sampled once and kept in the work folder."""
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / f"corpus-{args.stories}x{args.length}-t{args.temperature}-s{args.corpus_seed}.npy"
    if not path.exists():
        started = time.monotonic()
        batches = []
        for first in range(0, args.stories, GENERATE_BATCH):
            rows = min(GENERATE_BATCH, args.stories - first)
            seed = args.corpus_seed + first // GENERATE_BATCH
            batches.append(sample(teacher, rows, args.length, args.temperature, seed).to(torch.int16))
            print(f"sampled {first + rows} stories, {time.monotonic() - started:.0f} s", flush=True)
        np.save(path, torch.cat(batches).numpy())
    held_out = args.work / f"held-out-{args.length}-t{args.temperature}.npy"
    if not held_out.exists():
        drawn = sample(teacher, HELD_OUT_STORIES, args.length, args.temperature, HELD_OUT_SEED)
        np.save(held_out, drawn.to(torch.int16).numpy())
    return torch.from_numpy(np.load(path)), torch.from_numpy(np.load(held_out))


def divergence(student: PreTrainedModel, teacher: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Mean KL(teacher || student) over all positions, in nats."""
    with torch.no_grad():
        target = teacher(tokens, use_cache=False).logits.log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = student.model(tokens, use_cache=False).last_hidden_state
    predicted = student.lm_head(hidden.float()).log_softmax(-1)  # bf16 logits would be too coarse
    predicted, target = predicted.flatten(0, 1), target.flatten(0, 1)
    return functional.kl_div(predicted, target, reduction="batchmean", log_target=True)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tensor) -> float:
    """On rows of equal length, in batches of equal size."""
    losses = []
    for rows in tokens.split(32):
        logits = model(rows, use_cache=False).logits[:, :-1]
        losses.append(functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))
    return math.exp(torch.stack(losses).mean().item())


def save(student: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write weights in fp16 beside the tokenizer, switched in by rename: no reader sees half a model."""
    half = LlamaForCausalLM(student.config).half()
    half.load_state_dict(student.state_dict())
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    half.save_pretrained(fresh)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, fresh / name)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def optimisers(student: PreTrainedModel, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms.

    Muon is scaled to AdamW's step size, so one learning rate serves both.
    """
    matrices = [p for name, p in student.named_parameters() if p.dim() == 2 and "embed" not in name]
    embedding = [student.get_input_embeddings().weight]
    norms = [p for p in student.parameters() if p.dim() == 1]
    return [
        torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*embedding, *norms], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(student: PreTrainedModel, teacher: PreTrainedModel, args: argparse.Namespace) -> None:
    rows, held_out = corpus(teacher, args)
    schedule = Schedule(args.steps, args.rate, args.warmup)
    steppers = optimisers(student, args.weight_decay)
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.empty(0, dtype=torch.long)
    print(f"teacher: held-out perplexity {perplexity(teacher, held_out.long()):.3f}", flush=True)
    started = time.monotonic()
    for step in range(args.steps):
        if len(order) < args.batch:  # one epoch is read: shuffle again
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        chosen, order = order[: args.batch], order[args.batch :]
        loss = divergence(student, teacher, rows[chosen].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = schedule.rate(step)
            stepper.step()
            stepper.zero_grad()
        if step % 20 == 0:
            rate = (step + 1) * args.batch * args.length / (time.monotonic() - started)
            print(f"step {step}: KL {loss.item():.4f} nats, {rate:.0f} tokens/s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save(student, args.teacher, args.out)
            print(
                f"saved at step {step + 1}, {time.monotonic() - started:.0f} s, "
                f"held-out perplexity {perplexity(student, held_out.long()):.3f}",
                flush=True,
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="folder of stories260K")
    parser.add_argument("--work", type=Path, required=True, help="folder for the sampled corpus")
    parser.add_argument("--init", type=Path, help="folder of a student to train further")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--stories", type=int, default=10_240)
    parser.add_argument("--length", type=int, default=256, help="tokens per story")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="stories per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps up to the peak rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--corpus-seed", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of the first weights and the order of reading")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    torch.manual_seed(args.seed)
    if args.init:
        student = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        student = LlamaForCausalLM(student_config(teacher))
    train(student.train(), teacher, args)


if __name__ == "__main__":
    main()
