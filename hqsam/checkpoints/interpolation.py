"""Weights between those of two files: what a fine-tuned model gained, and most of what the model before it could do."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from hqsam.checkpoints.formats import open_checkpoint, require_no_adapter
from hqsam.checkpoints.official import Part, listing
from hqsam.checkpoints.skeleton import require_complete
from hqsam.checkpoints.state import parts_of
from hqsam.errors import CheckpointError
from hqsam.models import head_title


def interpolated_tensors(
    official: Mapping[str, Tensor],
    path: str | PathLike[str],
    share: float,
    *,
    head: str | None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The tensors of a model moved towards those of a file, in each part (encoder, HQ head, ...) that both have.

    Means of a model before and after fine-tuning keep more of what it could do on other data than the fine-tuned
    one (WiSE-FT, Wortsman et al., CVPR 2022, equation 1). Tensors that are equal stay as they are, bit by bit. A score
    head of the file is left alone: it knows the masks of that file's head.

    Args:
        official: official name -> tensor.
        path: another file of such a model, or of parts of it.
        share: of the file, 0 to 1; 0 changes nothing.
        head: kind of the HQ head in `official`, None without one.
        dtype: number type of what is moved; None: that of each tensor.

    Returns:
        A new dictionary; sums are made in float32 at least.

    Raises:
        CheckpointError: the file is no such model or incomplete, or the two have no part in common.
    """
    if not 0 <= share <= 1:
        raise CheckpointError(f"share must be from 0 to 1, got {share}")
    other = open_checkpoint(path)
    require_complete(other)
    require_no_adapter(other.info)
    own_parts, other_parts = parts_of(official), parts_of(other.official)
    shared = set(own_parts.values()) & set(other_parts.values()) - {"score"}
    if not shared:
        raise CheckpointError(f"{path} is {other.info.title}: no part of it is in the model to be moved towards it")
    if "head" in shared and other.info.head != head:
        raise CheckpointError(f"{path} has {head_title(str(other.info.head))}, the model {head_title(str(head))}")
    own = _moving(own_parts, shared)
    theirs = _moving(other_parts, shared)
    common = own & theirs
    wrong = sorted(own ^ theirs) + sorted(n for n in common if official[n].shape != other.official[n].shape)
    if wrong:
        raise CheckpointError(f"{path} is {other.info.title}, which does not fit the model: {listing(wrong)}")
    moved = {name: _between(official[name], other.official[name], share, dtype) for name in common}
    return {name: moved.get(name, tensor) for name, tensor in official.items()}


def _moving(parts: Mapping[str, Part], shared: set[Part]) -> set[str]:
    """Names in the parts that move, without the counters of batch norms, which files may lack."""
    return {name for name, part in parts.items() if part in shared and not name.endswith("num_batches_tracked")}


def _between(start: Tensor, end: Tensor, share: float, dtype: torch.dtype | None) -> Tensor:
    if share == 0 or not start.is_floating_point():
        return start
    exact = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    a, b = start.to(exact), end.to(exact)
    # where both are equal the sum may still differ: -0 becomes 0, infinity no number
    return torch.where(a == b, a, torch.lerp(a, b, share)).to(dtype or start.dtype)
