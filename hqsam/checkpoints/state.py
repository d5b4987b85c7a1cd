"""The tensors of a model in memory under official names, and putting such tensors into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from hqsam.checkpoints.foreign import Naming, spell
from hqsam.checkpoints.formats import Architecture, architecture_of
from hqsam.checkpoints.official import (
    Part,
    family_of,
    listing,
    part_of,
    to_memory_names,
    to_official_names,
    translate_official,
)
from hqsam.errors import CheckpointError
from hqsam.models import Sam

Selection = Literal["all", "sam", "hq", "hq_decoder"]

_SELECTED: Mapping[Selection, frozenset[Part]] = {
    "all": frozenset(get_args(Part)),
    "sam": frozenset(get_args(Part)) - {"head", "score"},
    "hq": frozenset({"head", "score"}),
    "hq_decoder": frozenset({"trunk", "head", "score"}),
}
NUM_CLASSES = 1000
"""Outputs of TinyViT's unused classifier in the published files."""


@dataclass(frozen=True)
class Target:
    """A model as something to load into.

    Attributes:
        model: the model.
        official: official name -> its tensor, sharing memory.
        parts: official name -> the part of the model that it belongs to.
        architecture: its image encoder.
    """

    model: Sam
    official: dict[str, Tensor]
    parts: dict[str, Part]
    architecture: Architecture

    @classmethod
    def of(cls, model: Sam) -> Target:
        """Describe a model."""
        official = official_state_dict(model)
        architecture = architecture_of(official)
        if architecture is None:
            raise CheckpointError("the model has no image encoder of a family with known checkpoints: ViT or TinyViT")
        return cls(model, official, parts_of(official), architecture)

    @property
    def name(self) -> str:
        """The model's name, or a phrase where it is none of the known ones."""
        kind = "hq" if self.model.has_hq else "sam"
        variant = self.architecture.variant
        return f"{kind}_{variant}" if variant else f"{kind} model with a {self.architecture}"


def official_state_dict(model: Sam, part: Selection = "all") -> dict[str, Tensor]:
    """A model's tensors under official names.

    Args:
        model: any model, whatever hooks its own `state_dict` has.
        part: "all"; "sam"; "hq", those of the HQ head and of a score head; "hq_decoder", those and SAM's mask decoder.

    Returns:
        Official name -> tensor that shares memory with the model, without gradient.

    Raises:
        CheckpointError: the HQ head of a plain SAM is asked for, or an unknown part.
    """
    require_selection(part)
    if part.startswith("hq") and not model.has_hq:
        raise CheckpointError("a plain SAM has no HQ head to save; build an hq_ model, or use part='all'")
    memory: dict[str, Tensor] = {}
    # Child by child: hooks on the model itself may rename what its own state_dict() returns.
    for name, child in model.named_children():
        memory.update(child.state_dict(prefix=f"{name}."))
    return select(to_official_names(memory), part)


def hq_state_dict(model: Sam) -> dict[str, Tensor]:
    """The tensors of the HQ head under official names (`mask_decoder.hf_token.weight`, ...)."""
    return official_state_dict(model, "hq")


def load_trained_state_dict(model: Sam, tensors: Mapping[str, Tensor], part: Selection = "hq") -> None:
    """Put back what `official_state_dict(model, part)` returned; all of it, or an error before anything changes.

    A head then counts as trained.

    Args:
        model: an HQ model; a plain SAM with "all".
        tensors: official name -> tensor.
        part: "hq", "hq_decoder" or "all".

    Raises:
        CheckpointError: missing, unexpected or wrongly shaped tensors, or the model has no HQ head.
    """
    target = Target.of(model)
    if part != "all" and not model.has_hq:
        raise CheckpointError(f"{target.name} has no HQ head to load into; build an hq_ model")
    copy_into(target, check(target, tensors, _SELECTED[part], "the trained state"))
    if model.has_hq:
        model.head_state = "trained"


def select(official: Mapping[str, Tensor], part: Selection) -> dict[str, Tensor]:
    """The tensors of some parts of a model."""
    parts = parts_of(official)
    return {name: tensor for name, tensor in official.items() if parts[name] in _SELECTED[part]}


def require_selection(part: str) -> None:
    """Refuse a part that does not exist."""
    if part not in get_args(Selection):
        raise CheckpointError(f"part must be one of {', '.join(map(repr, get_args(Selection)))}, got {part!r}")


def parts_of(official: Mapping[str, Tensor]) -> dict[str, Part]:
    """Official name -> the part of a model that it belongs to."""
    return {name: part_of(target) for name, target in translate_official(official).names.items()}


def with_unused_classifier(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add zeros for TinyViT's classifier, which the published builders want and no mask depends on.

    Other models are returned as they are.
    """
    neck = official.get("image_encoder.neck.0.weight")
    if neck is None or family_of(official) != "tiny":
        return dict(official)
    width = neck.shape[1]
    shapes = {"norm_head.weight": (width,), "norm_head.bias": (width,), "head.bias": (NUM_CLASSES,)}
    zeros = {f"image_encoder.{name}": neck.new_zeros(shape) for name, shape in shapes.items()}
    return {**official, **zeros, "image_encoder.head.weight": neck.new_zeros((NUM_CLASSES, width))}


def check(
    target: Target,
    tensors: Mapping[str, Tensor],
    parts: frozenset[Part],
    source: str,
    naming: Naming = "official",
) -> dict[str, Tensor]:
    """Check that tensors are exactly those of some parts of a model.

    Args:
        target: the model.
        tensors: official name -> tensor.
        parts: which parts of the model they must fill.
        source: what the tensors come from, for the message.
        naming: whose names the message speaks.

    Returns:
        Official name -> tensor, to be given to `copy_into`.

    Raises:
        CheckpointError: one message with up to 10 names of each kind: missing, unexpected, of another shape or type.
    """
    found = differences(target, tensors, parts, naming)
    if found:
        raise CheckpointError(f"{source} does not fit {target.name}; nothing was loaded. Tensors {found}")
    return dict(tensors)


def differences(target: Target, tensors: Mapping[str, Tensor], parts: frozenset[Part], naming: Naming) -> str:
    """What distinguishes tensors from those of some parts of a model, in words; empty where nothing does."""
    expected = {n: t for n, t in target.official.items() if target.parts[n] in parts}
    # Counters of training steps; inference and frozen training never read them, and some files leave them out.
    missing = [spell(n, naming) for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    unexpected = [spell(n, naming) for n in tensors if n not in expected]
    wrong = [
        f"{spell(n, naming)} ({_kind(tensors[n])} instead of {_kind(t)})"
        for n, t in expected.items()
        if n in tensors and not _fits(tensors[n], t)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape or type": wrong}
    return "; ".join(f"{len(names)} {what}: {listing(names)}" for what, names in faults.items() if names)


def copy_into(target: Target, tensors: Mapping[str, Tensor]) -> None:
    """Copy checked tensors into the model, cast to its number types; what is not named keeps its value."""
    if any(tensor.is_meta for tensor in target.official.values()):
        raise CheckpointError(
            f"{target.name} is on the meta device and has no memory for weights; call to_empty(device='cpu') first"
        )
    memory = to_memory_names(tensors, hq=target.model.has_hq)
    for name, child in target.model.named_children():
        inner = {n.removeprefix(f"{name}."): t for n, t in memory.items() if n.startswith(f"{name}.")}
        if inner:
            # Through the child's own method, so that what it keeps of its weights is renewed; `check` was strict.
            child.load_state_dict(inner, strict=False)


def _fits(tensor: Tensor, like: Tensor) -> bool:
    return tensor.shape == like.shape and tensor.is_floating_point() == like.is_floating_point()


def _kind(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
