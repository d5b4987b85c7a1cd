"""From any known layout to any other, proved by reading the result back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from hqsam.checkpoints.adapters import merged_tensors
from hqsam.checkpoints.foreign import Naming
from hqsam.checkpoints.formats import (
    SAM_PARTS,
    Checkpoint,
    CheckpointInfo,
    open_checkpoint,
    parts_in,
    require_no_adapter,
)
from hqsam.checkpoints.interpolation import interpolated_tensors
from hqsam.checkpoints.official import Part, family_of, is_score
from hqsam.checkpoints.reading import HEAD
from hqsam.checkpoints.recommendations import AS_EVER, RECOMMENDATIONS, RECOMMENDED_SCORE
from hqsam.checkpoints.skeleton import require_complete
from hqsam.checkpoints.state import Selection, parts_of, require_selection, select
from hqsam.checkpoints.writing import destination, not_published, storable, write
from hqsam.errors import CheckpointError
from hqsam.models import FULL_HEAD

logger = logging.getLogger(__name__)

Format = Literal["official", "sam", "hq_sam", "hq_head", "hq_decoder", "transformers", "timm"]

# What a format holds; None: whatever the source has.
_PARTS: Mapping[Format, frozenset[Part] | None] = {
    "official": None,
    "sam": SAM_PARTS,
    "hq_sam": SAM_PARTS | {"head"},
    "hq_head": frozenset({"head", "score"}),
    "hq_decoder": frozenset({"trunk", "head"}),
    "transformers": None,
    "timm": frozenset({"encoder"}),
}
_NAMING: Mapping[Format, Naming] = {"hq_decoder": "decoder", "transformers": "transformers", "timm": "timm"}
_NEEDS: Mapping[Part, str] = {
    "encoder": "image encoder",
    "prompt": "prompt encoder",
    "trunk": "mask decoder",
    "head": "HQ head",
}
"""A score head is never needed."""
_OF_A_RUN = ("step", "val_mbiou")
"""What a training run states about its own weights, and is not true of others."""


def convert_checkpoint(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    to: Format = "official",
    head: str | PathLike[str] | None = None,
    encoder: str | PathLike[str] | None = None,
    lora: str | PathLike[str] | None = None,
    interpolate: str | PathLike[str] | None = None,
    share: float | None = None,
    part: Selection = "all",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    include_unused_head: bool = True,
) -> CheckpointInfo:
    """Rewrite a checkpoint of any known layout: another layout, container, number type or part, or merged from parts.

    The source has to be complete. The result is read back and compared, bit by bit, with what was meant to be written.

    Args:
        src: the file to convert.
        dst: as `path` of `save_checkpoint`.
        to: "official": official names, all that the source holds; "sam", "hq_sam": the same, a whole model without or
            with an HQ head; "hq_head": the head alone; "hq_decoder": SAM's mask decoder and the head, as the published
            trainer writes them; "transformers": its SAM or SamHQ, plain ViT only; "timm": the image encoder alone. A
            score head stays in "official" and "hq_head"; a warning says where another format leaves it out.
        head: a file with an HQ head or an HQ mask decoder to put into `src`, over what is there.
        encoder: a file with an image encoder alone (timm's names) to put into `src`, over what is there.
        lora: an encoder adapter to merge into the encoder that it was trained for.
        interpolate: another file of such a model, or of parts of it: the weights of the parts that both have are moved
            towards those of this file (WiSE-FT, Wortsman et al., CVPR 2022, equation 1). What this file states about
            itself (`metadata`) does not go into the result.
        share: how far, 0 (not at all) to 1 (its weights); None: 0.5.
        part: as in `save_checkpoint`.
        dtype: as in `save_checkpoint`.
        metadata: as in `save_checkpoint`; entries of the source files are kept where `dst` can carry them, but for what
            a training run stated about weights that `interpolate` moves ("step", "val_mbiou").
        include_unused_head: as in `save_checkpoint`, for official names.

    Returns:
        What was written.

    Raises:
        CheckpointError: a file cannot be read or written or is incomplete, `head`, `encoder` or `interpolate` is not
            one for this model, `share` is out of range or without a file, `to` or `part` asks for what is not there, or
            `metadata` recommends something about a head that is not in the result.
    """
    path = destination(dst, metadata, dtype)
    require_selection(part)
    if to not in get_args(Format):
        raise CheckpointError(f"to must be one of {', '.join(map(repr, get_args(Format)))}, got {to!r}")
    if share is not None and interpolate is None:
        raise CheckpointError(f"share={share} is of the file that interpolate names, and there is none")
    source = open_checkpoint(src)
    require_complete(source)
    require_no_adapter(source.info)
    official, kept, head_kind = _merged(source, _additions(source, head=head, encoder=encoder))
    if lora is not None:
        official = merged_tensors(official, lora)
    way = 0.5 if share is None else share
    if interpolate is not None:
        official = interpolated_tensors(official, interpolate, way, head=head_kind, dtype=dtype)
    is_moved = interpolate is not None and way > 0
    if (is_moved or lora is not None or encoder is not None) and "score" in parts_in(official):
        logger.warning("%s gets no score head: the one there is knows the masks of other weights", path)
        official = {name: tensor for name, tensor in official.items() if not is_score(name)}
    official = select(official, part)
    if not official:
        raise CheckpointError(f"{src} is {source.info.title}; it has no tensors for part={part!r}")
    official = _only(official, to, f"{src} is {source.info.title}")
    if "head" in parts_in(official) and head_kind not in (None, FULL_HEAD) and to not in ("official", "hq_head"):
        raise not_published(str(head_kind), f"{path} as {to!r}")
    _require_subject(metadata or {}, parts_in(official), path)
    kept = _still_true(kept, parts_in(official), is_moved=is_moved)
    carried = {**kept, **(metadata or {})} if path.suffix == ".safetensors" else None
    options = {"dtype": dtype, "metadata": carried, "include_unused_head": include_unused_head}
    naming = _NAMING.get(to, "official")
    info = write(path, official, head=head_kind, naming=naming, **options)  # type: ignore[arg-type]
    _require_equal(path, official, dtype)
    return info


def _additions(
    source: Checkpoint, *, head: str | PathLike[str] | None, encoder: str | PathLike[str] | None
) -> list[Checkpoint]:
    """The files to put into a source, in this order, after checking that each is made for it."""
    found, info = [], source.info
    if encoder is not None:
        extra = open_checkpoint(encoder)
        if extra.info.layout != "timm_encoder" or extra.architecture != source.architecture:
            raise CheckpointError(
                f"encoder={encoder} is {extra.info.title}, not an image encoder alone for {info.path} ({info.title})"
            )
        found.append(extra)
    if head is not None:
        extra = open_checkpoint(head)
        channels = source.architecture.early_channels if source.architecture else source.early_channels
        if extra.info.has_sam or extra.early_channels not in (None, channels):
            raise CheckpointError(f"head={head} is {extra.info.title}, not an HQ head for {info.path} ({info.title})")
        found.append(extra)
    for extra in found:
        require_complete(extra)
    return found


def _merged(source: Checkpoint, extras: list[Checkpoint]) -> tuple[dict[str, Tensor], dict[str, str], str | None]:
    """The tensors of a source with others put into it, what is stated about them, and what the HQ head is."""
    official, kept, head = dict(source.official), _kept(source), source.info.head
    for extra in extras:
        if extra.info.has_hq:  # what is recommended is that of the head in use, and so is what judges its masks
            kept = {key: text for key, text in kept.items() if key not in RECOMMENDATIONS}
            official, head = select(official, "sam"), extra.info.head
        official |= extra.official
        kept |= _kept(extra)
    return official, kept, head


def _still_true(kept: Mapping[str, str], parts: Collection[Part], *, is_moved: bool) -> dict[str, str]:
    """Of what files said, what holds for weights that were moved and for the parts that are left."""
    untrue = set(_OF_A_RUN) if is_moved else set()
    if "head" not in parts:
        untrue |= set(RECOMMENDATIONS)
    if "score" not in parts:
        untrue.add(RECOMMENDED_SCORE)
    return {key: text for key, text in kept.items() if key not in untrue}


def _require_subject(metadata: Mapping[str, str], parts: Collection[Part], path: Path) -> None:
    """Refuse a recommendation about a head that the result has not; SAM's own mask and score need none."""
    subjects: list[tuple[str, Part, str]] = [(key, "head", "HQ head") for key in RECOMMENDATIONS]
    for key, part, title in [*subjects, (RECOMMENDED_SCORE, "score", "score head")]:
        if part not in parts and metadata.get(key, "sam") not in AS_EVER:
            raise CheckpointError(f"{path} would have no {title}, which {key}={metadata[key]!r} is about")


def _kept(file: Checkpoint) -> dict[str, str]:
    """What a source says about itself that holds for the result too."""
    if file.info.layout == "training_state":
        return {}
    return {key: text for key, text in file.info.metadata.items() if key != HEAD}  # which `write` adds


def _only(official: dict[str, Tensor], to: Format, source: str) -> dict[str, Tensor]:
    """The tensors that a format holds, all of them."""
    have, wanted = parts_in(official), _PARTS[to]
    if to == "transformers":
        if family_of(official) == "tiny":
            raise CheckpointError(f"{source}; transformers has no SAM with a TinyViT")
        wanted = SAM_PARTS | (have & {"head"})
    if wanted is not None and "score" in have - wanted and "head" in wanted:
        logger.warning("%s with a score head, which %r cannot hold: it is left out", source, to)
    if wanted is None:
        return official
    missing = [title for part, title in _NEEDS.items() if part in wanted - have]
    if missing:
        raise CheckpointError(f"{source}; what is to be written as {to!r} lacks the {' and the '.join(missing)}")
    parts = parts_of(official)
    return {name: tensor for name, tensor in official.items() if parts[name] in wanted}


def _require_equal(path: Path, official: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    written = open_checkpoint(path).official
    wrong = [name for name, tensor in official.items() if not _same(written.get(name), storable(tensor, dtype))]
    if wrong or written.keys() != official.keys():
        raise CheckpointError(f"{path} was not written correctly: {len(wrong)} tensors differ from the source")


def _same(a: Tensor | None, b: Tensor) -> bool:
    # As bytes, so that NaN equals NaN and -0.0 differs from 0.0.
    return a is not None and a.dtype == b.dtype and a.shape == b.shape and _bytes(a).equal(_bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
