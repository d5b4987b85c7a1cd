"""`hqsam auto`: masks of everything in a photograph, or in each photograph of a folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hqsam.cli.auto_report import write_report
from hqsam.cli.auto_results import describe, draw_records, is_finished
from hqsam.cli.options import DEFAULT_MODEL, CheckpointFile, Device, JsonFlag, ModelName, describe_file, load_model
from hqsam.cli.predict import FusionChoice
from hqsam.cli.shards import Shard

if TYPE_CHECKING:
    from hqsam.automatic import SamAutomaticMaskGenerator

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
SOME_FAILED = 1

Pictures = Annotated[
    Path, typer.Argument(metavar="PATH", help="A photograph, or a folder of them (its own files, not those below).")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
PresetChoice = Annotated[
    Literal["fast", "default", "dense"],
    typer.Option(
        "--preset", help="fast: a quarter of the points; dense: crops too, less strict, small regions removed."
    ),
]
PointsPerSide = Annotated[
    int | None, typer.Option("--points-per-side", metavar="N", help="N x N points are asked. Default: the preset's.")
]
IouThresh = Annotated[
    float | None, typer.Option("--iou-thresh", help="Drop masks whose predicted IoU is lower. Default: the preset's.")
]
StabilityThresh = Annotated[
    float | None,
    typer.Option("--stability-thresh", help="Drop masks that change more with the threshold. Default: the preset's."),
]
Candidates = Annotated[
    Literal["best", "all"],
    typer.Option("--candidates", help="all: keep each of SAM's three masks of a point, fused with HQ's."),
]
ScoreChoice = Annotated[
    Literal["sam", "own", "own_boundary"] | None,
    typer.Option("--score", help="own: the model's score head ranks and filters. Default: what the weights recommend."),
]

Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap", metavar="IOU", help="Of two masks that overlap by more, drop the worse-scored. Default: all stay."
    ),
]
Report = Annotated[
    bool, typer.Option("--report", help="Write report.png: samples, and histograms of scores, areas and counts.")
]


@dataclass
class Summary:
    """What happened to each picture."""

    images: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    report: str | None = None


def auto(
    path: Pictures,
    out: Out = Path("masks"),
    preset: PresetChoice = "default",
    points_per_side: PointsPerSide = None,
    iou_thresh: IouThresh = None,
    stability_thresh: StabilityThresh = None,
    fusion: FusionChoice = None,
    candidates: Candidates = "best",
    score: ScoreChoice = None,
    overlap: Overlap = None,
    report: Report = False,
    model: ModelName = DEFAULT_MODEL,
    checkpoint: CheckpointFile = None,
    device: Device = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Find everything in a photograph, or in each photograph of a folder, without prompts.

    \b
    hqsam auto data/samples/astronaut.jpg --out runs/auto --preset fast
    hqsam auto photos/ --out masks/ --model hq_vit_l --checkpoint sam_hq_vit_l.pth --report
    torchrun --nproc_per_node=8 --no-python hqsam auto photos/ --out masks/

    Writes NAME.json (a layout like that of SA-1B: "image" and "annotations" with COCO run lengths) and
    NAME_overlay.jpg. A picture whose results are there already, made with the same settings, is skipped, so that an
    interrupted run can be started again. A picture of a folder that cannot be read is reported and the others are
    done; the exit code is then 1. Under torchrun each process does its part of the pictures.
    """
    files = find_pictures(path)
    if path.is_dir() and path.resolve() == out.resolve():
        raise ValueError(f"--out must be another folder than {path}: overlays would be taken for pictures next time")
    options: dict[str, Any] = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": iou_thresh,
        "stability_score_thresh": stability_thresh,
        "fusion": fusion,
        "score": score,
    }
    given = {name: value for name, value in options.items() if value is not None}
    shard = Shard.of_environment()
    weights = None if checkpoint is None else describe_file(checkpoint)
    info = {"model": model, "checkpoint": weights, "preset": preset, "candidates": candidates, **given}
    info.update(_checked_overlap(overlap))
    numbered = shard.part(list(enumerate(files, start=1)))
    summary = Summary(skipped=[file.name for _, file in numbered if is_finished(out, file, info)])
    todo = {number: file for number, file in numbered if file.name not in summary.skipped}
    if todo:
        from hqsam.automatic import SamAutomaticMaskGenerator

        network = load_model(model, checkpoint, shard.device(device))
        generator = SamAutomaticMaskGenerator.preset(
            network, preset, candidates=candidates, output_mode="coco_rle", **given
        )
        job = _Job(generator, out, info, alone=not path.is_dir(), quiet=as_json, overlap=overlap)
        with _progress(generator, len(todo)) as announce:
            for number, file in todo.items():
                announce(file)
                job.run(number, file, summary)
    if report:
        summary.report = _report(out, files, info)
    _conclude(summary, shard, as_json)


def _checked_overlap(overlap: float | None) -> dict[str, float]:
    if overlap is not None and not 0 <= overlap <= 1:
        raise ValueError(f"--overlap is an IoU within 0 and 1, got {overlap}")
    return {} if overlap is None else {"overlap": overlap}


def _conclude(summary: Summary, shard: Shard, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    else:
        counts = len(summary.images), len(summary.skipped), len(summary.failed)
        typer.echo("{} done, {} finished before, {} failed".format(*counts))
    if summary.failed and shard.size == 1:  # torchrun would end the other processes
        raise typer.Exit(SOME_FAILED)


def _report(out: Path, files: list[Path], info: dict[str, Any]) -> str:
    """Of what is finished by now. Processes write it one after the other: the last one has everything."""
    from hqsam.serve.locks import locked

    with locked(out / ".report.lock"):
        return str(write_report(out, [file for file in files if is_finished(out, file, info)], len(files)))


def find_pictures(path: Path) -> list[Path]:
    """The picture itself, or those of a folder by name; hidden files and other kinds of files are left out.

    Raises:
        ValueError: nothing there, or two pictures whose results would have the same name.
    """
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"neither a picture nor a folder: {path}")
        return [path]
    files = sorted(
        file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) in {path}")
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(f"{other.name} and {file.name} in {path} would both write {file.stem}.json; rename one")
    return files


@dataclass(frozen=True)
class _Job:
    generator: SamAutomaticMaskGenerator
    out: Path
    info: dict[str, Any]
    alone: bool
    quiet: bool
    overlap: float | None

    def run(self, number: int, file: Path, summary: Summary) -> None:
        """Do one picture and enter it in the summary."""
        start = time.perf_counter()
        try:
            count = self._write(number, file)
        except Exception as error:
            # One picture must not end a long run, whatever is wrong with it; a single one is an ordinary error.
            if self.alone or os.environ.get("HQSAM_TRACEBACK") == "1":
                raise
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            summary.failed.append({"file_name": file.name, "error": text})
            typer.echo(f"hqsam: {file.name}: {text}", err=True)
            return
        seconds = round(time.perf_counter() - start, 3)
        written = {"json": str(self._target(file)), "overlay": str(self._overlay(file))}
        summary.images.append({"file_name": file.name, "masks": count, "seconds": seconds, **written})
        if not self.quiet:
            typer.echo(f"{file.name}: {count} masks in {seconds:.1f} s, wrote {written['json']}")

    def _target(self, file: Path) -> Path:
        return self.out / f"{file.stem}.json"

    def _overlay(self, file: Path) -> Path:
        return self.out / f"{file.stem}_overlay.jpg"

    def _write(self, number: int, file: Path) -> int:
        from hqsam.automatic.overlaps import drop_overlapping
        from hqsam.checkpoints import atomic_path
        from hqsam.images import read_image, write_image

        pixels = read_image(file)
        records = self.generator.generate(pixels)
        if self.overlap is not None:
            records = drop_overlapping(records, self.overlap)
        content = describe(file, pixels.shape, records, self.info, number)
        write_image(self._overlay(file), draw_records(pixels, records))
        # Last and atomic: where the JSON file exists, the picture is finished.
        with atomic_path(self._target(file)) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return len(records)


@contextmanager
def _progress(generator: SamAutomaticMaskGenerator, count: int) -> Iterator[Callable[[Path], None]]:
    """Bars for pictures and for the points of the one at hand; the function given out announces the next picture."""
    from hqsam.engine.terminal import progress_bar, terminal

    with progress_bar(visible=terminal().is_terminal) as bar:
        pictures = bar.add_task("pictures", total=count, completed=-1, visible=count > 1)
        points = bar.add_task("points", total=None)
        generator.progress = lambda done, total: bar.update(points, completed=done, total=total)

        def announce(file: Path) -> None:
            bar.advance(pictures)
            bar.update(points, description=file.name, completed=0)

        yield announce
