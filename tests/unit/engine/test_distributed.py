"""One process without a launcher, devices, and what reaches the terminal."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path

import pytest
import torch

from hqsam.engine.distributed import (
    World,
    choose_device,
    configure_logging,
    from_main,
    gather_objects,
    join_world,
    sum_over_processes,
    wait_for_all,
)
from hqsam.errors import ConfigError
from tests.integration.forked import start_group


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert gather_objects({"a": 1}, world) == [{"a": 1}]
        wait_for_all(world)
    assert not torch.distributed.is_initialized()


def test_a_launcher_is_followed_and_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu") as world:
        assert torch.distributed.get_backend() == "gloo"
        assert world == World(0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("machines", [1, 2])
def test_a_restarted_worker_reads_no_address_of_the_start_before(
    machines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's agent keeps its store over restarts. On several machines its count of them is not everybody's."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in {**environment, "GROUP_WORLD_SIZE": str(machines)}.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu") as world:
        assert (world.rank, world.size) == (0, 1)
        keys = agent.list_keys()
    assert keys and all(key.startswith("start_1/") == (machines == 1) for key in keys)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_fails_does_not_wait_for_the_others(
    backend: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL leaves a group together, and the others may be waiting for this process in a collective."""
    dist, calls = torch.distributed, []
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("hqsam.engine.distributed.choose_device", lambda name, rank: device)
    monkeypatch.setattr("hqsam.engine.distributed._use", lambda device: device)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **options: calls.append(name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with contextlib.suppress(ConfigError), join_world():
        if fails:
            raise ConfigError("of this process alone")
    assert calls == ([backend] if fails and backend == "nccl" else [backend, "left"])


def test_sums_keep_shapes_and_values() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.ones(4)]
    summed = sum_over_processes(tensors, World())
    assert all(torch.equal(a, b) for a, b in zip(summed, tensors, strict=True))
    summed[0].zero_()
    assert tensors[0].sum() == 15


@pytest.mark.parametrize(("name", "text"), [("tpu", "device must be"), ("cuda:99", "cuda"), ("", "device must be")])
def test_unusable_devices(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        choose_device(name)


def test_auto_is_a_device_that_exists() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_other_ranks_report_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        configure_logging(World(rank=1, size=2))
        accepts = root.handlers[0].filter
        records = [logging.LogRecord("a", level, "", 0, "text", (), None) for level in (logging.INFO, logging.ERROR)]
        assert [bool(accepts(record)) for record in records] == [False, True]
        assert records[1].getMessage() == "[rank 1] text"
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def fail(error: type[Exception]) -> None:
    raise error("told")


def ask_the_first(rank: int, folder: Path) -> None:
    with join_world("cpu") as world:
        for kind in (ConfigError, KeyError):
            try:
                from_main(functools.partial(fail, kind), world)
            except (ConfigError, KeyError, RuntimeError) as error:
                with (folder / f"{rank}.txt").open("a") as stream:
                    stream.write(f"{type(error).__name__}: {error.args[0]}\n")


@pytest.mark.slow
def test_an_error_of_the_first_process_reaches_the_others(tmp_path: Path) -> None:
    start_group(ask_the_first, 2, tmp_path)
    assert (tmp_path / "0.txt").read_text() == "ConfigError: told\nKeyError: told\n"
    told = "RuntimeError: the first process failed: KeyError('told')\n"
    assert (tmp_path / "1.txt").read_text() == "ConfigError: told\n" + told
