"""What the card of the embedded model states, measured again: its runs one after the other, then its tables.

    HQSAM_DATA=../shared/data python -m benchmarks.card
    HQSAM_DATA=../shared/data python -m benchmarks.card --checkpoint runs/mine/model.safetensors --out runs/card_mine

Most of an hour on two cores. A run whose results are in OUT already is not repeated, so that one that was broken off
goes on.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hqsam.data import open_dataset
from hqsam.data.synthetic import HELD_OUT_KINDS, write_scenes
from hqsam.images import read_image
from hqsam.registry import EMBEDDED_HEAD

EVAL_HQ = "configs/eval/eval_hq.yaml"
BOXES = f"{EVAL_HQ} data.max_per_source=25"
POINTS = "configs/eval/points.yaml data.max_per_source=12"
PROPOSALS = "configs/eval/proposals.yaml proposals.points_per_side=16"
GUIDED = "clicks.upsampling=guided"
THREE = f"clicks.refine=again+again {GUIDED}"
RUNS = {
    "eval_hq": BOXES,
    "eval_hq_none": f"{BOXES} refine=none",
    "eval_hq_again": f"{BOXES} refine=again columns=[hq,sum]",
    "eval_hq_bilinear": f"{BOXES} upsampling=bilinear columns=[hq,sum]",
    "eval_hq_published": f"{BOXES} refine=none upsampling=bilinear columns=[hq,sum]",
    "eval_hq_sam_guided": f"{BOXES} refine=none upsampling=guided columns=[sam]",
    "eval_hq_sam_three": f"{BOXES} refine=again+again upsampling=guided columns=[sam]",
    "eval_hq_zoom": f"{BOXES} refine=again+again+zoom columns=[sum]",
    "clicks": f"{POINTS} clicks.prompts=[clicks] clicks.clicks=10",
    "negative": f"{POINTS} clicks.prompts=[negative,boxes]",
    "heeded": f"{POINTS} clicks.prompts=[negative] clicks.heed=true",
    "negative_three": f"{POINTS} clicks.prompts=[negative] {THREE} columns=[sum]",
    "heeded_three": f"{POINTS} clicks.prompts=[negative] {THREE} clicks.heed=true columns=[sum]",
    "clicks_heeded": f"{POINTS} clicks.prompts=[clicks] clicks.clicks=10 clicks.heed=true columns=[sum]",
    "clicks_guided": f"{POINTS} clicks.prompts=[clicks] clicks.clicks=10 clicks.heed=true {GUIDED} columns=[sum]",
    "bsds_regions": f"{EVAL_HQ} data.sets=[bsds500_val] data.max_per_source=300",
    "eval_scenes": f"{EVAL_HQ} data.sets=[{{out}}/scenes] refine=none",
    "eval_unseen": f"{EVAL_HQ} data.sets=[{{out}}/unseen]",
    "prop_eval": f"{PROPOSALS} data.sets=[eval_hq] proposals.max_images=1",
    "prop_bsds": f"{PROPOSALS} data.sets=[bsds500_val] proposals.max_images=6",
    "edges": "configs/eval/bsds500.yaml data.sets=[bsds500_val] edges.max_images=20",
}
"""Name of a run -> what `evaluate.py` is told; the card's commands are these."""
SCENES = {"eval_scenes": ("scenes", 30, None), "eval_unseen": ("unseen", 60, HELD_OUT_KINDS)}
"""Name of a run on generated scenes -> their folder, number, and kinds of objects."""
TITLES = {"sam": "MobileSAM alone", "hq": "HQ alone", "sum": "SAM + HQ"}
SHARES = {"below 2 %": (0.0, 0.02), "2 to 10 %": (0.02, 0.1), "above 10 %": (0.1, 1.1)}
"""Classes of the share of the picture that an object takes."""

Results = Mapping[str, Mapping[str, Any]]
Cell = Mapping[str, float]


def main(
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/card"),
    checkpoint: Annotated[Path | None, typer.Option(help="another hq_vit_tiny, asked as its file recommends")] = None,
    only: Annotated[str, typer.Option(help="names of runs, with commas")] = ",".join(RUNS),
) -> None:
    """Measure what is missing, and print the tables of what is there."""
    model = ["model.name=hq_vit_tiny.embedded"]
    if checkpoint is not None:
        model = ["model.name=hq_vit_tiny", f"model.checkpoint={checkpoint.resolve()}"]
    keep_weights(out, EMBEDDED_HEAD if checkpoint is None else checkpoint)
    for name in only.split(","):
        if name not in RUNS:
            raise typer.BadParameter(f"there is no run {name!r}; runs are {', '.join(RUNS)}")
        told = [part.format(out=out) for part in shlex.split(RUNS[name])]
        measure(out / name, [*told, *model])
    results = {name: read(out / name) for name in RUNS if (out / name / "results.json").exists()}
    for table in tables(results, out):
        typer.echo("\n".join(table) + "\n")


def keep_weights(out: Path, file: Path) -> None:
    """Note whose runs a folder holds: a table never mixes two heads."""
    digest, kept = hashlib.sha256(file.read_bytes()).hexdigest(), out / "weights.sha256"
    if kept.exists() and kept.read_text("utf-8") != digest:
        raise typer.BadParameter(f"{out} holds runs of other weights than {file}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(digest, "utf-8")


def measure(folder: Path, told: list[str]) -> None:
    """One run of `evaluate.py`, unless it was made."""
    if (folder / "results.json").exists():
        return
    if folder.name in SCENES and not (folder.parent / SCENES[folder.name][0]).exists():
        name, count, kinds = SCENES[folder.name]
        write_scenes(folder.parent / name, count, 768, kinds=kinds)
    typer.echo(f"{folder.name}: {' '.join(told)}", err=True)
    subprocess.run([sys.executable, "evaluate.py", *told, f"output_dir={folder}"], check=True, stdout=sys.stderr)


def read(folder: Path) -> dict[str, Any]:
    """Content of `results.json`."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return content


def tables(results: Results, out: Path) -> Iterator[list[str]]:
    """Each table that the runs at hand are enough for, as lines of Markdown."""
    if "eval_hq" in results:
        yield by_source(results)
        yield by_share(results["eval_hq"], out / "eval_hq" / "records.jsonl")
    if "clicks" in results:
        yield after_clicks(results)
    if "negative" in results:
        yield negative_clicks(results)
        yield noisy_boxes(results["negative"]["mean"])
    yield other_tasks(results)


def rows(result: Mapping[str, Any] | None) -> dict[str, Mapping[str, Cell]]:
    """Row -> column -> metrics: sets, their mean, slices."""
    if result is None:
        return {}
    return {**result["sets"], "mean over sources": result["mean"], **result.get("slices", {})}


def pair(cell: Cell | None, step: str = "") -> str:
    """mIoU / mBIoU of a cell, of one of its steps."""
    return "" if cell is None else f"{cell['miou' + step]:.1f} / {cell['mbiou' + step]:.1f}"


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(*cells: object) -> list[str]:
    """A table's first two lines; numbers stand at the right."""
    return [row(*cells), "|---|" + "---:|" * (len(cells) - 1)]


def by_source(results: Results) -> list[str]:
    """Boxes: the frozen SAM, one look to three, with and without edges of the picture, and a zoom."""
    ends = ("", "_none", "_again", "_zoom", "_bilinear", "_published", "_sam_guided", "_sam_three")
    three, one, two, zoom, bilinear, published, guided, sam = (rows(results.get(f"eval_hq{end}")) for end in ends)
    columns = {
        "MobileSAM alone": (three, "sam"),
        "MobileSAM, guided": (guided, "sam"),
        "MobileSAM, three looks, guided": (sam, "sam"),
        "SAM + HQ, one look, bilinear": (published, "sum"),
        "SAM + HQ, three, bilinear": (bilinear, "sum"),
        "SAM + HQ, one look": (one, "sum"),
        "SAM + HQ, two": (two, "sum"),
        "SAM + HQ, three": (three, "sum"),
        "SAM + HQ, again+again+zoom": (zoom, "sum"),
        "HQ alone, one look, bilinear": (published, "hq"),
        "HQ alone, one look": (one, "hq"),
        "HQ alone, two": (two, "hq"),
        "HQ alone, three": (three, "hq"),
    }
    lines = head("boxes", "objects", *columns)
    for name, scores in three.items():
        cells = (pair(result.get(name, {}).get(column)) for result, column in columns.values())
        lines.append(row(name, scores["sum"]["n"], *cells))
    return lines


def by_share(result: Mapping[str, Any], records: Path) -> list[str]:
    """Means over objects in classes of the share of the picture that they take."""
    columns = [column for column in ("sam", "sum") if column in result["mean"]]
    areas: dict[str, int] = {}
    for record in open_dataset("eval_hq"):
        height, width = read_image(record.image).shape[:2]
        areas[Path(record.image).name] = height * width
    objects = [json.loads(line) for line in records.read_text("utf-8").splitlines()]
    lines = head("share of the picture", "objects", *(TITLES[column] for column in columns))
    for name, (low, high) in SHARES.items():
        chosen = [r for r in objects if low <= r["pixels"] / areas[Path(r["image"]).name] < high]
        lines.append(row(name, len(chosen), *(pair(mean_over(chosen, column)) for column in columns)))
    return lines


def mean_over(objects: list[dict[str, Any]], column: str) -> Cell | None:
    """Means over objects in percent, of none nothing."""
    if not objects:
        return None
    return {metric: 100 * float(np.mean([one[metric][column] for one in objects])) for metric in ("miou", "mbiou")}


def after_clicks(results: Results) -> list[str]:
    """Masks after 1 to 10 clicks, and how many clicks an IoU takes."""
    steps = (1, 2, 3, 4, 5, 6, 8, 10)
    lines = head("clicks", *steps, "NoC@85", "NoC@90")
    ends = {"clicks": "", "clicks_heeded": ", `heed_clicks`", "clicks_guided": ", `heed_clicks`, guided"}
    for name, end in ends.items():
        for column, cell in results.get(name, {"mean": {}})["mean"].items():
            needed = (f"{cell[metric]:.2f}" for metric in ("noc85", "noc90"))
            lines.append(row(TITLES[column] + end, *(pair(cell, f"_click{step}") for step in steps), *needed))
    return lines


def negative_clicks(results: Results) -> list[str]:
    """A box, and a negative click where the answer took too much."""
    lines = head("box, then one negative click", "box", "after the click", "pixel gone", "region gone")
    ends = {
        "negative": "",
        "heeded": ", `heed_clicks`",
        "negative_three": ", three looks, guided",
        "heeded_three": ", three looks, guided, `heed_clicks`",
    }
    for name, end in ends.items():
        for column, cell in results.get(name, {"mean": {}})["mean"].items():
            gone = (f"{cell[metric]:.0f} %" for metric in ("removed_pixel", "removed_region"))
            lines.append(row(TITLES[column] + end, pair(cell, "_box"), pair(cell, "_negative"), *gone))
    return lines


def noisy_boxes(mean: Mapping[str, Cell]) -> list[str]:
    """Boxes whose corners are off."""
    steps = ("0", "0.2", "0.4")
    lines = head("box with noise", *steps)
    for column, cell in mean.items():
        lines.append(row(TITLES[column], *(pair(cell, f"_noise{step}") for step in steps)))
    return lines


def other_tasks(results: Results) -> list[str]:
    """Tasks that have documents of their own, regions of BSDS500 and generated scenes."""
    lines = head("task", *TITLES.values())

    def line(name: str, cells: Mapping[str, Cell], metric: str = "") -> str:
        return row(name, *(f"{cells[c][metric]:.1f}" if metric else pair(cells[c]) for c in TITLES if c in cells))

    for name, metric, title in (
        ("prop_eval", "ar1000", "proposals on eval_hq, AR@1000"),
        ("prop_bsds", "ar1000", "proposals on BSDS500 val, AR@1000"),
        ("edges", "ods", "boundaries on BSDS500 val, ODS"),
    ):
        if name in results:
            lines.append(line(title, results[name]["mean"], metric))
    for name, title in (
        ("bsds_regions", "regions of BSDS500 val"),
        ("eval_scenes", "generated scenes"),
        ("eval_unseen", "generated scenes of unseen kinds"),
    ):
        if name in results:
            lines.append(line(title, results[name]["mean"]))
            lines += [line(f"{title}, {part}", cells) for part, cells in results[name].get("slices", {}).items()]
    return lines


if __name__ == "__main__":
    typer.run(main)
