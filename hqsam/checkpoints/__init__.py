"""Reading, recognising, loading and writing checkpoints. Memory has our names, disk the official ones."""

from __future__ import annotations

from hqsam.checkpoints.adapters import load_adapter, save_adapter
from hqsam.checkpoints.conversion import convert_checkpoint
from hqsam.checkpoints.formats import CheckpointInfo, inspect_checkpoint
from hqsam.checkpoints.loader import load_checkpoint
from hqsam.checkpoints.official import to_memory_names, to_official_names
from hqsam.checkpoints.reading import read_tensors
from hqsam.checkpoints.state import (
    hq_state_dict,
    load_trained_state_dict,
    official_state_dict,
    with_unused_classifier,
)
from hqsam.checkpoints.writing import atomic_path, remove_leftovers, save_checkpoint
from hqsam.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "atomic_path",
    "convert_checkpoint",
    "hq_state_dict",
    "inspect_checkpoint",
    "load_adapter",
    "load_checkpoint",
    "load_trained_state_dict",
    "official_state_dict",
    "read_tensors",
    "remove_leftovers",
    "save_adapter",
    "save_checkpoint",
    "to_memory_names",
    "to_official_names",
    "with_unused_classifier",
]
