"""The loss against an independent NumPy version of the published formulas, and the point sampling against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.losses import bce_dice_loss, bce_dice_per_mask, point_sample, select_points

Array = NDArray[np.float64]


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bilinear_weights(points: Array, height: int, width: int) -> Array:
    """(P, H * W) matrix whose product with a flattened map is its bilinear value at each point, zero outside."""
    matrix = np.zeros((len(points), height * width))
    for row, (px, py) in enumerate(points):
        x, y = px * width - 0.5, py * height - 0.5
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        for yy, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
            for xx, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                if 0 <= xx < width and 0 <= yy < height:
                    matrix[row, yy * width + xx] += wx * wy
    return matrix


def reference_loss(logits: Array, target: Array, points: Array) -> tuple[float, float, Array, Array]:
    """BCE, dice and their gradients with respect to the logits (N, h, w), one mask and one formula at a time."""
    n = len(logits)
    bce = dice = 0.0
    grad_bce, grad_dice = np.zeros_like(logits), np.zeros_like(logits)
    for k in range(n):
        weights = bilinear_weights(points[k], *logits[k].shape)
        x = weights @ logits[k].ravel()
        t = bilinear_weights(points[k], *target[k].shape) @ target[k].ravel()
        p = 1 / (1 + np.exp(-x))
        bce += np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p)) / n
        top, bottom = 2 * np.sum(p * t) + 1, np.sum(p) + np.sum(t) + 1
        dice += (1 - top / bottom) / n
        grad_bce[k] = (weights.T @ ((p - t) / len(x))).reshape(logits[k].shape) / n
        through_p = -(2 * t * bottom - top) / bottom**2 * p * (1 - p)
        grad_dice[k] = (weights.T @ through_p).reshape(logits[k].shape) / n
    return bce, dice, grad_bce, grad_dice


def test_loss_and_gradients_equal_the_formulas() -> None:
    logits = (uniform(3, 1, 6, 5, seed=1) * 8 - 4).requires_grad_()
    target, points = uniform(3, 1, 9, 11, seed=2), uniform(3, 40, 2, seed=3)
    loss = bce_dice_loss(logits, target, points)
    bce, dice, grad_bce, grad_dice = reference_loss(logits[:, 0].detach().numpy(), target[:, 0].numpy(), points.numpy())
    assert loss.bce.item() == pytest.approx(bce, rel=1e-12)
    assert loss.dice.item() == pytest.approx(dice, rel=1e-12)
    (got_bce,) = torch.autograd.grad(loss.bce, logits, retain_graph=True)
    (got_dice,) = torch.autograd.grad(loss.dice, logits)
    np.testing.assert_allclose(got_bce[:, 0].numpy(), grad_bce, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got_dice[:, 0].numpy(), grad_dice, rtol=1e-10, atol=1e-14)


def test_gradcheck() -> None:
    logits = (uniform(2, 1, 4, 4) * 4 - 2).requires_grad_()
    target, points = uniform(2, 1, 8, 8, seed=1), uniform(2, 12, 2, seed=2)
    for term in (0, 1):
        assert torch.autograd.gradcheck(lambda x, term=term: bce_dice_loss(x, target, points)[term], logits)


def test_known_values() -> None:
    points = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64)
    zero, one = torch.zeros(1, 1, 3, 3, dtype=torch.float64), torch.ones(1, 1, 7, 7, dtype=torch.float64)
    loss = bce_dice_loss(zero, one, points)
    assert loss.bce.item() == pytest.approx(np.log(2))
    assert loss.dice.item() == pytest.approx(1 - 2 / 2.5)
    right = bce_dice_loss(zero + 40, one, points)
    assert right.bce.item() == pytest.approx(0, abs=1e-12)
    assert right.dice.item() == pytest.approx(0, abs=1e-12)
    # nothing predicted where nothing is: the ones in the fraction make dice 0, not 0 / 0
    assert bce_dice_loss(zero - 40, 0 * one, points).dice.item() == pytest.approx(0, abs=1e-12)


def test_uint8_target_counts_as_fraction() -> None:
    target = (uniform(2, 1, 33, 20, seed=5) * 255).to(torch.uint8)
    logits, points = uniform(2, 1, 8, 8) - 0.5, uniform(2, 50, 2, seed=6)
    from_bytes = bce_dice_per_mask(logits, target, points)
    from_floats = bce_dice_per_mask(logits, target.double() / 255, points)
    torch.testing.assert_close(from_bytes, from_floats, rtol=1e-12, atol=1e-12)


def test_per_mask_averages_to_the_loss_and_does_not_mix_masks() -> None:
    logits, target, points = uniform(4, 1, 8, 8) - 0.5, uniform(4, 1, 16, 16, seed=1), uniform(4, 30, 2, seed=2)
    each, mean = bce_dice_per_mask(logits, target, points), bce_dice_loss(logits, target, points)
    assert each.bce.shape == each.dice.shape == (4,)
    torch.testing.assert_close(each.bce.mean(), mean.bce)
    torch.testing.assert_close(each.dice.mean(), mean.dice)
    alone = bce_dice_per_mask(logits[2:3], target[2:3], points[2:3])
    torch.testing.assert_close(alone.dice[0], each.dice[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_raised(dtype: torch.dtype) -> None:
    logits = (uniform(1, 1, 8, 8) * 4 - 2).to(dtype).requires_grad_()
    target, points = uniform(1, 1, 8, 8, seed=1).float(), uniform(1, 64, 2, seed=2).float()
    loss = bce_dice_loss(logits, target, points)
    assert loss.bce.dtype == torch.float32
    torch.testing.assert_close(loss.bce, bce_dice_loss(logits.detach().float(), target, points).bce)
    (loss.bce + loss.dice).backward()
    assert logits.grad is not None and logits.grad.dtype == dtype


# Inside, on the corners and edges, and beyond the border, where zeros are mixed in.
EDGES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0], [0.01, 0.99], [-0.2, 0.5], [1.3, 2.0]])


@pytest.mark.parametrize("shape", [(3, 2, 7, 12), (1, 1, 1, 1), (2, 1, 64, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uint8_sampling_equals_grid_sample(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (uniform(*shape) * 256).to(torch.uint8)
    points = torch.cat([uniform(200, 2, seed=9), EDGES.double()]).to(dtype).expand(shape[0], -1, 2)
    expected = F.grid_sample(x.to(dtype), 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    sampled = point_sample(x, points)
    assert sampled.dtype == dtype
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-3)
    torch.testing.assert_close(point_sample(x.to(dtype), points), expected, rtol=0, atol=0)


def test_sampling_hits_pixel_centres() -> None:
    x = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    centres = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])
    torch.testing.assert_close(point_sample(x, centres), torch.tensor([[[0.0, 5.0, 2.5]]]))


def test_select_points_takes_the_least_certain() -> None:
    logits = uniform(3, 1, 16, 16) * 20 - 10
    candidates, extra = uniform(3, 120, 2, seed=1), uniform(3, 10, 2, seed=2)
    points = select_points(logits, candidates, extra)
    assert points.shape == (3, 40, 2)
    torch.testing.assert_close(points[:, 30:], extra, rtol=0, atol=0)
    for k in range(3):
        weights = bilinear_weights(candidates[k].numpy(), 16, 16)
        order = np.argsort(np.abs(weights @ logits[k, 0].numpy().ravel()))[:30]
        expected = candidates[k].numpy()[order]
        assert {tuple(p) for p in points[k, :30].tolist()} == {tuple(p) for p in expected.tolist()}


def test_select_points_has_no_gradient_and_rows_do_not_mix() -> None:
    logits = (uniform(2, 1, 8, 8) - 0.5).requires_grad_()
    candidates, extra = uniform(2, 24, 2, seed=1), uniform(2, 2, 2, seed=2)
    points = select_points(logits, candidates, extra)
    assert not points.requires_grad
    torch.testing.assert_close(select_points(logits[1:], candidates[1:], extra[1:])[0], points[1], rtol=0, atol=0)


def test_published_counts() -> None:
    total = 112 * 112
    points = select_points(torch.zeros(1, 1, 8, 8), torch.rand(1, 3 * total, 2), torch.rand(1, total // 4, 2))
    assert points.shape == (1, total, 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda z: point_sample(z(2, 1, 4, 4), z(3, 5, 2)), r"points \(N, P, 2\), got \(2, 1, 4, 4\) and \(3, 5, 2\)"),
        (lambda z: point_sample(z(2, 1, 4, 4).long(), z(2, 5, 2)), "floating or uint8, got torch.int64"),
        (lambda z: select_points(z(1, 2, 4, 4), z(1, 12, 2), z(1, 1, 2)), r"logits must be .*\(1, 2, 4, 4\)"),
        (lambda z: select_points(z(1, 1, 4, 4), z(1, 12, 2), z(1, 5, 2)), r"uniform \(N, at most P, 2\)"),
        (lambda z: select_points(z(1, 1, 4, 4), z(1, 13, 2), z(1, 1, 2)), r"candidates \(N, 3P, 2\)"),
        (lambda z: bce_dice_loss(z(0, 1, 4, 4), z(0, 1, 8, 8), z(0, 5, 2)), "the batch is empty"),
        (lambda z: bce_dice_loss(z(1, 1, 4, 4), z(1, 1, 8, 8), z(1, 0, 2)), "at least one point"),
        (lambda z: bce_dice_loss(z(1, 1, 4, 4), z(2, 1, 8, 8), z(1, 5, 2)), r"target \(N, 1, H, W\), got"),
        (lambda z: bce_dice_loss(z(1, 1, 4, 4).long(), z(1, 1, 8, 8), z(1, 5, 2)), "logits must be floating"),
    ],
)
def test_bad_shapes(call: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(torch.zeros)  # type: ignore[operator]
