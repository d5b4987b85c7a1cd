"""Counts over annotation files: how far the work is, how long it took, and what became of proposals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from hqsam.rle import Rle
from hqsam.serve.messages import State
from hqsam.serve.store import Annotations


class Tally(NamedTuple):
    """What one file adds to the counts.

    Attributes:
        state: of the work on the image.
        accepted: objects that a person made or took.
        open: objects that are proposed and not accepted.
        timed: accepted objects whose time is known.
        seconds: of these together.
        proposed: everything that the server ever proposed.
        undecided: proposals that are still there as such.
        kept: proposals that were accepted as they were.
        edited: proposals that were accepted after a change.
        ious: sum of the IoUs of accepted proposals with what was proposed.
    """

    state: State
    accepted: int
    open: int
    timed: int
    seconds: float
    proposed: int
    undecided: int
    kept: int
    edited: int
    ious: float


def tally(content: Annotations) -> Tally:
    """Count one file."""
    accepted = content.accepted()
    times = [item.seconds for item in accepted if item.seconds is not None]
    taken = [item for item in accepted if item.id in content.proposals]
    pairs = [(item.rle.as_rle(), content.proposals[item.id].rle.as_rle()) for item in taken]
    undecided = [item for item in content.objects if item.status == "proposed" and item.id in content.proposals]
    same = sum(now == then for now, then in pairs)
    return Tally(
        state=content.state,
        accepted=len(accepted),
        open=len(content.objects) - len(accepted),
        timed=len(times),
        seconds=sum(times),
        proposed=len(content.proposals),
        undecided=len(undecided),
        kept=same,
        edited=len(pairs) - same,
        ious=sum(1.0 if now == then else _iou(now, then) for now, then in pairs),
    )


def statistics(tallies: Iterable[Tally]) -> dict[str, Any]:
    """The counts of all files together.

    Returns:
        "masks" that were accepted; "masks_per_image" over images that are done or have one; "seconds_per_mask" over
        masks whose time is known; of "proposals" how many were "proposed", "accepted" as they were, "edited" and
        accepted, and "deleted", and the mean IoU of what was accepted with what was proposed. Means of nothing are
        None.
    """
    rows = list(tallies)
    masks = sum(row.accepted for row in rows)
    timed = sum(row.timed for row in rows)
    worked = sum(row.accepted > 0 or row.state == "done" for row in rows)
    proposed = sum(row.proposed for row in rows)
    kept, edited = sum(row.kept for row in rows), sum(row.edited for row in rows)
    return {
        "masks": masks,
        "masks_per_image": _mean(masks, worked),
        "seconds_per_mask": _mean(sum(row.seconds for row in rows), timed),
        "proposals": {
            "proposed": proposed,
            "accepted": kept,
            "edited": edited,
            "deleted": proposed - kept - edited - sum(row.undecided for row in rows),
            "mean_iou": _mean(sum(row.ious for row in rows), kept + edited),
        },
    }


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 4) if count else None


def _iou(now: Rle, then: Rle) -> float:
    from pycocotools import mask as coco

    return float(coco.iou([dict(now)], [dict(then)], [0])[0, 0])
