"""Clicks, points, boxes with noise, mattes and boundaries with small random models, from files to numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.boxes import mask_to_box
from hqsam.data import open_dataset
from hqsam.data.boundaries import read_bsds
from hqsam.data.clicks import Click, central_click, correction_click, surplus_click
from hqsam.engine.evaluation.clicks import ClickOptions, ClickTask
from hqsam.engine.evaluation.edges import EdgeOptions, EdgeTask
from hqsam.engine.evaluation.mattes import MatteTask
from hqsam.errors import DataError
from hqsam.images import write_image
from hqsam.metrics import mask_iou
from hqsam.metrics.clicks import PromptRecord, PromptSample, PromptScores
from hqsam.models import Sam, ScoreHead
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from tests.helpers import fill_parameters

GUIDED: dict[str, Any] = {"upsampling": "guided"}


def tiny(name: str = "hq_test_vit") -> Sam:
    model = create_model(name, device="cpu")
    fill_parameters(model, seed=5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Sam:
    return tiny()


def target(k: int) -> NDArray[np.uint8]:
    mask = np.zeros((70, 90), dtype=np.uint8)
    mask[10 + 5 * k : 50, 20 : 60 + 10 * k] = 255
    return mask


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("data") / "pack")


def write_pack(folder: Path) -> Path:
    """Two images of one object each, the first with a matte; a third whose object is empty."""
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for k, name in enumerate("abc"):
        write_image(folder / f"images/{name}.png", rng.integers(0, 255, (70, 90, 3)).astype(np.uint8))
        write_image(folder / f"masks/{name}.png", target(k) * (k < 2))
        entry = {"image": f"images/{name}.png", "mask": f"masks/{name}.png", "kind": "binary", "source": "s"}
        entries.append({**entry, "objects": [{"label": -1}]})
    write_image(folder / "alpha/a.png", target(0) // 2)
    entries[0]["alpha"] = "alpha/a.png"
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def done(task: Any) -> dict[str, Any]:
    for item in task.items:
        task.evaluator.merge([task.run(item, task.load(item))])
    json.dumps(task.describe(), allow_nan=False)
    scores: dict[str, Any] = task.evaluator.compute()
    return scores


def first_object(task: ClickTask) -> tuple[PromptRecord, SamPredictor, NDArray[np.bool_], NDArray[np.float32]]:
    """What a task with one kind of prompt says of its first object, and what it takes to say it by hand."""
    item = task.items[0]
    loaded = task.load(item)
    (record,) = task.run(item, loaded)
    predictor = SamPredictor(task.predictor.model)
    predictor.set_image(loaded.image)
    box = mask_to_box(loaded.targets[0])
    assert box is not None
    return record, predictor, loaded.targets[0], box


def test_every_kind_of_prompt(model: Sam, pack: Path) -> None:
    options = ClickOptions(
        prompts=("clicks", "points", "point", "boxes", "corrections"),
        clicks=3,
        points=(1, 4),
        noise=(0.0, 0.5),
        columns=("sam", "sum"),
    )
    task = ClickTask(model, open_dataset(pack), options)
    scores = done(task)["s"]
    assert list(scores) == ["sam", "sum"]
    steps = ["click1", "click2", "click3", "points1", "points4", "point", "oracle", "noise0", "noise0.5"]
    steps += [f"corrected{number}" for number in range(4)]
    assert {f"miou_{step}" for step in steps} < set(scores["sam"])
    assert scores["sam"]["n"] == 2  # the empty object cannot be prompted
    assert scores["sam"]["miou_corrected0"] == scores["sam"]["miou_noise0"]
    assert scores["sam"]["miou_oracle"] >= scores["sam"]["miou_point"]
    assert 1 <= scores["sum"]["noc90"] <= 3


def test_the_numbers_are_the_predictors(model: Sam, pack: Path) -> None:
    """The first two clicks, the single point and the true box by hand."""
    options = ClickOptions(prompts=("clicks", "point", "boxes"), clicks=2, noise=(0.0,), columns=("sum",))
    task = ClickTask(model, open_dataset(pack), options)
    item = task.items[0]
    loaded = task.load(item)
    records = {record.prompt: record.miou["sum"] for record in task.run(item, loaded)}
    truth = loaded.targets[0]
    predictor = SamPredictor(model)
    predictor.set_image(loaded.image)
    first = central_click(truth)
    point, one = np.array([[first.x, first.y]]), np.array([1])
    masks, _, logits = predictor.predict(point, one, fusion="sum")
    assert records["clicks"]["click1"] == mask_iou(masks[0], truth) == records["point"]["point"]
    wrong = masks[0] != truth
    if wrong.any():
        second = correction_click(masks[0], truth, [first])
        assert second is not None and wrong[second.y, second.x]
        points, labels = np.array([[first.x, first.y], [second.x, second.y]]), np.array([1, int(second.positive)])
        masks, _, _ = predictor.predict(points, labels, mask_input=logits, multimask_output=False, fusion="sum")
    assert records["clicks"]["click2"] == mask_iou(masks[0], truth)
    masks, _, _ = predictor.predict(box=mask_to_box(truth), multimask_output=False, fusion="sum")
    assert records["boxes"]["noise0"] == mask_iou(masks[0], truth)


def test_corrections_of_a_box_by_hand(model: Sam, pack: Path) -> None:
    task = ClickTask(model, open_dataset(pack), ClickOptions(prompts=("corrections",), clicks=2, columns=("sum",)))
    record, predictor, truth, box = first_object(task)
    plain = {"multimask_output": False, "fusion": "sum", "refine": "none"}
    masks, _, logits = predictor.predict(box=box, **plain)
    expected, clicks = [mask_iou(masks[0], truth)], list[Click]()
    for _ in range(2):
        click = correction_click(masks[0], truth, clicks)
        assert click is not None, "this model must be wrong somewhere for the test to say anything"
        clicks.append(click)
        points, labels = [[c.x, c.y] for c in clicks], [int(c.positive) for c in clicks]
        masks, _, logits = predictor.predict(points, labels, box, logits, **plain)
        expected.append(mask_iou(masks[0], truth))
    assert record.miou["sum"] == {f"corrected{k}": iou for k, iou in enumerate(expected)}


def test_negative_clicks_by_hand(model: Sam, pack: Path) -> None:
    task = ClickTask(model, open_dataset(pack), ClickOptions(prompts=("negative",), columns=("sum",)))
    record, predictor, truth, box = first_object(task)
    before, _, logits = predictor.predict(box=box, multimask_output=False, fusion="sum", refine="none")
    assert record.miou["sum"]["box"] == mask_iou(before[0], truth)
    found = surplus_click(before[0], truth)
    assert found is not None, "this model must take too much somewhere for the test to say anything"
    (x, y, _), region = found
    after = predictor.predict([[x, y]], [0], box, logits, multimask_output=False, fusion="sum", refine="none")[0][0]
    assert record.miou["sum"]["negative"] == mask_iou(after, truth)
    assert record.removed["sum"]["pixel"] == float(not after[y, x])
    assert record.removed["sum"]["region"] == pytest.approx((region & ~after).sum() / region.sum())
    assert PromptRecord(**record.as_dict()) == record
    scores = done(task)["s"]["sum"]
    assert 1 <= scores["n_negative"] <= scores["n"] and 0 <= scores["removed_region"] <= 100


@pytest.mark.parametrize("refine", ["none", "again"])
def test_clicks_that_are_heeded(model: Sam, pack: Path, refine: str) -> None:
    """The plain column stays, and what the mask with HQ is after the click is the predictor's, which heeds."""
    options: dict[str, Any] = {"prompts": ("negative",), "columns": ("sam", "sum"), "refine": refine}
    plain, heeding = (
        ClickTask(model, open_dataset(pack), ClickOptions(**options, heed=heed)) for heed in (False, True)
    )
    assert "heed" in heeding.describe() and "heed" not in plain.describe()
    item = plain.items[0]
    loaded = plain.load(item)
    (before,), (after,) = plain.run(item, loaded), heeding.run(item, loaded)
    assert after.miou["sam"] == before.miou["sam"] and after.miou["sum"]["box"] == before.miou["sum"]["box"]
    truth, box = loaded.targets[0], mask_to_box(loaded.targets[0])
    predictor = SamPredictor(model)
    predictor.set_image(loaded.image)
    first, _, logits = predictor.predict(box=box, multimask_output=False, fusion="sum", refine=refine)
    found = surplus_click(first[0], truth)
    assert found is not None, "this model must take too much somewhere for the test to say anything"
    prompt = {"point_coords": [found[0][:2]], "point_labels": [0], "box": box, "mask_input": logits, "refine": refine}
    heeded = predictor.predict(**prompt, multimask_output=False, fusion="sum", heed_clicks=True)[0][0]
    assert after.miou["sum"]["negative"] == mask_iou(heeded, truth)


def test_without_surplus_nothing_is_removed() -> None:
    mask = np.ones((8, 8), dtype=bool)
    sample = PromptSample("s", "a", 0, "negative", {"sum": {"box": mask, "negative": mask}}, [mask])
    scores = PromptScores()
    assert "removed" not in scores.update(sample).as_dict()
    assert not {"removed_pixel", "n_negative"} & set(scores.compute()["s"]["sum"])


def test_a_recommended_refinement_changes_no_clicks_and_no_mattes(
    model: Sam, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What these protocols say of themselves names neither a refinement nor an upsampling."""
    options = ClickOptions(prompts=("clicks", "boxes"), clicks=3, noise=(0.0,), columns=("sum",))

    def both() -> list[dict[str, Any]]:
        return [done(ClickTask(model, open_dataset(pack), options)), done(MatteTask(model, open_dataset(pack)))]

    before = both()
    monkeypatch.setattr(model, "default_refine", "again")
    monkeypatch.setattr(model, "default_upsampling", "guided")
    assert both() == before


def test_clicks_with_masks_that_follow_the_picture(model: Sam, pack: Path) -> None:
    """Of masks with HQ; plain SAM stays what it is, and the clicks are put where these masks are wrong."""
    options: dict[str, Any] = {"prompts": ("boxes",), "noise": (0.0,), "columns": ("sam", "sum")}
    plain, guided = (ClickTask(model, open_dataset(pack), ClickOptions(**options, **more)) for more in ({}, GUIDED))
    assert "upsampling" in guided.describe() and "upsampling" not in plain.describe()
    item = plain.items[0]
    loaded = plain.load(item)
    (before,), (after,) = plain.run(item, loaded), guided.run(item, loaded)
    assert after.miou["sam"] == before.miou["sam"]
    predictor = SamPredictor(model)
    predictor.set_image(loaded.image)
    box = mask_to_box(loaded.targets[0])
    mask = predictor.predict(box=box, multimask_output=False, fusion="sum", refine="none", **GUIDED)[0][0]
    assert list(after.miou["sum"].values()) == [mask_iou(mask, loaded.targets[0])]


def test_draws_depend_on_the_seed_and_the_object_alone(model: Sam, pack: Path) -> None:
    def run(seed: int, order: int = 1) -> dict[str, Any]:
        options = ClickOptions(prompts=("points", "boxes"), points=(2,), noise=(0.4,), seed=seed, columns=("sam",))
        task = ClickTask(model, open_dataset(pack), options)
        task.items = task.items[::order]
        return done(task)

    assert run(0) == run(0, order=-1)
    assert run(0) != run(1)


def test_kept_results_without_scores_are_not_taken_for_those_with_them(model: Sam, pack: Path) -> None:
    """What tells evaluations apart is what they say of themselves."""
    records = open_dataset(pack)
    plain, scored = (ClickTask(model, records, ClickOptions(correlation=wanted)).describe() for wanted in (False, True))
    assert plain != scored and "correlation" not in plain


def test_a_perfect_answer_is_not_clicked_again(model: Sam, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ClickTask(model, open_dataset(pack), ClickOptions(clicks=3, columns=("sam",)))
    item = task.items[0]
    loaded = task.load(item)
    asked: list[int] = []

    def answer(column: str, points: Any, labels: Any, box: Any, logits: Any) -> tuple[Any, Any]:
        asked.append(len(points))
        return (loaded.targets[0], {}), np.zeros((1, 32, 32), dtype=np.float32)

    monkeypatch.setattr(task, "_ask", answer)
    record = task.run(item, loaded)[0]
    assert asked == [1]
    assert record.miou["sam"] == {"click1": 1.0, "click2": 1.0, "click3": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ()}, "prompts is empty"),
        ({"heed": True, "correlation": True}, "measure correlation without heed"),
        ({"refine": "zoom"}, 'refine must be "none", "again" or "again.again"'),
        ({"refine": "again", "prompts": ("clicks", "boxes")}, "for the prompts boxes and negative"),
        ({"prompts": ("mask",)}, "clicks, points, point, boxes"),
        ({"prompts": ("clicks", "clicks")}, "different ones"),
        ({"columns": ("best",)}, "sam, hq, sum"),
        ({"clicks": 0}, "at least 1"),
        ({"points": (0, 1)}, "at least 1"),
        ({"points": (3, 3)}, "different numbers"),
        ({"noise": (1.2,)}, "within 0 and 1"),
        ({"noise": (0.2, 0.2)}, "different numbers"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClickOptions(**options)


def test_columns_that_the_model_has(pack: Path) -> None:
    plain = tiny("sam_test_vit")
    assert ClickTask(plain, open_dataset(pack)).columns == ("sam",)
    with pytest.raises(ValueError, match="gives the columns sam, asked for sum"):
        ClickTask(plain, open_dataset(pack), ClickOptions(columns=("sum",)))


def test_mattes(model: Sam, pack: Path) -> None:
    task = MatteTask(model, open_dataset(pack))
    assert len(task.items) == 1
    scores = done(task)["s"]
    predictor = SamPredictor(model)
    image = task.load(task.items[0]).image
    predictor.set_image(image)
    logits, _, _ = predictor.predict(
        box=mask_to_box(target(0)), multimask_output=False, return_logits=True, fusion="hq"
    )
    matte = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    assert scores["hq"]["mse"] == pytest.approx(np.square(matte - (target(0) // 2) / 255).mean(), rel=1e-4)
    with pytest.raises(DataError, match="has a matte"):
        MatteTask(model, [record for record in open_dataset(pack) if "a.png" not in record.key])


def test_boundaries(model: Sam, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "gt/val").mkdir(parents=True)
    drawn = np.zeros((2, 60, 80), dtype=np.bool_)
    drawn[:, 30] = True
    for name in ("1", "2", "3"):
        write_image(tmp_path / f"images/val/{name}.jpg", rng.integers(0, 255, (60, 80, 3)).astype(np.uint8))
        np.savez(tmp_path / f"gt/val/{name}.npz", bnd=np.packbits(drawn, axis=-1), shape=drawn.shape)
    options = EdgeOptions(points_per_side=2, thresholds=5, max_images=2)
    task = EdgeTask(model, read_bsds(tmp_path, "val"), options)
    assert [item.key for item in task.items] == ["bsds500_val/1", "bsds500_val/2"]
    scores = done(task)
    assert set(scores) == {"bsds500_val"}
    assert set(scores["bsds500_val"]) == {"sam", "hq", "sum"}
    assert scores["bsds500_val"]["sam"]["n"] == 2
    assert 0 <= scores["bsds500_val"]["sam"]["ods"] <= 100
    assert "test split" in task.describe()["note"]
    with pytest.raises(ValueError, match="max_images"):
        EdgeTask(model, read_bsds(tmp_path, "val"), EdgeOptions(max_images=0))
    with pytest.raises(DataError, match="nothing to evaluate"):
        EdgeTask(model, [])


def test_scores_are_compared_with_the_truth(pack: Path) -> None:
    scored = tiny()
    head = ScoreHead()
    fill_parameters(head, seed=5)
    scored.set_score_head(head)
    asked = ClickOptions(prompts=("points", "boxes"), points=(1, 2), noise=(0.0, 0.4))
    task = ClickTask(scored, open_dataset(pack), replace(asked, correlation=True))
    plain = ClickTask(scored, open_dataset(pack), asked)
    numbers, without = done(task)["s"], done(plain)["s"]
    correlations = {name for name in numbers["sum"] if name.startswith(("pearson", "spearman"))}
    assert {
        "pearson_sam_miou",
        "spearman_own_mbiou",
        "pearson_own_miou_points1",
        "pearson_sam_mbiou_noise0",
    } <= correlations
    assert all(-1 <= numbers["sum"][name] <= 1 for name in correlations)
    assert not any("own" in name for name in numbers["sam"]) and "pearson_sam_miou" in numbers["sam"]
    for column in without:  # the same masks, whether or not they are looked at
        assert without[column] == {name: value for name, value in numbers[column].items() if name not in correlations}
    item = task.items[0]
    (record, _) = task.run(item, task.load(item))
    assert set(record.scores["sum"]["points1"]) == {"sam", "own", "own_boundary"}
    assert set(record.scores["sam"]["points1"]) == {"sam"}


def test_the_score_of_an_evaluation_is_named_and_used(pack: Path) -> None:
    scored = tiny()
    head = ScoreHead()
    fill_parameters(head, seed=5)
    scored.set_score_head(head)
    task = ClickTask(scored, open_dataset(pack), ClickOptions(prompts=("point",), score="own"))
    sources = task.describe()["score_source"]
    assert sources["sam"] == "SAM's predicted IoU of SAM's mask"
    assert sources["sum"] == sources["hq"] == "predicted IoU of the mask itself, by the score head"
    with pytest.raises(ValueError, match="needs a score head"):
        ClickTask(tiny(), open_dataset(pack), ClickOptions(score="own"))
    with pytest.raises(ValueError, match="has SAM's score alone"):
        ClickTask(scored, open_dataset(pack), ClickOptions(score="own", columns=("sam",)))
