"""Reading tensors from files: by content rather than by suffix, never running code, with errors that say what to do."""

from __future__ import annotations

import collections
import contextlib
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hqsam.checkpoints.official import listing
from hqsam.errors import CheckpointError
from hqsam.models import FULL_HEAD, head_name

# Where training programs put the weights inside a dictionary of many things; "head" is that of our training states.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "head")
# What wrapping modules (DataParallel, torch.compile, trainers) put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Names that whole models begin with; whatever stands before all of them, such as "sam.", is the wrapper's.
_TOP_LEVEL = ("image_encoder.", "prompt_encoder.", "mask_decoder.", "vision_encoder.", "shared_image_embedding.")

TRAINING_STATE = "hqsam training state"
"""What our training states have under "format"."""

LORA_DOWN, LORA_UP = ".lora_down", ".lora_up"
"""What names of an encoder adapter's tensors end with."""

ADAPTED = "encoder_adapter"
"""Entry in the description of a training state that holds an encoder adapter too."""

HEAD = "hq_head"
"""Entry that names the head of a file, where that is not the published one."""

IMAGE_SIZE = "image_size"
"""Entry that tells the side of the input, in pixels, that the SAM in a file was made for."""

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")

_Kind = Literal["safetensors", "zip", "pickle"]


@dataclass(frozen=True)
class TensorFile:
    """Tensors of a file and what else it says.

    Attributes:
        path: the file.
        tensors: name -> tensor on the CPU, possibly mapped from the file.
        metadata: the string map of a safetensors file, the step, epoch and model of a training state, else empty.
        size_bytes: size of the file.
        is_training_state: whether it is a file that our training resumes from.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    size_bytes: int
    is_training_state: bool = False


def is_adapter(file: TensorFile) -> bool:
    """Whether a file is an encoder adapter (LoRA), by the names of its tensors."""
    return bool(file.tensors) and all(name.endswith((LORA_DOWN, LORA_UP)) for name in file.tensors)


def read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint without running any code that it may hold.

    `.pth`, `.pt` and `.safetensors` files are told apart by content, so a misleading suffix does no harm. A dictionary
    that holds the weights under "model", "state_dict", "model_state_dict", "net" or, as our training states do, "head"
    is unwrapped, and a prefix common to all names is removed: "module.", "_orig_mod.", "model.", these in any order,
    and whatever else stands before all names of a whole model.

    Args:
        path: the file. It must not be overwritten in place while the tensors are used, for they may be mapped from it.

    Returns:
        Name -> tensor on the CPU, in the file's number type.

    Raises:
        CheckpointError: there is no such file, it is empty, truncated, no checkpoint at all, holds Python objects
            besides tensors, or is not a dictionary of tensors.
    """
    return read_file(path).tensors


def read_file(path: str | PathLike[str]) -> TensorFile:
    """`read_tensors` with the file's metadata and size."""
    path = Path(path)
    kind = _kind(path)
    metadata: dict[str, str] = {}
    loaded: Any
    if kind == "safetensors":
        loaded, metadata = _read_safetensors(path)
    else:
        loaded = _read_pickled(path, kind)
    is_state = isinstance(loaded, Mapping) and loaded.get("format") == TRAINING_STATE
    if is_state:
        metadata = _describe_state(loaded)
    tensors = _strip_prefixes(_tensor_dict(loaded, path))
    return TensorFile(path, tensors, metadata, path.stat().st_size, is_state)


def read_strings(path: str | PathLike[str]) -> dict[str, str]:
    """What a file says of itself, read without its tensors; empty for files that cannot say anything.

    Raises:
        CheckpointError: see `read_tensors`.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "safetensors":
        with _open_safetensors(path) as file:
            return dict(file.metadata() or {})
    loaded = _read_pickled(path, kind) if kind == "zip" else None  # our training states, which are mapped, not read
    if not isinstance(loaded, Mapping) or loaded.get("format") != TRAINING_STATE:
        return {}
    return _describe_state(loaded)


def known_head(metadata: Mapping[str, str], path: Path) -> str | None:
    """What the strings of a file say about its head; None where they say nothing.

    Raises:
        CheckpointError: there is no such head.
    """
    try:
        return head_name(metadata[HEAD]) if HEAD in metadata else None
    except ValueError as error:
        raise CheckpointError(f"{path}: its {HEAD} is unknown to this version: {error}") from error


def known_image_size(metadata: Mapping[str, str], path: Path) -> int | None:
    """What the strings of a file say about the side of the input; None where they say nothing.

    Raises:
        CheckpointError: it is no multiple of 16 above 0.
    """
    if IMAGE_SIZE not in metadata:
        return None
    text = metadata[IMAGE_SIZE]
    if not text.isdecimal() or int(text) == 0 or int(text) % 16:
        raise CheckpointError(f"{path}: its {IMAGE_SIZE} must be a multiple of 16 pixels, it is {text!r}")
    return int(text)


def _kind(path: Path) -> _Kind:
    if not path.exists():
        raise CheckpointError(f"there is no file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file inside it")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); download or copy it again")
    if start.startswith(b"PK"):
        return "zip"
    if start[8:9] == b"{":  # a safetensors file begins with the header's length in 8 bytes, then JSON
        return "safetensors"
    if start[:1] == b"\x80":
        return "pickle"
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download failed or needs a log-in")
    raise CheckpointError(
        f"{path} is neither a PyTorch nor a safetensors file (it begins with {start[:8]!r}); "
        "give a .pth, .pt or .safetensors checkpoint"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return tensors, dict(file.metadata() or {})


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} is a damaged or truncated safetensors file ({error}); download or copy it again"
        ) from error


def _read_pickled(path: Path, kind: _Kind) -> Any:
    if kind == "zip" and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is a truncated PyTorch file ({path.stat().st_size} bytes, its table of contents is missing); "
            "download or copy it again"
        )
    try:
        # Only the zip format can be mapped, and only by path, which torch takes for safetensors by its suffix.
        if kind == "zip" and path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here, and each of them means an unusable file
        raise CheckpointError(_explain(path, kind, error)) from error


def _explain(path: Path, kind: _Kind, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript program, not a file of weights; save its state_dict() and give that"
    refused = isinstance(error, pickle.UnpicklingError) and ("GLOBAL" in text or "Unsupported" in text)
    if refused and not (kind == "pickle" and _is_cut(path)):
        culprits = _foreign_globals(path) or _GLOBAL.findall(text)[:1]
        what = f" ({listing(culprits)})" if culprits else ""
        return (
            f"{path} holds Python objects besides tensors{what}; it was not opened, because loading them can run code. "
            "Ask for a file with tensors only. If you trust its source, re-save the weights: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        )
    reason = "cut inside its table" if refused else (text.strip().splitlines() or [type(error).__name__])[0][:200]
    return f"{path} is not a readable PyTorch file, or is truncated ({reason}); download or copy it again"


def _is_cut(path: Path) -> bool:
    """Whether a file of pickles ends inside one of them, where half a name looks like a foreign object."""
    with path.open("rb") as file:
        for _ in range(5):  # the format before PyTorch 1.6: three small pickles, the objects, their storages' keys
            if not file.peek(1):
                return False
            try:
                collections.deque(pickletools.genops(file), maxlen=0)  # reads the instructions without running them
            except Exception:
                return True
    return False


def _foreign_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only the zip format has such a listing
        return []


def _tensor_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if _holds_weights(loaded.get(key))), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    if not loaded:
        raise CheckpointError(f"{path} holds an empty dictionary, no tensors")
    wrong = [f"{key!r} ({type(value).__name__})" for key, value in loaded.items() if not _is_plain(key, value)]
    if wrong:
        raise CheckpointError(
            f"{path} is not a dictionary of plain tensors: {listing(wrong, 5)}; weights are looked for at the top "
            f"and under {', '.join(map(repr, _WRAPPERS))}"
        )
    return {key: value.detach() for key, value in loaded.items()}


def _holds_weights(value: object) -> bool:
    """Whether a dictionary has tensors or another wrapper in it, and not settings under a misleading name."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(tensor, Tensor) for tensor in value.values()) or any(key in value for key in _WRAPPERS)


def _is_plain(key: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(key, str) and dense


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := _common_prefix(tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _common_prefix(names: Iterable[str]) -> str:
    names = tuple(names)
    outer = {name[: at + 1] for name in names for mark in _TOP_LEVEL if (at := name.find(f".{mark}")) >= 0}
    # The shortest first: "prompt_encoder." may also be inside a name.
    for prefix in (*_PREFIXES, *sorted(outer, key=len)):
        if not prefix.startswith(_TOP_LEVEL) and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _describe_state(state: Mapping[str, Any]) -> dict[str, str]:
    config = state.get("config")
    model = config.get("model.name") if isinstance(config, Mapping) else None
    head = config.get("model.head", FULL_HEAD) if isinstance(config, Mapping) else FULL_HEAD
    adapter = "yes" if state.get("lora") else None
    known = {"step": state.get("step"), "epoch": state.get("epoch"), "model": model, ADAPTED: adapter}
    known[HEAD] = None if head == FULL_HEAD else head
    return {key: str(value) for key, value in known.items() if value is not None}
