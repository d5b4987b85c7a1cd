"""Every row of the table of degenerate cases names a test, and that test exists."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "conventions.md").read_text("utf-8")
ROWS = [line for line in TEXT.partition("## Degenerate cases")[2].splitlines() if line.startswith("| ")][1:]
NAMED = sorted(set(re.findall(r"`(tests/\S+\.py)::(\w+)`", TEXT)))


def test_every_row_names_a_test() -> None:
    for row in ROWS:
        assert row.startswith("| **") or "`tests/" in row, row
    assert len(ROWS) > 60


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_named_test_exists(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.M)
