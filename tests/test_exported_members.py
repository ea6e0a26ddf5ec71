"""The public surface is what `toggle_edge.__all__` says, and asking for help loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import toggle_edge


def test_all_is_alphabetic_and_every_name_exists() -> None:
    assert list(toggle_edge.__all__) == sorted(toggle_edge.__all__)
    for name in toggle_edge.__all__:
        assert getattr(toggle_edge, name) is not None


def test_dir_shows_the_public_names() -> None:
    assert set(toggle_edge.__all__) <= set(dir(toggle_edge))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = toggle_edge.nonsense


@pytest.mark.parametrize(
    "code",
    [
        "import toggle_edge",
        "from toggle_edge.cli import app",
        "import toggle_edge.cost, toggle_edge.profiles",
    ],
)
def test_imports_that_must_be_quick_load_no_torch(code: str) -> None:
    heavy = "{'torch', 'transformers', 'botorch', 'onnxruntime', 'onnx'}"
    subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nassert not {heavy} & set(sys.modules)"],
        check=True,
        timeout=60,
    )
