"""Random baselines and candidates, and what their signals are in more than float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from toggle_runtime.reduction import Limits
from toggle_runtime.signals import Outputs

UNCAPPED = Limits(probe_bytes=2**40)
PRECISE = np.finfo(np.longdouble).eps < 1e-18
"""Whether long double is wider than double here; elsewhere its own rounding is allowed for."""
TOLERANCE = 0.0 if PRECISE else 1e-13


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.longdouble) - logits.max(axis=-1, keepdims=True)
    chances = np.exp(shifted)
    return chances / chances.sum(axis=-1, keepdims=True)


def divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits as the entropy of the mean less the mean of the entropies' parts."""
    p, q = softmax(first), softmax(second)
    middle = (p + q) / 2
    parts = [np.where(x > 0, x * np.log2(np.where(x > 0, x / middle, 1)), 0).sum(axis=-1) for x in (p, q)]
    return (parts[0] + parts[1]) / 2


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    x, y = first.astype(np.longdouble), second.astype(np.longdouble)
    norms = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.where(norms == 0, 0, (x * y).sum(axis=-1) / np.where(norms == 0, 1, norms))


def cosine_within(first: np.ndarray, second: np.ndarray, lower: float, upper: float) -> bool:
    """Whether the cosine lies in [lower, upper], in rational arithmetic: signs and squares, no root."""
    x, y = ([Fraction(float(value)) for value in vector] for vector in (first, second))
    product = sum(a * b for a, b in zip(x, y, strict=True))
    norms = sum(a * a for a in x) * sum(b * b for b in y)
    if norms == 0:
        return lower <= 0 <= upper

    def signed_square(value: Fraction) -> Fraction:
        return value * abs(value)

    square = signed_square(product) / norms
    return signed_square(Fraction(lower)) <= square <= signed_square(Fraction(upper))


def heads_joined(attention: np.ndarray) -> np.ndarray:
    layers, heads, steps, keys = attention.shape
    return attention.transpose(0, 2, 1, 3).reshape(layers, steps, heads * keys)


def random_logits(
    generator: np.random.Generator, steps: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """A pair of rows per step: peaked or flat, close to each other or unrelated."""
    spread = np.exp(generator.uniform(-4, 3, size=(steps, 1)))
    first = generator.normal(size=(steps, vocabulary)) * spread
    noise = generator.normal(size=(steps, vocabulary)) * spread
    mix = generator.choice([0.0, 1e-6, 0.01, 0.1, 0.5, 1.0], size=(steps, 1))
    second = first * (1 - mix) + noise * mix
    return first.astype(np.float32), second.astype(np.float32)


def random_attention(
    generator: np.random.Generator, layers: int, heads: int, steps: int, keys: int
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax rows, causal, of all sharpnesses; the second near the first or not, some heads removed."""
    shape = (layers, heads, steps, keys)
    sharp = np.exp(generator.uniform(-3, 3, size=(layers, heads, steps, 1)))
    scores = generator.normal(size=shape) * sharp
    mix = generator.choice([0.0, 0.01, 0.1, 0.5, 1.0], size=(layers, 1, 1, 1))
    others = scores * (1 - mix) + generator.normal(size=shape) * sharp * mix
    seen = np.arange(keys) <= np.arange(keys - steps, keys)[:, np.newaxis]
    rows = []
    for each in (scores, others):
        weights = np.where(seen, np.exp(each - each.max(axis=-1, keepdims=True)), 0)
        rows.append((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))
    rows[1][generator.uniform(size=(layers, heads)) < 0.1] = 0
    return rows[0], rows[1]


def random_hidden(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """States of all sizes with a few large entries; the second near the first, opposite or unrelated."""
    size = np.exp(generator.uniform(-30, 30, size=(*shape[:-1], 1)))
    heavy = np.where(generator.uniform(size=shape) < 0.02, 100, 1)
    first = generator.normal(size=shape) * heavy
    mix = generator.choice([0.0, 1e-5, 0.01, 0.1, 1.0], size=(*shape[:-1], 1))
    sign = generator.choice([1, 1, 1, -1], size=(*shape[:-1], 1))
    second = sign * (first * (1 - mix) + generator.normal(size=shape) * heavy * mix)
    return (first * size).astype(np.float32), (second * size).astype(np.float32)


def random_outputs(
    generator: np.random.Generator,
    *,
    prompt_tokens: int = 5,
    steps: int = 4,
    vocabulary: int = 40,
    layers: int = 2,
    heads: int = 3,
    width: int = 70,
) -> tuple[Outputs, Outputs, np.ndarray]:
    """Baseline, candidate and gold of one probe, hidden states of all layers."""
    logits = random_logits(generator, steps, vocabulary)
    attention = random_attention(generator, layers, heads, steps, prompt_tokens + steps - 1)
    hidden = random_hidden(generator, (layers, steps, width))
    gold = generator.integers(0, vocabulary, size=steps)
    text = generator.integers(0, vocabulary, size=steps)
    choices = text, np.where(generator.uniform(size=steps) < 0.7, text, 0)
    both = [Outputs(*parts) for parts in zip(logits, attention, hidden, choices, strict=True)]
    return both[0], both[1], gold
