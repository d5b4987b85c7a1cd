"""Clicks that are heeded: SAM's logits where SAM does what a click says and the mask with HQ does not.

An HQ head learns to be right, and may so keep what a click was to take away. SAM's mask of the same prompts is there
already, from the same pass of the decoder, and what the object is, is for the person to say who clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.types import NEGATIVE, POSITIVE, Prompts


class _Click(NamedTuple):
    """A click as one of the masks of its prompt sees it."""

    row: int
    candidate: int
    x: int  # cell of the logits
    y: int
    inside: bool  # what it says
    heeded: bool  # by the mask with HQ
    by_sam: bool


def heed_clicks(
    logits: Tensor, sam_logits: Tensor, prompts: Prompts, image_size: int, threshold: float = 0.0
) -> Tensor:
    """Let clicks be heeded that SAM's own mask heeds.

    Where a mask is inside at a negative click, or outside at a positive one, and SAM's mask is not, the region around
    the click in which the two masks disagree as they do there takes SAM's logits, and so do the cells next to
    the click, which its pixel is interpolated from. Regions are connected over edges. What is nearer to a
    click that the mask heeds and SAM's does not stays. All is judged on the grid of the logits.

    Args:
        logits: (N, C, 4h, 4w) of masks that HQ takes part in.
        sam_logits: (N, C, 4h, 4w), SAM's masks of the same prompts.
        prompts: N prompts in the model's frame; padding and corners of boxes are no clicks.
        image_size: side S of the model's frame, of which the logits are a grid.
        threshold: logits above it are inside.

    Returns:
        (N, C, 4h, 4w); `logits` itself where there is nothing to do.
    """
    clicks = _clicks(logits, sam_logits, prompts, image_size, threshold)
    todo = [click for click in clicks if click.by_sam and not click.heeded]
    if not todo:
        return logits
    result = logits.clone()
    for click in todo:
        with_hq, sam = logits[click.row, click.candidate], sam_logits[click.row, click.candidate]
        differs = ((sam > threshold) == click.inside) & ((with_hq > threshold) != click.inside)
        others = [o for o in clicks if o[:2] == click[:2] and o.heeded and not o.by_sam]
        region = torch.from_numpy(_around(differs.cpu().numpy(), click, others)).to(logits.device)
        target = result[click.row, click.candidate]
        target.copy_(torch.where(region, sam, target))
    return result


def _clicks(logits: Tensor, sam_logits: Tensor, prompts: Prompts, image_size: int, threshold: float) -> list[_Click]:
    """Every click with every mask of its prompt."""
    points = ((prompts.kinds == POSITIVE) | (prompts.kinds == NEGATIVE)).nonzero()  # (P, 2): prompt and token
    if not len(points):
        return []
    rows, tokens = points.unbind(1)
    size = logits.shape[-1]
    # The middle of a pixel is half a pixel from its coordinate, as in SAM's prompt encoder.
    places = (prompts.coords[rows, tokens].float() + 0.5) * (size / image_size)
    inside = (prompts.kinds[rows, tokens] == POSITIVE).tolist()
    cells = places.long().clamp(0, size - 1).tolist()
    on_device = rows.to(logits.device), places.to(logits.device)
    found = [(_at(masks, *on_device) > threshold).tolist() for masks in (logits, sam_logits)]  # (P, C) each
    return [
        _Click(row, candidate, x, y, says, with_hq == says, sam == says)
        for row, (x, y), says, *both in zip(rows.tolist(), cells, inside, *found, strict=True)
        for candidate, (with_hq, sam) in enumerate(zip(*both, strict=True))
    ]


def _at(masks: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Masks (N, C, 4h, 4w) of rows (P,) at places (P, 2), xy in cells from the first one's corner -> (P, C)."""
    last = masks.shape[-1] - 1
    places = (places - 0.5).nan_to_num().clamp(0, last)
    low = places.floor().long()
    high = (low + 1).clamp(max=last)
    share = (places - low)[:, :, None]
    upper, lower = (
        torch.lerp(masks[rows, :, y, low[:, 0]].float(), masks[rows, :, y, high[:, 0]].float(), share[:, 0])
        for y in (low[:, 1], high[:, 1])
    )
    return torch.lerp(upper, lower, share[:, 1])


def _around(differs: NDArray[np.bool_], click: _Click, others: Sequence[_Click]) -> NDArray[np.bool_]:
    """The connected part of a mask that a click is in, and the cells next to the click, without what others keep."""
    import cv2

    x, y = click.x, click.y
    _, labels = cv2.connectedComponents(differs.astype(np.uint8), connectivity=4)
    region: NDArray[np.bool_] = differs & (labels == labels[y, x])
    region[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    for other in others:
        rows, columns = np.ogrid[: region.shape[0], : region.shape[1]]
        region &= (rows - y) ** 2 + (columns - x) ** 2 <= (rows - other.y) ** 2 + (columns - other.x) ** 2
    return region
