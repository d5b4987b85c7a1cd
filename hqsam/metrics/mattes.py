"""Errors of soft mattes: sum of absolute differences, mean squared error and gradient error, over the whole image.

The gradient error is that of Rhemann et al., "A Perceptually Motivated Online Benchmark for Image Matting", CVPR 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.collecting import Collected, common_columns, in_order

GRADIENT_SIGMA = 1.4
"""Of the derivative of Gaussian, in pixels, as in the benchmark."""
_EPSILON = 1e-2
"""The filter ends where the Gaussian falls below this, as in the benchmark."""

Floats = NDArray[np.float64]


class MatteSample(NamedTuple):
    """One object: the matte of each column, and the truth."""

    set: str
    image: str
    object: int
    prompt: str
    mattes: Mapping[str, NDArray[Any]]  # column -> (H, W): floating in [0, 1], or uint8 in 0..255
    target: NDArray[Any]  # (H, W), the same


@dataclass(frozen=True)
class MatteRecord:
    """Errors of one object; one line of `records.jsonl`.

    Attributes:
        set: name of the set that its mean counts in.
        image: image within the set.
        object: position of the object in its image.
        prompt: which prompt, "box" for instance.
        sad: column -> sum of absolute differences, in thousands.
        mse: column -> mean squared difference, in [0, 1].
        grad: column -> sum of squared differences of the gradient magnitudes, in thousands.
    """

    set: str
    image: str
    object: int
    prompt: str
    sad: dict[str, float]
    mse: dict[str, float]
    grad: dict[str, float]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a record unique."""
        return self.set, self.image, self.object, self.prompt

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it has.

        Raises:
            ValueError: its parts have different columns.
        """
        return common_columns(sad=self.sad, mse=self.mse, grad=self.grad)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


def sum_of_differences(pred: Floats, target: Floats) -> float:
    """SAD in thousands.

    Args:
        pred: (H, W) in [0, 1].
        target: (H, W) in [0, 1].
    """
    return float(np.abs(pred - target).sum()) / 1000


def mean_squared_error(pred: Floats, target: Floats) -> float:
    """MSE over all pixels, in [0, 1].

    Args:
        pred: (H, W) in [0, 1].
        target: (H, W) in [0, 1].
    """
    return float(np.square(pred - target).mean())


def gradient_error(pred: Floats, target: Floats, sigma: float = GRADIENT_SIGMA) -> float:
    """Sum of squared differences of the gradient magnitudes, in thousands.

    The gradient is by derivatives of a Gaussian, each filter normalised to length 1. At the border the image goes on
    with its last pixels.

    Args:
        pred: (H, W) in [0, 1].
        target: (H, W) in [0, 1].
        sigma: of the Gaussian, in pixels.
    """
    magnitudes = [_gradient_magnitude(matte, sigma) for matte in (pred, target)]
    return float(np.square(magnitudes[0] - magnitudes[1]).sum()) / 1000


def _gradient_magnitude(matte: Floats, sigma: float) -> Floats:
    import cv2

    reach = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * _EPSILON)))
    steps = np.arange(-reach, reach + 1, dtype=np.float64)
    gauss = np.exp(-np.square(steps) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    slope = steps * gauss / sigma**2
    length = math.sqrt(float(np.square(gauss).sum() * np.square(slope).sum()))
    along = [
        cv2.sepFilter2D(matte, cv2.CV_64F, *kernels, borderType=cv2.BORDER_REPLICATE) / length
        for kernels in ((slope, gauss), (gauss, slope))
    ]
    magnitude: Floats = np.hypot(*along)
    return magnitude


def score_mattes(sample: MatteSample) -> MatteRecord:
    """Errors of every column.

    Raises:
        ValueError: no matte, mattes of another shape than the truth or of another kind, or values that are NaN or
            outside [0, 1].
    """
    name = f"{sample.set}, {sample.image}, object {sample.object}"
    if not sample.mattes:
        raise ValueError(f"no matte of {name}")
    target = _checked("the true matte", sample.target, name)
    mattes = {column: _checked(f"the matte of {column}", matte, name) for column, matte in sample.mattes.items()}
    wrong = next((matte.shape for matte in mattes.values() if matte.shape != target.shape), None)
    if wrong is not None:
        raise ValueError(f"{name}: a matte of {wrong} and a true one of {target.shape}; they must have the same shape")
    return MatteRecord(
        sample.set,
        sample.image,
        sample.object,
        sample.prompt,
        {column: sum_of_differences(matte, target) for column, matte in mattes.items()},
        {column: mean_squared_error(matte, target) for column, matte in mattes.items()},
        {column: gradient_error(matte, target) for column, matte in mattes.items()},
    )


def _checked(what: str, matte: NDArray[Any], name: str) -> Floats:
    if not isinstance(matte, np.ndarray) or matte.ndim != 2 or not matte.size:
        raise ValueError(f"{name}: {what} must be an (H, W) array with a pixel, got {np.shape(matte)}")
    if matte.dtype == np.uint8:
        return matte / 255.0
    if not np.issubdtype(matte.dtype, np.floating) or not (matte.min() >= 0 and matte.max() <= 1):
        raise ValueError(
            f"{name}: {what} must be floating within [0, 1] or uint8, got {matte.dtype} {matte.min()} .. {matte.max()}"
        )
    return matte.astype(np.float64)


class MatteScores(Collected[MatteRecord]):
    """Evaluator (see `hqsam.metrics.Evaluator`) of soft mattes."""

    def update(self, sample: MatteSample) -> MatteRecord:
        """Score a sample and keep the errors.

        Raises:
            ValueError: as `score_mattes`; other columns than the samples before, or a sample that came before.
        """
        record = score_mattes(sample)
        self.merge([[record]])
        return record

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Set name -> column -> "sad" and "grad" in thousands, "mse" within 0 and 1 (no percent), "n" objects."""
        return {
            name: {column: _means(records, column) for column in in_order(records[0].columns)}
            for name, records in self.by_set().items()
        }


def _means(records: Sequence[MatteRecord], column: str) -> dict[str, float]:
    means = {
        "sad": [record.sad[column] for record in records],
        "mse": [record.mse[column] for record in records],
        "grad": [record.grad[column] for record in records],
    }
    return {**{name: math.fsum(values) / len(values) for name, values in means.items()}, "n": len(records)}
