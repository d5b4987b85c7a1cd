from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.data import load_object_mask, open_dataset
from hqsam.data.synthetic import (
    HELD_OUT_KINDS,
    OBJECT_KINDS,
    Scene,
    generate_scene,
    held_out,
    living,
    made,
    paste_cutout,
    write_scenes,
)
from hqsam.data.synthetic.background import KINDS
from hqsam.data.synthetic.compose import Layer, blend, visible_alphas
from hqsam.data.synthetic.shapes import Shape, arc, bend, bounds, place, rasterize
from hqsam.data.synthetic.textures import FIELDS, fractal_noise, texture_field
from hqsam.errors import OutputError
from hqsam.images import read_image

FAMILIES = living.FAMILIES | made.FAMILIES | held_out.FAMILIES


def check(scene: Scene, hw: tuple[int, int]) -> None:
    assert scene.image.shape == (*hw, 3)
    assert scene.image.dtype == np.uint8
    assert len(scene.masks) == len(scene.names) >= 1
    total = np.zeros(hw, np.int64)
    for mask in scene.masks:
        assert mask.shape == hw
        assert mask.dtype == np.uint8
        assert mask.sum() >= 0.001 * 255 * hw[0] * hw[1] * 0.98
        assert mask.max() > 127
        total += mask
    assert total.max() <= 255 + (len(scene.masks) + 1) // 2


@pytest.mark.parametrize(("size", "hw"), [(256, (256, 256)), ((192, 320), (192, 320)), ((33, 200), (33, 200))])
@pytest.mark.parametrize("seed", range(4))
def test_shapes_types_and_disjoint_masks(seed: int, size: int | tuple[int, int], hw: tuple[int, int]) -> None:
    check(generate_scene(seed, size), hw)


def test_full_size() -> None:
    scene = generate_scene(5)
    check(scene, (1024, 1024))
    partial = np.concatenate([mask[(mask > 0) & (mask < 255)] for mask in scene.masks])
    assert len(np.unique(partial)) > 50  # soft edges, not a staircase


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_same_seed_same_scene(seed: int) -> None:
    first, second = generate_scene(seed, 128), generate_scene(seed, 128)
    assert np.array_equal(first.image, second.image)
    assert first.names == second.names
    assert all(np.array_equal(a, b) for a, b in zip(first.masks, second.masks, strict=True))


def test_chosen_kinds() -> None:
    chosen = [generate_scene(seed, 128, kinds=["leaf", "blob"]) for seed in range(6)]
    assert {name for scene in chosen for name in scene.names} == {"leaf", "blob"}
    turned = generate_scene(3, 128, kinds={"blob", "leaf"})
    assert np.array_equal(turned.image, chosen[3].image) and turned.names == chosen[3].names
    assert np.array_equal(generate_scene(3, 128, kinds=OBJECT_KINDS).image, generate_scene(3, 128).image)


def test_held_out_kinds_come_when_they_are_named_alone() -> None:
    assert not set(HELD_OUT_KINDS) & set(OBJECT_KINDS)
    drawn = {name for seed in range(30) for name in generate_scene(seed, 64).names}
    assert drawn <= set(OBJECT_KINDS)
    named = {name for seed in range(30) for name in generate_scene(seed, 128, kinds=HELD_OUT_KINDS).names}
    assert named == set(HELD_OUT_KINDS)


@pytest.mark.parametrize("kinds", [[], ["leaf", "leaves"], "leaf"])
def test_kinds_that_do_not_exist(kinds: Any) -> None:
    with pytest.raises(ValueError, match="kinds must be some of blob, "):
        generate_scene(0, 64, kinds=kinds)


def test_seeds_differ_and_global_state_is_left_alone() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    images = [generate_scene(seed, 64).image for seed in range(4)]
    assert all(not np.array_equal(a, b) for a, b in pairwise(images))
    assert np.array_equal(state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_photograph_changes_pixels_and_not_masks() -> None:
    clean, photo = generate_scene(3, 256, degrade=False), generate_scene(3, 256)
    assert not np.array_equal(clean.image, photo.image)
    assert all(np.array_equal(a, b) for a, b in zip(clean.masks, photo.masks, strict=True))


@pytest.mark.parametrize("count", [1, 9])
def test_num_objects_is_an_upper_bound(count: int) -> None:
    for seed in range(3):
        assert 1 <= len(generate_scene(seed, 96, num_objects=count).masks) <= count


@pytest.mark.parametrize("size", [0, 31, -4, (1024, 16), (64, 64, 3), (64,), 64.0, True, None, "64"])
def test_bad_size(size: Any) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels, got"):
        generate_scene(0, size)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        generate_scene(seed, 64)


@pytest.mark.parametrize("count", [0, 17, 2.0, True])
def test_bad_num_objects(count: Any) -> None:
    with pytest.raises(ValueError, match="num_objects must be"):
        generate_scene(0, 64, num_objects=count)


def edge_energy_share(image: NDArray[np.uint8], mask: NDArray[np.uint8], reach: int) -> tuple[float, float]:
    """Share of the image's squared gradient, and of its area, within reach pixels of the mask's outline."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = cv2.Sobel(gray, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(gray, cv2.CV_32F, 0, 1) ** 2
    solid = (mask > 127).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = cv2.dilate(solid, kernel) > cv2.erode(solid, kernel)
    return float(energy[near].sum() / energy.sum()), float(near.mean())


def test_image_edges_lie_at_mask_edges_in_generated_scenes() -> None:
    ratios = []
    for seed in range(12):
        scene = generate_scene(seed, 384, degrade=False)
        together = np.max(scene.masks, axis=0)
        energy, area = edge_energy_share(scene.image, together, 2)
        ratios.append(energy / area)
    assert np.median(ratios) > 2.5


@pytest.mark.parametrize("name", ["animal", "bicycle", "tree", "net"])
def test_composite_edge_is_the_mask_edge(name: str) -> None:
    shape = place(FAMILIES[name][1](np.random.default_rng(1)), (150, 150), 240, 0.1, 1.0, False)
    raster = rasterize(shape, (300, 300), margin=4)
    assert raster is not None
    layer = Layer(name, raster.y0, raster.x0, raster.alpha.astype(np.float32) / 255)
    canvas = np.full((300, 300, 3), 20, np.float32)
    blend(canvas, layer, np.full((*layer.alpha.shape, 3), 220, np.float32))
    mask = np.zeros((300, 300), np.float32)
    mask[layer.window] = visible_alphas([layer], (300, 300))[0]
    assert np.allclose(canvas[..., 1], 20 + 200 * mask, atol=1e-3)
    share, _ = edge_energy_share(canvas.astype(np.uint8), np.rint(mask * 255).astype(np.uint8), 2)
    assert share > 0.97


def test_visible_alpha_follows_the_order_of_layers() -> None:
    far = Layer("far", 0, 0, np.ones((4, 6), np.float32))
    near = Layer("near", 1, 2, np.full((2, 3), 0.75, np.float32))
    behind, front = visible_alphas([far, near], (4, 6))
    assert np.allclose(behind[1:3, 2:5], 0.25)
    assert behind.sum() == pytest.approx(18 + 6 * 0.25)
    assert np.allclose(front, 0.75)


@pytest.mark.parametrize("radius", [3.0, 20.3])
@pytest.mark.parametrize("center", [(40.0, 40.0), (40.37, 39.81)])
def test_raster_of_a_disc_has_its_area_and_centre(radius: float, center: tuple[float, float]) -> None:
    shape = Shape()
    shape.fill(arc(center, radius, n=200))
    raster = rasterize(shape, (80, 80))
    assert raster is not None
    alpha = raster.alpha / 255.0
    # Outlines drawn on the finer grid widen a fill by at most half of its pixels.
    assert np.pi * (radius - 0.05) ** 2 < alpha.sum() < np.pi * (radius + 0.18) ** 2
    y, x = np.indices(alpha.shape)
    assert (x * alpha).sum() / alpha.sum() + raster.x0 == pytest.approx(center[0], abs=0.06)
    assert (y * alpha).sum() / alpha.sum() + raster.y0 == pytest.approx(center[1], abs=0.06)


def test_raster_of_holes_and_of_nothing() -> None:
    shape = Shape()
    shape.fill(arc((30, 30), 20), arc((30, 30), 10))
    shape.cut(arc((30, 15), 3))
    raster = rasterize(shape, (60, 60))
    assert raster is not None
    assert raster.alpha[30 - raster.y0, 30 - raster.x0] == 0
    assert raster.alpha[15 - raster.y0, 30 - raster.x0] == 0
    assert raster.alpha[45 - raster.y0, 30 - raster.x0] == 255
    assert rasterize(place(shape, (500, 500), 40, 0, 1, False), (60, 60)) is None


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_draw_something_for_many_seeds(name: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        shape = bend(rng, FAMILIES[name][1](rng), 0.05)
        placed = place(shape, (64, 64), 100, 0.3, 0.9, True)
        low, high = bounds(placed)
        assert max(high - low) == pytest.approx(100, rel=1e-3)
        raster = rasterize(placed, (128, 128))
        assert raster is not None
        assert (raster.alpha > 127).sum() > 60
        assert np.abs(raster.tone).max() <= 1.01


@pytest.mark.parametrize("kind", sorted(FIELDS))
@pytest.mark.parametrize("hw", [(2, 2), (40, 300), (257, 130)])
def test_texture_fields(kind: str, hw: tuple[int, int]) -> None:
    field = texture_field(np.random.default_rng(0), hw, kind)
    assert field.shape == hw
    assert field.dtype == np.float32
    assert np.isfinite(field).all()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("hw", [(32, 32), (64, 200), (256, 200)])
def test_backgrounds(kind: str, hw: tuple[int, int]) -> None:
    for seed in range(3):
        image = KINDS[kind][1](np.random.default_rng(seed), hw)
        assert image.shape == (*hw, 3)
        assert image.dtype == np.uint8


def test_fractal_noise_has_falling_power() -> None:
    field = fractal_noise(np.random.default_rng(0), (256, 256), 0.5, 4)
    power = np.abs(np.fft.fft2(field - field.mean())) ** 2
    bands = [power[0, low:high].mean() for low, high in ((3, 6), (12, 24), (48, 96))]
    assert bands[0] > 4 * bands[1] > 16 * bands[2]


def cutout_parts() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    back = np.full((200, 260, 3), (30, 60, 40), np.uint8)
    front = np.full((120, 90, 3), (20, 20, 240), np.uint8)
    alpha = np.zeros((120, 90), np.uint8)
    cv2.circle(alpha, (45, 60), 35, 255, -1, cv2.LINE_AA)
    front[alpha > 127] = (230, 200, 60)
    return back, front, alpha


def test_cutout_keeps_shape_and_leaves_old_background_behind() -> None:
    back, front, alpha = cutout_parts()
    for seed in range(5):
        scene = paste_cutout(back, front, alpha, np.random.default_rng(seed), (160, 224), degrade=False)
        check(scene, (160, 224))
        assert scene.names == ["cutout"]
        mask = scene.masks[0]
        share, area = edge_energy_share(scene.image, mask, 3)
        assert share > 0.8 > 0.3 > area
        # The blue that surrounded the object must not fringe it: blue stays the weakest channel.
        assert (scene.image[mask > 40][:, 2].astype(int) <= scene.image[mask > 40][:, 0].astype(int) + 30).all()


def test_cutout_is_deterministic_and_leaves_its_inputs_alone() -> None:
    parts = cutout_parts()
    kept = [part.copy() for part in parts]
    scenes = [paste_cutout(*parts, np.random.default_rng(4), 128) for _ in range(2)]
    assert np.array_equal(scenes[0].image, scenes[1].image)
    assert np.array_equal(scenes[0].masks[0], scenes[1].masks[0])
    assert all(np.array_equal(a, b) for a, b in zip(parts, kept, strict=True))


def test_cutout_of_a_large_photograph_and_of_a_single_pixel() -> None:
    back, front, alpha = cutout_parts()
    large = cv2.resize(front, (900, 1200)), cv2.resize(alpha, (900, 1200))
    check(paste_cutout(back, *large, np.random.default_rng(0), 96), (96, 96))
    dot = np.full((1, 1), 255, np.uint8)
    assert paste_cutout(back[:1, :1], front[:1, :1], dot, np.random.default_rng(0), 64).masks[0].max() > 127


def test_cutout_rejects_malformed_arrays() -> None:
    back, front, alpha = cutout_parts()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="background must be uint8 RGB"):
        paste_cutout(back[..., 0], front, alpha, rng, 64)
    with pytest.raises(ValueError, match="foreground must be uint8 RGB"):
        paste_cutout(back, front.astype(np.float32), alpha, rng, 64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be uint8 of the foreground's shape"):
        paste_cutout(back, front, alpha[:-1], rng, 64)
    with pytest.raises(ValueError, match="alpha must have a value of at least 128"):
        paste_cutout(back, front, np.zeros_like(alpha), rng, 64)
    with pytest.raises(ValueError, match="at least 32 pixels"):
        paste_cutout(back, front, alpha, rng, 8)


def test_scenes_as_a_pack(tmp_path: Path) -> None:
    """The files hold the same scenes every time, with a hard mask for each object that can be seen."""
    index = write_scenes(tmp_path / "a", 3, 64)
    assert index == write_scenes(tmp_path / "a", 3, 64)
    records = open_dataset(str(index))
    assert len(records) == 3 and all(record.objects for record in records)
    write_scenes(tmp_path / "b", 3, 64)
    write_scenes(tmp_path / "c", 3, 64, seed=1)
    image = "images/00000.png"
    same, other = ((tmp_path / name / image).read_bytes() for name in "bc")
    assert (tmp_path / "a" / image).read_bytes() == same != other
    for record in records:
        scene_masks = [
            load_object_mask(obj, read_image(record.image).shape[:2], record.image) for obj in record.objects
        ]
        assert (sum((mask > 0).astype(int) for mask in scene_masks) <= 1).all()
    with pytest.raises(OutputError, match="cannot write generated scenes"):
        (tmp_path / "file").touch()
        write_scenes(tmp_path / "file", 1, 64)
