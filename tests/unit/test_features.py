"""Embeddings that are kept, and refused where they do not belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqsam import DataError, PredictorFeatures, SamPredictor
from hqsam.features import image_hash, model_fingerprint, weights_fingerprint
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters

BOX = [10.0, 12.0, 60.0, 40.0]


def make_model(name="hq_test_vit", seed=0):
    return fill_parameters(build_model(model_spec(name)), seed).eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(image):
    predictor = SamPredictor(make_model())
    predictor.set_image(image)
    return predictor


def test_the_same_answers_in_memory_and_from_disk(predictor, image, tmp_path):
    kept = predictor.get_features()
    kept.save(tmp_path / "a.safetensors")
    for features in (kept, PredictorFeatures.load(tmp_path / "a.safetensors")):
        other = SamPredictor(predictor.model)
        other.load_features(features, image)
        assert other.is_image_set and other.original_size == (48, 80) and other.input_size == predictor.input_size
        for mine, theirs in zip(other.predict(box=BOX), predictor.predict(box=BOX), strict=True):
            assert mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-5)  # another memory layout
        again = other.get_features()
        assert (again.image_hash, again.model_fingerprint) == (kept.image_hash, kept.model_fingerprint)


def test_half_the_size_on_disk(predictor, image, tmp_path):
    predictor.get_features().save(tmp_path / "a.safetensors", torch.float16)
    features = PredictorFeatures.load(tmp_path / "a.safetensors")
    assert features.image_embedding.dtype == torch.float16
    other = SamPredictor(predictor.model)
    other.load_features(features, image)
    assert np.allclose(other.predict(box=BOX)[2], predictor.predict(box=BOX)[2], rtol=0.02, atol=0.02)


def test_bgr_is_the_same_image(predictor, image):
    SamPredictor(predictor.model).load_features(predictor.get_features(), image[..., ::-1], image_format="BGR")


def test_foreign_and_stale_ones_are_refused(predictor, image):
    kept = predictor.get_features()
    other = SamPredictor(predictor.model)
    for picture, text in ((image[:, ::-1], "another image of the same size"), (image[:40], r"48 x 80 .* 40 x 80")):
        with pytest.raises(ValueError, match=text):
            other.load_features(kept, picture)
    for model in (make_model(seed=1), make_model("hq_test_tiny"), make_model().to(torch.bfloat16)):
        with pytest.raises(ValueError, match="another image encoder"):
            SamPredictor(model).load_features(kept)
    assert not other.is_image_set


def test_heads_share_an_encoder(predictor):
    """HQ and plain SAM of the same weights use the same embedding."""
    plain = make_model("sam_test_vit")
    plain.image_encoder.load_state_dict(predictor.model.image_encoder.state_dict())
    other = SamPredictor(plain)
    other.load_features(predictor.get_features())
    expected = predictor.predict(box=BOX, fusion="sam")[0]
    assert other.predict(box=BOX)[0].shape == expected.shape


def test_an_image_that_was_never_seen(predictor, image):
    other = SamPredictor(predictor.model)
    other.set_torch_image(torch.zeros(1, 3, 77, 128), (48, 80))
    kept = other.get_features()
    assert kept.image_hash == ""
    SamPredictor(predictor.model).load_features(kept)
    with pytest.raises(ValueError, match="do not know their image"):
        SamPredictor(predictor.model).load_features(kept, image)
    # put in by hand, as programs for SAM do
    by_hand = SamPredictor(predictor.model)
    by_hand.set_image(image)
    by_hand.features = predictor.features.clone()
    with pytest.raises(RuntimeError, match="not what this image encoder made"):
        by_hand.get_features()


def test_weights_that_changed_since(image):
    predictor = SamPredictor(make_model())
    predictor.set_image(image)
    predictor.get_features()
    with torch.no_grad():
        next(predictor.model.image_encoder.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="weights changed"):
        predictor.get_features()
    predictor.set_image(image)
    predictor.model.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="weights changed"):
        predictor.get_features()


def test_fingerprint_and_hash(image):
    model = make_model()
    before = model_fingerprint(model)
    assert before == model_fingerprint(make_model()) != model_fingerprint(make_model(seed=1))
    weight = next(p for p in model.image_encoder.parameters() if p.ndim == 2)
    with torch.no_grad():
        weight.copy_(weight.flip(0))  # the same numbers in another order
    assert model_fingerprint(model) != before
    assert image_hash(image) != image_hash(image.reshape(80, 48, 3))


@pytest.mark.parametrize("part", ["image_encoder", "prompt_encoder", "mask_decoder"])
def test_fingerprint_of_all_weights(part):
    model = make_model()
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(make_model())
    with torch.no_grad():
        next(getattr(model, part).parameters()).mul_(2)
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(make_model().to(torch.bfloat16)) != before


def test_no_image_set(predictor):
    for call in (SamPredictor(predictor.model).get_features, SamPredictor(predictor.model).hq_features):
        with pytest.raises(RuntimeError, match="set_image"):
            call()


def test_files(predictor, tmp_path):
    from safetensors.torch import save_file

    kept = predictor.get_features()
    with pytest.raises(ValueError, match=r"saved as \.safetensors"):
        kept.save(tmp_path / "a.pt")
    with pytest.raises(DataError, match="not found"):
        PredictorFeatures.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="not a features file"):
        PredictorFeatures.load(tmp_path / "other.safetensors")
    kept.save(tmp_path / "b.safetensors")
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="truncated or damaged"):
        PredictorFeatures.load(tmp_path / "b.safetensors")
