"""Two gloo processes against one with the same global batch."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from hqsam.engine.distributed import World, gather_objects, join_world
from hqsam.engine.training import open_run, train
from hqsam.errors import CheckpointError
from tests.integration.training_runs import draw_data, make_config

FLOAT32_STEPS, FLOAT64_STEPS = 1, 10


def steps(data: Path, folder: Path, dtype: str, batch_size: int, number: int, world: World) -> dict[str, object]:
    """Losses of each step, gradients of the last and the weights after it, of this process."""
    config = make_config(data, folder, f"loop.dtype={dtype}", f"loop.batch_size={batch_size}", "loop.epochs=99")
    run = open_run(config, world)
    totals = [run.trainer.train_step([b]) for _, b in zip(range(number), run.loader(), strict=False)]
    return {
        "losses": torch.stack([row[:2] / row[2] for row in totals]),
        "gradients": [parameter.grad for parameter in run.trainer.parameters],
        "weights": [parameter.detach() for parameter in run.trainer.parameters],
        "items": gather_objects(run.trainer.plan.items(3), world),
    }


def in_process(rank: int, port: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    options = ["loop.max_steps=2", "loop.batch_size=1", f"data.val=[{data}]", "data.views=1"]
    options.append(f"data.keep_features={folder / 'features'}")
    with join_world("cpu") as world:
        single = steps(data, folder / "single", "float32", 1, FLOAT32_STEPS, world)
        double = steps(data, folder / "double", "float64", 1, FLOAT64_STEPS, world)
        torch.save({"float32": single, "float64": double}, folder / f"rank{rank}.pt")
        assert train(make_config(data, folder / "run", *options), world)
        with pytest.raises(CheckpointError, match="there is no file"):  # on both, though one looks
            open_run(make_config(data, folder / "run", *options, "resume=missing.pt"), world)
    (folder / f"threads{rank}.txt").write_text(" ".join(thread_names()))


def thread_names() -> list[str]:
    """Names of this process's threads, Python's and others; none where the system does not tell."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            names.append(path.read_text().strip())
    return names


def spawn(data: Path, folder: Path) -> None:
    """Another program may take the free port between our looking and our using it: then once more."""
    for attempt in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            mp.spawn(in_process, (port, data, folder), nprocs=2)
            return
        except mp.ProcessRaisedException as error:
            if attempt == 2 or "EADDRINUSE" not in str(error):
                raise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    spawn(draw_data(folder / "shapes"), folder)
    return folder


def relative_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, of the tensor where it is largest."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


def test_loss_and_gradients_of_a_step(folder: Path) -> None:
    one = steps(folder / "shapes", folder / "one", "float32", 2, FLOAT32_STEPS, World())
    two = torch.load(folder / "rank0.pt")["float32"]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-6, atol=0)
    # All tensors together: rounding alone, which depends on the CPU's kernels, is 1e-6 of the smallest of them. Tensor
    # by tensor they are compared in float64 below.
    whole = [[torch.cat([g.flatten() for g in row["gradients"]])] for row in (two, one)]
    assert relative_error(*whole) <= 1e-6


def test_weights_after_ten_steps(folder: Path) -> None:
    one = steps(folder / "shapes", folder / "one", "float64", 2, FLOAT64_STEPS, World())
    ranks = [torch.load(folder / f"rank{rank}.pt")["float64"] for rank in (0, 1)]
    assert relative_error(ranks[0]["gradients"], one["gradients"]) <= 1e-9
    assert max(float((a - b).abs().max()) for a, b in zip(ranks[0]["weights"], one["weights"], strict=True)) <= 1e-9
    assert all(torch.equal(a, b) for a, b in zip(ranks[0]["weights"], ranks[1]["weights"], strict=True))
    assert ranks[0]["items"] == ranks[1]["items"] == one["items"] * 2


def test_no_thread_of_the_group_is_left(folder: Path) -> None:
    """One that outlives the interpreter can abort a process that is done."""
    assert "gloo" not in "".join((folder / f"threads{rank}.txt").read_text() for rank in (0, 1))


def test_a_run_of_two_processes_is_one_run(folder: Path) -> None:
    data = folder / "shapes"
    files = sorted(path.name for path in (folder / "run").iterdir())
    assert files == sorted(
        ["config.yaml", "log.jsonl", "tensorboard", "checkpoints", "report.md", "plots", "model.safetensors"]
    )
    assert len((folder / "run" / "log.jsonl").read_text().splitlines()) == 4  # two steps, the mean and its one set
    assert len(list((folder / "features").rglob("*.safetensors"))) == 4
    state = torch.load(next((folder / "run" / "checkpoints").glob("*.pt")), weights_only=True)
    assert len(state["rng"]) == 2
    # One process with the double batch may go on: it is the same run.
    options = ["loop.max_steps=2", "loop.batch_size=2", f"data.val=[{data}]", "data.views=1"]
    options.append(f"data.keep_features={folder / 'features'}")
    resumed = open_run(make_config(data, folder / "run", *options))
    assert resumed.trainer.step == 2
