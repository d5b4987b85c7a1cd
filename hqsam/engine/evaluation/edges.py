"""Evaluation of boundaries: a map of each column, scored as by the BSDS500 benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.automatic.edges import SamEdgeDetector
from hqsam.data.boundaries import BoundaryRecord, load_boundaries
from hqsam.engine.evaluation.columns import choose_columns
from hqsam.engine.evaluation.task import ScorePool
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics.edge_matching import TOLERANCE
from hqsam.metrics.edges import THRESHOLDS, EdgeRecord, EdgeSample, EdgeScores, score_edges
from hqsam.models import Sam
from hqsam.types import Fusion


@dataclass(frozen=True, kw_only=True)
class EdgeOptions:
    """How maps are made and scored.

    Attributes:
        columns: "sam", "hq", "sum"; empty for all that the model has.
        points_per_side: of the grid that is asked.
        box_nms_thresh: see `SamEdgeDetector`.
        sigma: see `SamEdgeDetector`.
        thresholds: of the maps, evenly spread.
        tolerance: largest distance of a matched pair of pixels, as a share of the image diagonal.
        max_images: only so many images, evenly spaced over the split; None for all.
    """

    columns: tuple[Fusion, ...] = ()
    points_per_side: int = 16
    box_nms_thresh: float = 0.7
    sigma: float = 0.8
    thresholds: int = THRESHOLDS
    tolerance: float = TOLERANCE
    max_images: int | None = None


class LoadedBoundaries(NamedTuple):
    """What a thread reads ahead."""

    image: NDArray[np.uint8]  # (H, W, 3)
    truths: NDArray[np.bool_]  # (K, H, W)


class EdgeTask:
    """Makes the boundary maps of every image and counts their matches.

    Args:
        model: the model.
        records: from `read_bsds`.
        options: see there.

    Raises:
        ValueError: a column that the model cannot give, or a number out of its range.
        DataError: no image.
    """

    def __init__(self, model: Sam, records: Sequence[BoundaryRecord], options: EdgeOptions | None = None) -> None:
        self.options = o = options or EdgeOptions()
        self.columns = choose_columns(model, o.columns)
        self.detector = SamEdgeDetector(
            model, points_per_side=o.points_per_side, box_nms_thresh=o.box_nms_thresh, sigma=o.sigma, fusion="sam"
        )
        self.evaluator = EdgeScores(o.thresholds, o.tolerance)
        if o.max_images is not None and o.max_images < 1:
            raise ValueError(f"max_images must be at least 1 or None, got {o.max_images}")
        if not records:
            raise DataError("nothing to evaluate: no image")
        count = min(len(records), o.max_images or len(records))
        self.all_images = len(records)
        self.items: Sequence[BoundaryRecord] = [records[k * len(records) // count] for k in range(count)]

    def load(self, item: BoundaryRecord) -> LoadedBoundaries:
        """Read an image and its annotations.

        Raises:
            DataError: a file that cannot be read, or annotations of another size.
        """
        image = read_image(item.image)
        return LoadedBoundaries(image, load_boundaries(item.annotations, image.shape[:2]))

    def run(self, item: BoundaryRecord, loaded: LoadedBoundaries) -> list[EdgeRecord]:
        """The record of one image. Maps are rounded to 256 grey values, as the benchmark's files are."""
        return [future.result() for future in self.submit(item, loaded, ScorePool(0))]

    def submit(self, item: BoundaryRecord, loaded: LoadedBoundaries, pool: ScorePool) -> list[Future[EdgeRecord]]:
        """As `run`; matching, which takes as long as the maps on a CPU, goes on in the pool."""
        maps = self.detector.detect_columns(loaded.image, self.columns)
        grey: dict[str, NDArray[Any]] = {
            column: np.rint(255 * edges).astype(np.uint8) for column, edges in maps.items()
        }
        sample = EdgeSample(item.set_name, item.key.removeprefix(f"{item.set_name}/"), grey, loaded.truths)
        return [pool.submit(score_edges, sample, self.options.thresholds, self.options.tolerance)]

    def describe(self) -> Mapping[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        o = self.options
        split = self.items[0].set_name
        return {
            "prompts": f"{o.points_per_side} x {o.points_per_side} points, no filter",
            "masks": "three a point, in column hq one",
            "duplicates": f"boxes that overlap by more than {o.box_nms_thresh:g}",
            "map": "Sobel of the mask probability along each outline, largest over the masks, Gaussian of "
            f"{o.sigma:g} pixels, stretched to [0, 1], thinned across the edge, faded over 5 pixels at the border",
            "score": f"{o.thresholds} thresholds, one-to-one matches within {o.tolerance:g} of the diagonal",
            "images": f"{len(self.items)} of {self.all_images}, evenly spaced",
            "note": "" if split.endswith("_test") else f"{split}: published figures are those of the test split",
            "columns": list(self.columns),
            "resolution": self.detector.predictor.model.image_size,
        }
