"""Upsampling that follows the edges of the picture: the fast guided filter from SAM's low-resolution grid to the image.

A cell of the grid is several pixels wide, and bilinear steps cut across whatever lies between two of them. Within a few
cells, though, where an object ends the picture usually changes too: there the probability of being inside is fitted as
a linear function of colour, on the grid, and that function is then evaluated for every pixel of the original (He and
Sun, "Fast Guided Filter", arXiv 1505.00996; the colour version of He, Sun and Tang, "Guided Image Filtering", section
3.4). Nothing is learned, and the decoder keeps the last word where it is certain.

Shape legend: N masks, (4h, 4w) the grid of logits, (gh, gw) its cells that the image covers, (H, W) the image.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.postprocess import PIXELS_AT_ONCE, full_size_masks, suits_windows, upscale_logits
from hqsam.upsampling import WindowUpscaler

RADIUS = 2
"""Cells to each side that a fit looks at."""
EPSILON = 1e-3
"""Weight of the prior that colour says nothing, as a variance of colours within 0..1."""
CERTAIN = 5.0
"""Bilinear logits of this size or more stay as they are, so that thin parts the decoder is sure of do not fade."""
FEWEST = (2 * RADIUS + 1) ** 2
"""Masks of fewer cells than one fit looks at are not touched: they would be averaged away."""


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
        self.image = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        # Colours of a photograph are nearly grey: their covariance is all but singular, and float32 too short. All
        # of this is small and made of a picture in the memory of the CPU, where there is float64 in any case.
        colours = torch.from_numpy(_on_grid(image, self.input_hw, image_size // grid))
        self.cells = colours.shape[-2], colours.shape[-1]
        counts = _window_sums(colours.new_ones(1, *self.cells))
        means = _window_sums(colours) / counts
        tensors = colours, counts, means, _inverse_covariance(colours, means, counts)
        self._colours, self._counts, self._means, self._inverse = (t.to(device, torch.float32) for t in tensors)

    def coefficients(self, logits: Tensor) -> Tensor:
        """Fit the probability of being inside to the colours around each cell.

        Args:
            logits: (N, 4h, 4w) float32.

        Returns:
            (N, 4, 4h, 4w): three slopes and the value at black, averaged over the fits that contain the cell; those
            of the padding repeat the last ones of the image.
        """
        gh, gw = self.cells
        inside = logits[:, :gh, :gw].sigmoid()
        mean = _window_sums(inside) / self._counts  # (N, gh, gw)
        joint = _window_sums(inside[:, None] * self._colours) / self._counts  # (N, 3, gh, gw)
        covariance = joint - mean[:, None] * self._means
        slopes = (self._inverse * covariance[:, None]).sum(2)
        offset = mean - (slopes * self._means).sum(1)
        fits = _window_sums(torch.cat([slopes, offset[:, None]], dim=1)) / self._counts
        return F.pad(fits, (0, self.grid - gw, 0, self.grid - gh), mode="replicate")

    def are_too_small(self, logits: Tensor) -> Tensor:
        """(N,) bool: which of (N, 4h, 4w) have fewer than `FEWEST` cells inside."""
        gh, gw = self.cells
        return (logits[:, :gh, :gw] > 0).flatten(1).sum(1) < FEWEST


def guided_logits(logits: Tensor, coefficients: Tensor, image: Tensor) -> Tensor:
    """The rule for a pixel, where everything has the size of the image already.

    Args:
        logits: (..., H, W), bilinear.
        coefficients: (..., 4, H, W), bilinear.
        image: (H, W, 3) uint8.

    Returns:
        (..., H, W): the logits where they are certain, else those of the fitted probability, kept below that certainty.
    """
    colours = image.permute(2, 0, 1).to(coefficients.dtype) / 255
    inside = (coefficients[..., :3, :, :] * colours).sum(-3) + coefficients[..., 3, :, :]
    limit = 1 / (1 + math.exp(CERTAIN))
    return torch.where(logits.abs() < CERTAIN, inside.clamp(limit, 1 - limit).logit(), logits)


@torch.no_grad()
def guided_masks(logits: Tensor, guide: ImageGuide, *, threshold: float | None = 0.0) -> Tensor:
    """`full_size_masks` with edges of the picture.

    Args:
        logits: (N, C, 4h, 4w), any float type, on the guide's device.
        guide: of the image.
        threshold: logits above it are inside; None returns the logits.

    Returns:
        (N, C, H, W) bool, or float32 logits.
    """
    height, width = guide.original_hw
    flat = logits.flatten(0, 1).float()
    kind = torch.float32 if threshold is None else torch.bool
    result = torch.empty((len(flat), height, width), dtype=kind, device=logits.device)
    small = guide.are_too_small(flat)
    frame = guide.input_hw, guide.original_hw, guide.image_size
    for rows, guided in ((small.nonzero()[:, 0], False), ((~small).nonzero()[:, 0], True)):
        if not len(rows):
            continue
        if not guided:
            result[rows] = full_size_masks(flat[rows, None], *frame, threshold=threshold)[:, 0]
        elif suits_windows(flat[rows]):
            _in_windows(flat, rows, guide, threshold, result)
        else:
            step = max(1, PIXELS_AT_ONCE // (5 * max(height * width, guide.image_size**2)))
            for some in rows.split(step):
                joined = torch.cat([flat[some, None], guide.coefficients(flat[some])], dim=1)
                full = upscale_logits(joined, *frame)
                answer = guided_logits(full[:, 0], full[:, 1:], guide.image)
                result[some] = answer if threshold is None else answer > threshold
    return result.view(*logits.shape[:2], height, width)


def _in_windows(logits: Tensor, rows: Tensor, guide: ImageGuide, threshold: float | None, result: Tensor) -> None:
    """Fill in masks on a CPU, strip by strip; not where the logits are certain that nothing is inside."""
    height, width = guide.original_hw
    result[rows] = False
    floor = -math.inf if threshold is None else min(threshold, -CERTAIN)
    # Windows have x before y: of the transposed logits they are the other way round.
    upscale = WindowUpscaler(guide.grid, guide.input_hw[::-1], (width, height), guide.image_size)
    for row in rows.tolist():
        low = logits[row]
        coefficients = guide.coefficients(low[None])[0]
        for strip in upscale.strips(low.T, floor, beside=coefficients.transpose(-1, -2)):
            answer = guided_logits(strip.logits, strip.beside, guide.image[strip.x, strip.y])
            result[row, strip.x, strip.y] = answer if threshold is None else answer > threshold


def _inverse_covariance(colours: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """(3, 3, gh, gw): of the colours in each window, with `EPSILON` on the diagonal."""
    second = _window_sums((colours[:, None] * colours[None]).flatten(0, 1)).unflatten(0, (3, 3)) / counts
    covariance = second - means[:, None] * means[None] + EPSILON * torch.eye(3, dtype=means.dtype)[..., None, None]
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
    """(3, gh, gw): mean colours, 0..1, of cells of `pixels` a side; where the image ends in one, its edge goes on."""
    height, width = input_hw
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    bottom, right = (-size % pixels for size in input_hw)
    whole = cv2.copyMakeBorder(resized, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    size = whole.shape[1] // pixels, whole.shape[0] // pixels
    cells = cv2.resize(whole, size, interpolation=cv2.INTER_AREA) / 255.0
    return np.ascontiguousarray(cells.transpose(2, 0, 1))
