from __future__ import annotations

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, create_model
from hqsam.models import ScoreHead
from hqsam.registry import build_model, model_spec
from hqsam.types import OUTSIDE_LOGIT
from tests.helpers import fill_parameters

BOX = [10.0, 12.0, 60.0, 40.0]


def _model(name: str = "hq_test_vit"):
    return fill_parameters(build_model(model_spec(name))).eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(image):
    predictor = SamPredictor(_model())
    predictor.set_image(image)
    return predictor


def test_shapes_single_and_many(predictor):
    for multimask in (False, True):
        masks, scores, logits = predictor.predict(box=BOX, multimask_output=multimask)
        assert masks.shape == (1, 48, 80) and masks.dtype == np.bool_
        assert scores.shape == (1,) and logits.shape == (1, 32, 32) and logits.dtype == np.float32
    masks, scores, logits = predictor.predict(box=[BOX], multimask_output=False)
    assert masks.shape == (1, 1, 48, 80) and scores.shape == (1, 1) and logits.shape == (1, 1, 32, 32)
    masks, scores, _ = predictor.predict(box=[BOX] * 9, fusion="sam")
    assert masks.shape == (9, 3, 48, 80) and scores.shape == (9, 3)


def test_many_boxes_with_points_equal_one_by_one(predictor):
    boxes = np.array([BOX, [0, 0, 79, 47], [30, 5, 31, 40]], dtype=np.float64)
    points = np.random.default_rng(1).uniform(0, 40, (3, 2, 2))
    labels = np.array([[1, 0], [1, 1], [0, -1]])
    together = predictor.predict(points, labels, boxes, return_logits=True)
    for row in range(3):
        alone = predictor.predict(points[row], labels[row], boxes[row], return_logits=True)
        for a, b in zip(together, alone, strict=True):
            assert np.allclose(a[row], b, atol=1e-4)


def test_fusions_add_up(predictor):
    low_res = {f: predictor.predict(box=BOX, multimask_output=False, fusion=f)[2] for f in ("sum", "hq")}
    default = predictor.predict(box=BOX, multimask_output=False)[2]
    only_hq = predictor.predict(box=BOX, multimask_output=False, hq_token_only=True)[2]
    assert np.array_equal(default, low_res["sum"]) and np.array_equal(only_hq, low_res["hq"])
    logits = predictor.predict(box=BOX, multimask_output=False, return_logits=True)[0]
    masks = predictor.predict(box=BOX, multimask_output=False)[0]
    assert logits.dtype == np.float32 and np.array_equal(logits > 0, masks)


def test_logits_feed_back(predictor):
    first = predictor.predict(box=BOX, multimask_output=False)[2]
    second = predictor.predict(box=BOX, mask_input=first, multimask_output=False)[2]
    assert second.shape == first.shape and not np.array_equal(first, second)
    alone = predictor.predict(mask_input=first, multimask_output=False)[0]
    assert alone.shape == (1, 48, 80)


def test_embedding_kept_through_public_attributes(predictor, image):
    """Programs for SAM keep embeddings by copying the predictor's attributes."""
    other = SamPredictor(predictor.model)
    other.set_image(image[:, ::-1].copy())
    other.predict(box=BOX)
    other.features, other.interm_features = predictor.features, predictor.interm_features
    other.original_size, other.input_size = predictor.original_size, predictor.input_size
    assert np.array_equal(other.predict(box=BOX)[2], predictor.predict(box=BOX)[2])
    assert predictor.get_image_embedding().shape == (1, 256, 8, 8)


def test_points_beside_one_box_as_the_original_takes_them(predictor):
    alone = predictor.predict([[20, 20], [5, 40]], [1, 0], [BOX])
    batched = predictor.predict([[[20, 20], [5, 40]]], [[1, 0]], [BOX])
    assert all(np.array_equal(a, b) for a, b in zip(alone, batched, strict=True))


def _fresh(model, image, **options):
    other = SamPredictor(model)
    other.set_image(image)
    return other.predict(box=BOX, multimask_output=False, **options)[2]


def test_nothing_kept_outlives_what_it_was_made_from(image):
    """Another head, another decoder, other features in place, other number types: the next answer knows."""
    model = _model()
    predictor = SamPredictor(model)
    predictor.set_image(image)
    predictor.predict(box=BOX)
    with torch.no_grad():
        for parameter in model.hq_parameters():
            parameter.mul_(0.5)
    assert np.allclose(predictor.predict(box=BOX, multimask_output=False)[2], _fresh(model, image), atol=1e-5)
    with torch.no_grad():
        for part in (model.mask_decoder.trunk.transformer.layers[0], model.prompt_encoder.no_mask):
            for parameter in part.parameters():
                parameter.mul_(0.9)
    assert np.allclose(predictor.predict(box=BOX, multimask_output=False)[2], _fresh(model, image), atol=1e-5)
    other = SamPredictor(model)
    other.set_image(image[:, ::-1].copy())
    predictor.features.copy_(other.features)
    predictor.interm_features[0].copy_(other.interm_features[0])
    expected = other.predict(box=BOX, multimask_output=False)[2]
    assert np.allclose(predictor.predict(box=BOX, multimask_output=False)[2], expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        predictor.predict(box=BOX)
    assert np.allclose(predictor.predict(box=BOX, multimask_output=False)[2], expected, atol=1e-5)
    model.to(torch.bfloat16)
    assert np.isfinite(predictor.predict(box=BOX, multimask_output=False)[2]).all()


def test_plain_sam_needs_no_early_feature(image):
    """SAM's programs keep `features` alone."""
    source, other = SamPredictor(_model("sam_test_vit")), SamPredictor(_model("sam_test_vit"))
    source.set_image(image)
    for name in ("features", "original_size", "input_size", "is_image_set"):
        setattr(other, name, getattr(source, name))
    assert np.array_equal(other.predict(box=BOX)[0], source.predict(box=BOX)[0])
    hq = SamPredictor(_model())
    hq.features, hq.original_size, hq.input_size = source.features, source.original_size, source.input_size
    hq.is_image_set = True
    assert hq.predict(box=BOX, fusion="sam")[0].shape == (3, 48, 80)
    with pytest.raises(RuntimeError, match="needs interm_features"):
        hq.predict(box=BOX)


def test_tensors_that_a_detector_might_hand_over(predictor):
    none = predictor.predict_torch(None, None, torch.zeros(0, 4))
    assert [tuple(t.shape) for t in none] == [(0, 1, 48, 80), (0, 1), (0, 1, 32, 32)]
    points, labels = torch.tensor([[[10.7, 3.9]]]), torch.ones(1, 1)
    whole, real = (torch.tensor([[1, 2, 30, 40]], dtype=kind) for kind in (torch.int64, torch.float64))
    assert torch.equal(
        predictor.predict_torch(points, labels, whole)[2], predictor.predict_torch(points, labels, real)[2]
    )
    for wrong in (2, 7, -2):
        with pytest.raises(ValueError, match="labels must be 1"):
            predictor.predict_torch(points, torch.full((1, 1), wrong))


def test_forward_obeys_the_same_rules(image):
    model = _model()
    record = {"image": torch.zeros(3, 128, 100), "original_size": (64, 50), "boxes": torch.zeros(0, 4)}
    full, empty = model([{**record, "boxes": torch.tensor([[1.0, 1, 50, 50]])}, record], False)
    assert full["masks"].shape == (1, 1, 64, 50) and empty["masks"].shape == (0, 1, 64, 50)
    model.head_state = "untrained"
    with pytest.raises(ValueError, match="untrained"):
        model([record], False)
    with pytest.raises(ValueError, match="plain SAM"):
        _model("sam_test_vit")([record], False, hq_token_only=True)


def test_bgr_and_grayscale(image):
    predictor = SamPredictor(_model())
    predictor.set_image(image)
    rgb = predictor.features
    predictor.set_image(image[..., ::-1], image_format="BGR")
    assert torch.equal(rgb, predictor.features)
    gray = image[..., 0]
    predictor.set_image(np.repeat(gray[..., None], 3, axis=2))
    repeated = predictor.features
    predictor.set_image(gray)
    assert torch.equal(repeated, predictor.features)
    rgba = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    predictor.set_image(rgba)
    assert torch.equal(rgb, predictor.features)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_and_thin_images(shape):
    predictor = SamPredictor(_model())
    predictor.set_image(np.zeros((*shape, 3), np.uint8))
    masks, _, _ = predictor.predict(point_coords=[[0, 0]], point_labels=[1])
    assert masks.shape == (1, *shape)


def test_zero_area_box_is_a_one_pixel_object(predictor):
    assert predictor.predict(box=[5, 5, 5, 30])[0].shape == (1, 48, 80)
    assert predictor.predict(box=[-10, -10, 90, 60])[0].shape == (1, 48, 80)  # partly outside, as SAM takes it


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "no prompt given"),
        ({"box": [1, 2, 3]}, r"shape \(4,\) or \(N, 4\)"),
        ({"box": np.zeros((0, 4))}, r"shape \(4,\) or \(N, 4\)"),
        ({"box": [50, 10, 20, 40]}, "inverted"),
        ({"box": [100, 10, 120, 40]}, "outside the 80 x 48 image"),
        ({"box": [0, np.nan, 5, 5]}, "box must be finite"),
        ({"box": "1,2,3,4"}, "array of numbers"),
        ({"point_coords": [[1, 2]]}, "come together"),
        ({"point_labels": [1]}, "come together"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "point_coords must have shape"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "point_labels must have shape"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "1 .foreground., 0 .background. or -1"),
        ({"point_coords": [[np.inf, 2]], "point_labels": [1]}, "point_coords must be finite"),
        ({"point_coords": [[1, 2]], "point_labels": [1], "box": [BOX, BOX]}, "point_coords must have shape"),
        ({"mask_input": np.zeros((1, 64, 64), np.float32)}, r"mask_input must have shape \(1, 32, 32\)"),
        ({"mask_input": np.zeros((1, 32, 32), np.int32)}, "floating-point logits"),
        ({"mask_input": np.full((1, 32, 32), np.nan)}, "mask_input must be finite"),
        ({"box": BOX, "fusion": "both"}, "fusion must be one of"),
        ({"box": BOX, "fusion": "sam", "hq_token_only": True}, "hq_token_only=True is fusion='hq'"),
    ],
)
def test_wrong_prompts(predictor, arguments, text):
    with pytest.raises(ValueError, match=text):
        predictor.predict(**arguments)
    assert predictor.is_image_set


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 3), np.uint16), "uint8"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"H, W >= 1"),
    ],
)
def test_wrong_images_leave_the_old_one_set(predictor, bad, text):
    before = predictor.predict(box=BOX)[2]
    with pytest.raises(ValueError, match=text):
        predictor.set_image(bad)
    with pytest.raises(ValueError, match="RGB"):
        predictor.set_image(np.zeros((4, 4, 3), np.uint8), image_format="HSV")
    with pytest.raises(ValueError, match="long side 128"):
        predictor.set_torch_image(torch.zeros(1, 3, 64, 64), (64, 64))
    assert np.array_equal(predictor.predict(box=BOX)[2], before)


def test_predict_before_set_image():
    predictor = SamPredictor(_model())
    for call in (lambda: predictor.predict(box=BOX), predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="set_image"):
            call()


def test_plain_sam_has_no_hq(image):
    predictor = SamPredictor(_model("sam_test_vit"))
    predictor.set_image(image)
    assert predictor.predict(box=BOX)[0].shape == (3, 48, 80)
    for options in ({"hq_token_only": True}, {"fusion": "sum"}):
        with pytest.raises(ValueError, match="plain SAM"):
            predictor.predict(box=BOX, **options)


def test_untrained_head_is_refused(image, tmp_path):
    from hqsam import save_checkpoint

    save_checkpoint(_model("sam_test_vit"), tmp_path / "sam.safetensors")
    model = create_model("hq_test_vit", tmp_path / "sam.safetensors", fresh_hq_head=True, device="cpu")
    predictor = SamPredictor(model)
    predictor.set_image(image)
    with pytest.raises(ValueError, match="untrained"):
        predictor.predict(box=BOX)
    assert predictor.predict(box=BOX, fusion="sam")[0].shape == (3, 48, 80)


@pytest.mark.parametrize("fusion", ["sum", "hq", "sam"])
def test_logits_of_the_padding_can_be_left_out(predictor, fusion):
    options = {"multimask_output": False, "fusion": fusion, "return_logits": True}
    for refine in ("none", "zoom"):
        whole = predictor.predict(box=[BOX], refine=refine, **options)
        part = predictor.predict(box=[BOX], refine=refine, padding_logits=False, **options)
        for ours, theirs in zip(part[:2], whole[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
        # 48 x 80 pixels become 77 x 128: 20 of 32 rows of logits, and one more that is read beside them
        outside = 2 * OUTSIDE_LOGIT if fusion == "sum" else OUTSIDE_LOGIT
        assert (part[2][:, :, 21:] == outside).all() and (part[2][:, :, :21] != outside).all()
    box, points = torch.tensor([BOX]), torch.tensor([[[20.0, 30.0]]])
    again = predictor.predict_torch(points, torch.ones(1, 1), box, refine="again", padding_logits=False, **options)
    assert torch.isfinite(again[0]).all() and (again[2][:, :, 21:] < 0).all()


def test_the_score_head_looks_at_the_padding_before_it_is_left_out(image):
    model = _model()
    model.set_score_head(fill_parameters(ScoreHead()))
    predictor = SamPredictor(model)
    predictor.set_image(image)
    whole = predictor.predict(box=[BOX], multimask_output=False, score="own", refine="none")
    part = predictor.predict(box=[BOX], multimask_output=False, score="own", refine="none", padding_logits=False)
    assert np.array_equal(part[0], whole[0]) and np.array_equal(part[1], whole[1])
    assert np.array_equal(part[2][:, :, :21], whole[2][:, :, :21]) and (part[2][:, :, 21:] == 2 * OUTSIDE_LOGIT).all()
