"""Writing checkpoints atomically, under official names unless another library's are asked for."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from hqsam.checkpoints.foreign import Naming, from_official
from hqsam.checkpoints.formats import (
    CheckpointInfo,
    inspect_checkpoint,
    parts_in,
    recognise,
)
from hqsam.checkpoints.reading import HEAD, IMAGE_SIZE, TensorFile
from hqsam.checkpoints.recommendations import check_recommendations
from hqsam.checkpoints.state import Selection, official_state_dict, with_unused_classifier
from hqsam.errors import CheckpointError, HqsamError, OutputError
from hqsam.models import FULL_HEAD, Sam, head_title

FORMAT_VERSION = "1"
_SUFFIXES = (".pth", ".pt", ".safetensors")


def save_checkpoint(
    model: Sam,
    path: str | PathLike[str],
    *,
    part: Selection = "all",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    include_unused_head: bool = True,
) -> CheckpointInfo:
    """Write a model, or a part of it, under official names.

    The file appears complete or not at all: it is written beside its destination, flushed to disk and moved. Missing
    folders are created, an existing file is replaced. What is written loads in `segment_anything_hq`, unless the model
    has a score head, which that does not know: `convert_checkpoint(..., to="hq_sam")` leaves it out.

    Args:
        model: the model to save.
        path: ends with `.pth`, `.pt` (a plain dictionary) or `.safetensors`.
        part: "all"; "hq", the HQ head alone (with its score head); "hq_decoder", that and SAM's mask decoder; "sam",
            the plain SAM inside.
        dtype: number type of the stored floating-point tensors; None keeps the model's.
        metadata: more entries for the string map of a `.safetensors` file, which always states format version, layout
            and variant, and with SAM inside the side of its input (`image_size`). "recommended_fusion" ("sum", "hq" or
            "sam"), "recommended_score" ("sam", "own" or "own_boundary"), "recommended_refine" (one of `REFINEMENTS`),
            "recommended_heed_clicks" ("yes" or "no") and "recommended_upsampling" ("bilinear" or "guided") are what
            `create_model` makes the defaults. A head other than the published one is named by "hq_head".
        include_unused_head: give TinyViT files the classifier (zeros) without which the published strict builders
            refuse them. False makes the file 0.3 M numbers smaller.

    Returns:
        What was written.

    Raises:
        CheckpointError: an unknown suffix, part or number type, metadata that the format cannot carry, a head that was
            never trained (it would pass for a trained one when loaded), the HQ head of a plain SAM, or one that no
            published program knows in a file that cannot say so.
    """
    path = destination(path, metadata, dtype)
    if part != "sam" and model.head_state == "untrained":
        raise CheckpointError(
            "the HQ head of this model is untrained and would pass for a trained one when loaded; "
            "train it, or save SAM alone with part='sam'"
        )
    official = official_state_dict(model, part)
    if not part.startswith("hq") and path.suffix == ".safetensors":
        metadata = {**(metadata or {}), IMAGE_SIZE: str(model.image_size)}
    return write(
        path, official, head=model.head, dtype=dtype, metadata=metadata, include_unused_head=include_unused_head
    )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends without an error.

    The content is on disk before the replacement, so that a crash leaves the old file or the new one, never half.

    Raises:
        OutputError: the file cannot be written; an old one stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        temporary.chmod(usual_mode)  # safetensors makes files that only their owner can read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise OutputError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # of the same trouble; the error is on its way already
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in a folder: the temporary files of `atomic_path`."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


def _write_failure(error: Exception) -> str | None:
    """Why a file could not be written, or None for an error of another kind. Libraries have their own types for it."""
    if isinstance(error, OSError) and not isinstance(error, HqsamError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":
        return str(error)
    # torch says where its counter stood, not what the system said
    return "not all of it could be written; is the disk full?" if "inline_container" in str(error) else None


def write(
    path: Path,
    official: Mapping[str, Tensor],
    *,
    head: str | None = None,
    naming: Naming = "official",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    include_unused_head: bool = True,
) -> CheckpointInfo:
    """Write tensors with official names under the names of a library; see `save_checkpoint`."""
    said = {} if head in (None, FULL_HEAD) or "head" not in parts_in(official) else {HEAD: str(head)}
    if said and (naming != "official" or path.suffix != ".safetensors"):
        raise not_published(str(head), str(path))
    if include_unused_head and naming == "official":
        official = with_unused_classifier(official)
    stored = {name: storable(tensor, dtype) for name, tensor in official.items()}
    tensors = from_official(stored, naming)
    described = recognise(TensorFile(path, tensors, said, 0)).info
    save: Callable[[Path], None]
    if path.suffix == ".safetensors":
        own = {"format": "pt", "hqsam_format": FORMAT_VERSION, "layout": described.layout}
        if described.variant is not None:
            own["variant"] = described.variant
        # What describes the tensors is not the caller's to say, nor does it hold for a part alone.
        ours = {HEAD} if described.has_sam else {HEAD, IMAGE_SIZE}
        told = {key: text for key, text in (metadata or {}).items() if key not in ours}
        strings = {**told, **own, **said}

        def save(temporary: Path) -> None:
            from safetensors.torch import save_file

            save_file(tensors, temporary, strings)
    else:

        def save(temporary: Path) -> None:
            torch.save(tensors, temporary)

    with atomic_path(path) as temporary:
        save(temporary)
    return inspect_checkpoint(path)


def not_published(head: str, path: str) -> CheckpointError:
    """The error for a head that other programs would take for the published one."""
    return CheckpointError(
        f"{path} would hold {head_title(head)}, which no published layout has; keep it under official names "
        "in a .safetensors file, which says what it is"
    )


def destination(path: str | PathLike[str], metadata: Mapping[str, str] | None, dtype: torch.dtype | None) -> Path:
    """The path to write to, after checking that it can be written and can carry what it is asked to.

    Raises:
        CheckpointError: an unknown suffix, a folder, metadata that the format cannot carry, or a wrong number type.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(f"a checkpoint ends with {', '.join(_SUFFIXES)}, got {path.name!r}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file in it")
    if metadata and path.suffix != ".safetensors":
        raise CheckpointError(f"a {path.suffix} file cannot carry metadata; save as .safetensors")
    wrong = {key: value for key, value in (metadata or {}).items() if not isinstance(value, str)}
    if wrong:
        raise CheckpointError(f"metadata values must be strings, got {wrong}")
    check_recommendations(metadata or {}, str(path))
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(f"weights need a floating-point dtype, got {dtype}")
    return path


def storable(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as it goes into a file: on the CPU, of the wanted number type, with a storage of its own size."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.detach().cpu().contiguous()
    # A view would take its whole storage into the file.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
