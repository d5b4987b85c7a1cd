"""Every key of an evaluation configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hqsam.engine.config import MISSING, setting
from hqsam.types import Fusion, Refine, Upsampling

TaskName = Literal["masks", "instances", "video", "clicks", "edges", "mattes", "proposals"]
ProtocolName = Literal["predictor", "paper"]
PromptName = Literal["box"]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How masks are predicted and scored, for callers of `evaluate`; the program's keys are in `EvalConfig`.

    Attributes:
        protocol: "predictor": the path a user gets; "paper": squashed input and HQ alone, as in the HQ-SAM paper.
        prompts: "box": the tight box of the true mask.
        columns: "sam", "hq", "sum"; empty for all that the model and the protocol have.
        max_per_source: only the first objects of each source, in the order of the data set; None for all.
        dilation_ratio: ring width of the boundary IoU as a share of the image diagonal.
        refine, upsampling: as in `SamPredictor.predict`; protocol "predictor" only.
        batch_size: images encoded together; None for 8 on a GPU and 1 on a CPU.
        workers: threads that read images ahead, and as many that score masks; 0 does both when needed.
    """

    protocol: ProtocolName = "predictor"
    prompts: PromptName = "box"
    columns: tuple[Fusion, ...] = ()
    max_per_source: int | None = None
    dilation_ratio: float = 0.02
    workers: int = 0
    refine: Refine | None = None
    upsampling: Upsampling | None = None
    batch_size: int | None = None


@dataclass(kw_only=True)
class EvalModelConfig:
    """What is evaluated."""

    name: str = setting(MISSING, "model name, see `hqsam models list`; a tagged one brings its weights")
    checkpoint: str | None = setting(None, "weights; null: those of the name's tag, or the default pretrained ones")
    dtype: Literal["float32", "auto"] = setting("float32", "auto: bfloat16 where the hardware computes in it")


@dataclass(kw_only=True)
class EvalDataConfig:
    """What it is evaluated on."""

    sets: list[str] = setting(MISSING, "data sets: names, folders, index.json packs, annotation files; data/README.md")
    root: str | None = setting(None, "where named sets are; null: $HQSAM_DATA or data/")
    sources: list[str] = setting([], "only these sources; empty: all")
    holdout: Literal["train", "val", "all"] = setting(
        "all", "all, or without the reserved tenth (sha1 of the image file name mod 10 = 0), or it alone"
    )
    max_per_source: int | None = setting(None, "only the first objects of each source; null: all", at_least=1)
    workers: int = setting(2, "threads that read images ahead, and as many that score masks; 0: none", at_least=0)
    batch_size: int | None = setting(None, "images encoded together; null: 8 on a GPU, 1 on a CPU", at_least=1)


@dataclass(kw_only=True)
class InstanceConfig:
    """Of `task=instances`: boxes of a detector, one mask for each, AP and boundary AP."""

    boxes: str | None = setting(None, "JSON of a detector's boxes (a folder for a group of sets); null: true boxes")
    top_k: int | None = setting(None, "only the best boxes of each image; null: all", at_least=1)
    max_images: int | None = setting(None, "only the first images of each set; null: all", at_least=1)
    score: Literal["box", "iou", "product"] = setting("box", "box: the detector's; iou: the predicted IoU; product")
    rules: Literal["auto", "coco", "lvis"] = setting("auto", "auto: those of the named set, coco for a file")
    class_agnostic: bool | None = setting(None, "true: classes are not looked at; null: as the named set has it")
    metrics: list[str] = setting(["ap", "ap_b", "ap_b_strict"], "of ap, ap_b, ap_b_strict")


@dataclass(kw_only=True)
class VideoConfig:
    """Of `task=video`: J and F, or Tube Mask AP and Tube Boundary AP."""

    prompts: Literal["truth_boxes", "boxes", "propagate"] = setting(
        "truth_boxes", "truth_boxes; boxes: of another model; propagate: a baseline from the first true mask"
    )
    boxes: str | None = setting(None, "JSON of boxes and associations, or folder of label maps")
    frames: Literal["inner", "all"] = setting("inner", "which frames J and F count; inner: not the first and last")
    step: int = setting(1, "every how many frames; other than 1: no benchmark numbers", at_least=1)
    margin: float = setting(0.05, "propagate: how far boxes are widened, share of a side", at_least=0, at_most=1)
    point: bool = setting(True, "propagate: a point inside the last mask beside its box")


@dataclass(kw_only=True)
class ClickConfig:
    """Of `task=clicks`: points, boxes with noise, and clicks that correct."""

    prompts: list[str] = setting(
        ["clicks"],
        "of clicks, points, point (the central one), boxes (with noise), negative (a click after the box), corrections "
        "(clicks after the box)",
    )
    clicks: int = setting(20, "clicks at most", at_least=1)
    points: list[int] = setting([1, 3, 5, 7, 9], "numbers of random points of the object")
    noise: list[float] = setting([0.0, 0.2, 0.4], "scales of the noise of the box")
    seed: int = setting(0, "of random points and noise")
    correlation: bool = setting(False, "measure how well scores go with the true mask and boundary IoU")
    heed: bool = setting(False, "let masks with HQ heed points")
    refine: Literal["none", "again", "again+again"] = setting(
        "none", "more looks at masks with HQ; of boxes and negative alone"
    )
    upsampling: Literal["bilinear", "guided"] = setting("bilinear", "how masks with HQ get the size of the image")


@dataclass(kw_only=True)
class EdgeConfig:
    """Of `task=edges`: boundaries as in the SAM paper, scored by the BSDS500 benchmark."""

    points_per_side: int = setting(16, "grid that is asked", at_least=1)
    thresholds: int = setting(99, "of the maps", at_least=1)
    tolerance: float = setting(0.0075, "largest distance of matched pixels, share of the diagonal", above=0, at_most=1)
    max_images: int | None = setting(None, "only so many images, evenly spaced; null: all", at_least=1)


@dataclass(kw_only=True)
class ProposalConfig:
    """Of `task=proposals`: masks of a dense grid without prompts, average recall, as in the SAM paper."""

    points_per_side: int = setting(64, "grid that is asked", at_least=1)
    box_nms_thresh: float = setting(0.9, "masks whose boxes overlap by more are duplicates", at_least=0, at_most=1)
    max_images: int | None = setting(None, "only the first images of each set; null: all", at_least=1)
    class_agnostic: bool | None = setting(None, "true: a file needs no categories; null: as the named set has it")


@dataclass(kw_only=True)
class EvalConfig:
    """An evaluation run."""

    task: TaskName = setting("masks", "what is measured, see docs/evaluation.md")

    output_dir: str = setting(
        MISSING, "run folder: results.json results.md records.jsonl timing.json plots/ gallery.html"
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    protocol: ProtocolName = setting("predictor", "predictor: as a user gets it; paper: squashed input, HQ alone")
    prompts: PromptName = setting("box", "box: tight box of the true mask")
    columns: list[str] = setting([], "of sam, hq, sum; empty: all that model and protocol have")
    dilation_ratio: float = setting(
        0.02, "ring width of boundary IoU as a share of the image diagonal", above=0, at_most=1
    )
    refine: Literal["default", "none", "again", "again+again", "zoom", "again+zoom", "again+again+zoom"] = setting(
        "default",
        "again: feed each answer back once, again+again: twice; zoom: look again at crops around small objects; "
        "default: the model's",
    )
    upsampling: Literal["default", "bilinear", "guided"] = setting(
        "default", "how masks get the size of the image; guided: along the picture's edges; default: the model's"
    )
    score: Literal["default", "sam", "own", "own_boundary"] = setting(
        "default", "predicted IoU of SAM's mask, or (boundary) IoU of the mask itself; default: the model's"
    )
    plots: int = setting(8, "pictures of the worst cases, of HQ's gains over SAM and of its losses, each", at_least=0)
    model: EvalModelConfig = field(default_factory=EvalModelConfig)
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    instances: InstanceConfig = field(default_factory=InstanceConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    clicks: ClickConfig = field(default_factory=ClickConfig)
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
