"""Average recall of class-agnostic mask proposals, by pycocotools."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hqsam.metrics.instance_overlaps import LOWEST, Key, Matrix, Pairs, plain_overlaps
from hqsam.metrics.instance_records import COLUMNS, ImageId, InstanceRecord, InstanceTruth, Score, TrueInstance
from hqsam.metrics.instance_store import RecordStore, check_sizes
from hqsam.metrics.instances import Scores, count_instances
from hqsam.rle import Rle, rle_area

LIMITS = (10, 100, 1000)


@dataclass(frozen=True)
class ProposalSample:
    """The proposals of one image; their number may differ from column to column.

    Attributes:
        set: name of the data set.
        image: id of the image in the set.
        scores: column -> what ranks each proposal; equal ones rank in this order.
        masks: column -> its mask, at the size of the image.

    Raises:
        ValueError: no column or an unknown one, lists of different lengths, a score that is not finite.
    """

    set: str
    image: ImageId
    scores: dict[str, list[float]]
    masks: dict[str, list[Rle]]

    def __post_init__(self) -> None:
        where = f"{self.set}, image {self.image}"
        if not self.masks or self.masks.keys() != self.scores.keys() or not self.masks.keys() <= set(COLUMNS):
            raise ValueError(
                f"{where}: masks and scores need the same columns of {', '.join(COLUMNS)}, got "
                f"{sorted(self.masks)} and {sorted(self.scores)}"
            )
        for column, scores in self.scores.items():
            if len(scores) != len(self.masks[column]):
                raise ValueError(f"{where}, {column}: {len(self.masks[column])} masks, but {len(scores)} scores")
            if not all(map(math.isfinite, scores)):
                raise ValueError(f"{where}, {column}: scores must be finite numbers, got {scores}")

    @classmethod
    def of_boxes(cls, record: InstanceRecord, by: Score = "iou") -> ProposalSample:
        """The masks of a detector's boxes, whatever their class, as proposals.

        Args:
            record: the masks.
            by: what ranks them.
        """
        scores = {column: list(record.scores(column, by)) for column in record.masks}
        return cls(record.set, record.image, scores, record.masks)


@dataclass(frozen=True)
class ProposalRecord:
    """Which proposals of an image overlap which instances by half and more; one line of `records.jsonl`.

    The others change no recall, since there is no precision: so a thousand proposals of an image become a few numbers.

    Attributes:
        set: name of the data set.
        image: id of the image in the set.
        n_proposals: column -> proposals of the image.
        ranks: column -> place among the proposals of those that are kept, 0 for the best score, increasing.
        areas: column -> their pixels.
        overlaps: column -> [row of `ranks`, number of the instance in its image, mask IoU].
    """

    set: str
    image: ImageId
    n_proposals: dict[str, int]
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
        limits: proposals of an image that count.

    Raises:
        ValueError: limits that are not positive.
    """

    def __init__(self, truths: Mapping[str, InstanceTruth], *, limits: Sequence[int] = LIMITS) -> None:
        super().__init__(truths)
        if not limits or min(limits) < 1:
            raise ValueError(f"limits are positive numbers, at least one; got {list(limits)}")
        self.limits = tuple(sorted(limits))
        self._instances: dict[tuple[str, ImageId], list[TrueInstance]] = {}
        for name, truth in self.truths.items():
            for item in truth.instances:
                self._instances.setdefault((name, item.image), []).append(item)

    def update(self, sample: ProposalSample) -> ProposalRecord:
        """Compare the proposals of one image with its instances; the masks are not kept.

        Raises:
            ValueError: see `merge` and `compare`.
        """
        record = self.compare(sample)
        self.merge([[record]])
        return record

    def compare(self, sample: ProposalSample) -> ProposalRecord:
        """The record of one image, for whoever merges it later.

        Raises:
            ValueError: an unknown set or image, masks of another size than their image.
        """
        check_sizes(sample, self.truth_of(sample))
        instances = self._instances.get((sample.set, sample.image), [])
        counts = {column: len(masks) for column, masks in sample.masks.items()}
        found = ProposalRecord(sample.set, sample.image, counts, {}, {}, {})
        truth = [item.rle for item in instances]
        crowd = [item.crowd for item in instances]
        for column, scores in sample.scores.items():
            order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="mergesort")[: self.limits[-1]].tolist()
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

    def describe(self) -> dict[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        return {"class_agnostic": True, "limits": list(self.limits), "overlap": "mask IoU"}

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

    def _compute_set(self, truth: InstanceTruth, records: list[ProposalRecord]) -> Scores:
        from hqsam.metrics.coco_matching import truth_entries

        frequency = {number: truth.categories[item.category] for number, item in enumerate(truth.instances, 1)}
        groups: dict[str, Collection[int]] = {"": frequency.keys()}
        for letter in sorted(set(truth.categories.values()) - {""}):
            groups[letter] = {number for number, name in frequency.items() if name == letter}
        entries = truth_entries(truth.without_categories())
        counts = count_instances(truth)
        return {
            column: {
                **self._recalls(entries, records, column, groups),
                **counts,
                "n_proposals": sum(record.n_proposals[column] for record in records),
            }
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
