"""Evaluation on videos: small random models on generated stand-ins, and a predictor of known answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks.videos import main as video_table
from hqsam.boxes import mask_to_box
from hqsam.data.davis import read_davis, read_video_pack
from hqsam.data.videos import VideoSet, load_frame_masks
from hqsam.data.youtube_vis import read_youtube_vis
from hqsam.engine.distributed import World
from hqsam.engine.evaluation import video as eval_video
from hqsam.engine.evaluation.report import format_markdown
from hqsam.engine.evaluation.runner import EvaluationStopped, RunOptions, run_task
from hqsam.engine.evaluation.task import ScorePool
from hqsam.engine.evaluation.video import VideoOptions, VideoTask
from hqsam.engine.evaluation.video_prompts import inner_point
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics.davis import DavisRecord, contour_accuracy
from hqsam.metrics.tubes import TubeRecord, TubeScores
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.types import Fusion
from tests.helpers import ROOT, fill_parameters
from tests.unit.data.video_sets import HW, save_jpeg, write_davis, write_pack, write_youtube_vis


def tiny(name: str = "hq_test_vit") -> Sam:
    model = create_model(name, device="cpu").eval()
    fill_parameters(model, seed=5)
    return model


@pytest.fixture(scope="module")
def model() -> Sam:
    return tiny()


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    return read_davis(write_davis(tmp_path_factory.mktemp("davis"), 2017, {"swan": 4, "dog": 3}), 2017)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    return read_youtube_vis(write_youtube_vis(tmp_path_factory.mktemp("vis")))


def run_all(task: VideoTask) -> list[Any]:
    with ScorePool(0) as pool:
        outcomes = task.run([(item, None) for item in task.items], pool)
    assert not any(outcome.left_out for outcome in outcomes)
    records = [record for outcome in outcomes for record in outcome.records]
    return [record.result() if isinstance(record, Future) else record for record in records]


class KnownPredictor:
    """Answers each box with what a function says, in place of a model: logits that are 2 in a part of the box."""

    def __init__(self, answer: Callable[[NDArray[np.float64], Fusion], NDArray[np.float32]]) -> None:
        self.answer, self.original_size = answer, HW
        self.asked: list[tuple[Fusion, NDArray[np.float64], NDArray[np.float64] | None]] = []
        self.images = 0

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.images += 1

    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        multimask_output: bool,
        return_logits: bool,
        fusion: Fusion,
        refine: str,
        heed_clicks: bool,
        upsampling: str,
    ) -> tuple[NDArray[np.float32], None, None]:
        assert not multimask_output and return_logits
        assert (refine, heed_clicks, upsampling) == ("none", False, "bilinear")  # whatever the weights recommend
        self.asked += [(fusion, one, None if point_coords is None else point_coords[k, 0]) for k, one in enumerate(box)]
        return np.stack([self.answer(one, fusion) for one in box])[:, None], None, None


def fill_box(box: NDArray[np.float64], fusion: Fusion = "hq", value: float = 2.0) -> NDArray[np.float32]:
    logits = np.full(HW, -1.0, dtype=np.float32)
    x0, y0, x1, y1 = np.rint(box).astype(int)
    logits[y0 : y1 + 1, x0 : x1 + 1] = value
    return logits


def use(task: VideoTask, predictor: Any) -> Any:
    task.predictor = predictor
    return predictor


def test_true_boxes_give_what_the_predictor_gives(model: Sam, davis: VideoSet) -> None:
    task = VideoTask(model, davis, VideoOptions())
    records: list[DavisRecord] = run_all(task)
    assert [record.key for record in records] == [
        ("davis2017_val", name, number) for name in ("swan", "dog") for number in (1, 2)
    ]
    swan, predictor = davis.videos[0], SamPredictor(model)
    for column in ("sam", "hq", "sum"):
        predictor.set_image(read_image(swan.frames[1]))
        truths = load_frame_masks(swan, 1)
        logits = [
            predictor.predict(box=mask_to_box(t), multimask_output=False, return_logits=True, fusion=column)[0][0]
            for t in truths
        ]
        winner = np.where(np.max(logits, axis=0) > 0, np.argmax(logits, axis=0), -1)
        for row, truth in enumerate(truths):
            mask = winner == row
            j = (mask & truth).sum() / (mask | truth).sum()
            assert records[row].j[column][1] == pytest.approx(j, abs=1e-9)
            assert records[row].f[column][1] == pytest.approx(contour_accuracy(mask, truth), abs=1e-9)
    assert [len(record.j["sum"]) for record in records] == [4, 4, 3, 3]


def test_boxes_of_another_model_are_the_same_for_every_column(model: Sam, davis: VideoSet, tmp_path: Path) -> None:
    """With the true boxes in the file the records are those of the true boxes; an object without a track is empty."""
    tracks = []
    for video in davis.videos:
        for row, obj in enumerate(video.objects):
            boxes = [mask_to_box(load_frame_masks(video, k)[row]) for k in range(len(video.frames))]
            sides = [None if b is None else [*map(float, b[:2]), *map(float, b[2:] - b[:2])] for b in boxes]
            tracks.append({"video_id": video.name, "object_id": obj.number, "bboxes": sides})
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(tracks[::-1]))
    task = VideoTask(model, davis, VideoOptions(prompts="boxes", boxes=file))
    assert run_all(task) == run_all(VideoTask(model, davis))
    assert task.describe()["videos_without_boxes"] == 0
    digest = task.describe()["boxes_digest"]
    file.write_text(json.dumps(tracks[1:2]))
    alone = VideoTask(model, davis, VideoOptions(prompts="boxes", boxes=file))
    asked = use(alone, KnownPredictor(fill_box))
    records = {record.key[1:]: record for record in run_all(alone)}
    assert set(records["swan", 1].j["sam"]) == set(records["dog", 1].j["sum"]) == {0.0}
    assert set(records["swan", 2].j["sam"]) == {1.0}
    assert alone.describe()["boxes_digest"] != digest
    assert alone.describe()["videos_without_boxes"] == 1 and asked.images == 4
    boxes_of = {c: [box.tolist() for column, box, _ in asked.asked if column == c] for c in ("sam", "hq", "sum")}
    assert boxes_of["sam"] == boxes_of["hq"] == boxes_of["sum"] and len(boxes_of["sam"]) == 4


def test_a_pixel_belongs_to_the_object_with_the_largest_logit(model: Sam, davis: VideoSet) -> None:
    task = VideoTask(model, replace(davis, videos=davis.videos[1:]), VideoOptions(columns=("sam",), frames="all"))
    use(task, KnownPredictor(lambda box, _: np.full(HW, float(box[1]), dtype=np.float32)))  # the lower one wins
    first, second = run_all(task)
    truth = load_frame_masks(davis.videos[1], 0)
    assert first.j["sam"] == [0.0] * 3
    assert second.j["sam"][0] == pytest.approx(truth[1].sum() / (HW[0] * HW[1]))
    use(task, KnownPredictor(lambda box, _: np.full(HW, 3.0, dtype=np.float32)))  # a draw: the first one
    first, second = run_all(task)
    assert second.j["sam"] == [0.0] * 3 and first.j["sam"][0] > 0
    use(task, KnownPredictor(lambda box, _: np.zeros(HW, dtype=np.float32)))  # a logit of 0 is outside
    first, second = run_all(task)
    assert first.j["sam"] == second.j["sam"] == [0.0] * 3


def test_propagation_prompts_with_the_columns_own_last_mask(model: Sam, davis: VideoSet) -> None:
    videos = replace(davis, videos=davis.videos[:1])
    task = VideoTask(model, videos, VideoOptions(prompts="propagate", margin=0.25))

    def answer(box: NDArray[np.float64], fusion: Fusion) -> NDArray[np.float32]:
        return fill_box(box - {"sam": 0, "hq": 2, "sum": 4}[fusion] * np.array([0, 0, 1, 0]), fusion)

    predictor = use(task, KnownPredictor(answer))
    records = run_all(task)
    first = mask_to_box(load_frame_masks(videos.videos[0], 0)[0])
    assert first is not None and first.tolist() == [12, 4, 27, 17]
    # 16 x 14 pixels: a quarter of them is 4 and 3.5; the upper side ends at the image's edge.
    expected = [8.0, 0.5, 31.0, 20.5]
    asked = {c: [(b, p) for column, b, p in predictor.asked if column == c] for c in ("sam", "hq", "sum")}
    assert all(asked[column][0][0].tolist() == expected for column in asked)
    assert asked["sam"][0][1].tolist() == list(inner_point(load_frame_masks(videos.videos[0], 0)[0]))
    # The masks of the second frame differ between the columns by 2 pixels, and so do the next prompts.
    second = {column: prompts[2][0] for column, prompts in asked.items()}
    assert second["sam"][2] > second["hq"][2] > second["sum"][2]
    assert predictor.images == 3, "the first frame is given: it needs no encoding"
    for record in records:
        assert all(values[0] is None and None not in values[1:] for values in record.j.values())


def test_propagation_without_a_point(model: Sam, davis: VideoSet) -> None:
    task = VideoTask(model, davis, VideoOptions(prompts="propagate", point=False, margin=0.0))
    predictor = use(task, KnownPredictor(fill_box))
    records = run_all(task)
    assert all(point is None for _, _, point in predictor.asked)
    # Without a margin the box stands still while the square moves by 2 pixels a frame.
    assert records[0].j["hq"] == [None, *(pytest.approx((16 - 2 * k) / (16 + 2 * k)) for k in (1, 2, 3))]


def test_an_object_that_vanished_is_looked_for_where_it_was_last_seen(model: Sam, davis: VideoSet) -> None:
    task = VideoTask(model, replace(davis, videos=davis.videos[:1]), VideoOptions(prompts="propagate", columns=("hq",)))
    answers = iter([None, None, None, None, 1, 1])  # nothing in two frames for both objects, then found

    def answer(box: NDArray[np.float64], fusion: Fusion) -> NDArray[np.float32]:
        return fill_box(box) if next(answers) else np.full(HW, -1.0, dtype=np.float32)

    predictor = use(task, KnownPredictor(answer))
    first, _ = run_all(task)
    boxes = [box.tolist() for _, box, _ in predictor.asked]
    assert boxes[0::2] == [boxes[0]] * 3 and boxes[1::2] == [boxes[1]] * 3
    assert first.j["hq"][:3] == [None, 0.0, 0.0] and first.j["hq"][3] > 0.3


def test_an_object_that_comes_later_is_given_there_and_scored_from_then_on(model: Sam, tmp_path: Path) -> None:
    entries = write_pack(tmp_path, {"a": 4}, "index")
    for entry in entries[:2]:
        entry["objects"] = [{"label": 1}]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    videos = read_video_pack(tmp_path / "index.json")
    task = VideoTask(model, videos, VideoOptions(prompts="propagate", frames="all", columns=("sam",)))
    use(task, KnownPredictor(fill_box))
    first, second = run_all(task)
    assert [value is None for value in first.j["sam"]] == [True, False, False, False]
    assert [value is None for value in second.j["sam"]] == [True, True, True, False]
    # A given mask is not covered by the prediction of another object.
    given = task.watch
    seen: list[Any] = []
    task.watch = seen.append
    assert given is None and run_all(task)
    assert (seen[2].predicted["sam"][1] == seen[2].truths[1]).all()


@pytest.mark.parametrize(("first", "frames"), [(3, "all"), (2, "inner")])
def test_an_object_without_a_frame_that_counts_is_left_out(model: Sam, tmp_path: Path, first: int, frames: Any) -> None:
    """Given in the last frame, or scored in the last one alone, which does not count."""
    entries = write_pack(tmp_path, {"a": 4}, "index")
    for entry in entries[:first]:
        entry["objects"] = [{"label": 1}]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    options = VideoOptions(prompts="propagate", frames=frames, columns=("sam",))
    task = VideoTask(model, read_video_pack(tmp_path / "index.json"), options)
    use(task, KnownPredictor(fill_box))
    result, _ = run_task(task, World(), RunOptions())
    assert result.mean["sam"]["n"] == 1
    assert result.protocol["objects_left_out"] == 1


def test_tubes_of_true_boxes_and_of_another_models_boxes(model: Sam, instances: VideoSet, tmp_path: Path) -> None:
    task = VideoTask(model, instances)
    use(task, KnownPredictor(fill_box))
    records: list[TubeRecord] = run_all(task)
    assert [record.key for record in records] == [("ytvis_hq-test", "1"), ("ytvis_hq-test", "2")]
    scores = task.summarise(records, []).sets["ytvis_hq-test"]
    assert all(scores[c]["ap"] == scores[c]["ap_b"] == pytest.approx(100) for c in ("sam", "hq", "sum"))
    boxes = [[12, 4, 15, 13], [14, 4, 15, 13], None]  # of object 1, missed in the last frame
    file = tmp_path / "boxes.json"
    tracks = [
        {"video_id": 1, "category_id": 1, "score": 0.9, "bboxes": boxes},
        {"video_id": 1, "category_id": 2, "score": 0.3, "bboxes": boxes},
    ]
    file.write_text(json.dumps(tracks))
    task = VideoTask(model, instances, VideoOptions(prompts="boxes", boxes=file, columns=("hq",)))
    use(task, KnownPredictor(fill_box))
    first, second = run_all(task)
    assert [p["overlap"] for p in first.predictions["hq"]] == [[pytest.approx(2 / 3)], [0.0]]
    assert [p["score"] for p in first.predictions["hq"]] == [0.9, 0.3]
    assert second.predictions == {"hq": []} and len(second.truths) == 2
    assert task.describe()["videos_without_boxes"] == 1


def test_tubes_with_a_model(model: Sam, instances: VideoSet) -> None:
    records = run_all(VideoTask(model, instances, VideoOptions(step=2)))
    assert [len(record.predictions["sum"]) for record in records] == [2, 2]
    scores = TubeScores()
    scores.merge([[TubeRecord(**json.loads(json.dumps(r.as_dict(), allow_nan=False))) for r in records]])
    assert scores.compute()["ytvis_hq-test"]["sum"]["n"] == 4


def test_chunks_of_prompts_do_not_change_the_result(
    model: Sam, davis: VideoSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_all(VideoTask(model, davis, VideoOptions(columns=("sum",))))
    monkeypatch.setattr(eval_video, "_PIXELS_AT_ONCE", 1)
    for one, other in zip(run_all(VideoTask(model, davis, VideoOptions(columns=("sum",)))), whole, strict=True):
        assert one.j["sum"] == pytest.approx(other.j["sum"], abs=2e-3)


def test_the_runner_gives_the_same_with_threads_and_goes_on_with_the_next_video(
    model: Sam, davis: VideoSet, instances: VideoSet, tmp_path: Path
) -> None:
    for videos, prompts in ((davis, "propagate"), (instances, "truth_boxes")):
        task = VideoTask(model, videos, VideoOptions(prompts=prompts, columns=("hq",)))  # type: ignore[arg-type]
        records = run_all(task)
        asked = iter([False, True, True])
        kept = RunOptions(stop=lambda asked=asked: next(asked), kept=tmp_path / videos.name)  # type: ignore[misc]
        with pytest.raises(EvaluationStopped):
            run_task(task, World(), kept)
        result, timing = run_task(task, World(), RunOptions(workers=2, kept=tmp_path / videos.name))
        assert timing.items == 1 and result == task.summarise(records[::-1], [])
        assert list(result.sets) == [videos.name] and result.mean == result.sets[videos.name]
        report = format_markdown(replace(result, protocol={**result.protocol, "model": {"name": "tiny"}}))
        assert f"video, {prompts}, 128 px" in report and ("ring 2 %" in report) == (videos is instances)
    assert set(result.slices) == set() and "ap_b" in result.mean["hq"]


def test_frames_are_read_one_ahead_and_no_more(model: Sam, davis: VideoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(eval_video, "read_image", lambda path: read.append(path) or read_image(path))
    task = VideoTask(model, davis, VideoOptions(columns=("sam",)))
    item = task.items[0]
    task.load(item)
    assert not read
    task.watch = lambda seen: ahead.append(len(read) - seen.frame)
    ahead: list[int] = []
    use(task, KnownPredictor(fill_box))
    with ScorePool(1) as pool:
        task.run([(item, None)], pool)
    assert len(read) == len(ahead) == 4 and max(ahead) <= 2


def test_a_frame_of_another_size(model: Sam, tmp_path: Path) -> None:
    videos = read_davis(write_davis(tmp_path, 2017, {"swan": 3}), 2017)
    save_jpeg(videos.videos[0].frames[1], np.zeros((40, 64, 3), dtype=np.uint8))
    task = VideoTask(model, videos)
    with pytest.raises(DataError, match=r"00001\.jpg is 64 x 40, .*swan is 64 x 48"):
        run_all(task)


def test_videos_too_short_to_be_scored(model: Sam, davis: VideoSet) -> None:
    with pytest.raises(DataError, match=r"swan has 2 frames with step=2: .* needs 3"):
        VideoTask(model, davis, VideoOptions(step=2))
    VideoTask(model, davis, VideoOptions(step=2, frames="all"))
    with pytest.raises(DataError, match="needs 2 so that one counts"):
        VideoTask(model, davis, VideoOptions(step=4, frames="all", prompts="propagate"))


def test_options_that_cannot_be(model: Sam, davis: VideoSet, instances: VideoSet, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompts": "clicks"}, "prompts must be one of"),
        ({"frames": "some"}, "frames must be one of"),
        ({"prompts": "boxes"}, "come together"),
        ({"boxes": tmp_path}, "come together"),
        ({"step": 0}, "step must be at least 1"),
        ({"margin": -0.1}, "margin within 0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            VideoOptions(**settings)
    with pytest.raises(ValueError, match="gives the first mask of every object away"):
        VideoTask(model, instances, VideoOptions(prompts="propagate"))
    plain = tiny("sam_test_vit")
    assert VideoTask(plain, davis).columns == ("sam",)
    assert VideoTask(model, davis).columns == ("sam", "hq", "sum")
    with pytest.raises(ValueError, match="gives the columns sam, asked for hq"):
        VideoTask(plain, davis, VideoOptions(columns=("sam", "hq")))


def test_the_protocol_says_what_distinguishes_the_numbers(model: Sam, davis: VideoSet, instances: VideoSet) -> None:
    for videos, prompts in ((davis, "truth_boxes"), (davis, "propagate"), (instances, "truth_boxes")):
        protocol = VideoTask(model, videos, VideoOptions(prompts=prompts)).describe()  # type: ignore[arg-type]
        assert json.loads(json.dumps(protocol)) == protocol
        assert protocol["prompt"] == prompts and protocol["resolution"] == 128 and protocol["videos"] == 2
    assert "dilation_ratio" in protocol and "frames" not in protocol


def test_inner_point() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:14, 3:6] = mask[6:13, 20:27] = True  # a bar and a larger square
    assert inner_point(mask) == (23.0, 9.0)
    assert inner_point(np.ones((5, 7), dtype=bool)) == (3.0, 2.0)
    single = np.zeros((4, 4), dtype=bool)
    single[0, 3] = True
    assert inner_point(single) == (3.0, 0.0)
    with pytest.raises(ValueError, match="no inner point"):
        inner_point(np.zeros((4, 4), dtype=bool))


def test_the_table_of_the_documents_goes_on_where_it_stopped(tmp_path: Path) -> None:
    entries = write_pack(tmp_path / "pack", {"a": 4, "b": 3})
    (tmp_path / "pack/index.json").write_text(json.dumps(entries))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "pack"), "--model", "sam_test_vit", "--out", str(out), "--pictures", "2"]
    app = typer.Typer()
    app.command()(video_table)
    torch.manual_seed(1)  # the weights of the untrained model
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and first.output.count("done") == 4
    lines = (out / "records.jsonl").read_text().splitlines()
    assert len(lines) == 4 and len(list(out.glob("*/pictures/*.jpg"))) == 8
    tables = [(out / prompts / "results.md").read_text() for prompts in ("truth_boxes", "propagate")]
    assert all("| *a*, over objects | SAM |" in table for table in tables)
    (out / "records.jsonl").write_text("\n".join(lines[:3]) + "\n")
    torch.manual_seed(1)
    second = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert second.output.count("done") == 1
    assert sorted((out / "records.jsonl").read_text().splitlines()) == sorted(lines)
    assert [(out / prompts / "results.md").read_text() for prompts in ("truth_boxes", "propagate")] == tables
    other = CliRunner().invoke(app, [*arguments, "--step", "1", "--model", "hq_test_vit"])
    assert other.exit_code == 2 and "another model" in other.output


def test_the_code_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_davis(tmp_path / "DAVIS", 2017, {"swan": 4})
    monkeypatch.setenv("HQSAM_DATA", str(tmp_path))
    text = (ROOT / "docs/evaluation/video.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names: dict[str, Any] = {}
    exec(block.replace("hq_vit_tiny.embedded", "sam_test_vit"), names)
    assert names["result"].sets["davis2017_val"]["sam"]["n"] == 2
