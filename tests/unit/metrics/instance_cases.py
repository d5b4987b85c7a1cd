"""Random sets of instances with masks that nearly, partly or not at all agree with them, and the oracles' answers."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.instance_records import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.rle import Rle, decode_rle, encode_rle, rle_area

SIZES = ((37, 53), (64, 80), (120, 110))
COLUMNS = ("sam", "sum")


def random_mask(generator: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A rectangle, sometimes touching the border, with holes and ragged edges; now and then empty or full."""
    height, width = size_hw
    mask = np.zeros(size_hw, dtype=np.bool_)
    kind = generator.random()
    if kind < 0.03:
        return mask
    if kind < 0.06:
        return ~mask
    y, x = generator.integers(-3, height - 2), generator.integers(-3, width - 2)
    h, w = generator.integers(2, height), generator.integers(2, width)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
    return mask & (generator.random(size_hw) > generator.choice([0.0, 0.02]))


def disturb(generator: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A prediction: the same mask, moved by up to two pixels, or with errors here and there."""
    moved = np.roll(mask, generator.integers(-2, 3, size=2), axis=(0, 1))
    return moved ^ (generator.random(mask.shape) < generator.choice([0.0, 0.0, 0.05, 0.3]))


def random_set(seed: int, *, lvis: bool = False, name: str = "set") -> tuple[InstanceTruth, list[InstanceRecord]]:
    """A set and its records, columns "sam" and "sum"."""
    generator = np.random.default_rng(seed)
    numbers = sorted(generator.choice(50, size=generator.integers(1, 5), replace=False).tolist())
    categories = sorted(generator.choice(30, size=generator.integers(1, 4), replace=False).tolist())
    images, instances, records = {}, [], []
    for number in generator.permutation(numbers).tolist():
        size = SIZES[generator.integers(len(SIZES))]
        own = [_instance(generator, number, size, categories, crowds=not lvis) for _ in range(generator.integers(0, 7))]
        instances += own
        present = {item.category for item in own}
        images[number] = TrueImage(
            size,
            frozenset(k for k in categories if lvis and k not in present and generator.random() < 0.5),
            frozenset(k for k in categories if lvis and generator.random() < 0.3),
        )
        records.append(_record(generator, name, number, size, categories, own))
    frequencies = {k: "rcf"[generator.integers(3)] if lvis else "" for k in categories}
    return InstanceTruth(images, frequencies, tuple(instances)), records


def _instance(
    generator: np.random.Generator, image: int, size: tuple[int, int], categories: list[int], *, crowds: bool
) -> TrueInstance:
    rle = encode_rle(random_mask(generator, size))
    area = float(generator.choice([rle_area(rle), rle_area(rle) + 0.5, 1024.0, 9216.0, 50000.0]))
    crowd = crowds and bool(generator.random() < 0.15)
    return TrueInstance(image, int(generator.choice(categories)), rle, area, crowd)


def _record(
    generator: np.random.Generator,
    name: str,
    image: int,
    size: tuple[int, int],
    categories: list[int],
    instances: list[TrueInstance],
) -> InstanceRecord:
    of: list[tuple[int, list[Rle]]] = []
    for item in instances:
        for _ in range(generator.integers(0, 3)):
            truth = decode_rle(item.rle)
            category = item.category if generator.random() < 0.9 else int(generator.choice(categories))
            of.append((category, [encode_rle(disturb(generator, truth)) for _ in COLUMNS]))
    for _ in range(generator.integers(0, 4)):
        of.append((int(generator.choice(categories)), [encode_rle(random_mask(generator, size)) for _ in COLUMNS]))
    order = generator.permutation(len(of)).tolist()
    levels = np.linspace(0.1, 0.9, 5)  # so few that many are equal
    return InstanceRecord(
        name,
        image,
        [of[k][0] for k in order],
        generator.choice(levels, len(of)).tolist(),
        {column: generator.choice(levels, len(of)).tolist() for column in COLUMNS},
        {column: [of[k][1][j] for k in order] for j, column in enumerate(COLUMNS)},
    )


def coco_dataset(truth: InstanceTruth) -> dict[str, Any]:
    """The set as a COCO or LVIS file has it; ids of annotations from 1."""
    return {
        "images": [
            {
                "id": number,
                "height": image.size_hw[0],
                "width": image.size_hw[1],
                "neg_category_ids": sorted(image.negative),
                "not_exhaustive_category_ids": sorted(image.not_exhaustive),
            }
            for number, image in truth.images.items()
        ],
        "categories": [{"id": k, "name": str(k), "frequency": name} for k, name in truth.categories.items()],
        "annotations": [
            {
                "id": k,
                "image_id": item.image,
                "category_id": item.category,
                "segmentation": item.rle,
                "area": item.area,
                "iscrowd": int(item.crowd),
            }
            for k, item in enumerate(truth.instances, 1)
        ],
    }


def coco_results(records: list[InstanceRecord], column: str, by: str = "box") -> list[dict[str, Any]]:
    """The masks of a column as a file of results."""
    return [
        {"image_id": record.image, "category_id": category, "segmentation": dict(rle), "score": score}
        for record in sorted(records, key=lambda record: record.image)
        for category, rle, score in zip(record.categories, record.masks[column], record.scores(column, by), strict=True)
    ]


def pycocotools_stats(
    truth: InstanceTruth,
    results: list[dict[str, Any]],
    limits: tuple[int, ...] = (1, 10, 100),
    *,
    use_cats: bool = True,
) -> Any:
    """pycocotools' evaluator after evaluate() and accumulate()."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = coco_dataset(truth)
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:  # loadRes cannot read an empty list
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        run = COCOeval(coco, found, "segm")
        run.params.maxDets, run.params.useCats = list(limits), int(use_cats)
        run.evaluate()
        run.accumulate()
        if limits == (1, 10, 100):
            run.summarize()
    return run


def with_one_category(
    truth: InstanceTruth, records: list[InstanceRecord]
) -> tuple[InstanceTruth, list[InstanceRecord]]:
    """The same with every category 1."""
    return truth.without_categories(), [replace(r, categories=[1] * len(r.categories)) for r in records]
