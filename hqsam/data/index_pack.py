"""`index.json` packs: one file that lists images, mask files and the objects in them.

The file is a list of `{image, mask, source, kind, objects}`, paths relative to it. `kind` "binary": the object is
`mask > 0`; "index": a label PNG, an object is `mask == label`, label -1 being every non-zero pixel. Optional: `alpha`,
a matte of the entry's only object. An object is `{label, name, area, bbox_xyxy, thin}`, `label` being needed for
"index" alone.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hqsam.data.records import ANY_LABEL, ImageRecord, ObjectRecord
from hqsam.errors import DataError

INDEX_NAME = "index.json"
_NAMED = 5


def read_index_pack(index: Path, set_name: str | None = None) -> list[ImageRecord]:
    """One record per entry that has objects, in the order of the index; the set is named after the pack's folder.

    The order is kept because "the first N objects of a source" is a way to name a part of a pack.

    Raises:
        DataError: the file is not such a list, lists no object or an image twice, or names files that do not exist.
    """
    set_name = set_name or index.resolve().parent.name
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"index of a data pack cannot be read: {index} ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"{index} must hold a list of entries, got {type(entries).__name__}")
    records = [_record(entry, position, index, set_name) for position, entry in enumerate(entries)]
    records = [record for record in records if record.objects]
    if not records:
        raise DataError(f"{index} lists no object ({len(entries)} entries)")
    if twice := sorted(key for key, count in Counter(record.key for record in records).items() if count > 1):
        raise DataError(f"{index} lists {len(twice)} images more than once: {', '.join(twice[:_NAMED])}")
    _check_files(records, index)
    return records


def _record(entry: Any, position: int, index: Path, set_name: str) -> ImageRecord:
    try:
        kind = entry["kind"]
        if kind not in ("binary", "index"):
            raise DataError(f"{index}, entry {position}: kind must be 'binary' or 'index', got {kind!r}")
        mask, objects = index.parent / entry["mask"], entry["objects"]
        alpha = index.parent / entry["alpha"] if entry.get("alpha") and len(objects) == 1 else None
        return ImageRecord(
            key=f"{set_name}/{entry['image']}",
            set_name=set_name,
            source=entry.get("source", set_name),
            image=index.parent / entry["image"],
            objects=tuple(_object(obj, mask, kind, alpha) for obj in objects),
        )
    except KeyError as error:
        raise DataError(f"{index}, entry {position} lacks {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{index}, entry {position} is malformed: {error}") from error


def _object(obj: dict[str, Any], mask: Path, kind: str, alpha: Path | None) -> ObjectRecord:
    box = obj.get("bbox_xyxy")
    if box is not None:
        x0, y0, x1, y1 = (int(value) for value in box)
        box = (x0, y0, x1, y1)
    return ObjectRecord(
        mask=mask,
        label=ANY_LABEL if kind == "binary" else int(obj["label"]),
        name=str(obj.get("name", "")),
        alpha=alpha,
        area=obj.get("area"),
        bbox_xyxy=box,
        thin=obj.get("thin"),
    )


def _check_files(records: list[ImageRecord], index: Path) -> None:
    of_objects = {path for record in records for obj in record.objects for path in (obj.mask, obj.alpha)}
    wanted = of_objects | {record.image for record in records}
    files = (path for path in wanted if isinstance(path, Path))
    if missing := sorted(str(path.relative_to(index.parent)) for path in files if not path.is_file()):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise DataError(f"{index} names {len(missing)} missing files: {', '.join(missing[:_NAMED])}{more}")
