"""Rounds of a small random model: what is trained on, what is measured, which model is the current one."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from hqsam.checkpoints.reading import read_strings
from hqsam.data import open_dataset
from hqsam.data.records import is_held_out
from hqsam.engine.config import load_config
from hqsam.engine.distributed import World
from hqsam.engine.train_config import TrainConfig
from hqsam.errors import ConfigError, DataError
from hqsam.rounds import RoundOptions, read_rounds, run_round, running
from hqsam.rounds.deciding import decide
from hqsam.rounds.running import NothingNewError, abandon_round
from hqsam.rounds.settings import SMALL_DATA, open_settings
from hqsam.rounds.snapshot import is_measured_on
from hqsam.rounds.state import Change, Round, Rounds
from hqsam.serve.store import AnnotationStore
from tests.helpers import ROOT
from tests.unit.rounds.annotated import TINY, annotate, draw_folder, open_store, weights

COUNT = 16


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", COUNT)


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> AnnotationStore:
    found = open_store(photos, tmp_path / "annotations")
    annotate(found, range(COUNT - 2))
    return found


@pytest.fixture
def options(tmp_path: Path) -> RoundOptions:
    start = weights(tmp_path / "start.safetensors")
    return RoundOptions(overrides=[*TINY, f"model.checkpoint={start}"], held_out_tenths=4, min_masks=3, min_held_out=2)


def decide_for(monkeypatch: pytest.MonkeyPatch, low: float) -> None:
    """Rounds without work; whatever is measured, this is the lower end of the interval of mBIoU."""

    def train(config: TrainConfig, world: World) -> bool:
        Path(config.output_dir).mkdir()
        shutil.copyfile(str(config.model.checkpoint), Path(config.output_dir) / "model.safetensors")
        return True

    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "run_evaluation", lambda *_: None)
    found = {name: Change(before=50, after=51, low=low, high=2) for name in ("miou", "mbiou")}
    monkeypatch.setattr(running, "measured_changes", lambda *_: found)


def names(path: Path) -> set[str]:
    return {record.image.name for record in open_dataset(str(path))}


@pytest.mark.slow
def test_a_round(store: AnnotationStore, options: RoundOptions, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    item = run_round(store, folder, options)
    state = json.loads((folder / "rounds.json").read_text())
    assert state["rounds"][0]["outcome"] == item.outcome and item.outcome in ("adopted", "kept")
    path = folder / "round_0001"
    train, held_out = names(path / "train.json"), names(path / "held_out.json")
    assert not train & held_out and len(train | held_out) == COUNT - 2
    assert held_out == {name for name in train | held_out if is_measured_on(name, 4)}
    assert (item.trained_on.images, item.held_out.images) == (len(train), len(held_out))
    assert item.annotated.masks == COUNT - 2 and item.masks_per_image == 1.0 and item.seconds_per_mask == 2.0
    for name in ("before", "after"):
        lines = (path / name / "records.jsonl").read_text().splitlines()
        assert len(lines) == item.held_out.masks
    assert read_strings(path / "model.safetensors")["round"] == "1"
    assert not (path / "train" / "features").exists() and not (folder / "next").exists()
    report = (folder / "report.md").read_text()
    assert item.reason in report and f"| 1 | {COUNT - 2} | {COUNT - 2} | 1.0 | 2.0 |" in report


def test_an_image_that_was_held_out_is_never_trained_on(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_for(monkeypatch, low=1)
    folder = tmp_path / "rounds"
    run_round(store, folder, options)
    annotate(store, range(COUNT))  # more images, and more masks on those that were there
    second = run_round(store, folder, options)
    assert second.number == 2 and second.start == 1 and second.annotated.masks == 2 * COUNT - 2
    first, then = folder / "round_0001", folder / "round_0002"
    assert names(first / "held_out.json") <= names(then / "held_out.json")
    assert not names(first / "held_out.json") & names(then / "train.json")
    trained = load_config(TrainConfig, then / "settings.yaml")
    assert trained.data.train == [str(then / "train.json")] and trained.data.val == []
    assert trained.model.checkpoint == str(first / "model.safetensors")
    with pytest.raises(DataError, match="4 tenths of the images are held out since the first round"):
        run_round(store, folder, RoundOptions(overrides=options.overrides, held_out_tenths=5))


def test_the_tenth_of_the_embedded_model_is_held_out() -> None:
    for number in range(300):
        name = f"photo{number}.jpg"
        assert is_measured_on(name, 1) == is_held_out(Path("somewhere") / name)
        assert is_measured_on(name, 2) >= is_measured_on(name, 1)


def test_only_a_better_model_becomes_the_current_one(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rounds"
    decide_for(monkeypatch, low=0)
    assert run_round(store, folder, options).outcome == "kept"
    assert not (folder / "current.safetensors").exists()
    annotate(store, [3])
    decide_for(monkeypatch, low=0.1)
    second = run_round(store, folder, options)
    assert second.outcome == "adopted" and second.start is None, "the model of the beginning was still current"
    assert read_strings(folder / "current.safetensors")["round"] == "2"
    assert (folder / "current.safetensors").read_bytes() == second_file(folder).read_bytes()
    annotate(store, [4])
    decide_for(monkeypatch, low=-1)
    third = run_round(store, folder, options)
    assert third.outcome == "kept" and third.start == 2
    known = read_rounds(folder)
    assert known is not None and known.current == 2
    assert read_strings(folder / "current.safetensors")["round"] == "2"


def second_file(folder: Path) -> Path:
    return folder / "round_0002" / "model.safetensors"


def change(low: float, high: float) -> Change:
    return Change(before=50, after=50 + (low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("mask", "boundary", "adopted", "reason"),
    [
        ((0.1, 2), (0.1, 2), True, "mBIoU is better"),
        ((-1, 2), (0.1, 2), True, "mBIoU is better"),
        ((-2, -1), (0.1, 2), False, "mIoU is worse"),
        ((1, 2), (0, 2), False, "not clearly better"),
        ((1, 2), (0, 0), False, "not clearly better"),
        ((1, 2), (-2, -1), False, "mBIoU is worse"),
        ((1, 2), (-100, 100), False, "not clearly better"),
    ],
)
def test_decision(mask: tuple[float, float], boundary: tuple[float, float], adopted: bool, reason: str) -> None:
    found = decide({"miou": change(*mask), "mbiou": change(*boundary)})
    assert found.adopted == adopted and reason in found.reason


def test_nothing_new_is_no_round(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_for(monkeypatch, low=-1)
    folder = tmp_path / "rounds"
    run_round(store, folder, options)
    with pytest.raises(NothingNewError):
        run_round(store, folder, options)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "report.md", "round_0001", "rounds.json"]
    again = RoundOptions(**{**vars(options), "overrides": [*options.overrides, "optim.lr=0.1"]})
    assert run_round(store, folder, again).number == 2, "other settings are another round"


def test_too_few_annotations_begin_no_round(store: AnnotationStore, options: RoundOptions, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    for changes, message in (
        ({"min_masks": 100}, "masks to train on, 100 are needed"),
        ({"min_held_out": 100}, "images with masks to measure on, 100 are needed"),
    ):
        with pytest.raises(DataError, match=message):
            run_round(store, folder, RoundOptions(**{**vars(options), **changes}))
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_annotations_that_would_be_forgotten_begin_no_round(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, photos: Path
) -> None:
    (photos / "00.png").unlink()
    with pytest.raises(DataError, match="are of pictures that are not in the folder"):
        run_round(open_store(photos, tmp_path / "annotations"), tmp_path / "rounds", options)
    damaged = next((tmp_path / "annotations").glob("*.json"))
    damaged.write_text("{")
    with pytest.raises(DataError, match="1 damaged files"):
        run_round(store, tmp_path / "rounds", options)


def test_a_picture_that_cannot_be_read_begins_no_round(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, photos: Path
) -> None:
    whole = (photos / "05.png").read_bytes()
    (photos / "05.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"05\.png.*hqsam check-data"):
        run_round(store, tmp_path / "rounds", options)
    assert read_rounds(tmp_path / "rounds") is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.val=[x]"], "hqsam round decides this itself"),
        (["output_dir=x"], "hqsam round decides this itself"),
        (["model.trained=hq+encoder"], "leaves the encoder as it is"),
        (["model.lora_rank=4"], "leaves the encoder as it is"),
        (["model.image_size=256"], "leaves the encoder as it is"),
        (["model.name=sam_vit_tiny.embedded", "model.trained=decoder"], "trains the HQ head"),
        (["model.trained=score"], "trains the HQ head"),
        (["model.name=hq_vit_l"], "names no weights"),
        (["model.fresh_hq_head=true"], "a trained head"),
        (["optim.rl=1"], "unknown key"),
        (["optim.layer_decay=0.8"], "is for a trained encoder"),
    ],
)
def test_settings_that_a_round_refuses(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_settings(None, overrides, 10)


def test_another_start_is_refused(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_for(monkeypatch, low=-1)
    run_round(store, tmp_path / "rounds", options)
    annotate(store, [1])
    other = weights(tmp_path / "other.safetensors")
    changed = RoundOptions(**{**vars(options), "overrides": [*TINY, f"model.checkpoint={other}"]})
    with pytest.raises(DataError, match="these rounds began with hq_test_tiny"):
        run_round(store, tmp_path / "rounds", changed)


def test_settings_for_small_data_are_those_of_finetune_yaml() -> None:
    own = open_settings(None, [], 1)
    file = load_config(TrainConfig, ROOT / "configs" / "train" / "finetune.yaml")
    assert own.model == file.model and own.optim == file.optim and own.data.augment == file.data.augment
    assert own.data.prompts == file.data.prompts and own.data.views == file.data.views
    for key in ("batch_size", "accumulate", "max_steps", "save_every"):
        assert getattr(own.loop, key) == getattr(file.loop, key), key
    assert open_settings(None, [], 1000).loop.max_steps == 500, "one pass over all views"
    assert SMALL_DATA["data"]["views"] == 4


def test_a_round_that_is_given_up(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rounds"
    with pytest.raises(DataError, match="no round is under way"):
        abandon_round(folder)
    with monkeypatch.context() as patch:
        patch.setattr(running, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_round(store, folder, options)
    other = RoundOptions(**{**vars(options), "overrides": [*options.overrides, "optim.lr=0.1"]})
    with pytest.raises(DataError, match="under way with other settings"):
        run_round(store, folder, other)
    assert abandon_round(folder).outcome == "abandoned"
    decide_for(monkeypatch, low=1)
    assert run_round(store, folder, options).number == 2


def test_one_round_at_a_time(store: AnnotationStore, options: RoundOptions, tmp_path: Path) -> None:
    from hqsam.serve.locks import locked

    with locked(tmp_path / "rounds" / ".lock"), pytest.raises(DataError, match="another round is running"):
        run_round(store, tmp_path / "rounds", options)


def test_a_crash_between_outcome_and_model_is_made_good(
    store: AnnotationStore, options: RoundOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rounds"
    decide_for(monkeypatch, low=1)
    run_round(store, folder, options)
    (folder / "current.safetensors").unlink()
    with pytest.raises(NothingNewError):
        run_round(store, folder, options)
    assert read_strings(folder / "current.safetensors")["round"] == "1"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "hqsam_rounds", "format_version": "2"}'])
def test_a_damaged_state(store: AnnotationStore, options: RoundOptions, tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "rounds.json").write_text(text)
    with pytest.raises(DataError, match=r"rounds\.json"):
        run_round(store, tmp_path / "rounds", options)
    assert (tmp_path / "rounds" / "rounds.json").read_text() == text


@pytest.mark.slow
def test_recommendations_go_on(store: AnnotationStore, options: RoundOptions, tmp_path: Path) -> None:
    from hqsam.checkpoints import convert_checkpoint

    start = tmp_path / "recommending.safetensors"
    recommended = {"recommended_fusion": "hq", "recommended_refine": "again", "recommended_heed_clicks": "yes"}
    recommended["recommended_upsampling"] = "guided"
    convert_checkpoint(tmp_path / "start.safetensors", start, metadata=recommended)
    folder = tmp_path / "rounds"
    run_round(store, folder, RoundOptions(**{**vars(options), "overrides": [*TINY, f"model.checkpoint={start}"]}))
    assert recommended.items() <= read_strings(folder / "round_0001" / "model.safetensors").items()
    for name in ("before", "after"):
        lines = (folder / "round_0001" / name / "records.jsonl").read_text().splitlines()
        record: dict[str, Any] = json.loads(lines[0])
        assert list(record["miou"]) == ["hq"], "measured is what users get"


def test_what_a_state_keeps(tmp_path: Path) -> None:
    known = Rounds(model="hq_x", start_name="hq_x.y", start_checkpoint=None, held_out_tenths=2)
    assert read_rounds(tmp_path) is None and known.current is None and known.unfinished is None
    known.write(tmp_path)
    assert read_rounds(tmp_path) == known


def test_warnings_are_said(
    store: AnnotationStore,
    options: RoundOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decide_for(monkeypatch, low=-1)
    monkeypatch.setattr(running, "check_snapshot", lambda _: ["a photograph is in both parts"])
    with caplog.at_level(logging.WARNING):
        item: Round = run_round(store, tmp_path / "rounds", options)
    assert item.outcome == "kept" and "a photograph is in both parts" in caplog.text
