"""J and F of a model on sequences of frames, from true boxes and by propagation: the table of docs/evaluation/video.md.

    python -m benchmarks.videos PACK --model hq_vit_tiny.embedded --out runs/videos

PACK is an `index.json` pack with `seq` and `frame`, or another name that `open_videos` takes. Each frame is encoded
once for all ways of prompting. What is done is kept in OUT/records.jsonl, and a run that was broken off goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from hqsam.data.video_opening import open_videos
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.evaluation.report import format_markdown, write_report
from hqsam.engine.evaluation.task import ScorePool
from hqsam.engine.evaluation.video import VideoOptions, VideoPrompts, VideoTask, WatchedFrame
from hqsam.features import PredictorFeatures, image_hash
from hqsam.images import write_image
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.visualize import BLUE, RED, YELLOW, draw_mask, side_by_side

PROMPTS: tuple[VideoPrompts, ...] = ("truth_boxes", "propagate")
_COLORS = {"sam": RED, "hq": BLUE, "sum": BLUE}


class RememberingPredictor(SamPredictor):
    """Encodes an image once; `forget` it when the video is done."""

    def __init__(self, sam_model: Sam) -> None:
        super().__init__(sam_model)
        self.forget()

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """As in `SamPredictor`."""
        key = image_hash(image)
        if key in self._known:
            self.load_features(self._known[key])
        else:
            super().set_image(image, image_format)
            self._known[key] = self.get_features()

    def forget(self) -> None:
        """Drop all features."""
        self._known: dict[str, PredictorFeatures] = {}


def main(
    pack: Annotated[str, typer.Argument(help="pack with seq and frame, or another set of videos")],
    model: Annotated[str, typer.Option(help="model name; a tagged one brings its weights")] = "hq_vit_tiny.embedded",
    device: Annotated[str, typer.Option()] = "cpu",
    step: Annotated[int, typer.Option(help="every how many frames")] = 1,
    pictures: Annotated[int, typer.Option(help="pictures of each video and way of prompting")] = 4,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("runs/videos"),
) -> None:
    """Print the tables; results and pictures are in OUT/truth_boxes and OUT/propagate."""
    keep_freed_memory(torch.device(device))
    sam = create_model(model, device=device).eval()
    videos = open_videos(pack)
    tasks = {prompts: VideoTask(sam, videos, VideoOptions(prompts=prompts, step=step)) for prompts in PROMPTS}
    predictor = RememberingPredictor(sam)
    out.mkdir(parents=True, exist_ok=True)
    _keep_protocol(out / "protocol.json", {"model": model, **{name: task.describe() for name, task in tasks.items()}})
    kept = out / "records.jsonl"
    done = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    with kept.open("a", encoding="utf-8") as lines, ScorePool(1) as pool:
        for position, video in enumerate(videos.videos):
            predictor.forget()
            for prompts, task in tasks.items():
                if any(row["prompts"] == prompts and row["record"]["video"] == video.name for row in done):
                    continue
                task.predictor = predictor
                task.watch = _painter(out / prompts / "pictures", len(task.items[position].record.frames), pictures)
                (outcome,) = task.run([(task.items[position], None)], pool)
                scored = [record.result() if isinstance(record, Future) else record for record in outcome.records]
                rows = [{"prompts": prompts, "record": record.as_dict()} for record in scored]
                lines.write("".join(json.dumps(row) + "\n" for row in rows))
                lines.flush()
                done += rows
                typer.echo(f"{video.name}, {prompts}: done", err=True)
    for prompts, task in tasks.items():
        result = task.summarise([task.parse(row["record"]) for row in done if row["prompts"] == prompts], [])
        result.protocol["model"]["name"] = model
        write_report(result, out / prompts)
        typer.echo(format_markdown(result))


def _keep_protocol(file: Path, protocol: dict[str, Any]) -> None:
    """Write what the numbers are; records of something else cannot be gone on with."""
    if file.exists() and json.loads(file.read_text("utf-8")) != protocol:
        raise typer.BadParameter(f"{file.parent} holds a run of another model or other settings; choose another --out")
    file.write_text(json.dumps(protocol, indent=2) + "\n", encoding="utf-8")


def _painter(folder: Path, frames: int, count: int) -> Callable[[WatchedFrame], None]:
    """Writes `count` frames of a video, evenly spread, as truth and columns side by side."""
    chosen = set(np.linspace(0, frames - 1, count).round().astype(int).tolist()) if count else set()

    def paint(seen: WatchedFrame) -> None:
        if seen.frame not in chosen:
            return
        union = np.logical_or.reduce
        panels = [draw_mask(seen.image, union(seen.truths), YELLOW)]
        panels += [draw_mask(seen.image, union(masks), _COLORS[column]) for column, masks in seen.predicted.items()]
        name = f"{seen.item.record.name}_{seen.item.record.frames[seen.frame].stem}.jpg"
        write_image(folder / name, side_by_side(panels, ["truth", *seen.predicted]))

    return paint


if __name__ == "__main__":
    typer.run(main)
