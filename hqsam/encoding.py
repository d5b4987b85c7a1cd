"""Pictures of any sizes through the image encoder, as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.geometry import ResizeLongestSide
from hqsam.models import Sam
from hqsam.types import ImageFeatures


@torch.no_grad()
def encode_images(model: Sam, images: Sequence[NDArray[np.uint8]]) -> tuple[ImageFeatures, list[tuple[int, int]]]:
    """Resize, pad and encode pictures of any sizes as one batch.

    Args:
        model: the model.
        images: (H, W, 3) uint8 RGB arrays.

    Returns:
        Encoder outputs, one row an image, and the size (height, width) of each resized image inside the model's input.
    """
    resize, inputs, sizes = ResizeLongestSide(model.image_size), [], []
    for image in images:
        pixels = torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1)
        inputs.append(model.preprocess(pixels.to(model.device)))
        sizes.append((pixels.shape[1], pixels.shape[2]))
    features: ImageFeatures = model.image_encoder(torch.stack(inputs))
    return features, sizes
