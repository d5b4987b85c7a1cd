"""Filling a model from checkpoint files: strictly, and completely or not at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike

from torch import Tensor

from hqsam.checkpoints.formats import (
    ARCHITECTURES,
    Checkpoint,
    CheckpointInfo,
    Layout,
    open_checkpoint,
    require_no_adapter,
)
from hqsam.checkpoints.official import is_score
from hqsam.checkpoints.positions import fit_positions
from hqsam.checkpoints.recommendations import RECOMMENDATIONS
from hqsam.checkpoints.state import Target, check, copy_into, select
from hqsam.errors import CheckpointError
from hqsam.models import HQMaskDecoder, Sam, ScoreHead, head_title

logger = logging.getLogger(__name__)

_PUBLISHED_HQ: Mapping[str, str] = {
    "vit_b": "sam_hq_vit_b.pth",
    "vit_l": "sam_hq_vit_l.pth",
    "vit_h": "sam_hq_vit_h.pth",
    "vit_tiny": "sam_hq_vit_tiny.pth",
}
_WITH_HEAD: Mapping[Layout, Layout] = {
    "sam": "hq_sam",
    "mobile_sam": "light_hq_sam",
    "transformers_sam": "transformers_hq_sam",
}


def load_checkpoint(
    model: Sam,
    path: str | PathLike[str],
    *,
    head: str | PathLike[str] | None = None,
    encoder: str | PathLike[str] | None = None,
    fresh_hq_head: bool = False,
) -> CheckpointInfo:
    """Fill a model from a checkpoint of any known layout.

    Everything is checked before anything is copied, so that an error leaves the model as it was. Numbers are cast to
    the model's types, and the positions of a plain ViT are interpolated where the file was made for another input size.
    What each layout fills:

    - merged HQ-SAM, official or of transformers, Light HQ-SAM: all of an `hq_` model; of a `sam_` model the frozen SAM,
      without the head;
    - SAM, official or of transformers, MobileSAM: a `sam_` model; an `hq_` model only together with `head` or
      `fresh_hq_head`;
    - the published trainer's `epoch_N.pth`: SAM's mask decoder and the HQ head of an `hq_` model, both as trained;
    - a file with the HQ head alone, a training state among them: the head of an `hq_` model.

    The last two leave the rest of the model as it is: load SAM's file first, or name both files in one call.

    Args:
        model: the model to fill; its `head_state` becomes "trained" when a head was loaded, "untrained" when a file
            filled SAM's part only.
        path: the file: `.pth`, `.pt`, `.bin` of PyTorch, or `.safetensors`.
        head: a second file for an `hq_` model, with an HQ head or a whole HQ mask decoder; wins over `path`.
        encoder: a file with an image encoder alone (timm's names), for a `path` with a whole model; wins over it.
        fresh_hq_head: allow a file without a head in an `hq_` model, whose head then stays random and has to be
            trained. A head that is in the file is loaded all the same.

    Returns:
        What was loaded; with `head` or `encoder`, the files as one.

    Raises:
        CheckpointError: a file cannot be read, is of another model, or lacks what the model needs.

    Example:
        >>> load_checkpoint(create_model("hq_vit_l"), "sam_hq_vit_l.pth").layout  # doctest: +SKIP
        'hq_sam'
    """
    main = open_checkpoint(path)
    target = Target.of(model)
    _require_more_than_an_encoder(main)
    _require_fit(target, main)
    parts = []
    if encoder is not None:
        parts.append(open_checkpoint(encoder))
        _require_encoder(target, main, parts[-1])
    if head is not None:
        parts.append(open_checkpoint(head))
        _require_head(target, parts[-1])
    elif not (fresh_hq_head or main.info.has_hq) and model.has_hq:
        raise CheckpointError(_needs_head(target, main))
    elif model.has_hq and not main.info.has_hq and model.head_state == "trained":
        raise CheckpointError(
            f"{main.info.path} would replace the SAM below a head that is loaded already; "
            "build a new model, or give both files: load_checkpoint(model, SAM_FILE, head=HEAD_FILE)"
        )

    with _score_head_of(model, [main, *parts]):
        target = Target.of(model)
        tensors, info = _checked(target, main), main.info
        for part in parts:
            tensors |= _checked(target, part)
            info = _joined(info, part.info)
        copy_into(target, tensors)
    _settle_head_state(model, info)
    return info


@contextlib.contextmanager
def _score_head_of(model: Sam, files: Sequence[Checkpoint]) -> Iterator[None]:
    """Give the model a score head where the HQ head that it gets has one, and none where it has none.

    An error in the block leaves the model with what it had.
    """
    judged = [file.info.has_score for file in files if file.info.has_hq]
    before = model.score_head
    if judged and model.has_hq:
        model.set_score_head((before or ScoreHead()) if judged[-1] else None)
    try:
        yield
    except BaseException:
        if model.has_hq:
            model.set_score_head(before)
        raise


def _require_more_than_an_encoder(main: Checkpoint) -> None:
    if main.info.layout == "timm_encoder":
        raise CheckpointError(
            f"{main.info.path} is {main.info.title}; give it as encoder=FILE beside the file of a whole model"
        )


def _require_encoder(target: Target, main: Checkpoint, file: Checkpoint) -> None:
    if file.info.layout != "timm_encoder":
        raise CheckpointError(
            f"encoder={file.info.path} is {file.info.title}; as `encoder` give a file with an image encoder alone"
        )
    if not main.info.has_sam:
        raise CheckpointError(
            f"encoder={file.info.path} needs the file of a whole model to be put into, and {main.info.path} is "
            f"{main.info.title}"
        )
    _require_fit(target, file)


def _require_fit(target: Target, file: Checkpoint) -> None:
    """Refuse in one sentence what is of another model, before names are compared."""
    info, model = file.info, target.model
    if not info.has_sam and info.has_hq and not model.has_hq:
        raise CheckpointError(
            f"{info.path} is {info.title}, which {target.name} has no use for; "
            f"load it into {target.name.replace('sam_', 'hq_', 1)} together with SAM's own file"
        )
    if file.architecture is not None and file.architecture != target.architecture:
        raise CheckpointError(
            f"{info.path} is {info.title} with a {file.architecture}; "
            f"{target.name} has a {target.architecture}{_suggestion(target, info)}"
        )
    if info.head is not None and model.head is not None and info.head != model.head:
        raise CheckpointError(
            f"{info.path} is {info.title}; {target.name} was built with {head_title(model.head)}: build it with "
            f"create_model(NAME, head={info.head!r}), which create_model(NAME, FILE) does by itself"
        )
    early, wanted = file.early_channels, target.architecture.early_channels
    of_another = early != wanted and early in {known.early_channels for known in ARCHITECTURES.values()}
    if file.architecture is None and of_another:
        raise CheckpointError(
            f"{info.path} is {info.title} for an encoder with {early} channels; "
            f"{target.name} has {wanted}{_suggestion(target, info)}"
        )


def _require_head(target: Target, file: Checkpoint) -> None:
    info = file.info
    if not target.model.has_hq:
        raise CheckpointError(f"{target.name} has no HQ head; leave out head={info.path}, or build an hq_ model")
    if not info.has_hq or info.has_sam:
        raise CheckpointError(
            f"head={info.path} is {info.title}; as `head` give a file with an HQ head or an HQ mask decoder alone"
        )
    _require_fit(target, file)


def _needs_head(target: Target, file: Checkpoint) -> str:
    published = _PUBLISHED_HQ.get(target.architecture.variant or "")
    example = f" such as {published}" if published else ""
    return (
        f"{file.info.path} is {file.info.title}; {target.name} also needs an HQ head: load an HQ-SAM file{example}, "
        "give the head's file as head=FILE, or pass fresh_hq_head=True to train one"
    )


def _suggestion(target: Target, info: CheckpointInfo) -> str:
    if info.variant is None:
        return ""
    return f'; it fits create_model("{"hq" if target.model.has_hq else "sam"}_{info.variant}")'


def _checked(target: Target, file: Checkpoint) -> dict[str, Tensor]:
    tensors, parts = file.official, file.parts
    require_no_adapter(file.info)
    if not target.model.has_hq and "head" in parts:
        tensors, parts = select(tensors, "sam"), parts - {"head", "score"}
        logger.info("%s is %s; its HQ head is left out of %s", file.info.path, file.info.title, target.name)
    if target.model.score_head is None:  # that of an HQ head which `head` replaces
        tensors, parts = {name: t for name, t in tensors.items() if not is_score(name)}, parts - {"score"}
    tensors = fit_positions(target.model, tensors, str(file.info.path))
    return check(target, tensors, parts, f"{file.info.path} ({file.info.title})", file.naming)


def _joined(main: CheckpointInfo, part: CheckpointInfo) -> CheckpointInfo:
    """Both files as one, in the way a merged file would be described."""
    of_head = RECOMMENDATIONS if part.has_hq else ()
    kept = {key: text for key, text in main.metadata.items() if key not in of_head}
    return replace(
        main,
        layout=_WITH_HEAD.get(main.layout, main.layout) if part.has_hq else main.layout,
        has_hq=main.has_hq or part.has_hq,
        dtype=main.dtype if main.dtype == part.dtype else "mixed",
        num_tensors=main.num_tensors + part.num_tensors,
        num_parameters=main.num_parameters + part.num_parameters,
        size_bytes=main.size_bytes + part.size_bytes,
        metadata={**kept, **part.metadata},  # a recommended fusion is that of the head in use
        head_trained=part.head_trained if part.has_hq else main.head_trained,
        head=part.head if part.has_hq else main.head,
        has_score=part.has_score if part.has_hq else main.has_score,
    )


def _settle_head_state(model: Sam, info: CheckpointInfo) -> None:
    if not model.has_hq:
        return
    if info.has_hq and not info.has_sam and model.head_state == "random":
        # Not an error: SAM's weights may have come by load_state_dict, which leaves no trace.
        logger.warning("%s is %s; SAM's own weights were not loaded from any file yet", info.path, info.title)
    if info.head_trained is False:
        logger.warning("%s: its HQ head is as it was initialised, never trained", info.path)
    model.head_state = "trained" if info.has_hq else "untrained"
    if not info.has_hq and isinstance(model.mask_decoder, HQMaskDecoder):
        model.mask_decoder.start_head()  # a copy of SAM's parts begins as those that were just loaded
