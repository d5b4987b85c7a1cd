from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqsam.data.sources import RawSample
from hqsam.data.synthetic import generate_scene
from hqsam.errors import DataError, HqsamError
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.text import (
    ClipEncoder,
    ProjectionInfo,
    ProjectionPlan,
    TextProjection,
    load_clip,
    load_prompter,
    save_projection,
    segment_tokens,
    train_projection,
)
from hqsam.text.train import make_example, projection_loss
from hqsam.types import PAD, POSITIVE
from tests.helpers import fill_parameters
from tests.unit.text.tiny_text_models import build_clip_folder

PLAN = ProjectionPlan(steps=20, lr=1e-2, images_per_step=2, min_area=100, loss_points=256)


class Scenes:
    """The same generated scenes again and again."""

    def __init__(self, *seeds: int) -> None:
        self.scenes = [generate_scene(seed, 128) for seed in seeds]

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, index: int) -> str:
        return f"scene/{index}"

    def source(self, index: int) -> str:
        return "scene"

    def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
        return RawSample(self.scenes[index].image, self.scenes[index].masks)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return load_clip(build_clip_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def model() -> Sam:
    model = create_model("hq_test_tiny", device="cpu")
    fill_parameters(model)
    return model


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(3, 5)


def new_projection(**options: Any) -> TextProjection:
    torch.manual_seed(0)
    return TextProjection(24, **options)


def test_from_training_to_a_text_prompt(model: Sam, clip: ClipEncoder, scenes: Scenes, tmp_path: Path) -> None:
    """Trained with crops, used with text; SAM and CLIP are as before, bit by bit."""
    before = {name: tensor.clone() for name, tensor in [*model.state_dict().items(), *clip.model.state_dict().items()]}
    projection = new_projection()
    seen: list[tuple[int, float]] = []
    losses = train_projection(projection, model, clip, scenes, PLAN, lambda *step: seen.append(step))
    assert seen == list(enumerate(losses, start=1))
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    after = dict([*model.state_dict().items(), *clip.model.state_dict().items()])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not projection.training

    path = tmp_path / "projection.safetensors"
    save_projection(projection, path, ProjectionInfo(clip=clip.name, sam="hq_test_tiny"))
    prompter, _ = load_prompter(path)
    predictor = SamPredictor(model)
    predictor.set_image(scenes.scenes[0].image)
    found = segment_tokens(predictor, prompter.tokens(["a flower", "a figure"]))
    assert found.masks.shape == (2, 128, 128)
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize(("name", "fusion"), [("hq_test_tiny", "hq"), ("hq_test_tiny", "sam"), ("sam_test_vit", None)])
def test_every_fusion_and_plain_sam_can_be_trained_on(
    clip: ClipEncoder, scenes: Scenes, name: str, fusion: Any
) -> None:
    model = create_model(name, device="cpu")
    fill_parameters(model)
    plan = dataclasses.replace(PLAN, steps=2, fusion=fusion)
    assert len(train_projection(new_projection(hidden_dim=16), model, clip, scenes, plan)) == 2


def test_a_run_repeats_exactly_and_follows_its_seed(model: Sam, clip: ClipEncoder, scenes: Scenes) -> None:
    plan = dataclasses.replace(PLAN, steps=3)
    runs = [train_projection(new_projection(), model, clip, scenes, p) for p in (plan, plan)]
    assert runs[0] == runs[1]
    other = train_projection(new_projection(), model, clip, scenes, dataclasses.replace(plan, seed=1))
    assert other != runs[0]


def test_an_example_holds_what_the_loss_needs(model: Sam, clip: ClipEncoder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    masks = [np.zeros((60, 100), np.uint8) for _ in range(3)]
    masks[0][10:40, 10:60] = 255
    masks[1][:5, :5] = 255  # too small
    masks[2][30:, 50:] = 200
    plan = dataclasses.replace(PLAN, point_share=0.5, loss_points=64)
    example = make_example(model, clip, RawSample(image, masks), plan, np.random.default_rng(3))
    assert example is not None
    assert example.embeddings.shape == (2, 24)
    assert example.targets.shape == (2, 1, 100, 100)
    assert sorted(int(target.sum()) for target in example.targets) == sorted([30 * 50 * 255, 30 * 50 * 200])
    assert (example.targets[:, :, 60:] == 0).all()
    assert example.loss_candidates.shape == (2, 192, 2)
    assert example.loss_uniform.shape == (2, 16, 2)
    assert example.loss_candidates[..., 1].max() <= 0.6  # below is padding
    assert example.loss_candidates[..., 0].max() > 0.9
    loss = projection_loss(model, new_projection(), example)
    assert loss.shape == (2,)
    assert loss.requires_grad


def test_points_lie_inside_their_object(model: Sam, clip: ClipEncoder) -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    mask = np.zeros((60, 100), np.uint8)
    mask[20:40, 50:80] = 255
    always = dataclasses.replace(PLAN, point_share=1.0)
    for seed in range(5):
        example = make_example(model, clip, RawSample(image, [mask]), always, np.random.default_rng(seed))
        assert example is not None
        x, y = (example.prompts.coords[0, 0] * 100 / 128).tolist()
        assert 49.9 <= x < 80
        assert 19.9 <= y < 40
        assert example.prompts.kinds[0, 0] == POSITIVE
    never = dataclasses.replace(PLAN, point_share=0.0)
    example = make_example(model, clip, RawSample(image, [mask]), never, np.random.default_rng(0))
    assert example is not None
    assert (example.prompts.kinds == PAD).all()


def test_the_number_of_masks_is_limited(model: Sam, clip: ClipEncoder, scenes: Scenes) -> None:
    plan = dataclasses.replace(PLAN, masks_per_image=1)
    example = make_example(model, clip, scenes.read(0, 0), plan, np.random.default_rng(0))
    assert example is not None
    assert len(example.embeddings) == 1


def test_images_without_a_large_mask_are_passed_over(model: Sam, clip: ClipEncoder, scenes: Scenes) -> None:
    image = np.zeros((20, 20, 3), np.uint8)

    class Mixed(Scenes):
        def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
            return RawSample(image, [np.zeros((20, 20), np.uint8)]) if index else super().read(index, scene_seed)

    plan = dataclasses.replace(PLAN, steps=2)
    assert len(train_projection(new_projection(), model, clip, Mixed(3, 5), plan)) == 2
    with pytest.raises(DataError, match="none of 2 images has a mask of 1000000 pixels"):
        train_projection(new_projection(), model, clip, scenes, dataclasses.replace(PLAN, min_area=10**6))
    with pytest.raises(DataError, match="the source has none"):
        train_projection(new_projection(), model, clip, Scenes(), PLAN)


def test_sizes_that_do_not_fit(model: Sam, clip: ClipEncoder, scenes: Scenes) -> None:
    for projection in (TextProjection(25), TextProjection(24, 128)):
        with pytest.raises(ValueError, match="24 and the model takes 256"):
            train_projection(projection, model, clip, scenes, PLAN)
    with pytest.raises(ValueError, match="without one"):
        make_example(model, clip, RawSample(None, scenes.scenes[0].masks), PLAN, np.random.default_rng(0))


def test_a_non_finite_loss_names_the_images(model: Sam, clip: ClipEncoder, scenes: Scenes) -> None:
    projection = new_projection()
    with torch.no_grad():
        projection.layers[0].bias[0] = float("nan")
    with pytest.raises(HqsamError, match=r"nan at step 1; images: scene/\d, scene/\d"):
        train_projection(projection, model, clip, scenes, PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"scale": (0.5, 2.0)},
        {"scale": (2.0, 1.0)},
        {"blank_share": 1.5},
        {"point_share": -0.1},
        {"loss_points": 3},
        {"min_area": 0},
    ],
)
def test_plans_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got ProjectionPlan"):
        dataclasses.replace(PLAN, **change)
