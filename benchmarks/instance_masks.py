"""Instances and predictions of them, generated, so that the benchmark of boundary AP needs no file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.rle import Rle, encode_window, rle_area

SIZE_HW = (480, 640)
CATEGORIES = 80
_CORNERS = 96
_SIDES = (12.0, 400.0)
"""Longest and shortest side of objects; lengths in between are spread evenly on a logarithmic scale."""


def generate_set(images: int, masks: int, seed: int = 0) -> tuple[InstanceTruth, list[InstanceRecord]]:
    """A set of blobs, and predictions with wavy errors along their boundary; the same in every run.

    Args:
        images: how many, 480 x 640 pixels.
        masks: instances of each, and as many predictions.
        seed: of everything.
    """
    generator = np.random.default_rng(seed)
    instances, records = [], []
    for image in range(images):
        predicted: list[Rle] = []
        categories = generator.integers(1, CATEGORIES + 1, masks).tolist()
        for category in categories:
            outline = _outline(generator)
            rle = _draw(outline)
            instances.append(TrueInstance(image, category, rle, float(rle_area(rle))))
            errors = _waves(generator, 24) * generator.uniform(0, 0.25)
            centre = outline.mean(axis=0)
            predicted.append(_draw(centre + (outline - centre) * (1 + errors[:, None])))
        scores = generator.random(masks).tolist()
        records.append(InstanceRecord("made", image, categories, scores, {"sum": scores}, {"sum": predicted}))
    truth = InstanceTruth(
        {image: TrueImage(SIZE_HW) for image in range(images)},
        dict.fromkeys(range(1, CATEGORIES + 1), ""),
        tuple(instances),
    )
    return truth, records


def _outline(generator: np.random.Generator) -> NDArray[np.float64]:
    height, width = SIZE_HW
    low, high = np.log(_SIDES)
    radii = np.exp(generator.uniform(low, high)) / 2 * generator.uniform(0.6, 1.0, 2)
    angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
    distance = 1 + 0.3 * _waves(generator, 12)
    centre = generator.uniform([0, 0], [width, height])
    outline: NDArray[np.float64] = centre + distance[:, None] * radii * np.stack([np.cos(angles), np.sin(angles)], 1)
    return outline


def _waves(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(corners,) of a smooth random function around a closed outline, about -1 to 1."""
    angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
    orders = np.arange(1, count + 1)
    heights, phases = generator.standard_normal(count) / np.sqrt(count), generator.uniform(0, 2 * np.pi, count)
    waves: NDArray[np.float64] = heights @ np.cos(orders[:, None] * angles + phases[:, None])
    return waves


def _draw(outline: NDArray[np.float64]) -> Rle:
    import cv2

    height, width = SIZE_HW
    corners = np.rint(outline).astype(np.int32)
    low = np.clip(corners.min(axis=0), 0, [width - 1, height - 1])
    high = np.clip(corners.max(axis=0), 0, [width - 1, height - 1])
    window = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), dtype=np.uint8)
    cv2.fillPoly(window, [corners - low], 1)
    return encode_window(window.view(np.bool_), int(low[0]), int(low[1]), SIZE_HW)
