"""Cards: one YAML file for each known data set, saying where its files lie and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hqsam.data.folders import read_folder_pair
from hqsam.data.records import ImageRecord
from hqsam.data.via import read_via
from hqsam.errors import DataError

_FOLDER = Path(__file__).parent / "cards"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A known data set.

    Attributes:
        name: what `open_dataset` calls it.
        title: its published name.
        images: folder of the images below the data root.
        masks: folder of the masks below the data root; may be the same. Or a JSON file of outlines, see `read_via`.
        groups: group names that include it.
        origin: where it comes from.
        terms: terms of use, as its authors state them.
    """

    name: str
    title: str
    images: str
    masks: str
    groups: tuple[str, ...]
    origin: str
    terms: str


def read_cards(kind: str = "") -> dict[str, dict[str, Any]]:
    """What the cards of a kind say, by their name; the kind is the folder that they are in."""
    from omegaconf import OmegaConf

    found: dict[str, dict[str, Any]] = {}
    for path in sorted((_FOLDER / kind).glob("*.yaml")):
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        found[path.stem] = values
    return found


@cache
def cards() -> dict[str, Card]:
    """All cards by name."""
    return {
        name: Card(name=name, **{**values, "groups": tuple(values["groups"])}) for name, values in read_cards().items()
    }


def find_card(name: str) -> Card | None:
    """The card of that name, if there is one."""
    return cards().get(name)


def group_members(group: str) -> list[str]:
    """Names of the sets in a group; empty for a name that is no group."""
    return [card.name for card in cards().values() if group in card.groups]


def known_names() -> list[str]:
    """Names of sets and groups."""
    return sorted({*cards(), *(group for card in cards().values() for group in card.groups)})


def read_card_set(card: Card, root: Path) -> list[ImageRecord]:
    """Read the set that a card describes.

    Raises:
        DataError: its folders or files are not below the root; says which were expected and where the set comes from.
    """
    images, masks = root / card.images, root / card.masks
    outlined = masks.suffix == ".json"
    there = {images: images.is_dir(), masks: masks.is_file() if outlined else masks.is_dir()}
    if missing := [str(path) for path, found in there.items() if not found]:
        raise DataError(
            f"{card.title} ({card.name}) is not there: expected {' and '.join(missing)}. It comes from {card.origin}; "
            "set HQSAM_DATA to the folder that holds it"
        )
    return read_via(masks, images, card.name) if outlined else read_folder_pair(images, masks, card.name)
