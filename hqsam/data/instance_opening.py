"""Opening sets with annotated instances by name or by their JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hqsam.data.cards import read_cards
from hqsam.data.instances import InstanceSet, read_instance_set
from hqsam.data.opening import data_root
from hqsam.errors import DataError


@dataclass(frozen=True, kw_only=True)
class InstanceCard:
    """A known set of images with annotated instances.

    Attributes:
        name: what `open_instances` calls it.
        title: its published name.
        annotations: the JSON file below the data root.
        images: folder of the images below the data root.
        rules: whose rules its AP follows.
        class_agnostic: whether its classes are not evaluated.
        count: images, as published; 0 where the card does not say.
        group: name of several sets that are evaluated together; "" for none.
        origin: where it comes from.
        terms: terms of use, as its authors state them.
    """

    name: str
    title: str
    annotations: str
    images: str
    rules: Literal["coco", "lvis"] = "coco"
    class_agnostic: bool = False
    count: int = 0
    group: str = ""
    origin: str
    terms: str


@cache
def instance_cards() -> dict[str, InstanceCard]:
    """All cards by name. A file with a list `members` is one card for each, its paths with {member} filled in."""
    found: dict[str, InstanceCard] = {}
    for stem, values in read_cards("instances").items():
        members = values.pop("members", None)
        if members is None:
            found[stem] = InstanceCard(name=stem, **values)
            continue
        for member in members:
            name = f"{stem}_{member.lower().replace('-', '_')}"
            own = {key: text.format(member=member) for key, text in values.items() if isinstance(text, str)}
            found[name] = InstanceCard(name=name, group=stem, **{**values, **own})
    return found


def open_instances(
    name: str | Path, *, root: str | Path | None = None, class_agnostic: bool | None = None
) -> list[InstanceSet]:
    """Open the truth of an evaluation of instance masks.

    Args:
        name: a card or a group of cards (`coco_val2017`, `lvis_v1_val`, `uvo_v0.5_val`, `seginw`), a JSON file, or
            IMAGES:FILE.json. Relative paths are tried as they are, then below the root.
        root: where named sets are; None: $HQSAM_DATA, else `data`.
        class_agnostic: whether classes are not looked at; None: as the card says, and False for a file.

    Returns:
        The sets, one but for a group.

    Raises:
        DataError: nothing of that name, or it is not complete: says what was expected where, and its origin.
    """
    text, base = str(name), data_root(root)
    cards = [card for card in instance_cards().values() if text in (card.name, card.group)]
    if cards:
        _check_layout(cards, base)
        return [
            read_instance_set(
                base / card.annotations,
                base / card.images,
                name=card.name,
                class_agnostic=card.class_agnostic if class_agnostic is None else class_agnostic,
            )
            for card in cards
        ]
    images, _, file = text.rpartition(":")
    for folder in (Path(), base):
        if (folder / file).is_file() and (not images or (folder / images).is_dir()):
            where = folder / images if images else None
            return [read_instance_set(folder / file, where, class_agnostic=bool(class_agnostic))]
    names = sorted({name for card in instance_cards().values() for name in (card.group or card.name,)})
    raise DataError(
        f"no instance annotations {text!r}: looked for it here and in {base}. They are a COCO, LVIS or UVO JSON file, "
        f"IMAGES:FILE.json, or one of the names {', '.join(names)}"
    )


def find_instance_card(name: str) -> InstanceCard | None:
    """The card of that name, or the first one of that group."""
    return next((card for card in instance_cards().values() if name in (card.name, card.group)), None)


def _check_layout(cards: list[InstanceCard], base: Path) -> None:
    """Look for all files before the first one is read, which can take minutes."""
    missing = [
        str(path)
        for card in cards
        for path, there in (
            (base / card.annotations, (base / card.annotations).is_file()),
            (base / card.images, (base / card.images).is_dir()),
        )
        if not there
    ]
    if missing:
        shown = " and ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise DataError(
            f"{cards[0].title} is not there: expected {shown}. It comes from {cards[0].origin}; set HQSAM_DATA to the "
            "folder that holds it"
        )
