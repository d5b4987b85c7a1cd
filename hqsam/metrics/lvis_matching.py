"""Average precision by the `lvis` package's federated rules, given the overlaps.

A category counts in an image only where the data set says of it that it is there or was looked for in vain; where it
was not annotated exhaustively, masks that match nothing are no errors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from hqsam.metrics.coco_matching import Unmatched, packed, paired
from hqsam.metrics.instance_overlaps import Key, Matrix, Pairs
from hqsam.metrics.instance_records import ImageId, InstanceTruth

LIMIT = 300
"""Masks of an image that count, over all categories."""
_SUFFIXES = {
    "AP": "",
    "AP50": "50",
    "AP75": "75",
    "APs": "s",
    "APm": "m",
    "APl": "l",
    "APr": "r",
    "APc": "c",
    "APf": "f",
}


class _NumpyWithFloat:
    """NumPy with the name `float`, which lvis 0.5.3 asks for in one place and which NumPy 1.24 dropped."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@cache
def _lvis() -> Any:
    """The module `lvis.eval`.

    That module alone gets a `np` that has `float`: numpy itself stays as it is, because other packages go by what it
    has. The import adds a handler to the root logger, which is not its business, and is undone.

    Raises:
        ImportError: the package is not installed; says how.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import lvis.eval
    except ImportError as error:
        raise ImportError("LVIS evaluation needs the package lvis: pip install 'hqsam[lvis]'") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    if not hasattr(np, "float"):
        lvis.eval.np = _NumpyWithFloat()
    return lvis.eval


def require_lvis(truth: InstanceTruth) -> None:
    """Refuse what LVIS's rules cannot score, before any mask is computed.

    Raises:
        ImportError: the package lvis is not installed.
        ValueError: a category has no frequency, "r", "c" or "f".
    """
    if unknown := sorted(number for number, name in truth.categories.items() if name not in ("r", "c", "f")):
        raise ValueError(
            f"LVIS's rules need a frequency r, c or f of every category; {len(unknown)} have none, the first is "
            f"{unknown[0]}: is this an LVIS annotation file?"
        )
    _lvis()


def counted_categories(truth: InstanceTruth) -> dict[ImageId, set[int]]:
    """Image -> categories that are in it or were looked for in vain.

    The package drops masks of all others too; to do it before saves most of its memory with 300 masks an image.
    """
    counted = {number: set(image.negative) for number, image in truth.images.items()}
    for item in truth.instances:
        counted[item.image].add(item.category)
    return counted


class LvisMatching:
    """LVIS's rules: at most 300 masks of an image; a category counts where it was annotated.

    Args:
        truth: the set.
        entries: its instances, from `truth_entries`.
        detections: from `detection_entries`.

    Raises:
        ImportError: the package lvis is not installed.
        ValueError: a category has no frequency, "r", "c" or "f".
    """

    def __init__(
        self, truth: InstanceTruth, entries: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]]
    ) -> None:
        require_lvis(truth)
        module = _lvis()
        images = [
            {
                "id": position,
                "height": truth.images[number].size_hw[0],
                "width": truth.images[number].size_hw[1],
                "neg_category_ids": truth.images[number].negative,
                "not_exhaustive_category_ids": truth.images[number].not_exhaustive,
            }
            for position, number in enumerate(sorted(truth.images))
        ]
        categories = [{"id": number, "frequency": name} for number, name in truth.categories.items()]
        common = {"images": images, "categories": categories}
        self._run = module.LVISEval(
            _indexed(module.LVIS, {**common, "annotations": list(entries)}),
            _indexed(module.LVISResults, {**common, "annotations": list(detections)}),
            "segm",
        )
        self._run._prepare()
        self._unmatched = Unmatched()
        self._truth = {key: found for key, found in self._run._gts.items() if found}
        self._detections = {key: found for key, found in self._run._dts.items() if found}

    def pairs(self) -> dict[Key, Pairs]:
        """What has to be compared; LVIS knows no crowds."""
        return {
            key: pairs._replace(crowd=[False] * len(pairs.crowd))
            for key, pairs in paired(self._truth, self._detections).items()
        }

    def average_precision(self, overlaps: Mapping[Key, Matrix]) -> dict[str, float]:
        """AP in percent: "", "50", "75", sizes "s", "m", "l", frequencies "r", "c", "f"; the undefined are absent."""
        run = self._run
        keys = self._truth.keys() | self._detections.keys()
        run.ious = {key: overlaps.get(key, []) for key in keys}
        self._unmatched.use(overlaps)
        run.eval_imgs, slots = packed(
            self._truth,
            self._detections,
            run.params.cat_ids,
            run.params.area_rng,
            run.evaluate_img,
            self._unmatched,
        )
        run.params.img_ids = list(range(slots))
        if not slots:
            return {}
        run.accumulate()
        run.summarize()
        return {_SUFFIXES[name]: 100.0 * float(v) for name, v in run.results.items() if name in _SUFFIXES and v > -1}


def _indexed(kind: Any, dataset: dict[str, Any]) -> Any:
    """An object of the package out of data in memory: its constructors want a file, or copy the whole set."""
    made = kind.__new__(kind)
    made.logger, made.dataset = logging.getLogger(__name__), dataset
    made._create_index()
    return made
