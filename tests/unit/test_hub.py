"""Weights by name, against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download

import hqsam
from hqsam import hub, registry
from hqsam.checkpoints import official_state_dict, save_checkpoint
from hqsam.cli import main
from hqsam.errors import CheckpointError
from hqsam.hub import PUBLISHED, PublishedWeights, fetch_weights
from tests.helpers import ROOT, fill_parameters
from tests.unit.hub_server import Hub, serve

CONTENT = bytes(range(256)) * 400
FILE = "lkeab/hq-sam/sam_hq_vit_b.pth"


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface-hub reads its environment once, when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for weights, and no way out of this machine."""
    monkeypatch.setenv("HQSAM_CACHE", str(tmp_path / "weights"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    point_to("http://127.0.0.1:9", monkeypatch)
    return tmp_path / "weights"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({FILE: CONTENT}) as running:
        point_to(running.url, monkeypatch)
        yield running


def test_a_download_is_kept(server: Hub, folder: Path) -> None:
    path = fetch_weights("hq_vit_b")
    assert path.read_bytes() == CONTENT and path.name == "sam_hq_vit_b.pth" and folder in path.parents
    asked = len(server.requests)
    assert fetch_weights("hq_vit_b") == path
    assert len(server.requests) == asked and len(server.downloads) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # the client keeps whole chunks, of 10 MB usually
    server.cut_after = 40_000
    assert fetch_weights("hq_vit_b").read_bytes() == CONTENT
    assert server.downloads == [None, "bytes=40000-"]


def test_damaged_content_is_refused_and_not_kept(server: Hub, folder: Path) -> None:
    server.damage = True
    with pytest.raises(CheckpointError, match="what arrived is damaged: its SHA-256 is not the one stated"):
        fetch_weights("hq_vit_b")
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= len(CONTENT)]
    server.damage = False
    assert fetch_weights("hq_vit_b").read_bytes() == CONTENT


def test_a_file_that_the_hub_does_not_have(server: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"sam_hq_vit_l\.pth .* the repository has no such file\. Get it another"):
        fetch_weights("hq_vit_l")


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_message_says_which_file_to_put_where(
    offline: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError) as caught:
        hqsam.create_model("hq_vit_l", "pretrained")
    reason = "offline mode is on (HF_HUB_OFFLINE) and the file is not in the cache"
    assert str(caught.value) == (
        "cannot download sam_hq_vit_l.pth of the hub repository lkeab/hq-sam: "
        f"{reason if offline else 'the hub cannot be reached'}. "
        f"Get it another way and put it into {folder}; it is found there"
    )
    folder.mkdir(exist_ok=True)
    (folder / "sam_hq_vit_l.pth").write_bytes(b"put here by hand")
    assert fetch_weights("hq_vit_l") == folder / "sam_hq_vit_l.pth"


def test_offline_mode_takes_what_is_in_the_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_weights("hq_vit_b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights("hq_vit_b") == path


def test_plain_sam_by_hand_under_either_name(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"as sam_vit_b\.safetensors \(or SAM's own sam_vit_b_01ec64\.pth\)"):
        fetch_weights("sam_vit_b")
    folder.mkdir(exist_ok=True)
    for name in ("sam_vit_b_01ec64.pth", "sam_vit_b.safetensors"):
        (folder / name).touch()
        assert fetch_weights("sam_vit_b") == folder / name


def test_the_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HQSAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.weights_folder() == tmp_path / "hqsam"


def test_endpoint_and_cache_of_the_environment_are_honoured(server: Hub, folder: Path) -> None:
    code = "from hqsam.hub import fetch_weights; print(fetch_weights('hq_vit_b'))"
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    env["TQDM_POSITION"] = "-1"  # the client's way to show progress where nobody watches a terminal
    env["HF_HOME"] = str(folder / "home")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == CONTENT and folder in Path(done.stdout.strip()).parents
    assert "sam_hq_vit_b.pth" in done.stderr  # the progress bar
    env["HF_HUB_OFFLINE"] = "1"
    again = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout and len(server.downloads) == 1


def test_names_and_tags() -> None:
    for name in PUBLISHED:
        assert "official" in registry.model_spec(f"{name}.official").tags
    assert {n.partition(".")[0] for n in registry.list_models("*.official")} == set(PUBLISHED)
    assert registry.model_spec("hq_vit_tiny").tags == ("embedded", "official")
    assert registry.model_spec("sam_vit_tiny").tags == ("embedded",)
    with pytest.raises(ValueError, match="no published weights of 'sam_vit_tiny'; there are of hq_vit_b"):
        fetch_weights("sam_vit_tiny")


@pytest.fixture
def small(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`hq_test_vit` with published weights."""
    source = fill_parameters(registry.build_model(registry.model_spec("hq_test_vit")))
    path = save_checkpoint(source, tmp_path / "a.safetensors", metadata={"recommended_fusion": "hq"}).path  # type: ignore[arg-type]
    server.files["some/where/small.safetensors"] = path.read_bytes()
    published = PublishedWeights("some/where", "small.safetensors", ("small.safetensors",))
    monkeypatch.setattr(hub, "PUBLISHED", {**PUBLISHED, "hq_test_vit": published})
    spec = replace(registry.model_spec("hq_test_vit"), tags=("official",))
    monkeypatch.setitem(registry._SPECS, "hq_test_vit", spec)
    return source


@pytest.mark.parametrize("arguments", [("hq_test_vit", "pretrained"), ("hq_test_vit.official",)])
def test_a_model_by_name(small: Any, arguments: tuple[str, ...]) -> None:
    model = hqsam.create_model(*arguments, device="cpu")
    assert model.head_state == "trained" and model.default_fusion == "hq"
    expected = official_state_dict(small)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in official_state_dict(model).items())


def test_the_command(small: Any, server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", "hq_test_vit"]) == 0
    assert "small.safetensors: HQ-SAM (test_vit), " in capsys.readouterr().out
    assert main(["models", "download", "hq_test_vit.official", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert Path(row["path"]).stat().st_size == row["size_bytes"] and row["layout"] == "hq_sam"
    assert len(server.downloads) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hq_vit_l", "put it into"),
        ("nonsense", "unknown model"),
        ("sam_vit_tiny", "no published weights"),
        ("hq_vit_tiny.embedded", "come with the package"),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", name]) == 2
    error = capsys.readouterr().err
    error = error[error.index("hqsam: error: ") :]  # another command of this process may have begun to log
    assert message in error and error.count("\n") == 1
