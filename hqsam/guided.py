"""Upsampling that follows the edges of the picture: the fast guided filter from SAM's low-resolution grid to the image.

A cell of the grid is several pixels wide, and bilinear steps cut across whatever lies between two of them. Within a few
cells, though, where an object ends the picture usually changes too: there the probability of being inside is fitted as
a linear function of colour, on the grid, and that function is then evaluated for every pixel of the original (He and
Sun, "Fast Guided Filter", arXiv 1505.00996; the colour version of He, Sun and Tang, "Guided Image Filtering", section
3.4). A fit counts by how much of the mask it explains: the filter alone would average away whatever is thin and of the
colour of its surroundings. Nothing is learned, and the decoder keeps the last word where it is certain.

Shape legend: N masks, (4h, 4w) the grid of logits, (gh, gw) its cells that the image covers, (H, W) the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.postprocess import PIXELS_AT_ONCE, suits_windows, upscale_logits
from hqsam.types import NEGATIVE, POSITIVE, Prompts
from hqsam.upsampling import WindowUpscaler

RADIUS = 2
"""Cells to each side that a fit looks at."""
EPSILON = 1e-3
"""Weight of the prior that colour says nothing, as a variance of colours within 0..1."""
CERTAIN = 5.0
"""Bilinear logits of this size or more stay as they are, so that thin parts the decoder is sure of do not fade."""
TRUST = 3.0
"""Fits that explain a third or more of what varies around them count in full, those that explain nothing not at all."""
LEAST = 1e-3
"""Variance of the probability below which nothing needs to be explained."""


class ImageGuide:
    """What guided upsampling computes of an image alone.

    Args:
        image: (H, W, 3) uint8 RGB.
        input_hw: (height, width) of the resized image inside the S x S frame.
        image_size: S.
        grid: side of the square of logits (4h).
        device: where the logits are.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        input_hw: tuple[int, ...],
        image_size: int,
        grid: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.input_hw, self.original_hw = (input_hw[0], input_hw[1]), (image.shape[0], image.shape[1])
        self.image_size, self.grid = image_size, grid
        # torch cannot share memory that may not be written, and says so
        self.image = torch.from_numpy(np.require(image, requirements=("C", "W"))).to(device)
        # Colours of a photograph are nearly grey: their covariance is all but singular, and float32 too short. All
        # of this is small and made of a picture in the memory of the CPU, where there is float64 in any case.
        colours = torch.from_numpy(_on_grid(image, self.input_hw, image_size // grid))
        self.cells = colours.shape[-2], colours.shape[-1]
        counts = _window_sums(colours.new_ones(1, *self.cells))
        means = _window_sums(colours) / counts
        tensors = colours, counts, means, _inverse_covariance(colours, means, counts)
        self._colours, self._counts, self._means, self._inverse = (t.to(device, torch.float32) for t in tensors)

    def coefficients(self, logits: Tensor, clicks: Sequence[Tensor] = ()) -> Tensor:
        """Fit the probability of being inside to the colours around each cell.

        Args:
            logits: (N, 4h, 4w) float32.
            clicks: for each mask (K, 2) points, xy in pixels of the S x S frame, around which no fit counts: what was
                clicked is known better than colours tell.

        Returns:
            (N, 5, 4h, 4w): three slopes and the value at black, averaged over the fits that contain the cell, and the
            share of what varies there that they explain, 0..1; those of the padding repeat the last ones of the image.
        """
        gh, gw = self.cells
        inside = logits[:, :gh, :gw].sigmoid()
        mean = self._window_means(inside)  # (N, gh, gw)
        covariance = self._window_means(inside[:, None] * self._colours) - mean[:, None] * self._means
        slopes = (self._inverse * covariance[:, None]).sum(2)
        offset = mean - (slopes * self._means).sum(1)
        explained, varies = (slopes * covariance).sum(1), self._window_means(inside * inside) - mean * mean
        fits = self._window_means(torch.cat([slopes, torch.stack([offset, explained, varies], dim=1)], dim=1))
        explained, varies = fits[:, 4], fits[:, 5]
        share = (explained / (varies + LEAST)).clamp(0, 1)
        for one, points in zip(share, clicks, strict=bool(clicks)):
            for x, y in (points / (self.image_size // self.grid)).long().tolist():
                one[max(0, y - RADIUS) : max(0, y + RADIUS + 1), max(0, x - RADIUS) : max(0, x + RADIUS + 1)] = 0
        kept = torch.cat([fits[:, :4], share[:, None]], dim=1)
        return F.pad(kept, (0, self.grid - gw, 0, self.grid - gh), mode="replicate")

    def _window_means(self, x: Tensor) -> Tensor:
        return _window_sums(x) / self._counts


class KnownImage:
    """An image whose guide is computed once, when it is first needed.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self._guides: dict[object, ImageGuide] = {}

    def guide(self, input_hw: tuple[int, ...], image_size: int, logits: Tensor) -> ImageGuide:
        """For logits (..., 4h, 4w), where they are; the other arguments as in `ImageGuide`."""
        key = (tuple(input_hw), image_size, logits.shape[-1], logits.device)
        if key not in self._guides:
            self._guides = {key: ImageGuide(self.pixels, input_hw, image_size, logits.shape[-1], logits.device)}
        return self._guides[key]


def guided_logits(logits: Tensor, coefficients: Tensor, image: Tensor) -> Tensor:
    """The rule for a pixel, where everything has the size of the image already.

    Args:
        logits: (..., H, W), bilinear.
        coefficients: (..., 5, H, W), bilinear.
        image: (H, W, 3) uint8.

    Returns:
        (..., H, W): the logits where they are certain, else those of the probability that the fit moves towards what
        it says, kept below that certainty.
    """
    colours = image.permute(2, 0, 1).to(coefficients.dtype) / 255
    fit = (coefficients[..., :3, :, :] * colours).sum(-3) + coefficients[..., 3, :, :]
    weight = (TRUST * coefficients[..., 4, :, :]).clamp(max=1)
    probability = torch.lerp(logits.sigmoid(), fit, weight)
    limit = 1 / (1 + math.exp(CERTAIN))
    moved = (logits.abs() < CERTAIN) & probability.isfinite()
    return torch.where(moved, probability.clamp(limit, 1 - limit).logit(), logits)


@torch.no_grad()
def guided_masks(
    logits: Tensor, guide: ImageGuide, *, prompts: Prompts | None = None, threshold: float | None = 0.0
) -> Tensor:
    """`full_size_masks` with edges of the picture.

    Args:
        logits: (N, C, 4h, 4w), any float type, on the guide's device.
        guide: of the image.
        prompts: the N prompts, beside whose points masks stay bilinear.
        threshold: logits above it are inside; None returns the logits.

    Returns:
        (N, C, H, W) bool, or float32 logits.
    """
    height, width = guide.original_hw
    flat = logits.flatten(0, 1).float()
    kind = torch.float32 if threshold is None else torch.bool
    result = torch.empty((len(flat), height, width), dtype=kind, device=logits.device)
    clicks = [points for points in _clicks(prompts, len(logits)) for _ in range(logits.shape[1])]
    if suits_windows(flat):
        _in_windows(flat, guide, clicks, threshold, result)
        return result.view(*logits.shape[:2], height, width)
    step = max(1, PIXELS_AT_ONCE // max(height * width, guide.image_size**2))
    for start in range(0, len(flat), step):
        some = flat[start : start + step]
        joined = torch.cat([some[:, None], guide.coefficients(some, clicks[start : start + step])], dim=1)
        full = upscale_logits(joined, guide.input_hw, guide.original_hw, guide.image_size)
        answer = guided_logits(full[:, 0], full[:, 1:], guide.image)
        result[start : start + step] = answer if threshold is None else answer > threshold
    return result.view(*logits.shape[:2], height, width)


def _clicks(prompts: Prompts | None, count: int) -> list[Tensor]:
    """For each of so many prompts its points (K, 2), without the corners of boxes."""
    if prompts is None:
        return [torch.zeros(0, 2)] * count
    points = (prompts.kinds == NEGATIVE) | (prompts.kinds == POSITIVE)
    return [some[one] for some, one in zip(prompts.coords.cpu(), points.cpu(), strict=True)]


def _in_windows(
    logits: Tensor, guide: ImageGuide, clicks: Sequence[Tensor], threshold: float | None, result: Tensor
) -> None:
    """Fill in masks on a CPU, strip by strip; not where the logits are certain that nothing is inside."""
    height, width = guide.original_hw
    floor = -math.inf if threshold is None else min(threshold, -CERTAIN)
    # Windows have x before y: of the transposed logits they are the other way round.
    upscale = WindowUpscaler(guide.grid, guide.input_hw[::-1], (width, height), guide.image_size)
    for low, points, mask in zip(logits, clicks, result, strict=True):
        if threshold is not None:
            mask.zero_()
        coefficients = guide.coefficients(low[None], [points])[0]
        for strip in upscale.strips(low.T, floor, beside=coefficients.transpose(-1, -2)):
            answer = guided_logits(strip.logits, strip.beside, guide.image[strip.x, strip.y])
            mask[strip.x, strip.y] = answer if threshold is None else answer > threshold


def _inverse_covariance(colours: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """(3, 3, gh, gw): of the colours in each window, with `EPSILON` on the diagonal."""
    second = _window_sums((colours[:, None] * colours[None]).flatten(0, 1)).unflatten(0, (3, 3)) / counts
    unit = torch.eye(3, dtype=means.dtype, device=means.device)
    covariance = second - means[:, None] * means[None] + EPSILON * unit[..., None, None]
    columns = [torch.linalg.cross(covariance[(k + 1) % 3], covariance[(k + 2) % 3], dim=0) for k in range(3)]
    adjugate = torch.stack(columns, dim=1)
    inverse: Tensor = adjugate / (covariance[0] * adjugate[:, 0]).sum(0)
    return inverse


def _window_sums(x: Tensor) -> Tensor:
    """Sums over windows of 2 `RADIUS` + 1 cells a side, cut off at the ends of the last two axes."""
    for axis in (-1, -2):
        size, ends = x.shape[axis], [RADIUS, RADIUS]
        padded = F.pad(x, ends if axis == -1 else [0, 0, *ends])
        total = padded.narrow(axis, 0, size)
        for shift in range(1, 2 * RADIUS + 1):
            total = total + padded.narrow(axis, shift, size)
        x = total
    return x


def _on_grid(image: NDArray[np.uint8], input_hw: tuple[int, int], pixels: int) -> NDArray[np.float64]:
    """(3, gh, gw): mean colours, 0..1, of what cells show of the image; each has `pixels` a side of the input."""
    if input_hw[0] <= image.shape[0] and input_hw[1] <= image.shape[1]:
        image = cv2.resize(image, input_hw[::-1], interpolation=cv2.INTER_AREA)
    rows = _cell_means(image / 255.0, input_hw[0], pixels)
    both = _cell_means(rows.swapaxes(0, 1), input_hw[1], pixels)
    return np.ascontiguousarray(both.transpose(2, 1, 0))


def _cell_means(values: NDArray[np.float64], length: int, pixels: int) -> NDArray[np.float64]:
    """(L, ...) values, stretched to `length` -> (cells, ...) means over `pixels` each; the last may be cut off."""
    edges = np.minimum(np.arange(0, length + pixels, pixels), length) * (len(values) / length)
    below = np.minimum(edges.astype(int), len(values) - 1)
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    part = (edges - below).reshape(-1, *[1] * (values.ndim - 1))
    means: NDArray[np.float64] = np.diff(sums[below] + part * values[below], axis=0)
    return means / np.diff(edges).reshape(part[1:].shape)
