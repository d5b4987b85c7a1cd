"""Boundary maps: the outline of one mask, many joined, thinning, and the detector."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.automatic.edge_maps import Outline, join_outlines, mask_outline, thin_edges
from hqsam.automatic.edges import SamEdgeDetector
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.types import Fusion
from tests.helpers import fill_parameters

HW = (40, 60)


def disc(slope: float, hw: tuple[int, int] = HW, radius: float = 12) -> NDArray[np.float32]:
    """Logits of a disc: 0 on a circle about the centre, steeper with `slope`."""
    y, x = np.indices(hw)
    return (slope * (radius - np.hypot(y - hw[0] / 2, x - hw[1] / 2))).astype(np.float32)


def drawn(outline: Outline | None, hw: tuple[int, int] = HW) -> NDArray[np.float32]:
    assert outline is not None
    image = np.zeros(hw, dtype=np.float32)
    image.flat[outline.pixels] = outline.strength
    return image


def test_an_outline_lies_on_both_sides_of_the_boundary() -> None:
    logits = disc(1.0)
    y, x = np.indices(HW)
    distance = np.abs(np.hypot(y - 20, x - 30) - 12)
    outline = mask_outline(logits)
    assert outline is not None
    found = drawn(outline) > 0
    assert not found[distance > 1.5].any()
    assert found[distance < 0.4].all()
    ys, xs = np.nonzero(logits > 0)
    assert outline.box == (xs.min(), ys.min(), xs.max(), ys.max())


def test_strength_is_the_slope_of_the_probability() -> None:
    """On a straight edge the sigmoid's slope is 1/4 of the logits'; Sobel's filter gives 8 times that."""
    x = np.arange(HW[1]) * np.ones(HW)
    outline = mask_outline(((30.0 - x) * 0.1).astype(np.float32))
    assert drawn(outline)[20, 30] == pytest.approx(8 * 0.1 / 4, rel=1e-2)
    steep = mask_outline(disc(3.0))
    assert steep is not None and steep.strength.max() > drawn(mask_outline(disc(0.3))).max()


def test_the_border_of_the_image_is_no_outline() -> None:
    outline = mask_outline(np.full(HW, 5, dtype=np.float32))
    assert outline is not None and len(outline.pixels) == 0
    x = np.arange(HW[1]) * np.ones(HW)
    half = drawn(mask_outline(((30 - x) * 1.0).astype(np.float32)))
    assert (half[:, 28:32] > 0).any(axis=1).all() and not half[:, :25].any()


def test_a_mask_in_a_window_is_the_mask_in_the_image() -> None:
    """Only the part around the object is looked at."""
    small = mask_outline(disc(1.0))
    large = mask_outline(disc(1.0, (240, 260)))
    assert small is not None and large is not None
    assert np.array_equal(small.strength, large.strength)


def test_masks_without_a_pixel_have_no_outline() -> None:
    assert mask_outline(np.full(HW, -1, dtype=np.float32)) is None
    assert mask_outline(np.full(HW, 0.5, dtype=np.float32), threshold=1.0) is None


def test_joining_takes_the_largest_and_stretches() -> None:
    outlines = [
        Outline((0, 0, 1, 1), np.array([0, 1]), np.array([1.0, 3.0], dtype=np.float32)),
        Outline((0, 0, 1, 1), np.array([1, 2]), np.array([2.0, 4.0], dtype=np.float32)),
    ]
    assert join_outlines(outlines, (1, 4), 0).tolist() == [[0.25, 0.75, 1.0, 0.0]]
    assert not join_outlines([], (3, 4), 0.8).any()
    smooth = join_outlines([mask for mask in [mask_outline(disc(1.0))] if mask], HW, 2.0)
    assert smooth.min() == 0 and smooth.max() == 1


@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90, 135, 160])
def test_a_ridge_becomes_a_line_at_its_crest(angle: int) -> None:
    y, x = np.indices((60, 60)) - 29.5
    across = x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))
    thin = thin_edges(np.exp(-(across**2) / 18).astype(np.float32))[5:-5, 5:-5]
    assert (np.abs(across[5:-5, 5:-5][thin > 0]) <= 1).all()
    assert (thin > 0).any(axis=0).all() or (thin > 0).any(axis=1).all()  # without a gap
    assert (thin[thin > 0] > 0.9).all()


def test_thinning_keeps_values_and_empty_maps() -> None:
    edges = join_outlines([mask for mask in [mask_outline(disc(0.5))] if mask], HW, 1.0)
    thin = thin_edges(edges, border=0)
    assert set(np.unique(thin)) <= {0.0, *np.unique(edges)}
    assert 0 < (thin > 0.3).sum() < (edges > 0.3).sum()
    assert not thin_edges(np.zeros(HW, dtype=np.float32)).any()


def test_edges_fade_at_the_border_of_the_image() -> None:
    edges = np.zeros((20, 30), dtype=np.float32)
    edges[10] = 1
    assert np.allclose(thin_edges(edges)[10, :7], [0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert np.allclose(thin_edges(edges, border=0)[10], 1)


def tiny(name: str = "hq_test_vit") -> Sam:
    model = create_model(name, device="cpu")
    fill_parameters(model, seed=5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Sam:
    return tiny()


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (70, 100, 3)).astype(np.uint8)


@pytest.mark.parametrize("fusion", ["sam", "hq", "sum"])
def test_the_map_is_made_of_the_predictors_masks(model: Sam, image: NDArray[np.uint8], fusion: Fusion) -> None:
    """Every point by itself through the public predictor, without dropping duplicates."""
    detector = SamEdgeDetector(model, points_per_side=3, box_nms_thresh=1.0, sigma=0, fusion=fusion, thin=False)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    outlines = []
    for y in (70 / 6, 70 / 2, 70 * 5 / 6):
        for x in (100 / 6, 100 / 2, 100 * 5 / 6):
            logits, _, _ = predictor.predict(
                np.array([[x, y]]), np.array([1]), return_logits=True, fusion=fusion, candidates="all"
            )
            assert len(logits) == (1 if fusion == "hq" else 3)
            outlines += [outline for outline in map(mask_outline, logits) if outline is not None]
    assert outlines
    expected = join_outlines(outlines, (70, 100), 0)
    found = detector.detect(image)
    assert (np.abs(found - expected) > 1e-3).mean() < 0.01  # a logit at the threshold may round to the other side
    assert found.dtype == np.float32 and found.shape == (70, 100)


def test_columns_together_are_the_columns_alone(model: Sam, image: NDArray[np.uint8]) -> None:
    detector = SamEdgeDetector(model, points_per_side=2)
    together = detector.detect_columns(image, ("sam", "hq", "sum"))
    for fusion, edges in together.items():
        alone = SamEdgeDetector(model, points_per_side=2, fusion=fusion).detect(image)
        assert np.array_equal(edges, alone)


def test_known_features_give_the_same_map(model: Sam, image: NDArray[np.uint8]) -> None:
    detector = SamEdgeDetector(model, points_per_side=2)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    assert np.array_equal(detector.detect(image, features=predictor.get_features()), detector.detect(image))
    with pytest.raises(ValueError, match="image"):
        detector.detect(image[:, ::-1].copy(), features=predictor.get_features())


def test_the_weights_are_not_summed_up_for_an_image(
    model: Sam, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fingerprint of a large encoder takes seconds on a CPU, which nothing here needs."""

    def refuse(_: Sam) -> str:
        raise AssertionError("a fingerprint was computed")

    monkeypatch.setattr("hqsam.predictor.model_fingerprint", refuse)
    assert SamEdgeDetector(model, points_per_side=2).detect(image).shape == image.shape[:2]


def test_tiny_and_black_images(model: Sam) -> None:
    for hw in ((1, 1), (1, 40), (50, 1), (30, 30)):
        edges = SamEdgeDetector(model, points_per_side=2).detect(np.zeros((*hw, 3), dtype=np.uint8))
        assert edges.shape == hw and np.isfinite(edges).all()


def test_wrong_arguments(model: Sam) -> None:
    for wrong in ({"points_per_side": 0}, {"box_nms_thresh": 1.1}, {"sigma": -1.0}, {"sigma": float("nan")}):
        with pytest.raises(ValueError, match="must be"):
            SamEdgeDetector(model, **wrong)
    with pytest.raises(ValueError, match="plain SAM"):
        SamEdgeDetector(tiny("sam_test_vit"), fusion="hq")
