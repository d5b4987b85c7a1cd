"""``python -m benchmarks.data_engine PACK --images 20``: a pack of images through all three stages of the data engine.

Half of the images are annotated by clicks alone. A round of training follows, whose model the running server takes up.
In the other half the model proposes, and clicks add what it did not find. Then the automatic search does all images.
The annotator is a program that knows the true masks and uses the server's HTTP interface; the server and the search are
killed once each (SIGKILL) and started again. In the end everything that was saved must be there, and once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.annotator import Annotator, Truth, Work
from benchmarks.served import ServerProcess, hqsam_command
from hqsam.metrics import mask_iou
from hqsam.rle import decode_rle

_LOOK = 0.05
"""Seconds between two looks at whether something happened."""


@dataclass
class Stage:
    """What a stage took and gave."""

    name: str
    images: int
    masks: int = 0
    clicks: int = 0
    proposed: int = 0
    accepted: int = 0
    mean_iou: float | None = None
    minutes: float = 0.0


@dataclass
class Plan:
    """What is run on what.

    Attributes:
        folder: of everything that is written.
        truths: true masks by file name.
        model: options of `hqsam` that name the model.
        start: settings of the training that name it.
        round_options: further options and settings of `hqsam round`.
        auto_options: of `hqsam auto`.
        processes: that `hqsam auto` is shared out to; they share the cores, too.
    """

    folder: Path
    truths: dict[str, Truth]
    model: Sequence[str] = ("--model", "hq_vit_tiny.embedded")
    start: Sequence[str] = ("model.name=hq_vit_tiny.embedded",)
    round_options: Sequence[str] = ()
    auto_options: Sequence[str] = ("--preset", "fast")
    processes: int = 1

    @property
    def photos(self) -> Path:
        """The pictures."""
        return self.folder / "photos"

    @property
    def annotations(self) -> Path:
        """What the server keeps."""
        return self.folder / "annotations"

    @property
    def rounds(self) -> Path:
        """The rounds."""
        return self.folder / "rounds"


@dataclass
class Outcome:
    """What came of a plan.

    Attributes:
        stages: in their order.
        round: of `rounds.json`.
        served_round: the round whose model the server had in the end.
        kills: processes that were killed.
        problems: what was lost or twice; empty if all is well.
    """

    stages: list[Stage]
    round: dict[str, Any] = field(default_factory=dict)
    served_round: str | None = None
    kills: int = 0
    problems: list[str] = field(default_factory=list)


def command(
    pack: Annotated[Path, typer.Argument(help="A folder with an index.json, or another data set.")],
    images: Annotated[int, typer.Option(min=4)] = 100,
    objects: Annotated[int, typer.Option(min=1, help="Of each image, the largest ones.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Of the round's training.")] = 100,
    processes: Annotated[int, typer.Option(min=1, help="Of the automatic search.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep everything here.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Images, masks, clicks, IoU and minutes of each stage, with the embedded model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else out
        options = ("--min-masks", "1", "--min-held-out", "2", "--held-out", "3", f"loop.max_steps={steps}")
        truths = copy_pictures(pack, folder / "photos", images, objects)
        plan = Plan(folder, truths, round_options=options, processes=processes)
        outcome = run_plan(plan, say=lambda text: print(text, flush=True))
        show(outcome)
        if as_json is not None:
            as_json.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    if outcome.problems:
        raise typer.Exit(1)


def copy_pictures(pack: Path, folder: Path, count: int, objects: int) -> dict[str, Truth]:
    """Copy some images of a data set, of every source; their largest objects by file name."""
    from hqsam.data import load_object_masks, open_dataset
    from hqsam.data.records import take_images
    from hqsam.images import read_image

    folder.mkdir(parents=True)
    truths = {}
    for number, record in enumerate(take_images(open_dataset(pack), count)):
        name = f"{number:04d}_{record.image.name}"
        shutil.copyfile(record.image, folder / name)
        size = read_image(record.image).shape[:2]
        masks = [mask > 128 for mask in load_object_masks(record.objects, size, record.image)]
        truths[name] = sorted((mask for mask in masks if mask.any()), key=lambda mask: -int(mask.sum()))[:objects]
    return truths


def run_plan(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """All three stages."""
    names = sorted(plan.truths)
    first, second = names[::2], names[1::2]  # in turns: packs are sorted by source, and the halves are compared
    outcome, work = Outcome([]), Work()
    with ExitStack() as stack:
        server = ServerProcess(plan.photos, plan.annotations, [*plan.model, "--rounds", str(plan.rounds)])
        stack.callback(server.kill)
        annotator = Annotator(server, plan.truths, work)
        outcome.stages.append(_annotate(annotator, "clicks", first, proposals=False))
        say(f"stage 1 done: {outcome.stages[-1]}")
        outcome.round = _round(plan)
        say(f"round: {outcome.round['outcome']}, {outcome.round['reason']}")
        if outcome.round["outcome"] == "adopted":
            server.wait_until(lambda: server.get("/api/state")["model"]["round"] == "1")
        annotator.kill_at = len(second) // 2  # in the middle of saving
        outcome.stages.append(_annotate(annotator, "proposals and clicks", second, proposals=True))
        say(f"stage 2 done: {outcome.stages[-1]}")
        outcome.served_round = server.get("/api/state")["model"]["round"]
        outcome.problems += annotator.problems()
        server.end()
        outcome.kills = server.kills
    outcome.problems += _problems_of_coco(plan, work)
    outcome.stages.append(_search(plan, outcome))
    say(f"stage 3 done: {outcome.stages[-1]}")
    return outcome


def _annotate(annotator: Annotator, name: str, names: Sequence[str], *, proposals: bool) -> Stage:
    start, before = time.monotonic(), annotator.work.totals()
    for place, image in enumerate(names):
        annotator.annotate(image, proposals=proposals, kill=proposals and place == annotator.kill_at)
    after = annotator.work.totals()
    ious = annotator.work.ious[before.masks :]
    return Stage(
        name,
        len(names),
        after.masks - before.masks,
        after.clicks - before.clicks,
        after.proposed - before.proposed,
        after.accepted - before.accepted,
        sum(ious) / len(ious) if ious else None,
        (time.monotonic() - start) / 60,
    )


def _round(plan: Plan) -> dict[str, Any]:
    call = [*hqsam_command("round"), str(plan.photos), str(plan.annotations), "--out", str(plan.rounds)]
    done = subprocess.run([*call, *plan.round_options, *plan.start], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"hqsam round ended with {done.returncode}: {done.stderr[-2000:]}")
    rounds: list[dict[str, Any]] = json.loads((plan.rounds / "rounds.json").read_text("utf-8"))["rounds"]
    return rounds[-1]


def _search(plan: Plan, outcome: Outcome) -> Stage:
    """Stage 3; a process of it is killed when a third of the images is done, and started again."""
    start, out, count = time.monotonic(), plan.folder / "auto", len(plan.truths)
    current = plan.rounds / "current.safetensors"
    model = list(plan.model)
    if current.is_file():
        model = ["--model", plan.model[1].partition(".")[0], "--checkpoint", str(current)]
    call = [*hqsam_command("auto"), str(plan.photos), "--out", str(out), *model, *plan.auto_options, "--report"]
    first, *others = (_shared_search(call, rank, plan.processes) for rank in range(plan.processes))
    while first.poll() is None and len(list(out.glob("*.json"))) < max(1, count // 3):
        time.sleep(_LOOK)
    first.kill()
    first.wait()
    outcome.kills += 1
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    statuses = [process.wait() for process in (_shared_search(call, 0, plan.processes), *others)]
    if any(statuses):
        outcome.problems.append("the search failed for some images")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    outcome.problems += [f"{name} was searched twice" for name in before if before[name] != after.get(name)]
    wanted = {f"{Path(name).stem}.json" for name in plan.truths}
    outcome.problems += [f"{name} is missing, or not of this run" for name in wanted ^ set(after)]
    masks, ious = _searched(out, plan.truths)
    mean = sum(ious) / len(ious) if ious else None
    return Stage("automatic", count, masks, mean_iou=mean, minutes=(time.monotonic() - start) / 60)


def _shared_search(call: Sequence[str], rank: int, processes: int) -> subprocess.Popen[bytes]:
    """One of the processes of a search, with its share of the images and of the cores."""
    if processes == 1:
        return subprocess.Popen(call, stdout=subprocess.DEVNULL)
    cores = max(1, (os.cpu_count() or 1) // processes)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "OMP_NUM_THREADS": cores}
    environment = os.environ | {name: str(value) for name, value in place.items()}
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, env=environment)


def _searched(out: Path, truths: dict[str, Truth]) -> tuple[int, list[float]]:
    """How many masks were found, and the best IoU of one of them with each true mask."""
    total, ious = 0, []
    for name, wanted in truths.items():
        path = out / f"{Path(name).stem}.json"
        rows = json.loads(path.read_text("utf-8"))["annotations"] if path.is_file() else []
        found = [decode_rle(row["segmentation"]) for row in rows]
        total += len(found)
        ious += [max((float(mask_iou(mask, truth)) for mask in found), default=0.0) for truth in wanted]
    return total, ious


def _problems_of_coco(plan: Plan, work: Work) -> list[str]:
    """Whether `annotations.json` has every mask that was saved, once."""
    content = json.loads((plan.annotations / "annotations.json").read_text("utf-8"))
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    found = sorted((names[item["image_id"]], item["segmentation"]["counts"]) for item in content["annotations"])
    wanted = sorted(work.masks_with_pixels())
    return [] if found == wanted else [f"annotations.json has {len(found)} masks, saved were {len(wanted)}"]


def show(outcome: Outcome) -> None:
    """Print a table."""
    print("| stage | images | masks | clicks | proposals taken | mean IoU | minutes |")
    print("|---|" + "---:|" * 6)
    for stage in outcome.stages:
        iou = "" if stage.mean_iou is None else f"{stage.mean_iou:.3f}"
        taken = f"{stage.accepted} of {stage.proposed}" if stage.proposed else ""
        cells = [stage.name, stage.images, stage.masks, stage.clicks or "", taken, iou, f"{stage.minutes:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"round: {outcome.round['outcome']}, {outcome.round['reason']}")
    print(
        f"{outcome.kills} processes were killed; {'; '.join(outcome.problems) or 'nothing is lost, nothing is twice'}"
    )


if __name__ == "__main__":
    typer.run(command)
