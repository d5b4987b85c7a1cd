"""Average precision and boundary average precision of instance masks, by the rules of COCO or LVIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hqsam.metrics.instance_overlaps import BOUNDARY, MASK, METRICS, overlaps_of_columns
from hqsam.metrics.instance_records import (
    COLUMNS,
    SCORES,
    InstanceRecord,
    InstanceTruth,
    Score,
)
from hqsam.metrics.instance_store import RecordStore, check_masks

Rules = Literal["coco", "lvis"]
Scores = dict[str, dict[str, float]]
"""Column -> metric -> number, in percent where it is a ratio."""

_BANDS = {"n_small": (0, 32**2), "n_medium": (32**2, 96**2), "n_large": (96**2, 1e10)}
"""COCO's sizes: pixels, both ends included."""


class InstanceScores(RecordStore[InstanceRecord]):
    """Evaluator (see `hqsam.metrics.Evaluator`) of AP and boundary AP.

    With the metric "ap" the numbers are those of pycocotools or lvis on the same masks. In "ap_b" and "ap_b_strict"
    the overlap alone is another: the smaller one of mask IoU and boundary IoU (ring of 2 % or 1 % of the image
    diagonal), and mask IoU where the truth is a crowd (Cheng et al., arXiv 2103.16562).

    Args:
        truths: set name -> its annotated instances.
        score: what ranks the masks.
        rules: "lvis" needs the package lvis, and sets with frequencies of categories.
        class_agnostic: every category counts as the same one; for sets without classes, such as UVO.
        metrics: which of "ap", "ap_b", "ap_b_strict".

    Raises:
        ValueError: an unknown option, or LVIS's rules without categories.
    """

    def __init__(
        self,
        truths: Mapping[str, InstanceTruth],
        *,
        score: Score = "box",
        rules: Rules = "coco",
        class_agnostic: bool = False,
        metrics: Sequence[str] = METRICS,
    ) -> None:
        super().__init__(truths)
        if score not in SCORES or rules not in ("coco", "lvis") or not set(metrics) <= set(METRICS) or not metrics:
            raise ValueError(
                f"score is one of {', '.join(SCORES)}, rules coco or lvis, metrics of {', '.join(METRICS)}; got "
                f"{score!r}, {rules!r}, {list(metrics)}"
            )
        if rules == "lvis" and class_agnostic:
            raise ValueError("LVIS's rules are about categories: class_agnostic goes with rules='coco'")
        self.class_agnostic = class_agnostic
        self.score: Score = score
        self.rules: Rules = rules
        self.metrics = tuple(metrics)

    def update(self, sample: InstanceRecord) -> InstanceRecord:
        """Add the masks of one image.

        Raises:
            ValueError: see `merge`; an unknown category, or masks of another size than their image.
        """
        self.merge([[sample]])
        return sample

    def _check(self, record: InstanceRecord) -> None:
        check_masks(record, self.truths[record.set], any_category=self.class_agnostic)

    def describe(self) -> dict[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        return {
            "score": self.score,
            "rules": self.rules,
            "class_agnostic": self.class_agnostic,
            "limit": "300 masks of an image" if self.rules == "lvis" else "100 masks of an image and category",
            "overlap": {
                name: "mask IoU" if name == MASK else f"min(mask IoU, boundary IoU of ratio {BOUNDARY[name]})"
                for name in self.metrics
            },
            "area": "of a mask its pixels, of an instance as the data set states it",
        }

    def compute(self) -> dict[str, Scores]:
        """Set name -> column -> metric: "ap", "ap50", "aps", ..., "ap_b", "ap_b50", ... in percent, and counts.

        A metric that no instance defines is absent; the counts of instances ("n", "n_small", "n_crowd", ...) say why.

        Raises:
            ValueError: an image without a record, or no frequencies for LVIS's rules.
            ImportError: LVIS's rules without the package lvis.
        """
        return {name: self._compute_set(self.truths[name], self.records_of(name)) for name in sorted(self.truths)}

    def _compute_set(self, truth: InstanceTruth, records: list[InstanceRecord]) -> Scores:
        if self.class_agnostic:
            truth = truth.without_categories()
            records = [one_category(record) for record in records]
        columns = [column for column in COLUMNS if column in records[0].masks]
        matchings = make_matchings(truth, records, columns, self.score, self.rules)
        sizes = [truth.images[record.image].size_hw for record in records]
        overlaps = overlaps_of_columns({c: matchings[c].pairs() for c in columns}, sizes, self.metrics)
        counts = {**count_instances(truth), "n_masks": sum(len(record.categories) for record in records)}
        found: Scores = {}
        for column in columns:
            matching, tables = matchings.pop(column), overlaps.pop(column).of  # what a column needs goes with it
            found[column] = {
                f"{metric}{suffix}": value
                for metric in self.metrics
                for suffix, value in matching.average_precision(tables[metric]).items()
            }
            found[column].update(counts)
        return found


def make_matchings(
    truth: InstanceTruth, records: Sequence[InstanceRecord], columns: Sequence[str], score: Score, rules: Rules
) -> dict[str, Any]:
    """Column -> what matches its masks with the instances (`CocoMatching` or `LvisMatching`)."""
    from hqsam.metrics.coco_matching import CocoMatching, detection_entries, truth_entries

    entries = truth_entries(truth)
    if rules == "coco":
        return {
            column: CocoMatching(entries, detection_entries(records, column, score, truth), truth.categories)
            for column in columns
        }
    from hqsam.metrics.lvis_matching import LIMIT, LvisMatching, counted_categories

    counted = counted_categories(truth)
    return {
        column: LvisMatching(truth, entries, detection_entries(records, column, score, truth, LIMIT, counted))
        for column in columns
    }


def one_category(record: InstanceRecord) -> InstanceRecord:
    """The same masks, all of category 1."""
    return InstanceRecord(
        record.set, record.image, [1] * len(record.categories), record.box_scores, record.iou_scores, record.masks
    )


def count_instances(truth: InstanceTruth) -> dict[str, float]:
    """What the numbers are over: images, instances that are no crowd, also by size, and crowds."""
    crowds = Counter(item.crowd for item in truth.instances)
    areas = [item.area for item in truth.instances if not item.crowd]
    bands = {name: sum(low <= area <= high for area in areas) for name, (low, high) in _BANDS.items()}
    return {"n": crowds[False], "n_crowd": crowds[True], **bands, "n_images": len(truth.images)}
