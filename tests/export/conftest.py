"""Programs that several files of tests look at: lowering one takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lowerings import MIXED, MODELS, NARROW, model_of, request_of
from runners import why_not_lowered

from toggle_edge.export import Made
from toggle_edge.export.executorch import exporting
from toggle_edge.model.load import LanguageModel


@pytest.fixture(scope="session")
def lowering() -> None:
    if (why := why_not_lowered()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    return {kind: model_of(kind, tmp_path_factory.mktemp(kind)) for kind in MODELS}


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where lowered candidates are kept."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def made(
    models: dict[str, LanguageModel], tmp_path_factory: pytest.TempPathFactory, lowering: None, kept: Path
) -> dict[str, Made]:
    """A mixed Llama, the same narrowed with one format changed, and a GPT-2 with all its matrices in float32."""
    wanted = {
        "llama": request_of(models["llama"], MIXED),
        "narrowed": request_of(models["llama"], MIXED, NARROW),
        "gpt2": request_of(models["gpt2"], ("fp32",)),
    }
    folder = tmp_path_factory.mktemp("made")
    return {
        name: exporting.export(None, dataclasses.replace(each, shelf=kept), folder / name)
        for name, each in wanted.items()
    }
