"""Encoder outputs on disk: one file for each view, in half precision."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from hqsam.errors import DataError
from hqsam.types import ImageFeatures

_FORMAT = 1
_META = "meta.json"


class FeatureStore:
    """A folder of kept encoder outputs, for one model and one way of making views.

    Several processes may read and write at once: files appear whole.

    Args:
        folder: created if need be.
        model_fingerprint: identifies the encoder and its weights.
        view_fingerprint: identifies how views are made, see `TrainingSet.view_fingerprint`.

    Raises:
        DataError: the folder holds features of another model or of other views.
    """

    def __init__(self, folder: str | Path, *, model_fingerprint: str, view_fingerprint: str) -> None:
        self.folder = Path(folder)
        expected = {"format": _FORMAT, "model": model_fingerprint, "views": view_fingerprint}
        meta = self.folder / _META
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not meta.exists():
                _write_whole(meta, lambda path: path.write_text(json.dumps(expected, indent=2) + "\n", "utf-8"))
            found = json.loads(meta.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"kept features cannot be used: {meta} ({error})") from error
        if not isinstance(found, dict):
            raise DataError(f"kept features cannot be used: {meta} does not describe them")
        for field, noun in (("format", "format"), ("model", "model"), ("views", "seed, data or augmentation")):
            if found.get(field) != expected[field]:
                raise DataError(
                    f"{self.folder} keeps features of another {noun} ({found.get(field)}, this run has "
                    f"{expected[field]}); name another folder or delete this one"
                )

    def path(self, view_key: str) -> Path:
        """File of a view."""
        name = hashlib.sha1(view_key.encode(), usedforsecurity=False).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def has(self, view_key: str) -> bool:
        """Whether a view is kept."""
        return self.path(view_key).is_file()

    def save(self, view_key: str, features: ImageFeatures) -> None:
        """Keep one view's features, without a batch axis, as float16.

        Raises:
            DataError: a value is not finite in half precision, or the file cannot be written.
        """
        from safetensors.torch import save_file

        halves = {name: getattr(features, name).detach().to("cpu", torch.float16) for name in ImageFeatures._fields}
        if not all(bool(half.isfinite().all()) for half in halves.values()):
            raise DataError(f"features of {view_key} are not finite in half precision; train without keeping features")
        target = self.path(view_key)
        parts = {name: half.contiguous() for name, half in halves.items()}
        try:
            target.parent.mkdir(exist_ok=True)
            _write_whole(target, lambda path: save_file(parts, path, metadata={"view": view_key}))
        except OSError as error:
            raise DataError(f"features of {view_key} cannot be written to {target}: {error}") from error

    def load(self, view_key: str) -> ImageFeatures:
        """Features of one view: (256, h, w) and (C, h', w') float16.

        Raises:
            DataError: the view is not kept, or its file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(view_key)
        try:
            return ImageFeatures(**load_file(path))
        except FileNotFoundError as error:
            raise DataError(f"no kept features of {view_key} in {self.folder}") from error
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(f"kept features are damaged: {path} (of {view_key}); delete the file ({error})") from error


def _write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target and rename: readers see the old file, the new one or none."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
