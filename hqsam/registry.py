"""Names build models: a name is looked up in a table of specs and built by one function.

Names: `sam_` (plain) and `hq_` (with HQ head) for `vit_b`, `vit_l`, `vit_h`, `vit_tiny`, and small specs for tests. A
tag after a dot names the origin of the weights: `hq_vit_tiny.embedded` needs no network, `hq_vit_l.official` is what
its authors published.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch

from hqsam.checkpoints import CheckpointError, CheckpointInfo, load_checkpoint
from hqsam.checkpoints.reading import known_head, known_image_size, read_strings
from hqsam.hub import PUBLISHED, fetch_weights
from hqsam.models import (
    FULL_HEAD,
    EncoderSpec,
    HQMaskDecoder,
    MaskDecoder,
    PromptEncoder,
    Sam,
    SamViTSpec,
    TinyViTSpec,
    build_encoder,
    build_head,
)

ASSETS = Path(__file__).parent / "assets"
EMBEDDED_SAM = ASSETS / "mobile_sam.fp16.safetensors"
EMBEDDED_HEAD = ASSETS / "hq_head.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One row of the table: everything that distinguishes a model, and where weights of that name come from.

    Attributes:
        name: e.g. "hq_vit_l".
        encoder: dimensions of the image encoder.
        hq: whether the model has an HQ head.
        head: what the head is made of, see `hqsam.models.heads`.
        image_size: side of the square input in pixels.
        tags: origins of weights that can be named, the default one ("pretrained") first.
    """

    name: str
    encoder: EncoderSpec
    hq: bool
    head: str = FULL_HEAD
    image_size: int = 1024
    tags: tuple[str, ...] = ()


# Segment Anything, appendix A; MobileSAM for TinyViT. The test specs keep every mechanism and are small.
_ENCODERS: dict[str, tuple[EncoderSpec, int, tuple[str, ...]]] = {
    "vit_b": (SamViTSpec(width=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)), 1024, ()),
    "vit_l": (SamViTSpec(width=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)), 1024, ()),
    "vit_h": (SamViTSpec(width=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)), 1024, ()),
    "vit_tiny": (TinyViTSpec(), 1024, ("embedded",)),
    # Can be trained from nothing on a CPU, see configs/train/sam_small_from_nothing.yaml.
    "vit_tiny_small": (
        TinyViTSpec(widths=(32, 64, 96, 160), depths=(2, 2, 4, 2), num_heads=(1, 2, 3, 5), window_sizes=(8, 8, 16, 8)),
        256,
        (),
    ),
    "test_vit": (SamViTSpec(width=32, depth=4, num_heads=2, global_blocks=(1, 3), window_size=3), 128, ()),
    "test_tiny": (TinyViTSpec(widths=(16, 32, 32, 64), depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)), 128, ()),
}
_SPECS: dict[str, ModelSpec] = {
    f"{kind}_{key}": ModelSpec(
        name=f"{kind}_{key}",
        encoder=encoder,
        hq=kind == "hq",
        image_size=image_size,
        tags=tags + (("official",) if f"{kind}_{key}" in PUBLISHED else ()),
    )
    for kind in ("sam", "hq")
    for key, (encoder, image_size, tags) in _ENCODERS.items()
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, with their tags, filtered by a shell-style pattern."""
    names = [n for spec in _SPECS.values() for n in (spec.name, *(f"{spec.name}.{tag}" for tag in spec.tags))]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def model_spec(name: str) -> ModelSpec:
    """The spec behind a name, with or without a tag.

    Raises:
        ValueError: unknown name or tag; the message lists what is close or legal.
    """
    base, _, tag = name.partition(".")
    spec = _SPECS.get(base)
    if spec is None:
        near = difflib.get_close_matches(base, _SPECS, n=3) or sorted(_SPECS)
        raise ValueError(f"unknown model {name!r}; did you mean {' or '.join(near)}? `list_models()` shows all")
    if tag and tag not in spec.tags:
        known = f"its tags are {', '.join(spec.tags)}" if spec.tags else "it has none; give a checkpoint file"
        raise ValueError(f"model {base!r} has no tag {tag!r}: {known}")
    return spec


def build_model(spec: ModelSpec) -> Sam:
    """A model with random weights, in eval mode, on the CPU, float32."""
    encoder = build_encoder(spec.encoder, spec.image_size)
    decoder: MaskDecoder | HQMaskDecoder = MaskDecoder()
    if spec.hq:
        decoder = HQMaskDecoder(decoder, build_head(spec.head, encoder.early_channels))  # type: ignore[arg-type]
    return Sam(encoder, PromptEncoder(image_size=spec.image_size), decoder).eval()


def create_model(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] | None = None,
    fresh_hq_head: bool = False,
    image_size: int | None = None,
    head: str | None = None,
) -> Sam:
    """Build a model and load its weights.

    Args:
        name: see `list_models()`. A tagged name loads that tag's weights; `official` ones are downloaded once.
        checkpoint: a file, "pretrained" for the default tag's weights, or None for random weights.
        device: "auto" takes a GPU where there is one.
        dtype: None is float32; "auto" is bfloat16 where the hardware computes in it.
        fresh_hq_head: allow a plain SAM file in an `hq_` model; the head is then random and has to be trained.
        image_size: side of the square input in pixels, a multiple of 16. None: what the checkpoint says, else that of
            the named model (1024). Positions are interpolated to it.
        head: what the head of an `hq_` model is made of: features joined by "+", of early, final and mask; "token"
            fuses none; "sam_token" and "sam_decoder" are tuned copies of SAM's parts. None: what the checkpoint says,
            else all three, the published head.

    Returns:
        The model in eval mode. Where its file recommends a fusion, a score, a refinement, clicks that are heeded or
        an upsampling, that is the model's `default_fusion`, `default_score`, `default_refine`, `default_heed_clicks` or
        `default_upsampling`.

    Raises:
        ValueError: unknown name, tag or head, a tagged name with a checkpoint, a head for a plain SAM, or an impossible
            `image_size`.
        CheckpointError: the file cannot be read or downloaded, does not fit, lacks the encoder, or recommends what is
            unknown.

    Example:
        >>> model = create_model("hq_vit_tiny.embedded")  # doctest: +SKIP
    """
    model, info = load_by_name(
        name, checkpoint, device=device, dtype=dtype, fresh_hq_head=fresh_hq_head, image_size=image_size, head=head
    )
    if info is not None and info.has_hq and model.has_hq:
        model.default_fusion = info.recommended_fusion
        model.default_score = info.recommended_score
        model.default_refine = info.recommended_refine or "none"
        model.default_heed_clicks = bool(info.recommended_heed_clicks)
        model.default_upsampling = info.recommended_upsampling or "bilinear"
    return model


def load_by_name(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] | None = None,
    fresh_hq_head: bool = False,
    image_size: int | None = None,
    head: str | None = None,
) -> tuple[Sam, CheckpointInfo | None]:
    """`create_model` that leaves fusion and score as the published programs have them, and says what was loaded."""
    spec = model_spec(name)
    _, _, tag = name.partition(".")
    if tag and checkpoint is not None:
        raise ValueError(f"{name!r} names its weights already; use {spec.name!r} to load {checkpoint}")
    if checkpoint == "pretrained":
        if not spec.tags:
            raise ValueError(f"no pretrained weights of {spec.name!r} come with this version; give a checkpoint file")
        tag, checkpoint = spec.tags[0], None
    if tag == "official":
        checkpoint = fetch_weights(spec.name)
    if head is not None and not spec.hq:
        raise ValueError(f"{spec.name!r} is plain SAM and has no head; leave out head={head!r}, or use an hq_ name")
    if checkpoint is not None:
        stated, path = read_strings(checkpoint), Path(checkpoint)
        head = known_head(stated, path) if head is None and spec.hq else head
        image_size = known_image_size(stated, path) if image_size is None else image_size
    if head is not None:
        spec = replace(spec, head=head)
    if image_size is not None:
        spec = replace(spec, image_size=image_size)
    model = build_model(spec)
    info: CheckpointInfo | None = None
    if tag == "embedded":
        info = _load_embedded(model, spec, fresh_hq_head=fresh_hq_head)
    elif checkpoint is not None:
        info = load_checkpoint(model, checkpoint, fresh_hq_head=fresh_hq_head)
        if not info.has_sam:
            raise CheckpointError(
                f"{info.path} is {info.title}: it lacks SAM's image encoder, which would stay random here; join it "
                "with SAM's file (`hqsam convert SAM_FILE OUT --head HEAD_FILE`), or load both into a new model: "
                "load_checkpoint(create_model(NAME), SAM_FILE, head=HEAD_FILE)"
            )
    chosen = _choose_device(device)
    return model.to(device=chosen, dtype=_choose_dtype(dtype, chosen)), info


def _load_embedded(model: Sam, spec: ModelSpec, *, fresh_hq_head: bool) -> CheckpointInfo:
    if spec.hq and not fresh_hq_head:
        return load_checkpoint(model, EMBEDDED_SAM, head=EMBEDDED_HEAD)
    return load_checkpoint(model, EMBEDDED_SAM, fresh_hq_head=fresh_hq_head)


def _choose_device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _choose_dtype(dtype: torch.dtype | Literal["auto"] | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = device.type == "cpu" and torch.backends.mkldnn.is_available()
        native = known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
