from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hqsam.automatic import scoring
from hqsam.automatic.grids import Crop
from hqsam.automatic.runs import decode_runs
from hqsam.automatic.scoring import CropScorer, Found
from hqsam.boxes import masks_to_boxes
from hqsam.geometry import resized_hw
from hqsam.postprocess import upscale_logits

IMAGE = (60, 90)
WHOLE = Crop((0, 0, 90, 60), 0)


def scorer(crop: Crop = WHOLE, thresh: float = 0.0, offset: float = 1.0) -> CropScorer:
    return CropScorer(
        crop=crop,
        image_hw=IMAGE,
        input_hw=resized_hw(*crop.size, 128),
        image_size=128,
        mask_threshold=0.0,
        stability_offset=offset,
        stability_thresh=thresh,
    )


def smooth(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * F.interpolate(torch.randn(count, 1, 5, 5, generator=generator), (32, 32), mode="bicubic")[:, 0]


def test_measures_are_those_of_the_full_size_logits() -> None:
    logits = smooth(5)
    found = scorer()(logits)
    full = upscale_logits(logits[:, None], resized_hw(*IMAGE, 128), IMAGE, 128)[:, 0]
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found.boxes, masks_to_boxes(full > 0).long())
    stability = (full > 1).flatten(1).sum(1) / (full > -1).flatten(1).sum(1)
    torch.testing.assert_close(found.stability, stability, rtol=0, atol=1e-3)
    for mask, runs in zip(full > 0, found.runs, strict=True):
        assert (torch.from_numpy(decode_runs(runs, *IMAGE)) == mask).float().mean() > 0.999


def same(a: Found, b: Found) -> None:
    assert a.runs == b.runs
    assert all(
        torch.equal(x, y) for x, y in zip((a.rows, a.boxes, a.stability), (b.rows, b.boxes, b.stability), strict=True)
    )


@pytest.mark.parametrize("crop", [WHOLE, Crop((0, 30, 45, 60), 1)])
def test_the_way_of_computing_does_not_matter(monkeypatch: pytest.MonkeyPatch, crop: Crop) -> None:
    logits = smooth(7)
    expected = scorer(crop)(logits)
    monkeypatch.setattr(scoring, "CPU_PIXELS", 1)
    same(scorer(crop)(logits), expected)  # one mask at a time
    torch.set_float32_matmul_precision("high")
    try:
        same(scorer(crop)(logits), expected)  # SAM's two bilinear steps
        monkeypatch.setattr(scoring, "CPU_PIXELS", 2**22)
        same(scorer(crop)(logits), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(scorer(crop)(logits), expected)


def test_unstable_masks_are_dropped_and_the_limit_itself_is_kept() -> None:
    logits = smooth(6)
    everything = scorer()(logits)
    limit = float(everything.stability.median())
    kept = scorer(thresh=limit)(logits)
    assert kept.rows.tolist() == [row for row, value in enumerate(everything.stability) if value >= limit]
    assert kept.runs == [everything.runs[row] for row in kept.rows.tolist()]
    assert len(scorer(thresh=1.0, offset=0.0)(logits).rows) == 6


def test_masks_without_a_pixel() -> None:
    nothing = torch.full((2, 32, 32), -5.0)
    found = scorer()(nothing)
    assert found.stability.tolist() == [0.0, 0.0]
    assert found.boxes.tolist() == [[0, 0, 0, 0]] * 2
    assert not decode_runs(found.runs[0], *IMAGE).any()
    assert len(scorer(thresh=0.1)(nothing).rows) == 0
    assert scorer()(nothing[:0]).boxes.shape == (0, 4)


def square(x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    logits = torch.full((1, 32, 32), -5.0)
    logits[:, y0:y1, x0:x1] = 5.0
    return logits


def test_masks_cut_by_a_crop_are_dropped_but_not_those_cut_by_the_image() -> None:
    crop = Crop((0, 0, 128, 128), 1)
    options = {"image_hw": (300, 300), "input_hw": (128, 128), "image_size": 128}
    options |= {"mask_threshold": 0.0, "stability_offset": 1.0, "stability_thresh": 0.0}
    ask = CropScorer(crop=crop, **options)  # type: ignore[arg-type]
    assert len(ask(square(0, 0, 10, 10)).rows) == 1
    assert len(ask(square(8, 8, 20, 20)).rows) == 1
    assert len(ask(square(8, 8, 30, 20)).rows) == 0
    assert len(ask(square(8, 8, 20, 32)).rows) == 0
    ask = CropScorer(crop=Crop((100, 50, 228, 178), 1), **options)  # type: ignore[arg-type]
    found = ask(square(8, 8, 20, 20))
    mask = decode_runs(found.runs[0], 300, 300)
    x0, y0, x1, y1 = found.boxes[0].tolist()
    assert mask[y0 + 50, x0 + 105] and mask[y1 + 50, x1 + 95] and not mask[:, : x0 + 100].any()
