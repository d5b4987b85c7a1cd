"""Average recall of class-agnostic mask proposals, by pycocotools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hqsam.metrics.instance_overlaps import LOWEST, Key, Matrix, plain_overlaps
from hqsam.metrics.instance_records import COLUMNS, SCORES, InstanceRecord, InstanceTruth, Score
from hqsam.metrics.instances import RecordStore, Scores, count_instances, one_category

LIMITS = (10, 100, 1000)


class ProposalScores(RecordStore):
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
        super().__init__(truths, any_category=True)
        if score not in SCORES or not limits or min(limits) < 1:
            raise ValueError(f"score is one of {', '.join(SCORES)}, limits are positive; got {score!r}, {list(limits)}")
        self.score: Score = score
        self.limits = tuple(sorted(limits))

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

    def _compute_set(self, truth: InstanceTruth, records: list[InstanceRecord]) -> Scores:
        from hqsam.metrics.coco_matching import truth_entries

        frequency = {number: truth.categories[item.category] for number, item in enumerate(truth.instances, 1)}
        groups: dict[str, Collection[int]] = {"": frequency.keys()}
        for letter in sorted(set(truth.categories.values()) - {""}):
            groups[letter] = {number for number, name in frequency.items() if name == letter}
        single = truth.without_categories()
        entries = truth_entries(single)
        records = [one_category(record) for record in records]
        counts = {**count_instances(truth), "n_proposals": sum(len(record.categories) for record in records)}
        found: Scores = {}
        for column in COLUMNS:
            if column in records[0].masks:
                images = self._candidates(single, entries, records, column)
                found[column] = {**self._recalls(entries, images, groups), **counts}
        return found

    def _candidates(
        self,
        truth: InstanceTruth,
        entries: Sequence[dict[str, Any]],
        records: Sequence[InstanceRecord],
        column: str,
    ) -> dict[Key, _Candidates]:
        from hqsam.metrics.coco_matching import detection_entries, grouped, paired

        instances = grouped(entries)
        proposals = grouped(detection_entries(records, column, self.score, truth, self.limits[-1]))
        images = {}
        for key, pairs in paired(instances, proposals).items():
            matrix = plain_overlaps(pairs)
            ranks = np.flatnonzero((matrix >= LOWEST).any(axis=1))
            entries_of_ranks = [proposals[key][rank] for rank in ranks.tolist()]
            images[key] = _Candidates(ranks.tolist(), entries_of_ranks, matrix[ranks], list(pairs.ids))
        return images

    def _recalls(
        self,
        entries: Sequence[dict[str, Any]],
        images: Mapping[Key, _Candidates],
        groups: Mapping[str, Collection[int]],
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for letter, numbers in groups.items():
            wanted = [entry for entry in entries if entry["id"] in numbers]
            for limit in self.limits:
                for size, value in _average_recall(wanted, images, limit).items():
                    if not (letter and size):
                        found[f"ar{limit}{letter}{size}"] = value
        return found


class _Candidates(NamedTuple):
    """The proposals of an image that can match an instance; the others change no recall, there being no precision."""

    ranks: list[int]  # places among all proposals of the image, best first
    entries: list[dict[str, Any]]
    matrix: Matrix  # (proposals, instances)
    instances: list[int]  # numbers of the instances


def _average_recall(
    wanted: Sequence[dict[str, Any]], images: Mapping[Key, _Candidates], limit: int
) -> dict[str, float]:
    """Recall in percent of the wanted instances by the first proposals of each image: "", "s", "m", "l"."""
    from hqsam.metrics.coco_matching import SIZES, CocoMatching, mean_of_defined

    numbers = {entry["id"] for entry in wanted}
    overlaps: dict[Key, Matrix] = {}
    proposals: list[dict[str, Any]] = []
    for key, image in images.items():
        rows = sum(rank < limit for rank in image.ranks)
        columns = [k for k, number in enumerate(image.instances) if number in numbers]
        if rows and columns:
            overlaps[key] = image.matrix[:rows][:, columns]
            proposals += image.entries[:rows]
    matching = CocoMatching(wanted, proposals, [1], limit)
    _, recall = matching.evaluate(overlaps)
    means = {"": mean_of_defined(recall[..., 0])}
    for position, letter in enumerate(SIZES.values(), 1):
        means[letter] = mean_of_defined(recall[..., position])
    return {letter: value for letter, value in means.items() if value is not None}
