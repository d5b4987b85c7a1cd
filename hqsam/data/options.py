"""Settings of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hqsam.data.augment import LSJRule
from hqsam.data.pixel_changes import PixelRule
from hqsam.data.prompts import PromptRule

Pad = Literal["published", "predictor"]


@dataclass(frozen=True, kw_only=True)
class TrainDataOptions:
    """How images become training samples; the defaults are the published recipe.

    Attributes:
        prompts_per_image: prompts of each view: of different objects as far as the view has them, then several of one.
        views: augmented views of each image, so that encoder outputs can be kept; 0: a new one in every epoch.
        pad: what is beyond the image in the frame. "published": raw grey 128, seen by the encoder; "predictor": zero
            after normalisation, as at inference: `Sample.input_hw` says where the image ends.
        jitter: range of large scale jitter relative to the frame; None: the image fits the frame.
        flip_prob: chance of a mirror image.
        max_enlargement: largest factor by which an image is enlarged; None: no limit. At 1 masks stay as sharp as
            their files, however small the images.
        min_pixels: pixels of mask > 128 that a crop must leave of an object; with fewer the prompt is a box.
        min_share: share of the object's area that a crop must leave.
        max_tries: crops drawn before the whole image is shown without jitter.
        photometric: chance that colours and contrast of a view are changed; see `hqsam.data.pixel_changes`.
        degradation: chance that a view is blurred, noisy or compressed.
        mix: relative chance of the prompt kinds "box", "points" and "mask".
        num_points: positive points of a "points" prompt.
        min_points: each has a number of points drawn from this one up to `num_points`; None: all of them.
        mask_scale: values of a mask prompt. "published": 0 and 255; "predictor": -10 and 10, logits as the predictor
            feeds them.
        box_jitter: standard deviation of the noise on a box coordinate as a share of the side, cut off at 20 pixels of
            a 1024 frame; SAM used 0.1, the published HQ-SAM 0.
        click_draws: random numbers that come with each prompt, for the corrections that follow it.
        path_draws: random numbers that come with each image, for the encoder's stochastic depth.
        use_alpha: train on an object's matte where it has one.
        points_per_mask: points of the loss.
        oversample: candidates drawn for each of those points.
        importance: share of them taken from the most uncertain candidates, the rest is uniform.
    """

    prompts_per_image: int = 1
    views: int = 0
    pad: Pad = "published"
    jitter: tuple[float, float] | None = (0.1, 2.0)
    flip_prob: float = 0.5
    max_enlargement: float | None = None
    min_pixels: int = 10
    min_share: float = 0.1
    max_tries: int = 10
    photometric: float = 0.0
    degradation: float = 0.0
    mix: Mapping[str, float] = field(default_factory=lambda: {"box": 1.0, "points": 1.0, "mask": 1.0})
    num_points: int = 10
    min_points: int | None = None
    mask_scale: Literal["published", "predictor"] = "published"
    box_jitter: float = 0.0
    click_draws: int = 0
    path_draws: int = 0
    use_alpha: bool = True
    points_per_mask: int = 112 * 112
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        for name, least in (
            ("prompts_per_image", 1),
            ("views", 0),
            ("click_draws", 0),
            ("path_draws", 0),
            ("points_per_mask", 1),
            ("max_tries", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.pad not in ("published", "predictor"):
            raise ValueError(f"pad must be 'published' or 'predictor', got {self.pad!r}")
        if not 0 <= self.importance <= 1:
            raise ValueError(f"importance must be within 0..1, got {self.importance}")
        if self.oversample < 1:
            raise ValueError(f"oversample must be at least 1, got {self.oversample}")
        self.crop_rule(), self.pixel_rule(), self.prompt_rule()  # their own checks

    def crop_rule(self) -> LSJRule:
        """How crops are drawn."""
        return LSJRule(
            jitter=self.jitter,
            flip_prob=self.flip_prob,
            max_enlargement=self.max_enlargement,
            min_pixels=self.min_pixels,
            min_share=self.min_share,
            max_tries=self.max_tries,
        )

    def pixel_rule(self) -> PixelRule:
        """How pixels of the image are changed."""
        return PixelRule(photometric=self.photometric, degradation=self.degradation)

    def prompt_rule(self) -> PromptRule:
        """How prompts are simulated."""
        return PromptRule(
            mix=self.mix,
            num_points=self.num_points,
            min_points=self.min_points,
            mask_scale=self.mask_scale,
            box_jitter=self.box_jitter,
            min_pixels=self.min_pixels,
        )

    @property
    def num_uniform(self) -> int:
        """Loss points of a mask that are drawn uniformly: the published split rounds the uncertain ones down."""
        return self.points_per_mask - int(self.importance * self.points_per_mask)

    @property
    def num_candidates(self) -> int:
        """Candidates of a mask from which the uncertain loss points are taken."""
        return int(self.oversample * self.points_per_mask)
