"""Settings of automatic generation by name; docs/automatic.md shows what they find and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["fast", "default", "dense"]

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"points_per_side": 16},
    "default": {},
    # what SAM's authors use where more masks are wanted than by default (their notebook on automatic generation)
    "dense": {
        "pred_iou_thresh": 0.86,
        "stability_score_thresh": 0.92,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}


def preset_options(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the generator.

    Args:
        name: a preset.
        overrides: arguments that replace those of the preset; `point_grids` replace its grid.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
    options = {**PRESETS[name], **overrides}
    if options.get("point_grids") is not None:
        options["points_per_side"] = overrides.get("points_per_side")
    return options
