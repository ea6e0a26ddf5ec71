"""The threat model claims nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_page_names_is_there(file: str, test: str) -> None:
    text = (TESTS / file).read_text(encoding="utf-8")
    assert not test or re.search(rf"^ *(?:def|class) {test}\b|^{test} = ", text, re.MULTILINE)


def test_every_defence_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(rows) >= 25
    for row in rows:
        assert re.search(r"`[\w/]+\.py(::\w+)?` *(, `[\w/]+\.py::\w+` *)*\|$", row), row
