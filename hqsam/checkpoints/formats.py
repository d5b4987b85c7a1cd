"""Recognising what a file of tensors is, from its names and shapes alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from hqsam.checkpoints.foreign import Naming, to_official
from hqsam.checkpoints.official import Family, Part, family_of, listing, part_of, translate_official
from hqsam.checkpoints.reading import ADAPTED, TensorFile, is_adapter, known_head, read_file
from hqsam.checkpoints.recommendations import (
    recommended_fusion,
    recommended_heed_clicks,
    recommended_refine,
    recommended_score,
    recommended_upsampling,
)
from hqsam.errors import CheckpointError
from hqsam.models import FULL_HEAD, head_title
from hqsam.types import Fusion, Refine, ScoreSource, Upsampling

Layout = Literal[
    "sam",
    "hq_sam",
    "mobile_sam",
    "light_hq_sam",
    "transformers_sam",
    "transformers_hq_sam",
    "timm_encoder",
    "hq_decoder",
    "hq_head",
    "training_state",
]

SAM_PARTS: frozenset[Part] = frozenset({"encoder", "prompt", "trunk"})
"""The parts of a plain SAM."""

_LAYOUTS: Mapping[tuple[Naming, Family | None, frozenset[Part]], Layout] = {
    ("official", "vit", SAM_PARTS): "sam",
    ("official", "vit", SAM_PARTS | {"head"}): "hq_sam",
    ("official", "tiny", SAM_PARTS): "mobile_sam",
    ("official", "tiny", SAM_PARTS | {"head"}): "light_hq_sam",
    ("official", None, frozenset({"trunk", "head"})): "hq_decoder",
    ("official", None, frozenset({"head"})): "hq_head",
    ("decoder", None, frozenset({"trunk", "head"})): "hq_decoder",
    ("decoder", None, frozenset({"head"})): "hq_head",
    ("transformers", "vit", SAM_PARTS): "transformers_sam",
    ("transformers", "vit", SAM_PARTS | {"head"}): "transformers_hq_sam",
    ("timm", "vit", frozenset({"encoder"})): "timm_encoder",
    ("timm", "tiny", frozenset({"encoder"})): "timm_encoder",
}
_LAYOUT_TITLES: Mapping[Layout, str] = {
    "sam": "plain SAM",
    "hq_sam": "HQ-SAM",
    "mobile_sam": "MobileSAM, a plain SAM",
    "light_hq_sam": "Light HQ-SAM",
    "transformers_sam": "plain SAM under transformers' names",
    "transformers_hq_sam": "HQ-SAM under transformers' names",
    "timm_encoder": "an image encoder alone under timm's names",
    "hq_decoder": "an HQ mask decoder without its image encoder",
    "hq_head": "an HQ head alone",
    "training_state": "a training state",
}
_PART_TITLES: Mapping[Part, str] = {
    "encoder": "an image encoder",
    "prompt": "a prompt encoder",
    "trunk": "SAM's mask decoder",
    "head": "an HQ head",
    "score": "a score head",
}
# Norm layers as wide as the stage they are in.
_STAGE_NORM = re.compile(r"\.(norm[12]|attn\.norm|mlp\.norm|local_conv\.bn|conv3\.bn)\.(weight|bias|running_\w+)$")
_HEAD_NORMS = ("compress_vit_feat.1", "embedding_encoder.1", "embedding_maskfeature.1")


@dataclass(frozen=True)
class Architecture:
    """What distinguishes image encoders by their weights.

    Attributes:
        family: plain ViT or TinyViT.
        widths: channels of each stage; one for a plain ViT.
        depths: blocks of each stage; one for a plain ViT.
    """

    family: Family
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def early_channels(self) -> int:
        """Channels of the early feature that the HQ head reads."""
        stage = 0 if self.family == "vit" else 2
        return self.widths[stage] if stage < len(self.widths) else 0

    @property
    def variant(self) -> str | None:
        """Name of this encoder in model names ("vit_l" of "hq_vit_l"), None where it is not a known one."""
        return next((name for name, known in ARCHITECTURES.items() if known == self), None)

    def __str__(self) -> str:
        """A phrase such as "ViT of width 1024 and depth 24"."""
        kind = "ViT" if self.family == "vit" else "TinyViT"
        return f"{kind} of width {_slashed(self.widths)} and depth {_slashed(self.depths)}"


ARCHITECTURES: Mapping[str, Architecture] = {
    "vit_b": Architecture("vit", (768,), (12,)),
    "vit_l": Architecture("vit", (1024,), (24,)),
    "vit_h": Architecture("vit", (1280,), (32,)),
    "vit_tiny": Architecture("tiny", (64, 128, 160, 320), (2, 2, 6, 2)),
    "vit_tiny_small": Architecture("tiny", (32, 64, 96, 160), (2, 2, 4, 2)),
    "test_vit": Architecture("vit", (32,), (4,)),
    "test_tiny": Architecture("tiny", (16, 32, 32, 64), (1, 1, 2, 1)),
}
"""Encoders by the name that model names end with (a test holds this against the registry, which stands above)."""

_TITLES: Mapping[str, str] = {
    "vit_b": "ViT-B",
    "vit_l": "ViT-L",
    "vit_h": "ViT-H",
    "vit_tiny": "TinyViT",
    "vit_tiny_small": "small TinyViT",
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is.

    Attributes:
        path: the file.
        layout: "sam", "hq_sam", "mobile_sam", "light_hq_sam": whole models; "hq_decoder": the published trainer's
            `epoch_N.pth`, SAM's mask decoder and the HQ head; "hq_head": the trained tensors alone; "training_state":
            the same in a file that training resumes from; "transformers_sam", "transformers_hq_sam": whole models of
            that library; "timm_encoder": an image encoder.
        variant: encoder in model names ("vit_l" of "hq_vit_l"); None where the shapes fit none, or several.
        has_sam: whether the whole of SAM is inside.
        has_hq: whether an HQ head is inside.
        dtype: number type of the weights ("float32", "float16", ...), or "mixed".
        num_tensors: tensors in the file.
        num_parameters: learned numbers that a model uses: without statistics, constants and the unused classifier.
        size_bytes: size of the file.
        metadata: the string map of a safetensors file; step, epoch and model of a training state.
        head_trained: False where the HQ head is as it was initialised, None without a head.
        head: what the head is made of: "early+final+mask" is the published one, see `hqsam.models.heads`; None without.
        has_score: whether a score head (of the mask that is returned) is inside, beside the HQ head.
    """

    path: Path
    layout: Layout
    variant: str | None
    has_sam: bool
    has_hq: bool
    dtype: str
    num_tensors: int
    num_parameters: int
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    head_trained: bool | None = None
    head: str | None = None
    has_score: bool = False

    @property
    def recommended_fusion(self) -> Fusion | None:
        """The fusion that the file recommends, None where it says nothing.

        Raises:
            CheckpointError: it recommends what does not exist.
        """
        return recommended_fusion(self.metadata, str(self.path))

    @property
    def recommended_score(self) -> ScoreSource | None:
        """The score that the file recommends, None where it says nothing or has no score head.

        Raises:
            CheckpointError: it recommends what does not exist.
        """
        score = recommended_score(self.metadata, str(self.path))
        return score if self.has_score else None

    @property
    def recommended_refine(self) -> Refine | None:
        """The refinement that the file recommends, None where it says nothing.

        Raises:
            CheckpointError: it recommends what does not exist.
        """
        return recommended_refine(self.metadata, str(self.path))

    @property
    def recommended_heed_clicks(self) -> bool | None:
        """Whether the file recommends that clicks are heeded, None where it says nothing.

        Raises:
            CheckpointError: it recommends what does not exist.
        """
        return recommended_heed_clicks(self.metadata, str(self.path))

    @property
    def recommended_upsampling(self) -> Upsampling | None:
        """The upsampling that the file recommends, None where it says nothing.

        Raises:
            CheckpointError: it recommends what does not exist.
        """
        return recommended_upsampling(self.metadata, str(self.path))

    @property
    def title(self) -> str:
        """A phrase for messages, such as "plain SAM (ViT-L)"."""
        variant = f" ({_TITLES.get(self.variant, self.variant)})" if self.variant else ""
        reduced = f" with {head_title(self.head)}" if self.head not in (None, FULL_HEAD) else ""
        return _LAYOUT_TITLES[self.layout] + variant + reduced


@dataclass(frozen=True)
class Checkpoint:
    """A recognised file.

    Attributes:
        info: what it is.
        official: official name -> tensor, of everything that a model uses.
        naming: whose names the file has.
        architecture: its image encoder, None where there is none.
        early_channels: channels that its HQ head reads, None where there is none.
    """

    info: CheckpointInfo
    official: dict[str, Tensor]
    naming: Naming
    architecture: Architecture | None
    early_channels: int | None

    @property
    def parts(self) -> frozenset[Part]:
        """The parts of a model that the file holds."""
        return parts_in(self.official)


def inspect_checkpoint(path: str | PathLike[str]) -> CheckpointInfo:
    """Say what a checkpoint file is, without building a model.

    Args:
        path: a `.pth`, `.pt` or `.safetensors` file.

    Raises:
        CheckpointError: the file cannot be read, or is of no known layout.

    Example:
        >>> inspect_checkpoint("sam_hq_vit_l.pth").layout  # doctest: +SKIP
        'hq_sam'
    """
    return open_checkpoint(path).info


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read a file and recognise its layout; see `recognise`."""
    return recognise(read_file(path))


def recognise(file: TensorFile) -> Checkpoint:
    """Find the layout and the variant of a file's tensors.

    Raises:
        CheckpointError: names that belong to no known layout, or a part of a model that cannot be used alone.
    """
    if is_adapter(file):
        raise CheckpointError(
            f"{file.path} is an encoder adapter (LoRA), which changes a model and is none; merge it into the model's "
            "file with `hqsam convert MODEL DST --lora FILE`, or apply it with load_adapter"
        )
    found = to_official(file.tensors, str(file.path))
    official = found.tensors
    if not official:
        raise CheckpointError(
            f"{file.path} is not a checkpoint of the SAM family; its tensors are named {listing(file.tensors, 3)}"
        )
    if found.unknown:
        raise CheckpointError(
            f"{file.path} holds {len(found.unknown)} tensors that no SAM or HQ-SAM model has: {listing(found.unknown)}"
        )
    parts = parts_in(official)
    # A score head changes no layout, and is of no use without the head whose masks it judges.
    layout = _LAYOUTS.get((found.naming, family_of(official), parts - {"score"}))
    if layout is None or ("score" in parts and "head" not in parts):
        raise CheckpointError(
            f"{file.path} holds only {' and '.join(_PART_TITLES[p] for p in get_args(Part) if p in parts)}; "
            "a checkpoint is a whole model, an HQ mask decoder, or an HQ head"
        )
    architecture = architecture_of(official)
    early = _early_channels(official)
    info = CheckpointInfo(
        path=file.path,
        layout="training_state" if file.is_training_state else layout,
        variant=architecture.variant if architecture else _variant_of_head(early),
        has_sam=parts >= SAM_PARTS,
        has_hq="head" in parts,
        dtype=_dtype(official),
        num_tensors=len(file.tensors),
        num_parameters=sum(tensor.numel() for name, tensor in official.items() if not is_statistic(name)),
        size_bytes=file.size_bytes,
        metadata=file.metadata,
        head_trained=_head_trained(official) if "head" in parts else None,
        head=(known_head(file.metadata, file.path) or FULL_HEAD) if "head" in parts else None,
        has_score="score" in parts,
    )
    return Checkpoint(info, official, found.naming, architecture, early)


def require_no_adapter(info: CheckpointInfo) -> None:
    """Refuse a training state whose encoder adapter would be lost.

    Raises:
        CheckpointError: it has one.
    """
    if info.layout == "training_state" and ADAPTED in info.metadata:
        raise CheckpointError(
            f"{info.path} is a training state with an encoder adapter, which would be lost; take model.safetensors of "
            "the run folder, where it is merged, or resume the run"
        )


def parts_in(official: Mapping[str, Tensor]) -> frozenset[Part]:
    """The parts of a model that some tensors belong to."""
    return frozenset(part_of(name) for name in translate_official(official).names.values())


def architecture_of(official: Mapping[str, Tensor]) -> Architecture | None:
    """The image encoder that official names and shapes describe; None where there is none.

    Widths are those that most norm layers of a stage have, so that one wrong tensor is reported as such later, and not
    as another model.
    """
    family = family_of(official)
    if family is None:
        return None
    block = r"blocks\.(\d+)\." if family == "vit" else r"layers\.(\d+)\.blocks\.(\d+)\."
    widths: dict[int, Counter[int]] = {}
    depths: dict[int, int] = {}
    for name, tensor in official.items():
        local = name.removeprefix("image_encoder.")
        if match := re.match(block, local):
            stage, index = (0, int(match[1])) if family == "vit" else (int(match[1]), int(match[2]))
            depths[stage] = max(depths.get(stage, 0), index + 1)
            if _STAGE_NORM.search(local) and tensor.ndim == 1:
                widths.setdefault(stage, Counter())[len(tensor)] += 1
    stages = sorted(depths)
    return Architecture(family, tuple(_usual(widths.get(s)) for s in stages), tuple(depths[s] for s in stages))


def is_statistic(official_name: str) -> bool:
    """Whether a tensor is a buffer (batch-norm statistics, the random frequencies) and not learned."""
    return official_name.endswith(("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix"))


def _early_channels(official: Mapping[str, Tensor]) -> int | None:
    first = official.get("mask_decoder.compress_vit_feat.0.weight")
    return None if first is None or first.ndim == 0 else first.shape[0]


def _head_trained(official: Mapping[str, Tensor]) -> bool:
    """Whether any norm of the head differs from 1 and 0, where it starts and where no training step leaves it.

    Of a head without any norm nothing can be said; it counts as trained.
    """
    norms = [norm for norm in _HEAD_NORMS if any(name.startswith(f"mask_decoder.{norm}") for name in official)]
    for norm in norms:
        weight, bias = (official.get(f"mask_decoder.{norm}.{p}") for p in ("weight", "bias"))
        for tensor, start in ((weight, 1.0), (bias, 0.0)):
            if tensor is None or tensor.is_meta or not bool((tensor == start).all()):
                return True
    return not norms


def _variant_of_head(early_channels: int | None) -> str | None:
    fitting = [name for name, known in ARCHITECTURES.items() if known.early_channels == early_channels]
    return fitting[0] if len(fitting) == 1 else None


def _dtype(official: Mapping[str, Tensor]) -> str:
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in official.values() if tensor.is_floating_point()}
    return names.pop() if len(names) == 1 else "mixed"


def _usual(sizes: Counter[int] | None) -> int:
    return sizes.most_common(1)[0][0] if sizes else 0


def _slashed(numbers: tuple[int, ...]) -> str:
    return "/".join(map(str, numbers))
