"""Functions that several test modules share; tests/conftest.py offers them as fixtures too."""

from __future__ import annotations

import importlib
import os
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def shared_dir() -> Path | None:
    """The folder with research data and weights that are not part of the repository, or None where it is absent."""
    folder = Path(os.environ.get("HQSAM_SHARED", ROOT.parent / "shared"))
    return folder if folder.is_dir() else None


def require_oracle(name: str) -> ModuleType:
    """Import a reference implementation; without it the test skips, or fails where HQSAM_REQUIRE_ORACLES=1."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"reference implementation {name} cannot be imported ({error}); pip install -e '.[parity]'"
        if os.environ.get("HQSAM_REQUIRE_ORACLES") == "1":
            pytest.fail(text)
        pytest.skip(text)


def _uniform(seed: int, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1) from splitmix64: the same on every machine and in every library version."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B9)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


@torch.no_grad()
def fill_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the floating parameters and persistent buffers of `module` in place, without any generator, and return it.

    Matrices and kernels have a standard deviation of 1/sqrt(fan in), scales and variances lie about 1, all other
    vectors about 0: activations stay of order one, so that a comparison is about the arithmetic.
    """
    buffers = dict(module.named_buffers())
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        values = torch.from_numpy(_uniform(zlib.crc32(f"{seed}/{name}".encode()), tensor.numel()))
        values = values.reshape(tensor.shape)
        is_scale = name.endswith(("weight", "gamma")) and tensor.dim() < 2
        if is_scale or name.endswith("running_var"):
            values = 1.0 + 0.2 * values
        elif tensor.dim() < 2:
            values = 0.1 * values
        elif name not in buffers:
            values = values * (3.0 / max(1, tensor[0].numel())) ** 0.5
        tensor.copy_(values.to(tensor.dtype))
    return module
