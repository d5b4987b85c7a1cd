"""The runner of evaluations, with a task without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hqsam.engine.distributed import World, join_world
from hqsam.engine.evaluation.report import EvalResult, format_markdown, write_report
from hqsam.engine.evaluation.runner import EvaluationStopped, RunOptions, run_task
from hqsam.engine.evaluation.task import Outcome, ScorePool
from hqsam.errors import DataError, OutputError
from tests.integration.forked import start_group


@dataclass(frozen=True)
class Square:
    item: int
    square: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Squares:
    """Squares numbers; odd ones are scored in the pool, 7 cannot be scored, 13 is damaged."""

    items: Sequence[int]
    batch_size: int = 1
    name: str = "squares"
    done: list[tuple[int, ...]] = field(default_factory=list)

    def key(self, item: int) -> str:
        return f"n{item}"

    def load(self, item: int) -> int:
        if item == 13:
            raise DataError("13 is damaged")
        return item

    def run(self, group: Sequence[tuple[int, int]], pool: ScorePool) -> list[Outcome[Square]]:
        self.done.append(tuple(item for item, _ in group))
        return [self._outcome(number, pool) for _, number in group]

    def _outcome(self, number: int, pool: ScorePool) -> Outcome[Square]:
        if number == 7:
            return Outcome([], ["7"])
        square = Square(number, number**2 / 3)
        return Outcome([pool.submit(lambda: square) if number % 2 else square])

    def parse(self, entry: dict[str, Any]) -> Square:
        return Square(**entry)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": "none", "resolution": 1, "dilation_ratio": 0.02, "model": {}}

    def summarise(self, records: Sequence[Square], left_out: Sequence[str]) -> EvalResult:
        if not records:
            raise DataError("nothing to score")
        scores = {"sam": {"total": sum(record.square for record in records), "n": len(records)}}
        protocol = {**self.describe(), "left_out": list(left_out)}
        return EvalResult({"all": scores}, scores, protocol, records=records, title="squares")


def total(numbers: Sequence[int]) -> float:
    return sum(number**2 / 3 for number in numbers if number != 7)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_every_item_once_in_order(workers: int, batch: int) -> None:
    numbers = [5, 3, 7, 2, 11, 4, 9]
    task = Squares(numbers, batch)
    result, timing = run_task(task, World(), RunOptions(workers=workers))
    assert [number for group in task.done for number in group] == numbers
    assert all(len(group) == batch for group in task.done[:-1])
    assert result.sets["all"]["sam"] == {"total": total(numbers), "n": 6}
    assert [record.item for record in result.records] == [5, 3, 2, 11, 4, 9]
    assert result.protocol["left_out"] == ["7"]
    assert timing.items == 7 and 0 <= timing.as_dict()["share_waiting_for_data"] <= 1


def test_a_stopped_one_goes_on(tmp_path: Path) -> None:
    numbers = list(range(6))
    task, kept = Squares(numbers), tmp_path / "partial"
    with pytest.raises(EvaluationStopped):
        run_task(task, World(), RunOptions(kept=kept, stop=lambda: len(task.done) == 4))
    (file,) = kept.iterdir()
    with file.open("a") as stream:
        stream.write('{"item": "n4", "rec')  # the machine died here
    again = Squares(numbers)
    result, timing = run_task(again, World(), RunOptions(kept=kept))
    assert again.done == [(4,), (5,)] and timing.items == 2
    assert result == run_task(Squares(numbers), World(), RunOptions())[0]
    assert not kept.exists()


def test_a_group_that_is_half_done_is_done_whole(tmp_path: Path) -> None:
    """The model gets the same images together as in an unbroken run, so no number differs."""
    task, kept = Squares(list(range(6)), 3), tmp_path / "partial"
    with pytest.raises(EvaluationStopped):
        run_task(task, World(), RunOptions(kept=kept, stop=lambda: len(task.done) == 1))
    (file,) = kept.iterdir()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    again = Squares(list(range(6)), 3)
    run_task(again, World(), RunOptions(kept=kept))
    assert again.done == [(0, 1, 2), (3, 4, 5)]


def test_a_damaged_item_ends_it_and_what_was_done_stays(tmp_path: Path) -> None:
    kept = tmp_path / "partial"
    with pytest.raises(DataError, match="13 is damaged"):
        run_task(Squares([1, 2, 3, 13]), World(), RunOptions(workers=2, kept=kept))
    assert len([line for file in kept.iterdir() for line in file.read_text().splitlines()]) >= 2


@pytest.mark.parametrize("other", [Squares([0, 1, 2, 3]), Squares([0, 1, 2], name="cubes")])
def test_results_of_another_evaluation_are_not_taken(
    tmp_path: Path, other: Squares, caplog: pytest.LogCaptureFixture
) -> None:
    task, kept = Squares([0, 1, 2]), tmp_path / "partial"
    with pytest.raises(EvaluationStopped):
        run_task(task, World(), RunOptions(kept=kept, stop=lambda: len(task.done) == 2))
    (kept / "broken.jsonl").write_bytes(b"\xff\xfe")
    run_task(other, World(), RunOptions(kept=kept))
    assert len(other.done) == len(other.items)
    assert "of another evaluation" in caplog.text
    weights = Squares([0, 1, 2])
    with pytest.raises(EvaluationStopped):
        run_task(weights, World(), RunOptions(kept=kept, stop=lambda: len(weights.done) == 2, identity={"w": 1}))
    changed = Squares([0, 1, 2])
    run_task(changed, World(), RunOptions(kept=kept, identity={"w": 2}))
    assert len(changed.done) == 3


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write results to .*file"):
        run_task(Squares([1]), World(), RunOptions(kept=tmp_path / "file" / "partial"))


def evaluate_in_group(rank: int, folder: Path, stop_after: int) -> None:
    with join_world("cpu") as world:
        task = Squares(list(range(7)), 2)
        options = RunOptions(
            workers=1, kept=folder / "partial", stop=lambda: rank == world.size - 1 and 0 < stop_after == len(task.done)
        )
        try:
            result, _ = run_task(task, world, options)
        except EvaluationStopped:
            (folder / f"stopped_{rank}.json").write_text(json.dumps(task.done))
            return
        content = [result.as_dict(), [record.as_dict() for record in result.records], task.done]
        (folder / f"{rank}.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_items(tmp_path: Path, size: int) -> None:
    """Seven items in groups of two divide neither by two nor by three; one process's stop is everybody's."""
    start_group(evaluate_in_group, size, tmp_path, 1)
    stopped = [json.loads((tmp_path / f"stopped_{rank}.json").read_text()) for rank in range(size)]
    start_group(evaluate_in_group, size, tmp_path, 0)
    alone, _ = run_task(Squares(list(range(7)), 2), World(), RunOptions())
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    assert all(result[0] == alone.as_dict() for result in results)
    assert results[0][1] == [record.as_dict() for record in alone.records]
    assert all(result[1] == [] for result in results[1:])
    groups = [tuple(group) for done in (*stopped, *(result[2] for result in results)) for group in done]
    assert sorted(groups) == [(0, 1), (2, 3), (4, 5), (6,)]
    assert not (tmp_path / "partial").exists()


def test_tables_with_many_metrics_have_a_row_for_each_column(tmp_path: Path) -> None:
    scores = {"sam": {"ap": 10.0, "ap50": 20.0, "ap75": 5.0, "n": 4}, "sum": {"ap": 11.0, "ap50": 22.5, "n": 4}}
    protocol = {"name": "p", "prompt": "box", "resolution": 64, "dilation_ratio": 0.02, "model": {"name": "m"}}
    result = EvalResult({"val": scores}, scores, protocol, title="AP")
    rows = [line for line in format_markdown(result).splitlines() if line.startswith("| ")]
    assert rows[0] == "| set | masks | objects | AP | AP50 | AP75 | protocol |"
    assert rows[2] == "| val | SAM+HQ | 4 | 11.0 | 22.5 |  | p, box, 64 px, ring 2 % |"
    write_report(result, tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text())["sets"]["val"] == scores


def test_small_numbers_are_not_rounded_away() -> None:
    scores = {"sam": {"mse": 0.0244, "ods_threshold": 0.37, "noc85": 5.32, "nof85": 4, "sad": 20.71, "n": 4}}
    protocol = {"name": "p", "resolution": 64, "model": {"name": "m"}}
    rows = format_markdown(EvalResult({"val": scores}, scores, protocol)).splitlines()
    assert "| val | SAM | 4 | 0.0244 | 0.37 | 5.32 | 4 | 20.7 | p, 64 px |" in rows
