"""High-quality promptable segmentation: a frozen SAM with a learnable HQ token and global-local fusion.

Example:
    >>> from hqsam import SamPredictor, create_model
    >>> predictor = SamPredictor(create_model("hq_vit_tiny.embedded"))  # doctest: +SKIP
    >>> predictor.set_image(image)  # doctest: +SKIP
    >>> masks, scores, logits = predictor.predict(box=[50, 30, 200, 180], multimask_output=False)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqsam.automatic import SamAutomaticMaskGenerator
    from hqsam.checkpoints import convert_checkpoint, inspect_checkpoint, load_checkpoint, save_checkpoint
    from hqsam.drop_in import (
        build_sam,
        build_sam_vit_b,
        build_sam_vit_h,
        build_sam_vit_l,
        build_sam_vit_t,
        sam_model_registry,
        sam_model_registry_baseline,
    )
    from hqsam.errors import CheckpointError, ConfigError, DataError, HqsamError
    from hqsam.features import PredictorFeatures
    from hqsam.predictor import SamPredictor
    from hqsam.prompts import Prompt
    from hqsam.registry import create_model, list_models, model_spec
    from hqsam.segmentation import Segmentation

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HqsamError",
    "PredictorFeatures",
    "Prompt",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "Segmentation",
    "__version__",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_t",
    "convert_checkpoint",
    "create_model",
    "inspect_checkpoint",
    "list_models",
    "load_checkpoint",
    "model_spec",
    "sam_model_registry",
    "sam_model_registry_baseline",
    "save_checkpoint",
]

# Names load on first use, so that `hqsam --help` and programs that only read the version need not wait for torch.
_HOMES = {
    "hqsam.automatic": ("SamAutomaticMaskGenerator",),
    "hqsam.checkpoints": ("convert_checkpoint", "inspect_checkpoint", "load_checkpoint", "save_checkpoint"),
    "hqsam.errors": ("CheckpointError", "ConfigError", "DataError", "HqsamError"),
    "hqsam.features": ("PredictorFeatures",),
    "hqsam.predictor": ("SamPredictor",),
    "hqsam.prompts": ("Prompt",),
    "hqsam.segmentation": ("Segmentation",),
    "hqsam.registry": ("create_model", "list_models", "model_spec"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "hqsam.drop_in")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
