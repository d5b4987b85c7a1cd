"""Instances to be proposed, whatever kind of set they come from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hqsam.data import ImageRecord, data_root, load_object_masks, open_dataset
from hqsam.data.instance_opening import find_instance_card, open_instances
from hqsam.data.instances import InstanceSet
from hqsam.data.masks import upright_hw
from hqsam.data.opening import is_index_file
from hqsam.engine.evaluation.plan import EvalItem, plan_items
from hqsam.engine.evaluation.protocols import INSIDE
from hqsam.errors import DataError
from hqsam.metrics import InstanceTruth, TrueImage, TrueInstance
from hqsam.metrics.instance_records import ImageId
from hqsam.rle import Rle, encode_rle, rle_area

logger = logging.getLogger(__name__)


def open_proposal_sets(
    names: Sequence[str | Path],
    *,
    root: str | Path | None = None,
    max_images: int | None = None,
    class_agnostic: bool | None = None,
) -> list[InstanceSet]:
    """Open sets of any kind as annotated instances.

    Args:
        names: each the name of a set with instances or its annotation file (see `open_instances`), or anything that
            `open_dataset` opens.
        root: where named sets are; None: $HQSAM_DATA, else `data`.
        max_images: only the first images of each set; None for all.
        class_agnostic: of annotation files, see `open_instances`: True needs no categories.

    Raises:
        DataError: a set is not there or unusable, there is none, or two have the same name.
        ValueError: `max_images` is below 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1 or None, got {max_images}")
    sets: list[InstanceSet] = []
    records: list[ImageRecord] = []
    for name in map(str, names):
        if _is_annotated(name, data_root(root)):
            found = open_instances(name, root=root, class_agnostic=class_agnostic)
            sets += [each.first(max_images) for each in found]
        else:
            records += open_dataset(name, root=root)
    if records or not sets:
        sets += object_sets(records, max_images)
    if twice := [name for name, count in Counter(each.name for each in sets).items() if count > 1]:
        raise DataError(f"two data sets are called {', '.join(twice)}; evaluate them in two runs")
    return sets


def object_sets(records: Sequence[ImageRecord], max_images: int | None = None) -> list[InstanceSet]:
    """Every object of a data set as an instance, of no class; each source is a set.

    All masks are read. An object is what is above the threshold of `INSIDE`, its area the pixels. One without a pixel
    is left out, with a warning that counts them.

    Args:
        records: from `open_dataset`.
        max_images: only the first images of each source, in the order of the data; None for all.

    Raises:
        DataError: no record, one that comes twice, a file that cannot be read.
    """
    groups: dict[str, list[EvalItem]] = {}
    for item in plan_items(records):
        group = groups.setdefault(item.set, [])
        if max_images is None or len(group) < max_images:
            group.append(item)
    return [_object_set(name, items) for name, items in groups.items()]


def _object_set(name: str, items: Sequence[EvalItem]) -> InstanceSet:
    images: dict[ImageId, Path] = {}
    masks: dict[ImageId, list[Rle]] = {}
    empty = 0
    for item in items:
        path = images[item.image] = item.record.image
        grey = load_object_masks(item.record.objects, upright_hw(path), path)
        masks[item.image] = [encode_rle(inside) for inside in (mask > INSIDE for mask in grey) if inside.any()]
        empty += len(grey) - len(masks[item.image])
    if empty:
        logger.warning("%s: %d objects without a pixel are left out", name, empty)
    return _instance_set(name, images, masks)


def _instance_set(name: str, images: dict[ImageId, Path], masks: dict[ImageId, list[Rle]]) -> InstanceSet:
    instances = [TrueInstance(number, 1, rle, float(rle_area(rle))) for number, rles in masks.items() for rle in rles]
    sizes = {number: TrueImage(upright_hw(path)) for number, path in images.items()}
    return InstanceSet(name, InstanceTruth(sizes, {1: ""}, tuple(instances)), images)


def _is_annotated(name: str, root: Path) -> bool:
    """Whether a set has instances of its own: a card, or a JSON file that is no index of a pack."""
    if find_instance_card(name) is not None:
        return True
    file = name.rpartition(":")[2]
    found = [base / file for base in (Path(), root) if file.endswith(".json") and (base / file).is_file()]
    return bool(found) and not is_index_file(found[0])
