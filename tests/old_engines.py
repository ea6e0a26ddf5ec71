"""Older onnxruntimes beside the one that is installed: what do they compute from an artifact?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from installations import fetched_site, linked_site, run_in
from toggle_runtime.records import ModelShape

VERSIONS = {"onnx-cpu-1.19": "1.19.2", "onnx-cpu-1.23": "1.23.2"}
RUNTIME = Path(__file__).parents[1] / "runtime"

_COMPARE = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
onnxruntime.set_default_logger_severity(4)
from toggle_runtime.backends import onnx as backend
from toggle_runtime.records import ModelShape
folder, expected = Path(sys.argv[1]), np.load(sys.argv[2])
shape, ids = ModelShape(**json.loads(sys.argv[3])), expected["ids"]
whole = backend.open_model(folder, shape, backend.GRAPH, threads=1)
half = ids.shape[1] // 2
decoded = np.stack([backend.cached_logits(whole, row[:half].tolist(), row[half:].tolist()) for row in ids])
signals = backend.open_model(folder, shape, backend.SIGNALS_GRAPH, threads=1)
logits, attention, hidden = backend.outputs(signals, ids, range(shape.layers))
found = {"decoded": decoded, "logits": logits, "attention": attention, "hidden": hidden}
worst = {name: float(np.abs(values - expected[name]).max()) for name, values in found.items()}
print(json.dumps({"version": onnxruntime.__version__, "worst": worst}))
"""


def differences(
    target: str, artifact: Path, shape: ModelShape, module: torch.nn.Module, ids: np.ndarray[Any, Any]
) -> dict[str, float]:
    """The largest difference of each output between the onnxruntime that `target` names, on the artifact, and torch.

    `ids` are `batch x tokens`; decoded from the cache one by one in their second half, and read at once. Skips where
    that onnxruntime cannot be had.
    """
    version = VERSIONS[target]
    site = fetched_site(f"onnxruntime=={version}")
    if site is None:
        pytest.skip(f"no package index that has onnxruntime {version} for this Python")
    with torch.inference_mode():
        found: Any = module(input_ids=torch.tensor(ids), output_attentions=True, output_hidden_states=True)
    logits = found.logits.numpy()
    np.savez(
        artifact.parent / "expected.npz",
        ids=ids,
        decoded=logits,
        logits=logits,
        attention=torch.stack(found.attentions, dim=1).numpy(),
        hidden=torch.stack(found.hidden_states[1:], dim=1).numpy(),
    )
    numbers = artifact.parent / "numbers"
    if not numbers.exists():
        linked_site(numbers, "numpy")
    done = run_in(
        [site, numbers, RUNTIME],
        _COMPARE,
        artifact,
        artifact.parent / "expected.npz",
        json.dumps(dataclasses.asdict(shape)),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["version"] == version
    return dict(result["worst"])
