"""Modules of the page that need no browser, run by Node; pycocotools and the predictor make what they must give."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hqsam.heeding import heed_clicks
from hqsam.postprocess import full_size_masks
from hqsam.rle import encode_rle
from hqsam.types import Prompts
from tests.helpers import ROOT

HERE = ROOT / "tests" / "browser"
NODE = shutil.which("node")


def rle_cases() -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(7)
    masks = {
        "empty": np.zeros((5, 7), bool),
        "full": np.ones((5, 7), bool),
        "one pixel": np.ones((1, 1), bool),
        "first and last pixel": np.eye(2, dtype=bool),
        "one row": generator.random((1, 40)) > 0.5,
        "one column": generator.random((40, 1)) > 0.5,
        "noise": generator.random((37, 53)) > 0.5,
        "sparse": generator.random((64, 48)) > 0.98,
        "columns to the bottom": np.pad(np.ones((6, 3), bool), ((2, 0), (1, 2))),
        "columns from the top": np.pad(np.ones((6, 3), bool), ((0, 2), (2, 1))),
        "long runs": np.pad(np.ones((700, 900), bool), ((50, 1), (3, 40))),
    }
    for name, mask in masks.items():
        bits = "".join(map(str, mask.astype(int).ravel().tolist()))
        yield {"name": name, **encode_rle(mask), "bits": bits}


def postprocess_cases() -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    low, frame = 64, 256
    shapes = {
        "landscape, enlarged": ((171, 256), (600, 900)),
        "portrait, reduced": ((256, 100), (210, 82)),
        "square": ((256, 256), (256, 256)),
        "thin": ((3, 256), (9, 800)),
    }
    for name, (input_size, original_size) in shapes.items():
        coarse = torch.randn((1, 1, 9, 9), generator=generator)
        smooth = F.interpolate(coarse, (low, low), mode="bicubic")
        for kind, logits in (("blobs", smooth), ("a small one", smooth - smooth[:, :, : low // 2].amax() + 0.3)):
            yield postprocess_case(f"{name}, {kind}", logits, frame, input_size, original_size)
    yield postprocess_case("nothing", torch.full((1, 1, low, low), -1.0), frame, (256, 200), (300, 234))


def postprocess_case(
    name: str, logits: torch.Tensor, frame: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> dict[str, Any]:
    mask = full_size_masks(logits, input_size, original_size, frame)[0, 0].numpy()
    return {
        "name": name,
        "low": logits.shape[-1],
        "frame": frame,
        "input": input_size,
        "original": original_size,
        "logits": logits.flatten().tolist(),
        "rle": {**encode_rle(mask), "empty": not mask.any()},
    }


def heeding_cases() -> Iterator[dict[str, Any]]:
    """Masks that disagree widely, of square pictures and of some that padding is added to."""
    generator = torch.Generator().manual_seed(5)
    low, frame = 64, 256
    for height, width in ((64, 64), (64, 41), (30, 64)):
        for number, corrects in itertools.product((1, 2, 5, 12), (False, True)):
            coarse = torch.randn((3, 1, 9, 9), generator=generator) * 2
            logits, sam, before = F.interpolate(coarse, (low, low), mode="bicubic")[:, None]
            for mask in (logits, sam, before):
                mask[:, :, height:], mask[:, :, :, width:] = -16, -16
            points = torch.rand((1, number, 2), generator=generator) * torch.tensor([width, height]) * (frame / low)
            labels = torch.randint(0, 2, (1, number), generator=generator)
            fed = before if corrects else None
            heeded = heed_clicks(logits, sam, Prompts.from_parts(points, labels, masks=fed), frame)
            yield {
                "name": f"{number} clicks, {height} x {width}{', corrections' if corrects else ''}",
                "grid": {"stride": low, "height": height, "width": width},
                "logits": logits.flatten().tolist(),
                "sam": sam.flatten().tolist(),
                "before": before.flatten().tolist() if corrects else None,
                "clicks": torch.cat([(points[0] + 0.5) * (low / frame), labels[0, :, None]], dim=1).tolist(),
                "heeded": heeded.flatten().tolist(),
                "changed": heeded is not logits,
            }


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixtures")
    (folder / "rle.json").write_text(json.dumps(list(rle_cases())), "utf-8")
    (folder / "postprocess.json").write_text(json.dumps(list(postprocess_cases())), "utf-8")
    (folder / "heeding.json").write_text(json.dumps(list(heeding_cases())), "utf-8")
    return folder


@pytest.mark.skipif(NODE is None, reason="needs Node")
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.mjs")))
def test_modules(name: str, fixtures: Path) -> None:
    environment = {"HQSAM_FIXTURES": str(fixtures), "PATH": str(Path(NODE or "").parent)}
    done = subprocess.run(
        [NODE or "node", "--test", str(HERE / name)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
