"""What stands in the place of the HQ head: the whole one, parts of it, or a tuned copy of SAM's own parts.

The variants are those that the HQ-SAM paper compares (Segment Anything in High Quality, tables 2 to 4). A head is named
by what its mask is made of: the fused features joined by "+", "token" for the HQ token on SAM's own mask feature, or
one of the copies. What a head does not have has no parameters.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from hqsam.models.hq_decoder import HeadFeature, HQHead, SamCopy
from hqsam.models.layers import MLP
from hqsam.models.mask_decoder import DecoderInput, MaskDecoder, mask_product

FEATURES: tuple[HeadFeature, ...] = get_args(HeadFeature)
FULL_HEAD = "+".join(FEATURES)
TOKEN_HEAD = "token"
_TITLES = {
    TOKEN_HEAD: "the HQ token on SAM's mask feature, nothing fused",
    "sam_token": "a tuned copy of SAM's mask token and its MLP instead of an HQ head",
    "sam_decoder": "a tuned copy of SAM's mask decoder instead of an HQ head",
}


class SamTokenHead(SamCopy):
    """SAM's token of the single mask and its MLP, copied to be tuned; the rest of the decoder is SAM's, shared."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.sam_token = nn.Embedding(1, dim)
        self.sam_mlp = MLP(dim, dim, dim // 8, 3)

    def start_from(self, trunk: MaskDecoder) -> None:
        """Begin as a copy of SAM's."""
        self.sam_token.load_state_dict({"weight": trunk.mask_tokens.weight[:1]})
        self.sam_mlp.load_state_dict(trunk.hypernetworks[0].state_dict())

    def logits(self, trunk: MaskDecoder, inputs: DecoderInput) -> Tensor:
        """(N, 1, 4h, 4w) logits of SAM's single mask with the tuned token in the place of its own."""
        output = trunk.run(inputs, single_token=self.sam_token.weight)
        return mask_product(self.sam_mlp(output.mask_tokens[:, 0])[:, None], output.mask_feature)


class SamDecoderHead(SamCopy):
    """All of SAM's decoder that its single mask depends on, copied to be tuned."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.decoder = MaskDecoder(dim)
        # The single mask has one MLP and no score.
        self.decoder.hypernetworks = self.decoder.hypernetworks[:1]
        del self.decoder.iou_head

    def start_from(self, trunk: MaskDecoder) -> None:
        """Begin as a copy of SAM's."""
        sam = trunk.state_dict()
        self.decoder.load_state_dict({name: sam[name] for name in self.decoder.state_dict()})

    def logits(self, trunk: MaskDecoder, inputs: DecoderInput) -> Tensor:
        """(N, 1, 4h, 4w) logits of the copy's single mask; SAM's own decoder takes no part."""
        output = self.decoder.run(inputs._replace(known=None))  # what is known is of SAM's own decoder
        return mask_product(self.decoder.hypernetworks[0](output.mask_tokens[:, 0])[:, None], output.mask_feature)


_COPIES: dict[str, type[SamTokenHead | SamDecoderHead]] = {"sam_token": SamTokenHead, "sam_decoder": SamDecoderHead}


def head_name(name: str) -> str:
    """The one spelling of a head's name: features in the order early, final, mask.

    Raises:
        ValueError: there is no such head.
    """
    if name in _TITLES:
        return name
    parts = name.split("+")
    if not set(parts) <= set(FEATURES) or len(set(parts)) < len(parts):
        raise ValueError(
            f"head must be features joined by +, of {', '.join(FEATURES)}, or one of {', '.join(_TITLES)}; got {name!r}"
        )
    return "+".join(feature for feature in FEATURES if feature in parts)


def head_title(name: str) -> str:
    """What a head is, in words."""
    if name in _TITLES:
        return _TITLES[name]
    return "an HQ head" if name == FULL_HEAD else f"an HQ head that fuses only {' and '.join(name.split('+'))}"


def name_of_head(head: HQHead | SamCopy) -> str:
    """The name of a head that was built."""
    if isinstance(head, HQHead):
        return "+".join(head.features) or TOKEN_HEAD
    return next(name for name, kind in _COPIES.items() if isinstance(head, kind))


def build_head(name: str, early_channels: int) -> HQHead | SamCopy:
    """Build a head with random weights.

    Args:
        name: see `head_name`.
        early_channels: channels of the encoder's early feature.
    """
    name = head_name(name)
    if name in _COPIES:
        return _COPIES[name]()
    return HQHead(early_channels, features=tuple(feature for feature in FEATURES if feature in name.split("+")))
