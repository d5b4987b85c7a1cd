from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from tests import helpers

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# one process may take the machine, parallel workers share it
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def _shared(name: str) -> Path:
    folder = helpers.shared_dir()
    if folder is None or not (folder / name).is_dir():
        pytest.skip(f"needs the {name} folder beside the repository (HQSAM_SHARED), which is not part of it")
    return folder / name


@pytest.fixture(scope="session", autouse=True)
def verdicts_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What data checks remember stays out of the user's own folder."""
    folder = tmp_path_factory.mktemp("data_check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HQSAM_CHECK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the research image packs (train512, eval_hq, davis, bsds500)."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder with mobile_sam.safetensors."""
    return _shared("weights")


@pytest.fixture(scope="session")
def samples() -> Path:
    """The photographs that the repository carries."""
    return helpers.ROOT / "data" / "samples"


@pytest.fixture(scope="session")
def require_oracle() -> Callable[[str], ModuleType]:
    return helpers.require_oracle


@pytest.fixture(scope="session")
def fill_parameters() -> Callable[..., nn.Module]:
    return helpers.fill_parameters
