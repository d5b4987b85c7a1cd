"""Every key of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hqsam.engine.clicks import Rounds
from hqsam.engine.config import MISSING, setting
from hqsam.errors import ConfigError


@dataclass(kw_only=True)
class ModelConfig:
    """What is trained."""

    name: str = setting(MISSING, "model name, see `hqsam models list`")
    checkpoint: str | None = setting(None, "weights to start from: a SAM, HQ-SAM or HQ-head file")
    fresh_hq_head: bool = setting(False, "allow a plain SAM file: the HQ head starts from random weights")
    random_weights: bool = setting(False, "allow no weights at all; for trials of the machinery")
    image_size: int | None = setting(None, "side of the square input in pixels; null: that of the weights", at_least=16)
    trained: str = setting(
        "hq",
        "what is trained, joined by +: hq, the HQ head; decoder, prompt, encoder of SAM; or score, a score head, alone",
    )
    head: str = setting(
        "early+final+mask", "what the head is made of, see docs/ablations.md: features joined by +, token, or a copy"
    )
    drop_path: float = setting(
        0.0, "stochastic depth of a trained encoder; SAM: 0.6 (ViT-B), 0.4 (L, H)", at_least=0, at_most=0.9
    )
    lora_rank: int = setting(0, "rank of a trained adapter of the encoder's attention (LoRA); 0: none", at_least=0)
    lora_alpha: float | None = setting(None, "its update is scaled by alpha / rank; null: by 1", above=0)


@dataclass(kw_only=True)
class AugmentConfig:
    """What happens to the image; see `hqsam.data.TrainDataOptions`, which has the same names."""

    pad: Literal["published", "predictor"] = setting(
        "published", "beyond the image: grey before normalisation (published), or zero after it (predictor)"
    )
    jitter: tuple[float, float] | None = setting(
        (0.1, 2.0), "range of the scale; null: the image fits the frame", above=0
    )
    flip_prob: float = setting(0.5, "chance of a mirror image", at_least=0, at_most=1)
    max_enlargement: float | None = setting(None, "no image is enlarged by more than this; null: no limit", above=0)
    min_pixels: int = setting(10, "a crop must keep so many pixels of the object ...", at_least=1)
    min_share: float = setting(0.1, "... and this share of its area, or it is drawn again ...", at_least=0, at_most=1)
    max_tries: int = setting(10, "... so often; then the whole image is shown", at_least=1)
    photometric: float = setting(0.0, "chance of changed colours and contrast", at_least=0, at_most=1)
    degradation: float = setting(0.0, "chance of blur, noise and compression", at_least=0, at_most=1)


@dataclass(kw_only=True)
class PromptConfig:
    """Simulated prompts; see `hqsam.data.TrainDataOptions`, which has the same names."""

    prompts_per_image: int = setting(1, "prompts, each of one object, that share an encoded image", at_least=1)
    mix: dict[str, float] = setting({"box": 1.0, "points": 1.0, "mask": 1.0}, "relative chance of box, points, mask")
    num_points: int = setting(10, "points of a point prompt", at_least=1)
    min_points: int | None = setting(None, "at least so many, drawn up to num_points; null: all of them", at_least=1)
    box_jitter: float = setting(0.0, "noise on box sides as a share of the side; SAM: 0.1; 0: tight", at_least=0)
    mask_scale: Literal["published", "predictor"] = setting(
        "published", "values of mask prompts; published: 0 and 255, predictor: like logits"
    )


@dataclass(kw_only=True)
class PointsConfig:
    """Points of the loss; see `hqsam.data.TrainDataOptions`, which has the same names."""

    points_per_mask: int = setting(112 * 112, "points at which the loss looks at a mask", at_least=1)
    oversample: float = setting(3.0, "candidates for each of them", at_least=1)
    importance: float = setting(0.75, "share taken from the most uncertain candidates", at_least=0, at_most=1)


@dataclass(kw_only=True)
class DataConfig:
    """What it is trained on."""

    train: list[str] = setting(MISSING, "data sets: names, folders, index.json packs, annotation files; data/README.md")
    val: list[str] = setting([], "the same, for validation")
    root: str | None = setting(None, "where named sets are; null: $HQSAM_DATA or data/")
    holdout: Literal["train", "val", "all"] = setting(
        "all", "of data.train: all, or without the reserved tenth (sha1 of the image file name mod 10 = 0), or it alone"
    )
    val_holdout: Literal["train", "val", "all"] = setting("all", "the same for data.val")
    exclude_files: list[str] = setting([], "text files with one image file name a line, left out of training")
    sources: list[str] = setting([], "train on these sources alone; empty: on all")
    max_images: int | None = setting(
        None, "only so many of the files of data.train, by a hash of their names; null: all", at_least=1
    )
    use_alpha: bool = setting(True, "a measured matte, where there is one, is the target instead of the mask")
    synthetic: int = setting(0, 'generated scenes beside data.train; their source is "synthetic"', at_least=0)
    val_synthetic: int = setting(
        0, "generated scenes beside data.val, of other seeds, written to val_scenes/ of the run folder", at_least=0
    )
    synthetic_kinds: list[str] = setting([], "kinds of objects in generated scenes; empty: all of them")
    weights: dict[str, float] = setting({}, "relative share of each source in an epoch; empty: every image once")
    epoch_images: int | None = setting(None, "images in an epoch; null: as many as there are", at_least=1)
    val_per_source: int | None = setting(None, "objects of each source to validate on; null: all", at_least=1)
    keep_features: str | None = setting(None, "folder for kept encoder outputs; null: the encoder runs in every step")
    views: int = setting(0, "augmented views of each image; 0: a new one in every epoch", at_least=0)
    encode_amp: Literal["off", "bf16"] = setting("off", "bf16: kept features are computed under bfloat16 autocast")
    check: Literal["full", "off"] = setting("full", "full: every image and mask is decoded once before the first step")
    on_defect: Literal["error", "skip"] = setting("error", "skip: leave out what cannot be trained on, and list it")
    workers: int = setting(4, "loading processes for each training process; 0 loads in the process", at_least=0)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    points: PointsConfig = field(default_factory=PointsConfig)


@dataclass(kw_only=True)
class LossConfig:
    """What the head's loss looks at."""

    sum_share: float = setting(
        0.0,
        "share of the loss that judges SAM's single mask + HQ; the rest judges HQ alone, as published",
        at_least=0,
        at_most=1,
    )


@dataclass(kw_only=True)
class OptimConfig:
    """Adam, as published for HQ-SAM, or AdamW, as for SAM, and the learning rate."""

    name: Literal["adam", "adamw"] = setting("adam", "adam: as HQ-SAM; adamw: as SAM")
    lr: float = setting(1e-3, "learning rate", above=0)
    schedule: Literal["step", "cosine"] = setting("step", "step: as published; cosine: to zero at the last step")
    drop_epoch: int = setting(10, "step schedule: the rate drops after this many epochs", at_least=0)
    drop_steps: list[int] = setting([], "step schedule: it drops after each of these steps instead", at_least=0)
    drop_factor: float = setting(0.1, "step schedule: factor of the drop", above=0)
    warmup_steps: int = setting(0, "linear warm-up", at_least=0)
    beta1: float = setting(0.9, at_least=0, at_most=0.99999)
    beta2: float = setting(0.999, at_least=0, at_most=0.99999)
    eps: float = setting(1e-8, above=0)
    clip: float | None = setting(None, "largest gradient norm; null: not clipped", above=0)
    decoder_factor: float = setting(0.1, "learning rate of SAM's mask decoder, where trained, over lr", above=0)
    prompt_factor: float = setting(0.1, "the same of SAM's prompt encoder", above=0)
    encoder_factor: float = setting(0.01, "the same of SAM's image encoder", above=0)
    layer_decay: float = setting(
        1.0, "and of each layer of the encoder over the next one; SAM: 0.6 (ViT-B), 0.8 (L, H)", above=0, at_most=1
    )
    weight_decay: float = setting(0.0, "adamw: decay of the weights of linear layers and convolutions", at_least=0)
    lora_factor: float = setting(1.0, "learning rate of the encoder's adapter over lr", above=0)


@dataclass(kw_only=True)
class ClicksConfig:
    """Corrections after the first prompt, as SAM was trained; the published HQ-SAM has none."""

    rounds: int = setting(
        0, "further answers to each prompt, each after one click where the last was wrong", at_least=0
    )
    feed_mask: bool = setting(True, "the last answer is the mask prompt of the next, as the predictor's users do")
    mask_only: int = setting(
        0,
        "rounds with the last answer and no new click: 1 at the end, 2 with one between clicks",
        at_least=0,
        at_most=2,
    )

    def plan(self) -> Rounds:
        """The rounds after the first prompt.

        Raises:
            ConfigError: settings that contradict each other.
        """
        try:
            return Rounds(self.rounds, self.mask_only, self.feed_mask)
        except ValueError as error:
            raise ConfigError(f"clicks: {error}") from error


@dataclass(kw_only=True)
class LoopConfig:
    """How long, how much at once, how often things are written."""

    epochs: int = setting(12, "epochs", at_least=1)
    max_steps: int | None = setting(None, "stop after this many optimizer steps; null: after the epochs", at_least=0)
    batch_size: int = setting(4, "images for each process in a micro-batch", at_least=1)
    prompt_chunk: int | None = setting(
        None, "prompts of a micro-batch decoded at once, which bounds the memory; null: all", at_least=1
    )
    accumulate: int = setting(1, "micro-batches for each optimizer step", at_least=1)
    amp: Literal["off", "bf16"] = setting("off", "bf16: forward pass under bfloat16 autocast")
    ema: float | None = setting(
        None,
        "decay of a running average of the weights, which is validated and exported; null: none",
        above=0,
        at_most=1,
    )
    compile: bool = setting(False, "torch.compile the encoder; needs a C++ compiler on a CPU, Triton on a GPU")
    dtype: Literal["float32", "float64"] = setting("float32", "parameters; float64 is for tests")
    log_every: int = setting(20, "steps between log lines", at_least=1)
    val_every: int = setting(0, "steps between validations; 0: after each epoch", at_least=0)
    save_every: int = setting(0, "steps between saved states; 0: after each epoch", at_least=0)
    keep_last: int = setting(3, "saved states to keep", at_least=1)
    encode_only: bool = setting(False, "fill data.keep_features and stop")
    encode_batch: int = setting(1, "images encoded at once while filling data.keep_features", at_least=1)
    panels: int = setting(4, "validation pictures shown in TensorBoard", at_least=0)


@dataclass(kw_only=True)
class TrainConfig:
    """A training run."""

    output_dir: str = setting(MISSING, "run folder")
    resume: str = setting("auto", "auto: from the last saved state in output_dir; none; or a state file")
    seed: int = setting(42, "of everything random", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clicks: ClicksConfig = field(default_factory=ClicksConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
