"""Evaluation on videos: J and F of DAVIS, Tube Mask AP and Tube Boundary AP of YouTube-VIS and HQ-YTVIS.

A set without classes is scored as DAVIS is: its objects do not overlap, so a pixel belongs to the object with the
largest logit there. A set with classes is scored by tubes, which may overlap. See docs/evaluation/video.md.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from hqsam.data.video_boxes import BoxTrack, read_video_boxes
from hqsam.data.videos import VideoRecord, VideoSet, check_frame, every_nth_frame, load_frame_masks
from hqsam.engine.evaluation.columns import choose_columns
from hqsam.engine.evaluation.masks import describe_model
from hqsam.engine.evaluation.report import EvalResult
from hqsam.engine.evaluation.task import Outcome, ScorePool
from hqsam.engine.evaluation.video_prompts import GivenBoxes, Mask, Prompted, Prompter, Propagate, TruthBoxes
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics.boundary import DILATION_RATIO
from hqsam.metrics.davis import DavisRecord, DavisScores, FrameScores, ObjectScorer, ScoredFrames, score_frame
from hqsam.metrics.tubes import Tube, TubeRecord, TubeSample, TubeScores, score_tubes
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.rle import Rle, encode_rle
from hqsam.types import Fusion

logger = logging.getLogger(__name__)

VideoPrompts = Literal["truth_boxes", "boxes", "propagate"]
Scored = DavisRecord | TubeRecord
_PIXELS_AT_ONCE = 2**25
"""Output pixels of one chunk of prompts, so that a hundred tracks on large frames do not need memory for all logits."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are predicted and scored.

    Attributes:
        prompts: "truth_boxes": the tight box of the true mask in every frame; "boxes": boxes and associations of
            another model, from `boxes`; "propagate": a baseline that starts from the first true mask and prompts each
            frame with the mask of the frame before.
        boxes: JSON file of the boxes, or folder of label maps, see `hqsam.data.video_boxes`; for "boxes" alone.
        columns: "sam", "hq", "sum"; empty for all that the model has.
        frames: which frames J and F count, see `hqsam.metrics.davis.ScoredFrames`.
        step: every how many frames a video is taken; numbers of another step than 1 are no benchmark numbers.
        margin: of "propagate": how far each side of a box is moved outwards, as a share of the box's width or height.
            The tight box of the last mask would cut off whatever moves outwards, for good, since the next box comes
            from what was cut; SAM was trained with boxes off by 10 % of a side, of which half is taken.
        point: of "propagate": whether to prompt with a point deep inside the last mask beside its box.
        dilation_ratio: ring width of Tube Boundary AP as a share of the image diagonal.
    """

    prompts: VideoPrompts = "truth_boxes"
    boxes: Path | None = None
    columns: tuple[Fusion, ...] = ()
    frames: ScoredFrames = "inner"
    step: int = 1
    margin: float = 0.05
    point: bool = True
    dilation_ratio: float = DILATION_RATIO

    def __post_init__(self) -> None:
        """Check what can be checked without a data set.

        Raises:
            ValueError: an unknown name, a number out of range, or boxes that are missing or not asked for.
        """
        if self.prompts not in get_args(VideoPrompts):
            raise ValueError(f"prompts must be one of {', '.join(get_args(VideoPrompts))}, got {self.prompts!r}")
        if self.frames not in get_args(ScoredFrames):
            raise ValueError(f"frames must be one of {', '.join(get_args(ScoredFrames))}, got {self.frames!r}")
        if (self.prompts == "boxes") != (self.boxes is not None):
            raise ValueError(f"prompts='boxes' and a file of boxes come together, got {self.prompts!r}, {self.boxes}")
        if self.step < 1 or not 0 <= self.margin <= 1:
            raise ValueError(f"step must be at least 1 and margin within 0..1, got {self.step} and {self.margin}")


@dataclass(frozen=True)
class VideoItem:
    """One video, with the tracks that another model found in it if they are the prompts."""

    set: str
    record: VideoRecord
    tracks: tuple[BoxTrack, ...] = ()


class WatchedFrame(NamedTuple):
    """A frame after it was predicted; masks are in the order of the video's objects."""

    item: VideoItem
    frame: int
    image: NDArray[np.uint8]
    truths: list[Mask]
    predicted: dict[Fusion, list[Mask]]


class VideoTask:
    """The task (see `Task`) of scoring one set of videos; one item is one video.

    Args:
        model: an HQ model whose head is untrained is scored as the plain SAM that it contains.
        videos: from `hqsam.data.video_opening.open_videos`.
        options: see `VideoOptions`.

    Attributes:
        batch_size: 1: an item is a whole video.
        items: the videos, in the order of the set.
        predictor: encodes frames and answers prompts.
        watch: called with every frame of a set without classes after it was predicted, for pictures; None at first.

    Raises:
        ValueError: the model cannot give a column, or propagation in a set with classes.
        DataError: unusable boxes, or a video without a frame that counts.
    """

    def __init__(self, model: Sam, videos: VideoSet, options: VideoOptions | None = None) -> None:
        self.options = options or VideoOptions()
        self.has_classes = bool(videos.categories)
        self.columns = choose_columns(model, self.options.columns)
        self.model, self.predictor = model, SamPredictor(model)
        self.watch: Callable[[WatchedFrame], None] | None = None
        if self.has_classes and self.options.prompts == "propagate":
            raise ValueError(
                f"prompts='propagate' gives the first mask of every object away, and {videos.name} is scored by tubes, "
                "of which that mask would be a part: use 'boxes' or 'truth_boxes'"
            )
        path = self.options.boxes
        tracks = {} if path is None else read_video_boxes(path, videos)
        self._digest = hashlib.sha256(repr(sorted(tracks.items())).encode()).hexdigest()[:16]
        self.items = [self._item(videos.name, video, tracks.get(video.key, ())) for video in videos.videos]
        self.batch_size = 1

    def _item(self, set_name: str, video: VideoRecord, tracks: tuple[BoxTrack, ...]) -> VideoItem:
        step = self.options.step
        short = every_nth_frame(video, step)
        tracks = tuple(replace(track, boxes=track.boxes[::step]) for track in tracks)
        if self.options.prompts == "boxes" and not self.has_classes:
            known = {track.number: track for track in tracks}
            nowhere: tuple[None, ...] = (None,) * len(short.frames)
            tracks = tuple(known.get(o.number, BoxTrack(boxes=nowhere, number=o.number)) for o in video.objects)
        least = 3 if self.options.frames == "inner" else 1 + (self.options.prompts == "propagate")
        if not self.has_classes and len(short.frames) < least:
            raise DataError(
                f"{video.key} has {len(short.frames)} frames with step={step}: with frames={self.options.frames!r} and "
                f"prompts={self.options.prompts!r} it needs {least} so that one counts"
            )
        return VideoItem(set_name, short, tracks)

    def key(self, item: VideoItem) -> str:
        """See `Task`."""
        return item.record.key

    def load(self, item: VideoItem) -> None:
        """See `Task`. Nothing is read ahead of `run`: a video is longer than memory, its frames are read one by one."""

    def run(self, group: Sequence[tuple[VideoItem, None]], pool: ScorePool) -> list[Outcome[Scored]]:
        """See `Task`.

        Raises:
            DataError: a frame or mask is unreadable, or of another size than the video.
        """
        return [
            Outcome(self._tubes(item, pool)) if self.has_classes else self._objects(item, pool) for item, _ in group
        ]

    def _objects(self, item: VideoItem, pool: ScorePool) -> Outcome[Scored]:
        prompter = self._prompter(item)
        scores: list[list[Future[FrameScores] | None]] = [[] for _ in item.record.objects]
        for frame, image, truths in _read_frames(item.record):
            unscored = prompter.begin(frame, truths)
            predicted = self._exclusive(prompter, image)
            for row, truth in enumerate(truths):
                masks: dict[str, Mask] = {column: of_rows[row] for column, of_rows in predicted.items()}
                scores[row].append(None if row in unscored else pool.submit(score_frame, masks, truth))
            if self.watch is not None:
                self.watch(WatchedFrame(item, frame, image, truths, predicted))
        records: list[Scored] = []
        left_out = []
        for obj, frames in zip(item.record.objects, scores, strict=True):
            if not any(frames[1:-1] if self.options.frames == "inner" else frames):
                left_out.append(f"{item.record.key}, object {obj.number}")
                continue
            scorer = ObjectScorer(item.set, item.record.name, obj.number)
            for future in frames:
                scorer.add(None if future is None else future.result())
            records.append(scorer.record())
        return Outcome(records, left_out)

    def _exclusive(self, prompter: Prompter, image: NDArray[np.uint8]) -> dict[Fusion, list[Mask]]:
        """Masks of all rows by column; a pixel belongs to the row with the largest logit, given masks come first."""
        if any(prompter.prompts(column) for column in self.columns):
            self.predictor.set_image(image)
        result: dict[Fusion, list[Mask]] = {}
        for column in self.columns:
            given = prompter.given()
            best = np.zeros(image.shape[:2], dtype=np.float32)
            owner = np.full(image.shape[:2], -1, dtype=np.int32)
            prompts = {row: prompt for row, prompt in prompter.prompts(column).items() if row not in given}
            for row, logits in self._predict(prompts, column):
                closer = logits > best
                best[closer], owner[closer] = logits[closer], row
            for row, mask in given.items():
                owner[mask] = row
            result[column] = [owner == row for row in range(prompter.rows)]
            prompter.end(column, result[column])
        return result

    def _tubes(self, item: VideoItem, pool: ScorePool) -> list[Future[Scored]]:
        prompter, objects = self._prompter(item), item.record.objects
        true: list[list[Rle | None]] = [[] for _ in objects]
        found: dict[Fusion, list[list[Rle | None]]] = {c: [[] for _ in range(prompter.rows)] for c in self.columns}
        for frame, image, truths in _read_frames(item.record):
            prompter.begin(frame, truths)
            for masks, truth in zip(true, truths, strict=True):
                masks.append(encode_rle(truth) if truth.any() else None)
            if any(prompter.prompts(column) for column in self.columns):
                self.predictor.set_image(image)
            for column in self.columns:
                for masks in found[column]:
                    masks.append(None)
                for row, logits in self._predict(prompter.prompts(column), column):
                    found[column][row][-1] = encode_rle(logits > 0)
        truth_tubes = [
            Tube(cast(int, obj.category), masks, is_crowd=obj.is_crowd, area=obj.area)
            for obj, masks in zip(objects, true, strict=True)
        ]
        tracks = item.tracks
        if self.options.prompts != "boxes":  # true boxes have the classes of their objects, and nothing that ranks them
            tracks = tuple(BoxTrack(boxes=(), category=obj.category) for obj in objects)
        predictions: dict[str, list[Tube]] = {
            column: [
                Tube(cast(int, track.category), masks, score=track.score)
                for track, masks in zip(tracks, tubes, strict=True)
            ]
            for column, tubes in found.items()
        }
        sample = TubeSample(item.set, item.record.key.removeprefix(f"{item.set}/"), truth_tubes, predictions)
        scored: Callable[..., Scored] = score_tubes
        return [pool.submit(scored, sample, self.options.dilation_ratio)]

    def _prompter(self, item: VideoItem) -> Prompter:
        rows = len(item.record.objects)
        if self.options.prompts == "boxes":
            return GivenBoxes(item.tracks)
        if self.options.prompts == "truth_boxes":
            return TruthBoxes(rows)
        return Propagate(rows, self.options.margin, self.options.point)

    def _predict(self, prompts: Mapping[int, Prompted], column: Fusion) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(row, (H, W) logits) of each prompt on the image that is set."""
        if not prompts:
            return
        rows = list(prompts)
        at_once = max(1, _PIXELS_AT_ONCE // math.prod(self.predictor.original_size or (1,)))
        for start in range(0, len(rows), at_once):
            chunk = rows[start : start + at_once]
            points = [point for row in chunk if (point := prompts[row].point) is not None]
            masks, _, _ = self.predictor.predict(
                point_coords=np.array(points)[:, None] if points else None,
                point_labels=np.ones((len(points), 1)) if points else None,
                box=np.array([prompts[row].box for row in chunk]),
                multimask_output=False,
                return_logits=True,
                fusion=column,
                refine="none",
                heed_clicks=False,
                upsampling="bilinear",
            )
            yield from zip(chunk, masks[:, 0], strict=True)

    def parse(self, entry: dict[str, Any]) -> Scored:
        """See `Task`."""
        return TubeRecord(**entry) if self.has_classes else DavisRecord(**entry)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        options = self.options
        source = {
            "truth_boxes": "tight box of the true mask in every frame, inclusive pixels",
            "boxes": f"boxes and associations of {options.boxes and options.boxes.name}, the same for every column",
            "propagate": (
                "baseline: true mask of an object's first frame, then in every frame the box of the column's own last "
                f"mask, widened by {options.margin} of its sides" + (", and a point inside it" if options.point else "")
            ),
        }
        scored: dict[str, Any] = {"metric": "J and F", "frames": options.frames, "overlaps": "largest logit"}
        if self.has_classes:
            scored = {"metric": "Tube Mask AP and Tube Boundary AP", "dilation_ratio": options.dilation_ratio}
        given: dict[str, Any] = {}
        if options.prompts == "boxes":
            boxed = [any(any(track.boxes) for track in item.tracks) for item in self.items]
            given = {"videos_without_boxes": boxed.count(False), "boxes_digest": self._digest}
            if self.has_classes:
                given["score_source"] = "the boxes' file"
        return {
            "name": "video",
            "prompt": options.prompts,
            "box_source": source[options.prompts],
            **given,
            **scored,
            "masks": "single mask, upsampled to the size of the frame, logit > 0",
            "resize": "long side to the resolution, padded with zeros at the bottom and on the right",
            "step": options.step,
            "columns": list(self.columns),
            "videos": len(self.items),
            **describe_model(self.model),
        }

    def summarise(self, records: Sequence[Scored], left_out: Sequence[str]) -> EvalResult:
        """See `Task`; the slices are the videos of a set without classes."""
        if not records:
            raise DataError("nothing to score: no object of any video has a frame that counts")
        slices: dict[str, dict[str, dict[str, float]]] = {}
        ordered: list[DavisRecord] | list[TubeRecord]
        if self.has_classes:
            tubes = TubeScores(self.options.dilation_ratio)
            tubes.merge([[record for record in records if isinstance(record, TubeRecord)]])
            sets, ordered = tubes.compute(), tubes.state()
        else:
            objects = DavisScores(self.options.frames)
            objects.merge([[record for record in records if isinstance(record, DavisRecord)]])
            sets, ordered = objects.compute(), objects.state()
            slices = next(iter(objects.of_videos().values()))
        protocol = self.describe()
        if left_out:
            logger.warning("%d objects have no frame that counts and are left out: %s", len(left_out), left_out[0])
            protocol["objects_left_out"] = len(left_out)
        title = "Tube Mask AP and Tube Boundary AP in percent" if self.has_classes else "J and F in percent"
        return EvalResult(sets, next(iter(sets.values())), protocol, slices, ordered, title)


def _read_frames(video: VideoRecord) -> Iterator[tuple[int, NDArray[np.uint8], list[Mask]]]:
    """(position, image, true masks) in order; the next one is decoded while the caller works on one."""

    def read(frame: int) -> tuple[int, NDArray[np.uint8], list[Mask]]:
        image = read_image(video.frames[frame])
        check_frame(video, frame, image)
        return frame, image, load_frame_masks(video, frame)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, 0)
        for frame in range(len(video.frames)):
            here, last = coming.result(), frame == len(video.frames) - 1
            if not last:
                coming = pool.submit(read, frame + 1)
            yield here
