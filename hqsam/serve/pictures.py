"""The pictures of a folder, known by ids: nothing that a client sends is ever part of a path."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hqsam.data.folders import IMAGE_SUFFIXES
from hqsam.errors import DataError
from hqsam.images import read_image, read_reduced

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

MAX_PIXELS = 150_000_000
"""Of one picture; decoding takes 3 bytes each, and a file of a few kB can claim any number."""
THUMBNAIL_SIDE = 256
_BROWSER_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "MPO": "image/jpeg"}
_JPEG = frozenset({"JPEG", "MPO"})
"""MPO: a JPEG with others behind it, as telephones write them; browsers and `read_image` see the first."""
_EXIF_ORIENTATION = 274
_PNG_SIGNATURE = 8
"""Bytes of a PNG before its first chunk."""
_PNG_TEXTS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
"""Chunks that may tell the orientation."""


@dataclass(frozen=True)
class Picture:
    """One picture of the folder.

    Attributes:
        id: first 16 hexadecimal digits of the SHA-1 of `relative`.
        relative: path relative to the folder, with "/" between its parts.
        root: the folder, without symbolic links.
        height: in pixels, upright.
        width: in pixels, upright.
        browser_type: the media type, if every browser shows the file as it is; else None.
    """

    id: str
    relative: str
    root: Path
    height: int
    width: int
    browser_type: str | None

    def path(self) -> Path:
        """The file, after checking that it still is one of the folder.

        Raises:
            DataError: it is gone, or has become a link that leads out of the folder.
        """
        found = _inside(self.root, self.root / self.relative)
        if found is None:
            raise DataError(f"picture {self.relative!r} is not in the folder any more")
        return found

    def tag(self) -> str:
        """Changes with the file, and is another one for a file of another folder.

        Size and time of writing are not enough: archives and tools that keep times give them to other pixels. The time
        of the last change of any kind cannot be set, and the number of the file tells two files of one time apart.

        Raises:
            DataError: it is gone, or has become a link that leads out of the folder.
        """
        try:
            state = self.path().stat()
        except OSError as error:
            raise DataError(f"picture {self.relative!r} cannot be read: {error.strerror}") from error
        facts = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        return f'"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"'

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            DataError: it is gone, damaged, or of another size than when the server started.
        """
        path = self._checked_path()
        try:
            return read_image(path)
        except DataError as error:
            raise self._without_path(error, path) from error

    def file(self) -> tuple[bytes, str]:
        """What a browser shows, and its media type: the file as it is, or the picture as PNG.

        Raises:
            DataError: as in `read`.
        """
        if self.browser_type is not None:
            return self._checked_path().read_bytes(), self.browser_type
        return encode_image(self.read(), "PNG"), "image/png"

    def thumbnail(self) -> bytes:
        """A small JPEG.

        Raises:
            DataError: as in `read`.
        """
        from PIL import Image

        path, long = self._checked_path(), max(self.height, self.width)
        try:
            pixels, _ = read_reduced(path, long / THUMBNAIL_SIDE)
        except DataError as error:
            raise self._without_path(error, path) from error
        scale = min(1.0, THUMBNAIL_SIDE / long)
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        return encode_image(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)), "JPEG")

    def _checked_path(self) -> Path:
        path = self.path()
        if _header(path) != (self.height, self.width, self.browser_type):
            raise DataError(f"picture {self.relative!r} was replaced by another one; start the server again")
        return path

    def _without_path(self, error: DataError, path: Path) -> DataError:
        """Clients learn the names of pictures, and not where the folder is."""
        return DataError(str(error).replace(str(path), repr(self.relative)))


def find_pictures(folder: Path, without: Path | None = None) -> list[Picture]:
    """Every picture of a folder and the folders below, by path.

    Hidden files and folders are left out, links that lead out of the folder too, and with a warning what cannot be
    read, has more than `MAX_PIXELS`, or has a name that is no text.

    Args:
        folder: where the pictures are.
        without: a folder of results, which may lie inside.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    root = folder.resolve()
    pictures = []
    for path in _files(root, None if without is None else without.resolve()):
        found, relative = _inside(root, path), path.relative_to(root).as_posix()
        if not _is_text(relative):
            logger.warning("%r is left out: its name is not UTF-8; rename it", relative)
            continue
        if found is None:
            logger.warning("%r is left out: a link that leads out of the folder, or to nothing", relative)
            continue
        header = _header(found)
        if header is None:
            logger.warning("%r is left out: not an image, damaged, or of more than %d pixels", relative, MAX_PIXELS)
            continue
        pictures.append(Picture(picture_id(relative), relative, root, *header))
    if not pictures:
        raise DataError(f"no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}")
    return sorted(pictures, key=lambda picture: picture.relative)


def picture_id(relative: str) -> str:
    """The id of a path relative to the folder."""
    return hashlib.sha1(relative.encode(), usedforsecurity=False).hexdigest()[:16]


def encode_image(pixels: NDArray[np.uint8], file_format: str) -> bytes:
    """(H, W, 3) uint8 RGB as the content of a file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, file_format)
    return content.getvalue()


def _files(root: Path, without: Path | None) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and here / name != without)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield here / name


def _inside(root: Path, path: Path) -> Path | None:
    """The file that a path leads to, if that is one below the root."""
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(path: Path) -> tuple[int, int, str | None] | None:
    """Height and width of the upright picture, and its type in a browser; None for what cannot be used."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or 0 in (width, height):
                return None
            orientation = _orientation(image, path)
            shown = _BROWSER_TYPES.get(image.format or "") if _is_shown_alike(image, orientation) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return (width, height, shown) if orientation in (5, 6, 7, 8) else (height, width, shown)


def _orientation(image: Image, path: Path) -> int | None:
    """The EXIF orientation, without decoding the pixels, as Pillow does to look for what a PNG says behind them."""
    from PIL import Image

    exif = image.getexif() if image.format != "PNG" or _has_text_at_the_end(path) else Image.Image.getexif(image)
    found: int | None = exif.get(_EXIF_ORIENTATION, 1)
    return found


def _has_text_at_the_end(path: Path) -> bool:
    """Whether a PNG says something about itself behind its pixels."""
    seen = False
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            seen = seen or kind == b"IDAT"
            if seen and kind in _PNG_TEXTS:
                return True
            file.seek(length + 4, os.SEEK_CUR)  # and its checksum
    return False


def _is_shown_alike(image: Image, orientation: int | None) -> bool:
    """Whether a browser shows what `read_image` reads: turned pictures as JPEG alone, and no moving ones."""
    upright = orientation in (None, 1) or image.format in _JPEG
    return upright and (image.format in _JPEG or getattr(image, "n_frames", 1) == 1)
