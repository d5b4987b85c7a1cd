"""Corrections while training: a click where the last answer was wrong, and that answer as the next mask prompt.

The interactive simulation of SAM's training (Segment Anything, section 3 "Training" and appendix A): points are drawn
uniformly from the error region, positive where the object was missed, negative where something else was taken. In two
rounds nothing is added but the last answer.

Shape legend: N prompts, K tokens, S side of the model's input, (h, w) grid of low-resolution logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hqsam.losses import mask_at
from hqsam.types import BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, PAD, POSITIVE, Prompts


@dataclass(frozen=True)
class Rounds:
    """How often a prompt is asked again after its first answer, and with what. Prompts never lose a point.

    SAM: 8 clicks, `mask_only` 2, which with the first prompt are 11 rounds.

    Attributes:
        clicks: rounds that add a click.
        mask_only: rounds that add nothing but the last answer: one at the end, a second one at a random place between
            two clicks.
        feed_mask: the last answer's logits are the mask prompt of the next round.

    Raises:
        ValueError: rounds that would ask the same again, or no place between two clicks.
    """

    clicks: int = 0
    mask_only: int = 0
    feed_mask: bool = True

    def __post_init__(self) -> None:
        if self.clicks < 0 or self.mask_only not in (0, 1, 2):
            raise ValueError(f"rounds >= 0 and mask_only 0, 1 or 2, got {self.clicks} and {self.mask_only}")
        if self.mask_only and not self.feed_mask:
            raise ValueError("a round of mask_only without feed_mask would ask the same question again")
        if self.mask_only == 2 and self.clicks < 2:
            raise ValueError(f"mask_only=2 puts a round between two clicks, but rounds is {self.clicks}")

    @property
    def count(self) -> int:
        """Rounds after the first prompt."""
        return self.clicks + self.mask_only

    @property
    def num_draws(self) -> int:
        """Random numbers that each prompt needs: of the clicks; and of the place between them, with one click spare."""
        return self.clicks + (2 if self.mask_only == 2 else 0)

    def ask_again(self, prompts: Prompts, turn: int, answer: Tensor, masks: Tensor, draws: Tensor) -> Prompts:
        """The prompts of the next round. Nothing here waits for the device.

        Args:
            prompts: N prompts of the last round.
            turn: number of the next round, 1 ... `count`.
            answer: (N, 1, h, w) logits of the last round, without gradient.
            masks: (N, 1, S, S), the truth; see `correction_clicks`.
            draws: (N, `num_draws`) uniform in [0, 1).
        """
        fed = answer if self.feed_mask else None
        if self.mask_only and turn == self.count:
            return replace(prompts, masks=fed, has_mask=None)
        coords, kinds = correction_clicks(answer, masks, draws[:, turn - 1])
        if self.mask_only == 2:
            place = 2 + (draws[:, -1] * (self.clicks - 1)).to(torch.int64).clamp(max=self.clicks - 2)
            kinds = kinds.masked_fill((place == turn)[:, None], PAD)
        return with_click(prompts, coords, kinds, fed)


def correction_clicks(logits: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One click for each mask, at a random low-resolution pixel that the answer has wrong.

    Where nothing is wrong the click is a positive one on the object; where there is no object either, it is batch
    padding and says nothing. Nothing here waits for the device.

    Args:
        logits: (N, 1, h, w), the last answer.
        masks: (N, 1, S, S) uint8 0..255 or floating 0..1, the truth.
        draws: (N,) uniform in [0, 1), which of those pixels it is.

    Returns:
        coords (N, 1, 2), xy at the centre of that pixel in pixels of the model's input; kinds (N, 1).
    """
    height, width = logits.shape[-2:]
    truth = (mask_at(masks, (height, width)) > 0.5).flatten(1)  # (N, h * w)
    wrong = (logits > 0).flatten(1) != truth
    region = torch.where(wrong.any(dim=1, keepdim=True), wrong, truth)
    order = region.cumsum(dim=1, dtype=torch.int32)
    total = order[:, -1:]
    rank = torch.minimum((draws[:, None] * total).to(torch.int32), total - 1)
    index = torch.searchsorted(order, rank, right=True).clamp(max=height * width - 1)  # (N, 1)
    inside = truth.gather(1, index)
    kinds = torch.where(inside, POSITIVE, NEGATIVE).masked_fill(total == 0, PAD)
    cell = torch.tensor([masks.shape[-1] / width, masks.shape[-2] / height]).to(logits.device, non_blocking=True)
    pixels = torch.stack([index % width, index // width], dim=-1)  # (N, 1, 2)
    return (pixels + 0.5) * cell - 0.5, kinds


def with_click(prompts: Prompts, coords: Tensor, kinds: Tensor, answer: Tensor | None) -> Prompts:
    """The same prompts and one click more.

    Args:
        prompts: N prompts, each with a box or with SAM's "not a point" token (`with_not_a_point`).
        coords: (N, 1, 2) in pixels of the model's input.
        kinds: (N, 1).
        answer: (N, 1, h, w) logits that become the mask prompt; None leaves the mask prompts as they are.
    """
    result = _with_token(prompts, coords.to(prompts.coords.dtype), kinds)
    return result if answer is None else replace(result, masks=answer, has_mask=None)


def with_not_a_point(prompts: Prompts) -> Prompts:
    """Give SAM's "not a point" token to prompts that will get points and have neither a box nor that token yet.

    Points without a box come with it, exactly once, as in the predictor.
    """
    complete = ((prompts.kinds == NOT_A_POINT) | (prompts.kinds == BOX_TOP_LEFT)).any(dim=1, keepdim=True)
    return _with_token(prompts, prompts.coords.new_zeros((len(prompts), 1, 2)), torch.where(complete, PAD, NOT_A_POINT))


def _with_token(prompts: Prompts, coords: Tensor, kinds: Tensor) -> Prompts:
    return replace(
        prompts,
        coords=torch.cat([prompts.coords, coords], dim=1),
        kinds=torch.cat([prompts.kinds, kinds.to(prompts.kinds.dtype)], dim=1),
        padded=True,
    )
