"""Clicks that are heeded: what the object is, is for the person to say who clicks.

An HQ head learns to be right, and may so keep what a click was to take away. Two things tell how far a click reaches.
Where an answer is corrected, which came as mask prompt: how its logits respond to the click. Else SAM's own mask of the
same prompts, which is there already, from the same pass of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hqsam.types import NEGATIVE, OUTSIDE_LOGIT, POSITIVE, Prompts

SHARES = (0.25, 0.5, 0.75)
"""Response to a click where its region ends, over that at the click itself; the first that fits `LARGEST`."""
LARGEST = 0.05
"""Largest region of a click, over the mask that it corrects: a response of the whole object does not say where."""
CERTAIN = 4.0
"""What the new answer is so certain of stays, in logits."""
DECIDED = 1.0
"""Distance from the threshold, in logits, that the region of a correction gets at least."""


class _Click(NamedTuple):
    """A click as one of the masks of its prompt sees it."""

    row: int
    candidate: int
    x: int  # cell of the logits
    y: int
    inside: bool  # what it says
    heeded: bool  # by the mask with HQ
    by_sam: bool
    corrects: bool  # the mask prompt


def heed_clicks(
    logits: Tensor, sam_logits: Tensor, prompts: Prompts, image_size: int, threshold: float = 0.0
) -> Tensor:
    """Let clicks be heeded.

    A click that contradicts its prompt's mask corrects it. Around the click those cells are decided that the mask
    prompt has wrong, whose logits moved as the click says by a quarter of what the one of the click did or more, and
    where the new answer is not certain of the contrary. Where these are more than a twentieth of the mask, a stronger
    response is asked for. With any other click goes what SAM's mask says: where the mask with HQ is inside at a
    negative click, or outside at a positive one, and SAM's mask is not, the region around the click in which the two
    masks disagree as they do there takes SAM's logits. In both cases regions are connected over edges, the cells next
    to the click, which its pixel is interpolated from, are of them, and what is nearer to other clicks stays: to those
    that say the contrary, or that the mask heeds and SAM's does not. All is judged on the grid of the logits.

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
    todo = [click for click in clicks if click.corrects or (click.by_sam and not click.heeded)]
    if not todo:
        return logits
    result = logits.clone()
    for click in todo:
        with_hq, sam = logits[click.row, click.candidate], sam_logits[click.row, click.candidate]
        target = result[click.row, click.candidate]
        others = [other for other in clicks if other[:2] == click[:2]]
        if click.corrects and prompts.masks is not None:
            before = prompts.masks[click.row, 0].to(with_hq)
            region = _responding(with_hq - threshold, before - threshold, click).to(logits.device)
            region &= _nearest(click, [o for o in others if o.inside != click.inside], region)
            sign = 1.0 if click.inside else -1.0
            decided = sign * (sign * (target - threshold)).clamp(min=DECIDED) + threshold
            target.copy_(torch.where(region, decided, target))
        else:
            differs = ((sam > threshold) == click.inside) & ((with_hq > threshold) != click.inside)
            region = _around(differs, click).to(logits.device)
            region &= _nearest(click, [o for o in others if o.heeded and not o.by_sam], region)
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
    says = prompts.kinds[rows, tokens] == POSITIVE
    cells = places.long().clamp(0, size - 1).tolist()
    on_device = rows.to(logits.device), places.to(logits.device)
    found = [(_at(masks, *on_device) > threshold).tolist() for masks in (logits, sam_logits)]  # (P, C) each
    corrects = torch.zeros_like(says)
    if prompts.masks is not None:
        before = _at(prompts.masks, rows.to(prompts.masks.device), places.to(prompts.masks.device))[:, 0]
        corrects = ((before > threshold).to(says.device) != says) & prompts.mask_flags()[rows].to(says.device)
    return [
        _Click(row, candidate, x, y, inside, with_hq == inside, sam == inside, wrong)
        for row, (x, y), inside, wrong, *both in zip(
            rows.tolist(), cells, says.tolist(), corrects.tolist(), *found, strict=True
        )
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


def _responding(after: Tensor, before: Tensor, click: _Click) -> Tensor:
    """Cells (4h, 4w) that a click decides, from logits (4h, 4w) with it and of the mask before; the threshold is 0."""
    sign = 1.0 if click.inside else -1.0
    moved = (sign * (after - before)).cpu().float()
    is_padding = ((after == before) & (after <= OUTSIDE_LOGIT)).cpu()  # of answers that were made without it
    is_open = ((before > 0) != click.inside).cpu() & (sign * after > -CERTAIN).cpu()
    there = float(moved[click.y, click.x])
    most = LARGEST * int((before > 0).sum())
    regions = (_connected(is_open & (moved > share * there), click) for share in SHARES if there > 0)
    region = next((region for region in regions if int(region.sum()) <= most), torch.zeros_like(is_open))
    region[_beside(click)] = True
    return region & ~is_padding


def _around(differs: Tensor, click: _Click) -> Tensor:
    """The connected part of a mask (4h, 4w) that a click is in, and the cells next to the click."""
    region = _connected(differs.cpu(), click)
    region[_beside(click)] = True
    return region


def _connected(mask: Tensor, click: _Click) -> Tensor:
    """Cells of a mask (4h, 4w) that are connected over edges with that of a click; none where that is not in it."""
    import cv2

    _, labels = cv2.connectedComponents(mask.numpy().astype(np.uint8), connectivity=4)
    return mask & torch.from_numpy(labels == labels[click.y, click.x])


def _beside(click: _Click) -> tuple[slice, slice]:
    """Rows and columns of the cells that the pixel of a click is interpolated from."""
    return slice(max(click.y - 1, 0), click.y + 2), slice(max(click.x - 1, 0), click.x + 2)


def _nearest(click: _Click, others: Sequence[_Click], like: Tensor) -> Tensor:
    """Cells (4h, 4w) that are no nearer to others than to a click."""
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape)

    def squared(center: _Click) -> Tensor:
        return ((rows - center.y) ** 2)[:, None] + (columns - center.x) ** 2

    mine = squared(click)
    result = torch.ones_like(like)
    for other in others:
        result &= mine <= squared(other)
    return result
