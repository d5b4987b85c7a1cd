"""ONNX files of the encoder and the decoder, and a predictor that runs them without torch.

Example:
    >>> from hqsam.export import OnnxPredictor, export_decoder, export_encoder
    >>> export_encoder(model, "runs/onnx/encoder.onnx")  # doctest: +SKIP
    >>> export_decoder(model, "runs/onnx/decoder.onnx")  # doctest: +SKIP
    >>> predictor = OnnxPredictor("runs/onnx/encoder.onnx", "runs/onnx/decoder.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqsam.export.exporting import ExportedFile, export_decoder, export_encoder
    from hqsam.export.extra import MissingExtraError
    from hqsam.export.predictor import OnnxPredictor

__all__ = ["ExportedFile", "MissingExtraError", "OnnxPredictor", "export_decoder", "export_encoder"]

# The predictor must not wait for torch, or need it.
_HOMES = {"OnnxPredictor": "hqsam.export.predictor", "MissingExtraError": "hqsam.export.extra"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "hqsam.export.exporting")), name)
    return value
