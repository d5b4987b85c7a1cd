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

from hqsam.types import NEGATIVE, POSITIVE, Prompts

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
    corrects: bool  # the prompt's mask, or an answer beside one that no mask heeds it in


def heed_clicks(
    logits: Tensor, sam_logits: Tensor, prompts: Prompts, image_size: int, threshold: float = 0.0
) -> Tensor:
    """Let clicks be heeded.

    - A click that contradicts its prompt's mask is a correction, and so is one beside a mask that neither answer heeds.
      It decides the cells that the mask prompt has wrong and the new answer is not certain of, whose logits moved as it
      says by a quarter of what that of its own cell did or more; where these are more than a twentieth of the mask, a
      stronger response is asked for.
    - Any other click that the mask with HQ does not heed, and SAM's mask does, gives SAM's logits to the cells in which
      the two masks disagree as they do at the click.

    Either way the cells are those that are connected with the click over edges, and those next to it, which its pixel
    is interpolated from. What is nearer to another click is left out, where the two say the contrary and one is a
    correction, or where SAM's mask, which is to be followed, does not heed the other and the mask with HQ does. All is
    judged on the grid of the logits: where pixels are larger than a cell, a click may miss what it was put on.

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
    corrections = [click for click in clicks if click.corrects]
    followers = [click for click in clicks if not click.corrects and not click.heeded and click.by_sam]
    if not corrections and not followers:
        return logits
    result = logits.clone()
    for click in followers:
        with_hq, sam = logits[click.row, click.candidate], sam_logits[click.row, click.candidate]
        differs = ((sam > threshold) == click.inside) & ((with_hq > threshold) != click.inside)
        spared = [other for other in clicks if (other.heeded and not other.by_sam) or _contradicts(other, click)]
        region = _around(_connected(differs.cpu(), click), click, spared).to(logits.device)
        target = result[click.row, click.candidate]
        target.copy_(torch.where(region, sam, target))
    masks = logits if prompts.masks is None else prompts.masks  # without any nothing is a correction
    for click in corrections:
        before = masks[click.row, 0].to(logits) - threshold
        responding = _responding(logits[click.row, click.candidate] - threshold, before, click)
        spared = [other for other in clicks if other.inside != click.inside]
        region = _around(responding, click, spared).to(logits.device)
        target, sign = result[click.row, click.candidate], _sign(click)
        decided = sign * (sign * (target - threshold)).clamp(min=DECIDED) + threshold
        target.copy_(torch.where(region, decided, target))
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
    fed = prompts.mask_flags()[rows].to(says.device)
    wrong = torch.zeros_like(says)
    if prompts.masks is not None:
        before = _at(prompts.masks, rows.to(prompts.masks.device), places.to(prompts.masks.device))[:, 0]
        wrong = fed & ((before > threshold).to(says.device) != says)
    clicks = []
    for k, (row, (x, y), inside) in enumerate(zip(rows.tolist(), cells, says.tolist(), strict=True)):
        for candidate, masks in enumerate(zip(*(mask[k] for mask in found), strict=True)):
            with_hq, sam = (mask == inside for mask in masks)
            corrects = bool(wrong[k]) or (bool(fed[k]) and not with_hq and not sam)
            clicks.append(_Click(row, candidate, x, y, inside, with_hq, sam, corrects))
    return clicks


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
    """Cells (4h, 4w) that a correction decides: by how logits (4h, 4w) moved, of which the threshold was taken off."""
    sign = _sign(click)
    moved = (sign * (after - before)).cpu().float()
    is_open = ((before > 0) != click.inside).cpu() & (sign * after > -CERTAIN).cpu()
    there = float(moved[click.y, click.x])
    most = LARGEST * int((before > 0).sum())
    regions = (_connected(is_open & (moved > share * there), click) for share in SHARES)
    return next((region for region in regions if int(region.sum()) <= most), torch.zeros_like(is_open))


def _connected(mask: Tensor, click: _Click) -> Tensor:
    """Cells of a mask (4h, 4w) that are connected over edges with that of a click; none where that is not in it."""
    import cv2

    _, labels = cv2.connectedComponents(mask.numpy().astype(np.uint8), connectivity=4)
    return mask & torch.from_numpy(labels == labels[click.y, click.x])


def _around(region: Tensor, click: _Click, spared: Sequence[_Click]) -> Tensor:
    """A region (4h, 4w) and the cells next to its click, without what is nearer to other clicks of the same mask."""
    rows, columns = (torch.arange(size) for size in region.shape)

    def squared(center: _Click) -> Tensor:
        return ((rows - center.y) ** 2)[:, None] + (columns - center.x) ** 2

    region = region.clone()
    region[max(click.y - 1, 0) : click.y + 2, max(click.x - 1, 0) : click.x + 2] = True
    for other in spared:
        if other[:2] == click[:2]:
            region &= squared(click) <= squared(other)
    return region


def _contradicts(correction: _Click, click: _Click) -> bool:
    return correction.corrects and correction.inside != click.inside


def _sign(click: _Click) -> float:
    return 1.0 if click.inside else -1.0
