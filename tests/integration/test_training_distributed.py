"""Two and eight gloo processes against one with the same global batch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.engine.distributed import World, gather_objects, join_world
from hqsam.engine.training import open_run, train
from hqsam.errors import CheckpointError, OutputError
from tests.integration.forked import start_group
from tests.integration.training_runs import draw_data, make_config

FLOAT32_STEPS, FLOAT64_STEPS = 1, 10
SIZES = (2, 8)
BATCH = 8
"""Images of a step over all processes: 2 x 4 = 8 x 1."""


def steps(data: Path, folder: Path, dtype: str, batch_size: int, number: int, world: World) -> dict[str, Any]:
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


def in_process(rank: int, size: int, data: Path, folder: Path) -> None:
    options = ["loop.max_steps=2", "loop.batch_size=1", f"data.val=[{data}]", "data.views=1"]
    options.append(f"data.keep_features={folder / 'features'}")
    with join_world("cpu") as world:
        single = steps(data, folder / "single", "float32", BATCH // size, FLOAT32_STEPS, world)
        double = steps(data, folder / "double", "float64", BATCH // size, FLOAT64_STEPS, world)
        torch.save({"float32": single, "float64": double}, folder / f"rank{rank}.pt")
        if size == 2:
            assert train(make_config(data, folder / "run", *options), world)
            with pytest.raises(CheckpointError, match="there is no file"):  # on both, though one looks
                open_run(make_config(data, folder / "run", *options, "resume=missing.pt"), world)
    (folder / f"threads{rank}.txt").write_text(" ".join(thread_names()))


def save_where_nothing_can_be_written(rank: int, data: Path, folder: Path) -> None:
    with join_world("cpu") as world:
        run = open_run(make_config(data, folder / "run"), world)
        with pytest.raises(OutputError, match="cannot write"):
            run.states.save(run.trainer)
    (folder / f"told{rank}").touch()


def thread_names() -> list[str]:
    """Names of this process's threads, Python's and others; none where the system does not tell."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            names.append(path.read_text().strip())
    return names


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes")


@pytest.fixture(scope="module", params=SIZES)
def folder(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a group of processes left; its name ends with their number."""
    folder = tmp_path_factory.mktemp(f"group{request.param}") / str(request.param)
    folder.mkdir()
    start_group(in_process, request.param, request.param, data, folder)
    return folder


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    numbers = {"float32": FLOAT32_STEPS, "float64": FLOAT64_STEPS}
    return {dtype: steps(data, folder, dtype, BATCH, number, World()) for dtype, number in numbers.items()}


def ranks(folder: Path, dtype: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt")[dtype] for rank in range(int(folder.name))]


def relative_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, of the tensor where it is largest."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


def test_loss_and_gradients_of_a_step(folder: Path, one: dict[str, dict[str, Any]]) -> None:
    got, expected = ranks(folder, "float32")[0], one["float32"]
    torch.testing.assert_close(got["losses"], expected["losses"], rtol=1e-6, atol=0)
    # All tensors together: rounding alone, which depends on the CPU's kernels, is 1e-6 of the smallest of them. Tensor
    # by tensor they are compared in float64 below.
    whole = [[torch.cat([g.flatten() for g in row["gradients"]])] for row in (got, expected)]
    assert relative_error(*whole) <= 1e-6


def test_weights_after_ten_steps(folder: Path, one: dict[str, dict[str, Any]]) -> None:
    group, expected = ranks(folder, "float64"), one["float64"]
    assert relative_error(group[0]["gradients"], expected["gradients"]) <= 1e-9
    pairs = zip(group[0]["weights"], expected["weights"], strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) <= 1e-9
    for other in group[1:]:
        assert all(torch.equal(a, b) for a, b in zip(group[0]["weights"], other["weights"], strict=True))
        assert other["items"] == group[0]["items"] == expected["items"] * len(group)


def test_no_thread_of_the_group_is_left(folder: Path) -> None:
    """One that outlives the interpreter can abort a process that is done."""
    assert "gloo" not in "".join(path.read_text() for path in folder.glob("threads*.txt"))


@pytest.mark.parametrize("folder", [2], indirect=True)
def test_a_run_of_two_processes_is_one_run(folder: Path, data: Path) -> None:
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


def test_a_failed_write_is_told_by_every_process(data: Path, tmp_path: Path) -> None:
    """One writes; the others would wait for it, and end with an error of their own that says nothing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()  # a file where a folder is needed
    start_group(save_where_nothing_can_be_written, 2, data, tmp_path)
    assert [(tmp_path / f"told{rank}").exists() for rank in range(2)] == [True, True]
