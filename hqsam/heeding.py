"""Clicks that are heeded: SAM's logits where SAM does what a click says and the mask with HQ does not.

An HQ head learns to be right, and may so keep what a click was to take away. SAM's mask of the same prompts is there
already, from the same pass of the decoder, and nobody is freer than the person who clicks to say what the object is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.types import NEGATIVE, POSITIVE, Prompts


def heed_clicks(
    logits: Tensor, sam_logits: Tensor, prompts: Prompts, image_size: int, threshold: float = 0.0
) -> Tensor:
    """Let every click be heeded that SAM's own mask heeds.

    Where a mask is inside at a negative click, or outside at a positive one, and SAM's mask is not, the region around
    the click in which the two masks disagree as they do there takes SAM's logits. Regions are connected over edges.

    Args:
        logits: (N, C, 4h, 4w) of masks that HQ takes part in.
        sam_logits: (N, C, 4h, 4w), SAM's masks of the same prompts.
        prompts: N prompts in the model's frame; padding and corners of boxes are no clicks.
        image_size: side S of the model's frame, of which the logits are a grid.
        threshold: logits above it are inside.

    Returns:
        (N, C, 4h, 4w); `logits` itself where every click is heeded, or by neither mask.
    """
    kinds = prompts.kinds.to(logits.device)
    clicks = ((kinds == POSITIVE) | (kinds == NEGATIVE)).nonzero()  # (P, 2): prompt and token
    if not len(clicks):
        return logits
    rows, tokens = clicks.unbind(1)
    height, width = logits.shape[2:]
    # The middle of a pixel is half a pixel from its coordinate, as in SAM's prompt encoder.
    cells = (prompts.coords.to(logits.device)[rows, tokens].float() + 0.5) * (width / image_size)
    x, y = cells[:, 0].long().clamp(0, width - 1), cells[:, 1].long().clamp(0, height - 1)
    wanted = (kinds[rows, tokens] == POSITIVE)[:, None]
    refused = (logits[rows, :, y, x] > threshold) != wanted
    heeded_by_sam = (sam_logits[rows, :, y, x] > threshold) == wanted
    todo = (refused & heeded_by_sam).nonzero().tolist()  # click and mask
    if not todo:
        return logits
    result = logits.clone()
    for click, candidate in todo:
        row, inside = rows[click], bool(wanted[click])
        with_hq, sam = logits[row, candidate], sam_logits[row, candidate]
        differs = ((sam > threshold) == inside) & ((with_hq > threshold) != inside)
        region = _around(differs.cpu().numpy(), int(x[click]), int(y[click]))
        result[row, candidate] = torch.where(torch.from_numpy(region).to(logits.device), sam, result[row, candidate])
    return result


def _around(mask: NDArray[np.bool_], x: int, y: int) -> NDArray[np.bool_]:
    """The part of a mask that is connected, over edges, with one of its pixels."""
    import cv2

    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    part: NDArray[np.bool_] = labels == labels[y, x]
    return part
