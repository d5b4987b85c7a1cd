"""The banded matrices are SAM's two bilinear steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hqsam.geometry import resized_hw
from hqsam.postprocess import full_size_masks, upscale_logits
from hqsam.upsampling import WindowUpscaler, _axis_bands, axis_matrix

SIZES = [(1, 1), (1, 300), (300, 1), (1024, 1024), (427, 640), (90, 131), (1500, 1000), (2048, 2), (63, 64), (65, 129)]


def smooth(grid: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.randn(1, 1, 5, 5, generator=generator), (grid, grid), mode="bicubic")[0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [128, 1024])
def test_equal_to_the_plain_form(size: tuple[int, int], image_size: int) -> None:
    logits = smooth(image_size // 4)
    input_hw = resized_hw(*size, image_size)
    expected = upscale_logits(logits[None, None], input_hw, size, image_size)[0, 0]
    upscale = WindowUpscaler(image_size // 4, input_hw, size, image_size)
    everything = upscale(logits, -100.0)
    assert everything is not None and everything.logits.shape == size[::-1]
    torch.testing.assert_close(everything.logits.T, expected, rtol=0, atol=5e-6)
    for floor in (-0.5, 0.7):
        outside = expected.T.clone()
        window = upscale(logits, floor)
        if window is not None:
            outside[window.x, window.y] -= window.logits
            torch.testing.assert_close(outside[window.x, window.y], torch.zeros_like(window.logits), rtol=0, atol=5e-6)
            outside[window.x, window.y] = floor
        assert outside.max() <= floor + 1e-6


def test_a_small_mask_needs_a_small_window() -> None:
    logits = torch.full((256, 256), -5.0)
    upscale = WindowUpscaler(256, (1024, 1024), (1024, 1024), 1024)
    assert upscale(logits, -1.0) is None
    logits[100, 30] = 3.0
    window = upscale(logits, -1.0)
    assert window is not None
    assert window.x.start <= 120 < window.x.stop and window.y.start <= 400 < window.y.stop
    assert max(window.logits.shape) <= 256
    logits[:] = -5.0
    logits[-1, -1] = 3.0
    window = upscale(logits, -1.0)
    assert window is not None and window.x.stop == window.y.stop == 1024


def test_a_mask_in_the_padding_alone_is_nothing() -> None:
    logits = torch.full((256, 256), -5.0)
    logits[200:, :] = 3.0
    assert WindowUpscaler(256, (512, 1024), (50, 100), 1024)(logits, -1.0) is None


def test_rows_of_the_matrix_are_averages() -> None:
    matrix = axis_matrix(256, 1024, 683, 427)
    assert matrix.shape == (427, 256)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(427))


@pytest.mark.parametrize("size", SIZES)
def test_thresholded_masks_are_those_of_the_plain_form(size: tuple[int, int]) -> None:
    """Pixels may only change sides where the logit is as good as the threshold itself."""
    logits = torch.stack([smooth(32), smooth(32).T - 1, torch.full((32, 32), -1.0)])[:, None].repeat(1, 2, 1, 1)
    input_hw = resized_hw(*size, 128)
    plain = upscale_logits(logits, input_hw, size, 128)
    masks = full_size_masks(logits, input_hw, size, 128, threshold=0.3)
    assert masks.dtype == torch.bool and masks.shape == plain.shape
    assert ((masks == (plain > 0.3)) | ((plain - 0.3).abs() < 5e-6)).all()
    assert not masks[2].any()


def test_thresholding_keeps_full_precision_under_autocast() -> None:
    logits = smooth(32)[None, None]
    expected = full_size_masks(logits, (128, 96), (300, 225), 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(full_size_masks(logits, (128, 96), (300, 225), 128), expected)


def test_thresholding_takes_any_float_type_and_no_masks() -> None:
    logits = smooth(32)[None, None].to(torch.bfloat16)
    assert torch.equal(
        full_size_masks(logits, (128, 96), (300, 225), 128), full_size_masks(logits.float(), (128, 96), (300, 225), 128)
    )
    assert full_size_masks(logits[:0], (128, 96), (300, 225), 128).shape == (0, 1, 300, 225)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_spreads_no_farther_than_in_the_two_steps(value: float) -> None:
    logits = torch.full((1, 1, 32, 32), -1.0)
    logits[..., 8:24, 8:24] = 4.0
    logits[..., 15, 15] = value
    expected = upscale_logits(logits, (128, 96), (300, 225), 128) > 0
    assert torch.equal(full_size_masks(logits, (128, 96), (300, 225), 128), expected)


def test_matrices_that_are_kept_do_not_depend_on_defaults() -> None:
    logits, frame = smooth(32)[None, None], ((128, 96), (311, 233), 128)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            masks = full_size_masks(logits, *frame)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(masks, full_size_masks(logits, *frame))
    assert torch.equal(masks, upscale_logits(logits, *frame) > 0)


def test_a_precision_that_is_set_in_the_newer_way() -> None:
    """Asked in the older way, torch then raises."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the older settings alone")
    logits, frame = smooth(32)[None, None], ((128, 96), (300, 225), 128)
    expected, before = full_size_masks(logits, *frame), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(full_size_masks(logits, *frame), expected)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_kept_band_keeps_no_more_than_itself() -> None:
    bands = _axis_bands(32, 128, 128, 129)
    assert all(band.weights.untyped_storage().nbytes() == 4 * band.weights.numel() for band in bands)
