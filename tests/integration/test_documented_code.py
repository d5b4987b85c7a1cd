"""Python in the documents runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.parametrize("document", ["docs/predictor.md", "docs/large_images.md"])
def test_python_blocks_run_in_order(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    exec("\n".join(blocks), {})
