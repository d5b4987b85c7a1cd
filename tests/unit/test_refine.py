from __future__ import annotations

import numpy as np
import pytest
import torch

from hqsam import SamPredictor
from hqsam.geometry import resized_hw
from hqsam.models import Sam
from hqsam.postprocess import full_size_masks
from hqsam.refine import (
    Crop,
    CropJob,
    decode_crops,
    full_size,
    mask_prompt,
    object_box,
    prompts_in_crop,
    square_around,
    zoom,
)
from hqsam.registry import build_model, model_spec
from hqsam.types import NEGATIVE, NOT_A_POINT, PAD, POSITIVE, Prompts
from tests.helpers import fill_parameters

HEIGHT, WIDTH = 150, 200
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMALL, LARGE = [60.0, 40, 99, 89], [5.0, 5, 190, 140]


@pytest.fixture(scope="module")
def model() -> Sam:
    model = fill_parameters(build_model(model_spec("hq_test_tiny"))).eval()
    model.head_state = "trained"
    return model


@pytest.fixture(scope="module")
def predictor(model: Sam) -> SamPredictor:
    predictor = SamPredictor(model)
    predictor.set_image(IMAGE)
    return predictor


def first_pass(predictor: SamPredictor, *boxes: list[float]) -> tuple[Prompts, torch.Tensor]:
    frame = torch.from_numpy(predictor.transform.apply_boxes(np.array(boxes), (HEIGHT, WIDTH))).float()
    prompts = Prompts.from_parts(boxes=frame)
    return prompts, predictor.predict_torch(None, None, frame, multimask_output=False)[2]


def whole(model: Sam, logits: torch.Tensor, threshold: float | None = 0.0) -> torch.Tensor:
    size = resized_hw(HEIGHT, WIDTH, model.image_size)
    return full_size_masks(logits, size, (HEIGHT, WIDTH), model.image_size, threshold=threshold)


@pytest.mark.parametrize("fusion", ["sum", "hq", "sam"])
def test_inside_the_crop_it_is_a_prediction_of_the_crop(model: Sam, predictor: SamPredictor, fusion: str) -> None:
    prompts, logits = first_pass(predictor, SMALL)
    x0, y0, x1, y1 = crop = square_around(SMALL, 63, (HEIGHT, WIDTH))  # 1.25 times 50 pixels
    inside = SamPredictor(model)
    inside.set_image(IMAGE[y0:y1, x0:x1])
    first = full_size(model, logits[0, 0], (HEIGHT, WIDTH))
    wanted, _, _ = inside.predict(
        box=np.array(SMALL) - [x0, y0, x0, y0],
        mask_input=mask_prompt(first[y0:y1, x0:x1], (32, 32))[0].numpy(),
        multimask_output=False,
        return_logits=True,
        fusion=fusion,  # type: ignore[arg-type]
    )
    refined = zoom(model, IMAGE, prompts, logits, fusion=fusion, threshold=None)  # type: ignore[arg-type]
    assert refined.shape == (1, 1, HEIGHT, WIDTH) and refined.dtype == torch.float32
    assert torch.allclose(refined[0, 0, y0:y1, x0:x1], torch.from_numpy(wanted[0]), atol=1e-4)
    rest = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    rest[y0:y1, x0:x1] = False
    assert torch.equal(refined[0, 0][rest], first[rest]) and crop.hw == (63, 63)
    masks = zoom(model, IMAGE, prompts, logits, fusion=fusion)  # type: ignore[arg-type]
    assert masks.dtype == torch.bool and torch.equal(masks, refined > 0)


def test_batches_change_nothing(model: Sam, predictor: SamPredictor) -> None:
    boxes = [SMALL, LARGE, [0.0, 0, 20, 30], [180.0, 120, 199, 149], [100.0, 100, 100, 100]]
    prompts, logits = first_pass(predictor, *boxes)
    one = zoom(model, IMAGE, prompts, logits, fusion="sum", threshold=None, batch_size=1)
    for batch_size in (None, 2, 9):
        many = zoom(model, IMAGE, prompts, logits, fusion="sum", threshold=None, batch_size=batch_size)
        assert torch.allclose(one, many, atol=1e-4)


def test_what_fills_the_image_stays_as_it_is(model: Sam, predictor: SamPredictor) -> None:
    prompts, logits = first_pass(predictor, LARGE)
    assert torch.equal(zoom(model, IMAGE, prompts, logits, fusion="sum"), whole(model, logits))
    assert torch.equal(
        zoom(model, IMAGE, prompts, logits, fusion="sum", threshold=None), whole(model, logits, threshold=None)
    )


def test_an_image_smaller_than_a_crop(model: Sam) -> None:
    small = SamPredictor(model)
    small.set_image(IMAGE[:30, :40])
    box = torch.tensor([[5.0, 5, 20, 20]])
    logits = small.predict_torch(None, None, box, multimask_output=False)[2]
    refined = zoom(model, IMAGE[:30, :40], Prompts.from_parts(boxes=box), logits, fusion="sum")
    size = resized_hw(30, 40, model.image_size)
    assert torch.equal(refined, full_size_masks(logits, size, (30, 40), model.image_size))


def test_an_empty_mask(model: Sam, predictor: SamPredictor) -> None:
    """With a box the second pass has the box alone; without one nothing is known of the object."""
    prompts, logits = first_pass(predictor, SMALL)
    nothing = torch.full_like(logits, -5.0)
    refined = zoom(model, IMAGE, prompts, nothing, fusion="sum", threshold=None)
    crop = square_around(SMALL, 63, (HEIGHT, WIDTH))
    first = torch.full((HEIGHT, WIDTH), -5.0)
    alone = prompts_in_crop(prompts, crop, first, model)
    assert alone.masks is None
    point = Prompts.from_parts(torch.tensor([[[60.0, 60.0]]]), torch.tensor([[1]]))
    assert torch.equal(zoom(model, IMAGE, point, nothing, fusion="sum"), torch.zeros(1, 1, HEIGHT, WIDTH) > 0)
    assert not torch.equal(refined, whole(model, nothing, threshold=None))


def test_a_second_look_that_sees_nothing(model: Sam, predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(model: Sam, image: np.ndarray, jobs: list[CropJob], fusion: str, guided: bool) -> list[torch.Tensor]:
        return [torch.full(job.crop.hw, -5.0) for job in jobs]

    options = {"box": [20.0, 30.0, 60.0, 50.0], "multimask_output": False}
    first = predictor.predict(**options, refine="none")[0]
    assert first.any() and not np.array_equal(predictor.predict(**options, refine="zoom")[0], first)
    monkeypatch.setattr("hqsam.refine.decode_crops", blind)
    assert np.array_equal(predictor.predict(**options, refine="zoom")[0], first)


def test_points_take_the_box_of_their_mask(model: Sam) -> None:
    logits = torch.full((1, 1, 32, 32), -5.0)
    logits[..., 8:12, 10:16] = 5.0
    point = Prompts.from_parts(torch.tensor([[[50.0, 40.0]]]), torch.tensor([[1]]))
    first = full_size(model, logits[0, 0], (HEIGHT, WIDTH))
    box = object_box(point, first, model)
    # cells of 4 model pixels, 1.5625 image pixels each
    assert box is not None and np.allclose(box, [62.5, 50, 100, 75], atol=3)
    refined = zoom(model, IMAGE, point, logits, fusion="sum", threshold=None)
    changed = (refined[0, 0] != first).nonzero()
    x0, y0, x1, y1 = square_around(box, 1 + int(1.25 * (box[2] - box[0] + 1)), (HEIGHT, WIDTH))
    assert len(changed) and changed.amin(0).tolist() >= [y0, x0] and changed.amax(0).tolist() < [y1, x1]


def test_prompts_move_into_the_crop(model: Sam) -> None:
    # image of 256 x 128 in a frame of 128: one model pixel is two image pixels; the crop of 64 is magnified twice
    first = torch.full((128, 256), -3.0)
    first[40:60, 110:130] = 3.0
    crop = Crop(100, 30, 164, 94)
    points = torch.tensor([[[55.0, 20.0], [50.0, 15.0], [90.0, 20.0], [82.0, 47.0]]])
    labels = torch.tensor([[1, 0, 1, 0]])
    tokens = torch.ones(1, 2, 256)
    moved = prompts_in_crop(Prompts.from_parts(points, labels).with_tokens(tokens), crop, first, model)
    assert moved.kinds.tolist() == [[POSITIVE, NEGATIVE, PAD, NEGATIVE, NOT_A_POINT]] and moved.padded
    assert torch.allclose(moved.coords[0, [0, 1, 3]], torch.tensor([[20.0, 20.0], [0, 0], [128, 128]]))
    assert moved.tokens is tokens and moved.masks is not None and moved.masks.shape == (1, 1, 32, 32)
    assert moved.masks[0, 0, 8, 8] > 0 > moved.masks[0, 0, 20, 20]
    box = Prompts.from_parts(boxes=torch.tensor([[10.0, 5.0, 70.0, 60.0]]))
    assert torch.allclose(prompts_in_crop(box, crop, first, model).coords[0], torch.tensor([[0.0, 0.0], [80.0, 128.0]]))


@pytest.mark.parametrize(
    ("box", "side", "crop"),
    [
        ([40, 40, 59, 59], 30, (35, 35, 65, 65)),
        ([0, 0, 9, 9], 40, (0, 0, 40, 40)),
        ([90, 70, 99, 79], 40, (60, 40, 100, 80)),
        ([10, 30, 20, 40], 90, (0, 0, 90, 80)),
        ([10, 30, 20, 40], 500, (0, 0, 100, 80)),
    ],
)
def test_crops_stay_in_the_image(box: list[float], side: int, crop: tuple[int, ...]) -> None:
    assert square_around(box, side, (80, 100)) == crop


def test_a_crop_that_is_no_square_is_padded(model: Sam, predictor: SamPredictor) -> None:
    prompt = mask_prompt(torch.zeros(50, 100), (32, 32))
    assert torch.equal(prompt[0, 0, :16], torch.zeros(16, 32)) and (prompt[0, 0, 16:] < -10).all()
    prompts, logits = first_pass(predictor, SMALL)
    crop = Crop(30, 40, 130, 90)
    first = full_size(model, logits[0, 0], (HEIGHT, WIDTH))
    (second,) = decode_crops(model, IMAGE, [(job := _job(prompts, crop, first, model))], "sum")
    assert second.shape == (50, 100) and job.crop.hw == (50, 100)


def _job(prompts: Prompts, crop: Crop, first: torch.Tensor, model: Sam):  # type: ignore[no-untyped-def]
    from hqsam.refine import CropJob

    return CropJob(0, crop, prompts_in_crop(prompts, crop, first, model))


def test_no_prompt(model: Sam) -> None:
    none = Prompts(torch.zeros(0, 0, 2), torch.zeros(0, 0, dtype=torch.int64))
    assert zoom(model, IMAGE, none, torch.zeros(0, 1, 32, 32), fusion="sum").shape == (0, 1, HEIGHT, WIDTH)


def test_what_cannot_be_refined(model: Sam, predictor: SamPredictor) -> None:
    prompts, logits = first_pass(predictor, SMALL)
    with pytest.raises(ValueError, match=r"one mask a prompt, got logits of shape \(1, 3, 32, 32\)"):
        zoom(model, IMAGE, prompts, logits.expand(1, 3, -1, -1), fusion="sum")
    with pytest.raises(ValueError, match="got 2 masks and 1 prompts"):
        zoom(model, IMAGE, prompts, logits.expand(2, -1, -1, -1), fusion="sum")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        zoom(model, IMAGE, prompts, logits, fusion="sum", batch_size=0)
