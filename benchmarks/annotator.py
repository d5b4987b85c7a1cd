"""An annotator who knows the true masks: accepts proposals that are good, and clicks where a mask is wrong."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.served import Refused, ServerProcess
from hqsam.data.clicks import Click, correction_click
from hqsam.metrics import mask_iou
from hqsam.rle import decode_rle

Mask = NDArray[np.bool_]
Truth = list[Mask]

GOOD = 0.9
MOST_CLICKS = 5


class Totals(NamedTuple):
    """Counts of a piece of work."""

    masks: int
    clicks: int
    proposed: int
    accepted: int


class Clicked(NamedTuple):
    """A mask that clicks gave."""

    rle: dict[str, Any]
    score: float | None
    iou: float
    clicks: list[Click]


@dataclass
class Work:
    """What the annotator saved, by their own account.

    Attributes:
        saved: run lengths by object id, by name of the image.
        ious: of each saved mask with the true one.
    """

    saved: dict[str, dict[str, str]] = field(default_factory=dict)
    ious: list[float] = field(default_factory=list)
    clicks: int = 0
    proposed: int = 0
    accepted: int = 0
    empty: set[str] = field(default_factory=set)

    def totals(self) -> Totals:
        """What was done so far."""
        return Totals(sum(map(len, self.saved.values())), self.clicks, self.proposed, self.accepted)

    def masks_with_pixels(self) -> list[tuple[str, str]]:
        """Name of the image and run lengths of every mask that is not empty."""
        return [
            (name, counts)
            for name, items in self.saved.items()
            for key, counts in items.items()
            if key not in self.empty
        ]


class Annotator:
    """Works on one image after another.

    Args:
        server: where; it is started again when it is gone.
        truths: true masks by the names of the images.
        work: the account.

    Attributes:
        kill_at: place of the image, among those that begin with proposals, in which the server is killed.
    """

    def __init__(self, server: ServerProcess, truths: dict[str, Truth], work: Work) -> None:
        self.server, self.truths, self.work = server, truths, work
        self.kill_at = -1
        self._revision = 0
        rows = server.get("/api/images?limit=1000")["images"]
        self.ids = {row["name"]: row["id"] for row in rows}

    def annotate(self, name: str, *, proposals: bool, kill: bool = False) -> None:
        """Do one image.

        Args:
            name: of the image.
            proposals: begin with those of the model.
            kill: kill the server while the first object is saved.
        """
        left = list(self.truths[name])
        if proposals:
            left = self._take_proposals(name, left)
        for truth in left:
            start = time.monotonic()
            found = self._click(name, truth)
            self.work.clicks += len(found.clicks)
            self._save_new(name, found, time.monotonic() - start, kill=kill)
            kill = False
        self._save(name, self._objects(name), "done", kill=kill)

    def problems(self) -> list[str]:
        """What differs between the account and what the server has."""
        found = []
        for name, image in self.ids.items():
            objects = self._ask("GET", f"/api/images/{image}/annotations")["objects"]
            twice = [key for key, count in Counter(item["id"] for item in objects).items() if count > 1]
            there = {item["id"]: item["rle"]["counts"] for item in objects}
            if twice or there != self.work.saved.get(name, {}):
                found.append(f"{name} has {len(objects)} objects, saved were {len(self.work.saved.get(name, {}))}")
        return found

    def _click(self, name: str, truth: Mask) -> Clicked:
        clicks: list[Click] = []
        current, previous = np.zeros_like(truth), None
        best: Clicked | None = None
        while len(clicks) < MOST_CLICKS and (best is None or best.iou < GOOD):
            click = correction_click(current, truth, clicks)
            if click is None:
                break
            clicks.append(click)
            points = [[click.x, click.y, int(click.positive)] for click in clicks]
            body = {"points": points, "previous": previous, "multimask": len(clicks) == 1}
            answer = self._predict(name, body)
            scores = [-1.0 if mask["score"] is None else mask["score"] for mask in answer["masks"]]
            chosen = int(np.argmax(scores))
            mask = answer["masks"][chosen]
            previous = {"answer": answer["answer"], "candidate": chosen}
            current = decode_rle(mask["rle"])
            iou = float(mask_iou(current, truth))
            if best is None or iou > best.iou:
                best = Clicked(mask["rle"], mask["score"], iou, clicks)
        if best is None:
            raise RuntimeError(f"{name}: an object without a pixel cannot be clicked on")
        return best

    def _predict(self, name: str, body: dict[str, Any]) -> Any:
        path = f"/api/images/{self.ids[name]}/predict"
        try:
            return self._ask("POST", path, body)
        except Refused as error:
            if error.status != 422 or body["previous"] is None:
                raise
            return self._ask("POST", path, {**body, "previous": None})  # a server that was started again forgot it

    def _take_proposals(self, name: str, truths: Sequence[Mask]) -> Truth:
        """Accept for each true mask the best proposal, if it is good; what is left of the true masks."""
        self._ask("POST", f"/api/images/{self.ids[name]}/proposals", {})
        proposed = [item for item in self._objects(name) if item["status"] == "proposed"]
        self.work.proposed += len(proposed)
        masks = {item["id"]: decode_rle(item["rle"]) for item in proposed}
        taken: dict[str, float] = {}
        left = []
        for truth in truths:
            ious = {key: float(mask_iou(mask, truth)) for key, mask in masks.items() if key not in taken}
            best = max(ious, key=lambda key: ious[key], default=None)
            if best is None or ious[best] < GOOD:
                left.append(truth)
            else:
                taken[best] = ious[best]
        kept = [{**item, "status": "accepted"} for item in proposed if item["id"] in taken]
        self._save(name, kept, "started")
        self.work.accepted += len(kept)
        for item in kept:
            self._remember(name, item, taken[item["id"]])
        return left

    def _save_new(self, name: str, found: Clicked, seconds: float, *, kill: bool) -> None:
        item = {
            "id": uuid.uuid4().hex,
            "label": "",
            "rle": found.rle,
            "status": "accepted",
            "source": "clicks",
            "score": found.score,
            "prompts": {"points": [[c.x, c.y, int(c.positive)] for c in found.clicks], "box": None},
            "seconds": seconds,
        }
        there = self._objects(name)
        self._save(name, [*there, item], "started", kill=kill)
        self._remember(name, item, found.iou)

    def _remember(self, name: str, item: dict[str, Any], iou: float) -> None:
        self.work.saved.setdefault(name, {})[item["id"]] = item["rle"]["counts"]
        self.work.ious.append(iou)
        if not decode_rle(item["rle"]).any():
            self.work.empty.add(item["id"])

    def _objects(self, name: str) -> list[dict[str, Any]]:
        content = self._ask("GET", f"/api/images/{self.ids[name]}/annotations")
        self._revision = content["revision"]
        objects: list[dict[str, Any]] = content["objects"]
        return [{key: value for key, value in item.items() if key not in ("bbox", "area")} for item in objects]

    def _save(self, name: str, objects: list[dict[str, Any]], state: str, *, kill: bool = False) -> None:
        """Save on top of the revision that was seen last; where it is unknown whether that was done, look."""
        path = f"/api/images/{self.ids[name]}/annotations"
        body = {"revision": self._revision, "state": state, "objects": objects}
        try:
            self._revision = self.server.ask("PUT", path, body, kill=kill)["revision"]
        except ConnectionError:
            self.server.restart()
            if list(map(_content, self._objects(name))) != list(map(_content, objects)):
                self._save(name, objects, state)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Questions may be asked twice."""
        try:
            return self.server.ask(method, path, body)
        except ConnectionError:
            self.server.restart()
            return self.server.ask(method, path, body)


def _content(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["id"], item["status"], item["rle"]["counts"]
