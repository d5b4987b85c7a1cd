"""Published weights by name: from a folder, from the cache, or downloaded through huggingface-hub.

`HQSAM_CACHE` names a folder for weights; without it files are looked for in `~/.cache/hqsam`, and downloads go where
huggingface-hub keeps its own (`HF_HOME`). Its other settings count as usual: `HF_HUB_OFFLINE`, `HF_ENDPOINT`,
`HF_HUB_DISABLE_PROGRESS_BARS`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hqsam.errors import CheckpointError

logger = logging.getLogger(__name__)


# Of whatever HTTP client the hub's library uses in this version.
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError", "ReadTimeout", "Timeout", "ProxyError", "SSLError")


@dataclass(frozen=True)
class PublishedWeights:
    """A file in a hub repository.

    Attributes:
        repository: owner/name on the hub.
        file: name in the repository.
        local_names: names under which a file that somebody put into the folder for weights is found.
    """

    repository: str
    file: str
    local_names: tuple[str, ...]


def _hq(file: str) -> PublishedWeights:
    return PublishedWeights("lkeab/hq-sam", file, (file,))


def _sam(size: str, variant: str, original: str) -> PublishedWeights:
    # Meta's own files are on no hub; the same weights are, under transformers' names.
    return PublishedWeights(f"facebook/sam-vit-{size}", "model.safetensors", (f"sam_{variant}.safetensors", original))


PUBLISHED: Mapping[str, PublishedWeights] = {
    "hq_vit_b": _hq("sam_hq_vit_b.pth"),
    "hq_vit_l": _hq("sam_hq_vit_l.pth"),
    "hq_vit_h": _hq("sam_hq_vit_h.pth"),
    "hq_vit_tiny": _hq("sam_hq_vit_tiny.pth"),
    "sam_vit_b": _sam("base", "vit_b", "sam_vit_b_01ec64.pth"),
    "sam_vit_l": _sam("large", "vit_l", "sam_vit_l_0b3195.pth"),
    "sam_vit_h": _sam("huge", "vit_h", "sam_vit_h_4b8939.pth"),
}
"""Model name -> its published weights: what the tag `official` means."""


def weights_folder() -> Path:
    """The folder in which weights are looked for: `HQSAM_CACHE`, or `~/.cache/hqsam`."""
    own = os.environ.get("HQSAM_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hqsam"


def fetch_weights(name: str) -> Path:
    """The file with a model's published weights, downloaded unless it is here already.

    A file put into `weights_folder()` by hand comes first, then what an earlier download left in the cache; neither
    needs a network. A download shows its progress, goes on after a broken connection, and is checked: its size, and its
    SHA-256 where the hub states one.

    Args:
        name: a model name without a tag, such as "hq_vit_l".

    Raises:
        ValueError: there are no published weights of that name.
        CheckpointError: the download failed; the message says which file to put where.
    """
    published = PUBLISHED.get(name)
    if published is None:
        raise ValueError(f"there are no published weights of {name!r}; there are of {', '.join(PUBLISHED)}")
    for local_name in published.local_names:
        if (path := weights_folder() / local_name).is_file():
            return path
    return _cached(published) or _download(published)


def _hub_cache() -> str | None:
    """Where huggingface-hub keeps files: None is its own decision."""
    return str(weights_folder() / "hub") if os.environ.get("HQSAM_CACHE") else None


def _cached(published: PublishedWeights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(published.repository, published.file, cache_dir=_hub_cache())
    return Path(found) if isinstance(found, str) else None


def _download(published: PublishedWeights) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    logger.info("downloading %s of %s", published.file, published.repository)
    try:
        # One question before: where there is no network, the client would ask again and again for half a minute.
        get_hf_file_metadata(hf_hub_url(published.repository, published.file))
        path = Path(hf_hub_download(published.repository, published.file, cache_dir=_hub_cache()))
    except Exception as error:  # of the HTTP client, of the hub, of the disk: each means that there is no file
        raise CheckpointError(_explain(published, _reason(error))) from error
    _require_stated_hash(path, published)
    return path


def _require_stated_hash(path: Path, published: PublishedWeights) -> None:
    """Compare a fresh file with the SHA-256 that the hub states as its ETag, by which the cache names its content."""
    content = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", content.name):
        return  # small files have another kind of ETag; some systems cannot link, and keep the file's own name
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != content.name:
        path.unlink()
        content.unlink(missing_ok=True)
        raise CheckpointError(_explain(published, "what arrived is damaged: its SHA-256 is not the one stated"))


def _explain(published: PublishedWeights, reason: str) -> str:
    first, *others = published.local_names
    other_names = f" (or SAM's own {others[0]})" if others else ""
    renamed = f" as {first}" if first != published.file else ""
    return (
        f"cannot download {published.file} of the hub repository {published.repository}: {reason}. "
        f"Get it another way and put it into {weights_folder()}{renamed}{other_names}; it is found there"
    )


def _reason(error: Exception) -> str:
    """One phrase without addresses."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE) and the file is not in the cache"
    if isinstance(error, LocalEntryNotFoundError) or type(error).__name__ in _UNREACHABLE:
        return "the hub cannot be reached"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    if "Consistency check failed" in str(error):
        return "it arrived cut or too long"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answered with status {status}"
    return f"the connection failed ({type(error).__name__})"
