from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.cli import main
from hqsam.images import read_image

MODEL = ["--model", "hq_test_tiny", "--device", "cpu"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("extra", "panels"), [([], 2), (["--with-hq"], 3)])
def test_panels(photo: Path, extra: list[str], panels: int) -> None:
    out = photo.parent / "sub" / "comparison.png"
    assert main(["compare", str(photo), *MODEL, "--box", "5,5,50,30", "--out", str(out), *extra]) == 0
    assert read_image(out).shape[1] >= panels * 60


def test_zoom(photo: Path) -> None:
    out = photo.parent / "zoom.jpg"
    assert main(["compare", str(photo), *MODEL, "--point", "20,20", "--zoom", "10,10,30,20", "--out", str(out)]) == 0
    assert read_image(out).shape[1] > 2 * 512


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no prompt given"),
        (["--box", "1,2,9,9", "--zoom", "90,90,99,99"], "has no pixel inside"),
        (["--box", "1,2,9,9", "--model", "sam_test_tiny"], "nothing to compare with"),
    ],
)
def test_bad_input(photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert main(["compare", str(photo), *MODEL, *arguments, "--out", str(photo.parent / "x.png")]) == 2
    assert text in capsys.readouterr().err
