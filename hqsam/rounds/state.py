"""What is known of all rounds: `rounds.json`, replaced as a whole at each change."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hqsam.checkpoints import atomic_path
from hqsam.errors import DataError

STATE_FILE = "rounds.json"
CURRENT_FILE = "current.safetensors"
FORMAT, FORMAT_VERSION = "hqsam_rounds", "1"

Outcome = Literal["adopted", "kept", "abandoned"]


@dataclass(kw_only=True)
class Counts:
    """Annotated images and the masks on them."""

    images: int
    masks: int


@dataclass(kw_only=True)
class Change:
    """New model minus old one in a metric, over the same objects, in percent points.

    Attributes:
        before: mean of the old model.
        after: mean of the new one.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
    """

    before: float
    after: float
    low: float
    high: float


@dataclass(kw_only=True)
class Round:
    """One round.

    Attributes:
        number: from 1.
        folder: of the run, relative to that of the rounds.
        start: number of the round whose model it goes on from; None: the model that the first round began with.
        digest: of the annotations and the settings; another round of the same would find the same.
        annotated: everything that was accepted.
        trained_on: the part that is trained on.
        held_out: the part that is measured on.
        untouched: masks of the held-out part that are proposals accepted as they were.
        masks_per_image: over images that are done or have a mask.
        seconds_per_mask: as the page measured them; None where it did not.
        proposals: what became of them, from the server's tally; "mean_iou" is of what was accepted with what was
            proposed.
        changes: "miou" and "mbiou" on the held-out part; empty until they are measured.
        outcome: "adopted": the new model is the current one; "kept": the old one is; None while it is under way.
        reason: of the outcome.
    """

    number: int
    folder: str
    start: int | None
    digest: str
    annotated: Counts
    trained_on: Counts
    held_out: Counts
    untouched: int
    masks_per_image: float | None
    seconds_per_mask: float | None
    proposals: dict[str, Any]
    changes: dict[str, Change] = field(default_factory=dict)
    outcome: Outcome | None = None
    reason: str = ""


@dataclass(kw_only=True)
class Rounds:
    """All rounds of a folder.

    Attributes:
        model: name of the model, without a tag.
        start_name: what the first round begins with, a name that `create_model` knows ...
        start_checkpoint: ... and its weights; None: those of the name's tag.
        held_out_tenths: share of the images that is never trained on.
        rounds: in their order; all but the last one have an outcome.
    """

    model: str
    start_name: str
    start_checkpoint: str | None
    held_out_tenths: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def current(self) -> int | None:
        """Number of the round whose model is the current one; None: that of the beginning."""
        adopted = [item.number for item in self.rounds if item.outcome == "adopted"]
        return adopted[-1] if adopted else None

    @property
    def unfinished(self) -> Round | None:
        """The round that is under way."""
        last = self.rounds[-1] if self.rounds else None
        return last if last is not None and last.outcome is None else None

    def write(self, folder: Path) -> None:
        """Replace `rounds.json`.

        Raises:
            OutputError: it cannot be written; the old one stays.
        """
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "current": self.current, **asdict(self)}
        with atomic_path(folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_rounds(folder: Path) -> Rounds | None:
    """The rounds of a folder; None if there was none yet.

    Raises:
        DataError: `rounds.json` is damaged or of another version.
    """
    path = folder / STATE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); repair it or begin with another folder") from error
    try:
        if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError("it is of another format or version")
        found = Rounds(**{key: content[key] for key in _names(Rounds)})
        found.rounds = [_round(item) for item in content["rounds"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a rounds.json of this version ({error!r})") from error
    return found


def _round(content: dict[str, Any]) -> Round:
    item = Round(**content)
    item.annotated, item.trained_on, item.held_out = (
        Counts(**content[key]) for key in ("annotated", "trained_on", "held_out")
    )
    item.changes = {name: Change(**change) for name, change in content["changes"].items()}
    if item.outcome not in (None, *get_args(Outcome)):
        raise ValueError(f"round {item.number} has the outcome {item.outcome!r}")
    return item


def _names(kind: type) -> list[str]:
    return [part.name for part in dataclasses.fields(kind)]
