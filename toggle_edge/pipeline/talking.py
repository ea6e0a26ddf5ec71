"""`toggle-edge run`: a prompt, continued by what is deployed on a device, beside the baseline if wanted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from toggle_edge.errors import InputError, ModelError
from toggle_edge.fleet.active import fetch_tokenizer, talk
from toggle_edge.fleet.device import load_device
from toggle_edge.model.load import load_model
from toggle_edge.report.deployment import BesideBaseline, TalkedResult
from toggle_edge.report.progress import Reporter
from toggle_edge.store import DEFAULT_URL, open_store

UNFINISHED = "�"


@dataclass(frozen=True)
class TalkOptions:
    """What `toggle-edge run` may be told. `model` is the baseline's folder; None finds it in the store's studies."""

    device: str
    prompt: str
    tokens: int = 64
    beside_baseline: bool = False
    model: Path | None = None
    store: str = DEFAULT_URL


def run_talk(options: TalkOptions, report: Reporter, on_text: Callable[[str], None]) -> TalkedResult:
    """Have the device continue the prompt; `on_text` hears the text as it comes.

    Raises InputError for an empty prompt, FleetError where nothing is deployed, ModelError where the baseline that is
    to stand beside it is not the bundle's.
    """
    device = load_device(options.device)
    if not options.prompt or options.tokens < 1:
        raise InputError("run: expected a prompt and at least one token to generate")
    with tempfile.TemporaryDirectory(prefix="toggle-edge-") as scratch:
        manifest = fetch_tokenizer(device, Path(scratch))
        tokenizer, stop = _tokenizer(Path(scratch))
    prompt = tokenizer(options.prompt)["input_ids"]
    room = manifest.model.context_tokens - 1
    if not 0 < len(prompt) <= room:
        raise InputError(f"run: the prompt is {len(prompt)} tokens; expected 1 to {room} for this model")
    baseline = (
        _baseline_folder(options, manifest.environment.get("model")) if options.beside_baseline else None
    )
    heard: list[int] = []
    shown = ""

    def on_token(token: int) -> None:
        nonlocal shown
        heard.append(token)
        text = str(tokenizer.decode(heard, skip_special_tokens=True))
        # A character may be spread over several tokens.
        if not text.endswith(UNFINISHED) and text.startswith(shown):
            on_text(text[len(shown) :])
            shown = text

    said = talk(device, prompt, options.tokens, stop, on_token)
    text = str(tokenizer.decode(said.tokens, skip_special_tokens=True))
    on_text(text[len(shown) :] if text.startswith(shown) else "")
    beside = None
    if baseline is not None:
        report("baseline", 0, 1, str(baseline))
        beside = _beside(baseline, manifest.environment.get("model"), prompt, said.tokens, tokenizer)
        report("baseline", 1, 1, "done")
    return TalkedResult(device, options.prompt, text, said, beside)


def _tokenizer(folder: Path) -> tuple[Any, list[int]]:
    """The bundle's tokenizer, and the tokens that end a text."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # transformers and tokenizers raise their own and, for an odd file, any
        raise ModelError(f"the bundle's tokenizer cannot be read: {exc}; export the bundle again") from exc
    end = tokenizer.eos_token_id
    return tokenizer, [end] if isinstance(end, int) else []


def _baseline_folder(options: TalkOptions, digest: str | None) -> Path:
    if options.model is not None:
        return options.model
    with open_store(options.store) as store:
        folders = [s.model_folder for s in store.studies() if s.model_digest == digest and s.model_folder]
    found = next((Path(folder) for folder in folders if Path(folder).is_dir()), None)
    if found is None:
        raise InputError(
            f"run --beside-baseline: no study in {options.store} is of the bundle's model; name its folder with --model"
        )
    return found


def _beside(
    folder: Path, digest: str | None, prompt: Sequence[int], tokens: Sequence[int], tokenizer: Any
) -> BesideBaseline:
    """The baseline's greedy continuation, as long as the device's."""
    model = load_model(folder)
    if model.digest != digest:
        raise ModelError(
            f"model {folder}: expected the bundle's model {str(digest)[:12]}, got {model.digest[:12]}; "
            "name the folder that the bundle was made from"
        )
    module: Any = model.module
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        found = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(tokens), do_sample=False
        )[0, len(prompt) :].tolist()
    same = next((i for i, pair in enumerate(zip(found, tokens, strict=False)) if pair[0] != pair[1]), None)
    agreeing = min(len(found), len(tokens)) if same is None else same
    return BesideBaseline(str(tokenizer.decode(found, skip_special_tokens=True)), len(found), agreeing)
