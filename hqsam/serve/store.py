"""Annotations on disk: one JSON file an image, written whole or not at all, never over what its writer had not seen.

Each file counts its revisions. Who saves says which revision they saw; the comparison and the replacement happen under
a lock that all threads and all processes on the folder share.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from hqsam.checkpoints import atomic_path
from hqsam.errors import DataError
from hqsam.serve.locks import locked
from hqsam.serve.messages import MaskObject, RleMessage, State, check_objects
from hqsam.serve.pictures import Picture

_T = TypeVar("_T")


class Proposal(BaseModel):
    """A mask as it was proposed, to know later what became of it."""

    rle: RleMessage
    score: float | None = None


class Annotations(BaseModel):
    """The content of a file.

    Attributes:
        image: path relative to the folder of pictures.
        revision: how often it was written; 0 for an image without a file.
        objects: in the order of the page.
        proposals: everything that was ever proposed, by object id.
    """

    format: Literal["hqsam_annotations"] = "hqsam_annotations"
    format_version: Literal["1"] = "1"
    image: str
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    revision: Annotated[int, Field(ge=0)] = 0
    state: State = "todo"
    objects: list[MaskObject] = []
    proposals: dict[str, Proposal] = {}

    def accepted(self) -> list[MaskObject]:
        """The objects that a person made or took."""
        return [item for item in self.objects if item.status == "accepted"]


class ConflictError(Exception):
    """Somebody else saved meanwhile.

    Attributes:
        current: what is there now.
    """

    def __init__(self, current: Annotations) -> None:
        super().__init__(f"somebody else saved this image meanwhile: it is at revision {current.revision}")
        self.current = current


class DamagedFileError(DataError):
    """An annotation file cannot be read; it is left as it is until a person repairs it or moves it away."""


_Signature = tuple[int, int, int]
_IN_MEMORY = 64
"""Files whose content is kept; thousands would fill the memory."""


class AnnotationStore:
    """The annotation files of a folder; any number of threads and processes may use it.

    Args:
        folder: where the files are; created when it is first written to.
        pictures: by id.
        changed: called after a file was written.
    """

    def __init__(
        self, folder: Path, pictures: Mapping[str, Picture], changed: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.pictures, self.changed = folder, pictures, changed
        self._known: OrderedDict[str, tuple[_Signature, Annotations]] = OrderedDict()
        self._summaries: dict[str, tuple[_Signature, Any]] = {}
        self._lock = threading.Lock()

    def path(self, picture: Picture) -> Path:
        """The file of a picture."""
        return self.folder / f"{picture.id}.json"

    def load(self, picture: Picture) -> Annotations:
        """What is saved; not to be changed in place.

        Raises:
            DamagedFileError: the file is damaged, of another version, or of another image.
        """
        signature = self._signature(picture)
        if signature is None:
            return Annotations(image=picture.relative, width=picture.width, height=picture.height)
        with self._lock:
            known = self._known.get(picture.id)
        if known is not None and known[0] == signature:
            return known[1]
        content = _read(self.path(picture), picture)
        self._remember(picture, signature, content)
        return content

    def summary(self, picture: Picture, summarise: Callable[[Annotations], _T]) -> _T:
        """Something small about what is saved, kept for as long as the file stays as it is.

        Args:
            picture: the image.
            summarise: always the same function.

        Raises:
            DamagedFileError: as in `load`.
        """
        signature = self._signature(picture)
        known = self._summaries.get(picture.id)
        if signature is None or known is None or known[0] != signature:
            found = summarise(self.load(picture))
            if signature is not None:
                self._summaries[picture.id] = signature, found
            return found
        summary: _T = known[1]
        return summary

    def _remember(self, picture: Picture, signature: _Signature, content: Annotations) -> None:
        with self._lock:
            self._known[picture.id] = signature, content
            self._known.move_to_end(picture.id)
            while len(self._known) > _IN_MEMORY:
                self._known.popitem(last=False)

    def _signature(self, picture: Picture) -> _Signature | None:
        """Differs after each replacement of the file; None without one."""
        try:
            status = self.path(picture).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def save(self, picture: Picture, revision: int, state: State, objects: list[MaskObject]) -> int:
        """Replace the objects of an image.

        Args:
            picture: the image.
            revision: the one that the writer saw.
            state: of the work on the image.
            objects: all that are to stay.

        Returns:
            The new revision.

        Raises:
            RefusedError: an object that cannot be of this image; nothing was written.
            ConflictError: the revision is not the newest; nothing was written.
            DamagedFileError: as in `load`; nothing was written.
        """
        check_objects(objects, picture.height, picture.width)

        def replace(current: Annotations) -> Annotations:
            if current.revision != revision:
                raise ConflictError(current)
            return current.model_copy(update={"state": state, "objects": objects})

        return self.update(picture, replace).revision

    def update(self, picture: Picture, change: Callable[[Annotations], Annotations]) -> Annotations:
        """Change the file of an image while nobody else can.

        Args:
            picture: the image.
            change: from what is there to what is to be there; returning its argument writes nothing.

        Returns:
            What is there now, its revision one higher if it was written.

        Raises:
            DamagedFileError: as in `load`.
            OutputError: the file cannot be written; the old one stays.
        """
        with locked(self.folder / ".lock"):
            with self._lock:  # what is compared with is what is there, whatever its file looks like
                self._known.pop(picture.id, None)
            current = self.load(picture)
            changed = change(current)
            if changed is current:
                return current
            new = changed.model_copy(update={"revision": current.revision + 1})
            with atomic_path(self.path(picture)) as temporary:
                temporary.write_text(json.dumps(new.model_dump()) + "\n", encoding="utf-8")
        self.changed()
        return new


def _read(path: Path, picture: Picture) -> Annotations:
    try:
        content = Annotations.model_validate(json.loads(path.read_text(encoding="utf-8")))
        check_objects(content.objects, picture.height, picture.width)
        for name, proposal in content.proposals.items():
            check_objects([_as_object(name, proposal)], picture.height, picture.width)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise _damaged(path, reason) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if (content.image, content.height, content.width) != (picture.relative, picture.height, picture.width):
        raise _damaged(path, f"it is about {content.image!r}, {content.width} x {content.height} pixels")
    return content


def _as_object(name: str, proposal: Proposal) -> MaskObject:
    return MaskObject(id=name, label="", rle=proposal.rle, status="proposed", source="proposal")


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(
        f"annotation file {path.name} cannot be used and was left as it is ({reason}); repair it or move it away"
    )
