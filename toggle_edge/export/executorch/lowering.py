"""The process that lowers: `python -m toggle_edge.export.executorch.lowering FOLDER`, with the overlay on its path.

Reads a job there, writes the artifact, the canary and the result there. What went wrong is the last line on stderr, and
the exit code says which error it is.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from toggle_runtime.canary import LEAST_SHARE, write_canary

from toggle_edge.compress.quantise import CompressedLayer, dequantise
from toggle_edge.config import FP32
from toggle_edge.errors import ExportError, ParityError, ToggleEdgeError
from toggle_edge.export.canary import canary_of
from toggle_edge.export.executorch.families import decoder_of
from toggle_edge.export.executorch.job import (
    ARTIFACT,
    CANARY,
    EXPORT_CODE,
    PARITY_CODE,
    Lowered,
    read_job,
    write_result,
)
from toggle_edge.export.executorch.parity import Program, Reference, check_decoder, check_program, difference
from toggle_edge.export.executorch.programs import lowered
from toggle_edge.model.load import load_model
from toggle_edge.model.remaining import renumbered
from toggle_edge.model.removal import without


def main(folder: Path) -> int:
    """Lower the job in `folder`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        lower(folder)
    except ToggleEdgeError as exc:
        print(str(exc).replace("\n", " "), file=sys.stderr)
        return PARITY_CODE if isinstance(exc, ParityError) else EXPORT_CODE
    return 0


def lower(folder: Path) -> None:
    """The same, raising."""
    job = read_job(folder)
    model = load_model(job.model, streamed=False)
    if model.digest != job.digest:
        raise ExportError(f"model folder {job.model}: its files changed meanwhile; start again")
    module, numbers = model.module, tuple(range(model.shape.layers))
    if job.kept is not None:
        module, numbers = without(module, model.anatomy, job.kept), job.kept.numbers
    embedding = next(layer for layer in model.layers if layer.role == "embedding")
    build = partial(
        decoder_of, module, embedding=embedding.name, tied=embedding.multiplied, capacity=job.capacity
    )
    layers = {renumbered(name, numbers): layer for name, layer in job.layers.items()}
    plain, _ = build({name: _restored(layer) for name, layer in layers.items()})
    exact = check_decoder(plain, job.tokens, job.logits)
    decoder, owners = build(layers)
    # Files are named as layers are in the baseline, so that a candidate without a block shares the others' files.
    names = {renumbered(name, numbers): name for name in job.layers}
    content, data = lowered(decoder, {path: names[name] for path, name in owners.items()}, job.signal_tokens)
    artifact = folder / ARTIFACT
    (artifact / "weights").mkdir(parents=True)
    (artifact / "model.pte").write_bytes(content)
    for name, values in data.items():
        (artifact / "weights" / f"{name}.ptd").write_bytes(values)
    program = Program(artifact, folder)
    parity, exact_share = check_program(program, decoder, job.tokens, job.prompt_tokens, job.logits)
    reference, vocabulary = Reference(decoder), model.shape.vocabulary
    canary = canary_of(
        reference,
        job.tokens,
        vocabulary=vocabulary,
        context_tokens=job.signal_tokens,
        share=LEAST_SHARE if decoder.quantises_activations else 1.0,
        is_half=decoder.has_halves,
    )
    write_canary(folder / CANARY, canary)
    with torch.inference_mode():
        activations = difference(reference(torch.tensor([list(job.tokens)])).logits[0], job.logits)
    write_result(Lowered(parity, exact_share, exact, activations), folder)


def _end_with(parent: int) -> None:
    """End when the process that asked for this has: a killed command must not leave minutes of work behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(EXPORT_CODE)


def _restored(layer: CompressedLayer) -> CompressedLayer:
    return CompressedLayer(FP32, layer.rows, layer.columns, dequantise(layer), None)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
