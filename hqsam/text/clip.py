"""CLIP embeddings of phrases and of crops, through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.errors import HqsamError
from hqsam.text.detector import check_phrases
from hqsam.text.extra import first_line, import_extra

DEFAULT_CLIP = "ViT-L-14-336-quickgelu/openai"
"""The paper's CLIP: ViT-L/14 at 336 pixels."""

_SCHEMAS = ("hf-hub:", "local-dir:")


class ClipError(HqsamError):
    """A CLIP model cannot be loaded."""


class ClipEncoder:
    """A CLIP model that is only asked, never trained.

    Args:
        model: an open_clip model.
        tokenizer: texts to token ids (N, L), as open_clip's are.
        name: what it was loaded as.

    Attributes:
        dim: D, length of an embedding.
        image_size: side in pixels of the crops that it takes.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        size = model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.dim = self.encode_text(["object"]).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str], template: str = "{}") -> Tensor:
        """Embed phrases.

        Args:
            phrases: N of them; what is longer than CLIP's context is cut.
            template: what each is put into, in place of "{}".

        Returns:
            (N, D) float32 of length one.

        Raises:
            ValueError: no phrase, an empty one, or a template without "{}".
        """
        if "{}" not in template:
            raise ValueError(f"a prompt template holds {{}}, where the phrase goes; got {template!r}")
        texts = [template.replace("{}", phrase) for phrase in check_phrases(phrases)]
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=1)

    @torch.no_grad()
    def encode_crops(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Embed pictures.

        Args:
            crops: N of (S, S, 3) uint8 RGB with S = `image_size`.

        Returns:
            (N, D) float32 of length one.

        Raises:
            ValueError: no crops, or of another size.
        """
        expected = (self.image_size, self.image_size, 3)
        wrong = [crop.shape for crop in crops if crop.shape != expected]
        if wrong or not len(crops):
            raise ValueError(f"crops must have shape {expected}, got {wrong[0] if wrong else 'none'}")
        pixels = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in self._normalisation())
        return F.normalize(self.model.encode_image((pixels - mean) / std).float(), dim=1)

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.model.visual.image_mean, self.model.visual.image_std


def load_clip(name: str = DEFAULT_CLIP, *, device: str | torch.device = "cpu") -> ClipEncoder:
    """Load a CLIP with its weights.

    Args:
        name: "MODEL/TAG" of open_clip's list (`open_clip.list_pretrained()`), or "MODEL/FILE"; "hf-hub:ORG/NAME";
            or "local-dir:FOLDER" with open_clip_config.json and weights. open_clip downloads what is not local.
        device: where the model goes.

    Raises:
        MissingExtraError: open_clip is not installed.
        ClipError: unknown name, no weights, no network.
    """
    open_clip = import_extra("open_clip")
    by_schema = name.startswith(_SCHEMAS)
    model_name, _, tag = (name, "", "") if by_schema else name.partition("/")
    if not by_schema and not (model_name and tag):
        raise ClipError(
            f"a CLIP is named MODEL/TAG (e.g. {DEFAULT_CLIP}), hf-hub:ORG/NAME or local-dir:FOLDER, got {name!r}"
        )
    try:
        model = open_clip.create_model(model_name, tag or None, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model_name)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise ClipError(f"CLIP {name!r} cannot be loaded: {first_line(error)}") from error
    return ClipEncoder(model, tokenizer, name)
