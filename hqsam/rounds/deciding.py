"""Whether the new model of a round becomes the current one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hqsam.engine.evaluation.comparison import compare_results, read_side
from hqsam.rounds.state import Change

METRICS = {"miou": "mIoU", "mbiou": "mBIoU"}
CRITERION = (
    "A new model becomes the current one if the 95 % interval of its difference in boundary IoU (mBIoU), over the same "
    "held-out masks, is above zero, and that in mask IoU (mIoU) is not below zero. Otherwise the old one stays."
)


class Decision(NamedTuple):
    """What was decided, and why."""

    adopted: bool
    reason: str


def measured_changes(before: Path, after: Path) -> dict[str, Change]:
    """Compare two evaluations, by the paired bootstrap over images.

    Args:
        before: run folder of the old model's evaluation.
        after: that of the new one's.

    Raises:
        DataError: they cannot be compared.
    """
    found = compare_results(read_side(before), read_side(after))
    changes = {}
    for name in METRICS:
        part = found.metrics[name]["mean"]
        # one image has no interval: everything is possible then
        low, high = (part.low, part.high) if part.low is not None and part.high is not None else (-100.0, 100.0)
        changes[name] = Change(before=part.a, after=part.b, low=low, high=high)
    return changes


def decide(changes: Mapping[str, Change]) -> Decision:
    """Apply `CRITERION`."""
    mask, boundary = changes["miou"], changes["mbiou"]
    if boundary.low <= 0:
        word = "worse" if boundary.high < 0 else "not clearly better"
        return Decision(False, f"mBIoU is {word}: {describe(boundary)}")
    if mask.high < 0:
        return Decision(False, f"mIoU is worse: {describe(mask)}, though mBIoU is better: {describe(boundary)}")
    return Decision(True, f"mBIoU is better: {describe(boundary)}")


def describe(change: Change) -> str:
    """Difference and interval, in percent points."""
    return f"{change.after - change.before:+.2f} ({change.low:+.2f} to {change.high:+.2f})"
