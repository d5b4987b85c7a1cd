"""Image embeddings that can be kept: in memory, on disk, and refused where they do not belong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hqsam.checkpoints import atomic_path
from hqsam.errors import DataError
from hqsam.models import Sam
from hqsam.types import ImageFeatures

FORMAT = "hqsam_features"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class PredictorFeatures:
    """What a predictor knows of one image.

    Attributes:
        image_embedding: (1, 256, h, w).
        early_feature: (1, C, h', w').
        original_size: (H, W) of the image.
        input_size: (height, width) of the resized image inside the model's input.
        model_fingerprint: see `model_fingerprint`.
        image_hash: see `image_hash`; "" where the image itself was never seen (`set_torch_image`).
    """

    image_embedding: Tensor
    early_feature: Tensor
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    model_fingerprint: str
    image_hash: str = ""

    @property
    def image_features(self) -> ImageFeatures:
        """The two tensors as the decoder takes them."""
        return ImageFeatures(self.image_embedding, self.early_feature)

    def require(self, model: Sam, image: NDArray[np.uint8] | None = None) -> None:
        """Refuse features of another model or image.

        Args:
            model: the model that is to use them.
            image: (H, W, 3) uint8 RGB; None leaves the image unchecked.

        Raises:
            ValueError: they were made by another encoder (weights, number type, input size), or from another image.
        """
        if self.model_fingerprint != model_fingerprint(model):
            raise ValueError(
                "these features were made by another image encoder (other weights, number type or input size) "
                "than this model's; encode the image again"
            )
        if image is None:
            return
        if tuple(image.shape[:2]) != self.original_size:
            raise ValueError(
                f"these features are of an image of {_by(self.original_size)} pixels, not of this one of "
                f"{_by(image.shape[:2])} (height x width)"
            )
        if not self.image_hash:
            raise ValueError(
                "these features do not know their image (set_torch_image); pass no image to skip the check"
            )
        if self.image_hash != image_hash(image):
            raise ValueError("these features are of another image of the same size; encode this one")

    def to(self, device: torch.device | str) -> PredictorFeatures:
        """The same features on another device."""
        return replace(
            self, image_embedding=self.image_embedding.to(device), early_feature=self.early_feature.to(device)
        )

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file, atomically.

        Args:
            path: ends with `.safetensors`.
            dtype: number type on disk, for instance `torch.float16` for half the size; None keeps it.

        Raises:
            ValueError: another suffix.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"features are saved as .safetensors, got {path.name!r}")
        tensors = {
            "image_embedding": self.image_embedding.detach().to("cpu", dtype).contiguous(),
            "early_feature": self.early_feature.detach().to("cpu", dtype).contiguous(),
        }
        text = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "original_size": _by(self.original_size),
            "input_size": _by(self.input_size),
            "model_fingerprint": self.model_fingerprint,
            "image_hash": self.image_hash,
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, text)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PredictorFeatures:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise DataError(f"features file not found: {path}")
        try:
            with safe_open(path, "pt") as file:
                text = file.metadata() or {}
                if (text.get("format"), text.get("format_version")) != (FORMAT, FORMAT_VERSION):
                    raise DataError(
                        f"{path} is not a features file of this version; save one with get_features().save()"
                    )
                return cls(
                    file.get_tensor("image_embedding"),
                    file.get_tensor("early_feature"),
                    _sides(text["original_size"]),
                    _sides(text["input_size"]),
                    text["model_fingerprint"],
                    text["image_hash"],
                )
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"features file cannot be read (truncated or damaged): {path} ({error})") from error


def image_hash(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's size and pixels, (H, W, 3) uint8 RGB, as a hexadecimal text."""
    digest = hashlib.sha256(_by(image.shape[:2]).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def model_fingerprint(model: Sam) -> str:
    """A text that differs between image encoders whose weights, number type or input size differ.

    Computed anew at each call from exact integer sums of the weights' bits, so that it is the same on every device;
    the prompt encoder, the decoder and the HQ head take no part, since the embedding does not depend on them.
    """
    return _fingerprint(model, model.image_encoder)


def weights_fingerprint(model: Sam) -> str:
    """The same of all weights: it differs between models with one encoder and different heads too."""
    return _fingerprint(model, model)


def _fingerprint(model: Sam, part: nn.Module) -> str:
    digest = hashlib.sha256(f"{model.image_size} {model.dtype}".encode())
    for name, tensor in part.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sums(tensor)}".encode())
    return digest.hexdigest()


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PERIOD = 8191
"""A prime: weighting by the position modulo a prime tells tensors apart whose numbers are in another order."""


def _sums(tensor: Tensor) -> tuple[int, int]:
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    plain = weighted = 0
    for start in range(0, len(bits), 2**22):
        part = bits[start : start + 2**22].to(torch.int64)
        place = (torch.arange(len(part), device=part.device) + start) % _PERIOD + 1
        plain, weighted = plain + int(part.sum()), weighted + int((part * place).sum())
    return plain, weighted


def _by(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _sides(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split(" x "))
    return height, width
