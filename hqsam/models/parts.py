"""Which parts of a model training changes; everything else is frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, TypeVar, get_args

from torch import nn

from hqsam.models.hq_decoder import HQMaskDecoder
from hqsam.models.mask_decoder import MaskDecoder
from hqsam.models.prompt_encoder import PromptEncoder

TrainablePart = Literal["head", "decoder", "prompt", "encoder", "score"]
"""What training may change in place: HQ head; mask decoder, prompt encoder and image encoder of SAM; score head."""

SAM_PARTS: tuple[TrainablePart, ...] = ("decoder", "prompt", "encoder")

Self = TypeVar("Self", bound="TrainableParts")


class TrainableParts(nn.Module):
    """Base of `hqsam.models.Sam`: a model of parts that are trained, or stay as they are and in eval mode.

    Attributes:
        trained_parts: what `set_trained` chose.
    """

    image_encoder: nn.Module
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder | HQMaskDecoder
    trained_parts: tuple[TrainablePart, ...] = ()

    def hq_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that HQ training changes; none in a plain SAM."""
        if isinstance(self.mask_decoder, HQMaskDecoder):
            yield from self.mask_decoder.head.parameters()

    def set_trained(self, parts: Collection[TrainablePart]) -> None:
        """Choose what training changes; everything else is frozen.

        Args:
            parts: any of "head" and "score" (HQ models alone), "decoder", "prompt" and "encoder"; or none.

        Raises:
            ValueError: an unknown part, or one that the model does not have.
        """
        if unknown := [part for part in parts if part not in get_args(TrainablePart)]:
            raise ValueError(f"parts must be among {get_args(TrainablePart)}, got {unknown}")
        modules = self.part_modules()
        if "head" in parts and "head" not in modules:
            raise ValueError(f"a plain SAM has no HQ head to train; build an hq_ model, or name parts of {SAM_PARTS}")
        if "score" in parts and "score" not in modules:
            raise ValueError("this model has no score head to train: give it one with set_score_head(ScoreHead())")
        self.trained_parts = tuple(part for part in get_args(TrainablePart) if part in parts)
        self.requires_grad_(False)
        for module in self.trained_modules().values():
            module.requires_grad_(True)
        self.train(self.training)

    def part_modules(self) -> dict[TrainablePart, nn.Module]:
        """The parts that the model has."""
        modules: dict[TrainablePart, nn.Module] = {"decoder": self.mask_decoder}
        if isinstance(self.mask_decoder, HQMaskDecoder):
            modules = {"head": self.mask_decoder.head, "decoder": self.mask_decoder.trunk}
            if self.mask_decoder.score_head is not None:
                modules["score"] = self.mask_decoder.score_head
        return {**modules, "prompt": self.prompt_encoder, "encoder": self.image_encoder}

    def trained_modules(self) -> dict[TrainablePart, nn.Module]:
        """The parts that training changes."""
        modules = self.part_modules()
        return {part: modules[part] for part in self.trained_parts if part in modules}

    def trained_parameters(self) -> dict[TrainablePart, list[nn.Parameter]]:
        """The parameters that training changes, by part."""
        return {part: list(module.parameters()) for part, module in self.trained_modules().items()}

    def train(self: Self, mode: bool = True) -> Self:
        """Switch the trained parts' mode; the others stay in eval mode.

        Batch norms stay there in any case: TinyViT's statistics belong to its weights (MobileSAM's are folded into
        them), and those of a batch would depend on how images are spread over batches and processes.
        """
        super().train(mode)
        for part, module in self.part_modules().items():
            if part not in self.trained_parts:
                module.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
