"""Inputs of the comparison with transformers, shared by the test and the script that froze the answers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).parent / "fixtures" / "transformers.safetensors"

BOXES = torch.tensor([[10.0, 12.0, 90.0, 100.0], [30.0, 5.0, 120.0, 60.0]])
POINTS = torch.tensor([[[20.0, 30.0], [64.0, 64.0]], [[100.0, 40.0], [5.0, 120.0]]])
LABELS = torch.tensor([[1, 0], [1, 1]])

CASES: dict[str, dict[str, Tensor]] = {
    "boxes": {"boxes": BOXES},
    "points": {"points": POINTS, "labels": LABELS},
    "mask": {"boxes": BOXES[:1], "masks": torch.linspace(0, 30, 32 * 32).sin().view(1, 32, 32) * 8},
}
"""Prompts in model pixels: boxes (N, 4), points (N, K, 2) with labels (N, K), masks (1, 32, 32) of logits."""


def pixels() -> Tensor:
    """A normalised picture (1, 3, 128, 128)."""
    return torch.linspace(0, 60, 3 * 128 * 128).sin().view(1, 3, 128, 128)
