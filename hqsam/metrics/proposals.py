"""Average recall of class-agnostic mask proposals, by pycocotools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hqsam.metrics.instance_overlaps import LOWEST, Key, Matrix, Pairs, plain_overlaps
from hqsam.metrics.instance_records import (
    COLUMNS,
    SCORES,
    ImageId,
    InstanceRecord,
    InstanceTruth,
    Score,
    TrueInstance,
)
from hqsam.metrics.instance_store import RecordStore, check_masks
from hqsam.metrics.instances import Scores, count_instances
from hqsam.rle import rle_area

LIMITS = (10, 100, 1000)


@dataclass(frozen=True)
class ProposalRecord:
    """Which proposals of an image overlap which instances by half and more; one line of `records.jsonl`.

    The others change no recall, since there is no precision: so a thousand proposals of an image become a few numbers.

    Attributes:
        set: name of the data set.
        image: id of the image in the set.
        count: proposals of the image, the same in every column.
        ranks: column -> place among the proposals of those that are kept, 0 for the best score, increasing.
        areas: column -> their pixels.
        overlaps: column -> [row of `ranks`, number of the instance in its image, mask IoU].
    """

    set: str
    image: ImageId
    count: int
    ranks: dict[str, list[int]]
    areas: dict[str, list[int]]
    overlaps: dict[str, list[list[float]]]

    @property
    def key(self) -> tuple[str, ImageId]:
        """What makes a record unique."""
        return self.set, self.image

    @property
    def columns(self) -> Collection[str]:
        """How its masks were made."""
        return self.ranks.keys()

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


class ProposalScores(RecordStore[ProposalRecord]):
    """Evaluator (see `hqsam.metrics.Evaluator`) of AR@10, AR@100 and AR@1000.

    Recall of the instances by the best proposals of each image, averaged over the thresholds 0.50 to 0.95; classes play
    no part. Where categories have frequencies (LVIS), recall of rare, common and frequent ones is given too: that
    of their instances alone.

    Args:
        truths: set name -> its annotated instances.
        score: what ranks the proposals.
        limits: proposals of an image that count.

    Raises:
        ValueError: an unknown score, or limits that are not positive.
    """

    def __init__(
        self, truths: Mapping[str, InstanceTruth], *, score: Score = "iou", limits: Sequence[int] = LIMITS
    ) -> None:
        super().__init__(truths)
        if score not in SCORES or not limits or min(limits) < 1:
            raise ValueError(f"score is one of {', '.join(SCORES)}, limits are positive; got {score!r}, {list(limits)}")
        self.score: Score = score
        self.limits = tuple(sorted(limits))
        self._instances: dict[tuple[str, ImageId], list[TrueInstance]] = {}
        for name, truth in self.truths.items():
            for item in truth.instances:
                self._instances.setdefault((name, item.image), []).append(item)

    def update(self, sample: InstanceRecord) -> ProposalRecord:
        """Compare the proposals of one image with its instances; the masks are not kept.

        Raises:
            ValueError: see `merge`; masks of another size than their image.
        """
        truth = self.truths.get(sample.set)
        if truth is not None and sample.image in truth.images:
            check_masks(sample, truth, any_category=True)
        record = self._reduce(sample)
        self.merge([[record]])
        return record

    def describe(self) -> dict[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        return {"score": self.score, "class_agnostic": True, "limits": list(self.limits), "overlap": "mask IoU"}

    def compute(self) -> dict[str, Scores]:
        """Set name -> column -> "ar10", "ar100", "ar1000" in percent, and counts.

        With a last letter they are of a size (s, m, l) or a frequency (r, c, f): "ar1000s". A metric that no instance
        defines is absent; the counts say why.

        Raises:
            ValueError: an image without a record.
        """
        return {name: self._compute_set(self.truths[name], self.records_of(name)) for name in sorted(self.truths)}

    def _check(self, record: ProposalRecord) -> None:
        count = len(self._instances.get(record.key, ()))
        if any(not 0 <= number < count for found in record.overlaps.values() for _, number, _ in found):
            raise ValueError(f"{record.set}, image {record.image}: a record of other annotations; here it has {count}")

    def _reduce(self, sample: InstanceRecord) -> ProposalRecord:
        instances = self._instances.get(sample.key, [])
        found = ProposalRecord(sample.set, sample.image, len(sample.categories), {}, {}, {})
        truth = [item.rle for item in instances]
        crowd = [item.crowd for item in instances]
        for column in sample.columns:
            scores = np.asarray(sample.scores(column, self.score), dtype=np.float64)
            order = np.argsort(-scores, kind="mergesort")[: self.limits[-1]].tolist()
            masks = [sample.masks[column][place] for place in order]
            matrix = plain_overlaps(Pairs(masks, truth, crowd, range(len(truth))))
            ranks = np.flatnonzero((matrix >= LOWEST).any(axis=1)).tolist()
            found.ranks[column] = ranks
            found.areas[column] = [rle_area(masks[rank]) for rank in ranks]
            found.overlaps[column] = [
                [row, number, float(matrix[rank, number])]
                for row, rank in enumerate(ranks)
                for number in np.flatnonzero(matrix[rank]).tolist()
            ]
        return found

    def _compute_set(self, truth: InstanceTruth, records: list[ProposalRecord]) -> Scores:
        from hqsam.metrics.coco_matching import truth_entries

        frequency = {number: truth.categories[item.category] for number, item in enumerate(truth.instances, 1)}
        groups: dict[str, Collection[int]] = {"": frequency.keys()}
        for letter in sorted(set(truth.categories.values()) - {""}):
            groups[letter] = {number for number, name in frequency.items() if name == letter}
        entries = truth_entries(truth.without_categories())
        counts = {**count_instances(truth), "n_proposals": sum(record.count for record in records)}
        return {
            column: {**self._recalls(entries, records, column, groups), **counts}
            for column in COLUMNS
            if column in records[0].columns
        }

    def _recalls(
        self,
        entries: Sequence[dict[str, Any]],
        records: Sequence[ProposalRecord],
        column: str,
        groups: Mapping[str, Collection[int]],
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for letter, numbers in groups.items():
            wanted: dict[int, dict[int, dict[str, Any]]] = {}  # image -> number in the image -> entry
            places: dict[int, int] = {}
            for entry in entries:
                place = places[entry["image_id"]] = places.get(entry["image_id"], -1) + 1
                if entry["id"] in numbers:
                    wanted.setdefault(entry["image_id"], {})[place] = entry
            for limit in self.limits:
                for size, value in _average_recall(wanted, records, column, limit).items():
                    if not (letter and size):
                        found[f"ar{limit}{letter}{size}"] = value
        return found


def _average_recall(
    wanted: Mapping[int, Mapping[int, dict[str, Any]]], records: Sequence[ProposalRecord], column: str, limit: int
) -> dict[str, float]:
    """Recall in percent of the wanted instances by the first proposals of each image: "", "s", "m", "l"."""
    from hqsam.metrics.coco_matching import SIZES, CocoMatching, mean_of_defined

    overlaps: dict[Key, Matrix] = {}
    proposals: list[dict[str, Any]] = []
    for image, record in enumerate(records):
        columns = {number: position for position, number in enumerate(wanted.get(image, ()))}
        rows = sum(rank < limit for rank in record.ranks[column])
        if not rows or not columns:
            continue
        matrix = overlaps[image, 1] = np.zeros((rows, len(columns)))
        for row, number, overlap in record.overlaps[column]:
            if row < rows and number in columns:
                matrix[int(row), columns[int(number)]] = overlap
        for rank, area in zip(record.ranks[column][:rows], record.areas[column], strict=False):
            proposals.append(
                {"id": len(proposals) + 1, "image_id": image, "category_id": 1, "area": float(area), "score": -rank}
            )
    truth = [entry for entries in wanted.values() for entry in entries.values()]
    matching = CocoMatching(truth, proposals, [1], limit)
    _, recall = matching.evaluate(overlaps)
    means = {"": mean_of_defined(recall[..., 0])}
    for position, letter in enumerate(SIZES.values(), 1):
        means[letter] = mean_of_defined(recall[..., position])
    return {letter: value for letter, value in means.items() if value is not None}
