"""What the signals graph of an artifact shows, beside what torch computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from toggle_runtime.backends import onnx as backend
from toggle_runtime.records import ModelShape

from toggle_edge.export.parity import TOLERANCE


def assert_same_signals(folder: Path, shape: ModelShape, module: Any, batch: NDArray[np.int64]) -> None:
    """Logits, attention rows and hidden states of `batch x tokens` are the module's."""
    opened = backend.open_model(folder, shape, backend.SIGNALS_GRAPH, threads=1)
    logits, attention, hidden = backend.outputs(opened, batch, range(shape.layers))
    with torch.inference_mode():
        expected = module(input_ids=torch.tensor(batch), output_attentions=True, output_hidden_states=True)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(attention, torch.stack(expected.attentions, dim=1).numpy(), atol=1e-5)
    states = torch.stack(expected.hidden_states[1:], dim=1).numpy()
    np.testing.assert_allclose(hidden, states, atol=TOLERANCE)
