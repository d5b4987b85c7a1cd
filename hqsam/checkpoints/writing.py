"""Writing checkpoints under official names, atomically."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from hqsam.checkpoints.formats import CheckpointInfo, inspect_checkpoint, open_checkpoint, recognise
from hqsam.checkpoints.reading import TensorFile, read_tensors
from hqsam.checkpoints.state import Selection, official_state_dict, require_selection, select, with_unused_classifier
from hqsam.errors import CheckpointError
from hqsam.models import Sam

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
    folders are created, an existing file is replaced. What is written loads in `segment_anything_hq`.

    Args:
        model: the model to save.
        path: ends with `.pth`, `.pt` (a plain dictionary) or `.safetensors`.
        part: "all"; "hq", the HQ head alone; "sam", the plain SAM inside.
        dtype: number type of the stored floating-point tensors; None keeps the model's.
        metadata: more entries for the string map of a `.safetensors` file, which always states format version, layout
            and variant.
        include_unused_head: give TinyViT files the classifier (zeros) without which the published strict builders
            refuse them. False makes the file 0.3 M numbers smaller.

    Returns:
        What was written.

    Raises:
        CheckpointError: an unknown suffix, part or number type, metadata that the format cannot carry, a head that was
            never trained (it would pass for a trained one when loaded), or the HQ head of a plain SAM.
    """
    path = _destination(path, metadata, dtype)
    if part != "sam" and model.head_state == "untrained":
        raise CheckpointError(
            "the HQ head of this model is untrained and would pass for a trained one when loaded; "
            "train it, or save SAM alone with part='sam'"
        )
    official = official_state_dict(model, part)
    return _write(path, official, dtype=dtype, metadata=metadata, include_unused_head=include_unused_head)


def convert_checkpoint(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    head: str | PathLike[str] | None = None,
    part: Selection = "all",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    include_unused_head: bool = True,
) -> CheckpointInfo:
    """Rewrite a checkpoint of any known layout: another container, number type or part, or merged with a head.

    The result is read back and compared with what was meant to be written.

    Args:
        src: the file to convert.
        dst: as `path` of `save_checkpoint`.
        head: a file with an HQ head or an HQ mask decoder to put into `src`, over what is there.
        part: as in `save_checkpoint`.
        dtype: as in `save_checkpoint`.
        metadata: as in `save_checkpoint`; entries of the source files are kept where `dst` can carry them.
        include_unused_head: as in `save_checkpoint`.

    Returns:
        What was written.

    Raises:
        CheckpointError: a file cannot be read or written, `head` is not a head for this encoder, or `part` asks for
            what is not there.
    """
    path = _destination(dst, metadata, dtype)
    require_selection(part)
    source = open_checkpoint(src)
    official, kept = dict(source.official), dict(source.info.metadata)
    if head is not None:
        extra = open_checkpoint(head)
        channels = source.architecture.early_channels if source.architecture else source.early_channels
        if extra.info.has_sam or extra.early_channels != channels:
            raise CheckpointError(f"head={head} is {extra.info.title}, not an HQ head for {src} ({source.info.title})")
        official |= extra.official
        kept |= extra.info.metadata
    official = select(official, part)
    if not official:
        raise CheckpointError(f"{src} is {source.info.title}; it has no tensors for part={part!r}")
    carried = {**kept, **(metadata or {})} if path.suffix == ".safetensors" else None
    info = _write(path, official, dtype=dtype, metadata=carried, include_unused_head=include_unused_head)
    _require_equal(path, official, dtype)
    return info


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends without an error.

    The content is on disk before the replacement, so that a crash leaves the old file or the new one, never half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.touch()
    usual_mode = temporary.stat().st_mode
    temporary.unlink()
    try:
        yield temporary
        temporary.chmod(usual_mode)  # safetensors makes files that only their owner can read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    path: Path,
    official: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None,
    include_unused_head: bool,
) -> CheckpointInfo:
    if include_unused_head:
        official = with_unused_classifier(official)
    tensors = {name: _storable(tensor, dtype) for name, tensor in official.items()}
    described = recognise(TensorFile(path, tensors, {}, 0)).info
    save: Callable[[Path], None]
    if path.suffix == ".safetensors":
        own = {"format": "pt", "hqsam_format": FORMAT_VERSION, "layout": described.layout}
        if described.variant is not None:
            own["variant"] = described.variant
        strings = {**(metadata or {}), **own}

        def save(temporary: Path) -> None:
            from safetensors.torch import save_file

            save_file(tensors, temporary, strings)
    else:

        def save(temporary: Path) -> None:
            torch.save(tensors, temporary)

    with atomic_path(path) as temporary:
        save(temporary)
    return inspect_checkpoint(path)


def _destination(path: str | PathLike[str], metadata: Mapping[str, str] | None, dtype: torch.dtype | None) -> Path:
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
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(f"weights need a floating-point dtype, got {dtype}")
    return path


def _storable(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.detach().cpu().contiguous()
    # A view would take its whole storage into the file.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _require_equal(path: Path, official: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    written = read_tensors(path)
    wrong = [name for name, tensor in official.items() if not _same(written.get(name), _storable(tensor, dtype))]
    if wrong:
        raise CheckpointError(f"{path} was not written correctly: {len(wrong)} tensors differ from the source")


def _same(a: Tensor | None, b: Tensor) -> bool:
    # As bytes, so that NaN equals NaN and -0.0 differs from 0.0.
    return a is not None and a.dtype == b.dtype and a.shape == b.shape and _bytes(a).equal(_bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
