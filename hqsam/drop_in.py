"""Names and signatures of `segment_anything_hq` 0.3, so that only the import line of a program changes.

Models built here speak the official parameter names in `state_dict` and `load_state_dict`, and stay on the CPU in
float32 as the original's do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hqsam.checkpoints import to_memory_names, to_official_names, with_unused_classifier
from hqsam.models import Sam
from hqsam.registry import load_by_name

Builder = Callable[..., Sam]


def _build(name: str, checkpoint: str | Path | None = None) -> Sam:
    model, _ = load_by_name(name, checkpoint, device="cpu")
    if model.score_head is not None:  # its names are none that the original's load_state_dict takes
        model.set_score_head(None)
    model.register_state_dict_post_hook(_speak_official)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_hear_official)  # type: ignore[no-untyped-call]
    return model


def _speak_official(module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({prefix + key: value for key, value in with_unused_classifier(to_official_names(own)).items()})


def _hear_official(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    hq = isinstance(module, Sam) and module.has_hq
    state.update({prefix + key: value for key, value in to_memory_names(own, hq=hq, unknown="keep").items()})


build_sam_vit_h = partial(_build, "hq_vit_h")
build_sam_vit_l = partial(_build, "hq_vit_l")
build_sam_vit_b = partial(_build, "hq_vit_b")
build_sam_vit_t = partial(_build, "hq_vit_tiny")
build_sam = build_sam_vit_h

sam_model_registry: dict[str, Builder] = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_tiny": build_sam_vit_t,
}
"""HQ-SAM models by their published names; call with `checkpoint=None` or a file."""

sam_model_registry_baseline: dict[str, Builder] = {
    "default": partial(_build, "sam_vit_h"),
    "vit_h": partial(_build, "sam_vit_h"),
    "vit_l": partial(_build, "sam_vit_l"),
    "vit_b": partial(_build, "sam_vit_b"),
    "vit_tiny": partial(_build, "sam_vit_tiny"),
}
"""Plain SAM models by their published names."""
