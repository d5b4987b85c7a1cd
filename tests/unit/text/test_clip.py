from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hqsam.text import ClipEncoder, ClipError, MissingExtraError, load_clip
from tests.unit.text.tiny_text_models import build_clip_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: str) -> ClipEncoder:
    return load_clip(folder)


def test_embeddings_have_length_one(clip: ClipEncoder) -> None:
    assert (clip.dim, clip.image_size) == (24, 32)
    texts = clip.encode_text(["a dog", "red ball", "a dog"])
    crops = clip.encode_crops(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    assert texts.shape == (3, 24)
    assert crops.shape == (2, 24)
    for embeddings in (texts, crops):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
        assert not embeddings.requires_grad
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], texts[1])


def test_crops_are_normalised_as_clip_wants_them(clip: ClipEncoder) -> None:
    """Against open_clip's own preparation of a picture that needs no resizing."""
    open_clip = pytest.importorskip("open_clip")
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    prepare = open_clip.image_transform(32, is_train=False, mean=clip.model.visual.image_mean)
    with torch.no_grad():
        expected = clip.model.encode_image(prepare(Image.fromarray(pixels))[None], normalize=True)
    torch.testing.assert_close(clip.encode_crops([pixels]), expected, atol=1e-5, rtol=0)


def test_the_template_goes_around_the_phrase(clip: ClipEncoder) -> None:
    inside = clip.encode_text(["dog"], "a photo of a {}")
    assert torch.equal(inside, clip.encode_text(["a photo of a dog"]))
    assert torch.equal(clip.encode_text(["a {} dog"], "{}"), clip.encode_text(["a {} dog"]))
    with pytest.raises(ValueError, match=r"holds \{\}"):
        clip.encode_text(["dog"], "a photo")


@pytest.mark.parametrize("phrases", [[], [" "], "a dog"])
def test_wrong_phrases(clip: ClipEncoder, phrases: list[str]) -> None:
    with pytest.raises(ValueError, match="phrases"):
        clip.encode_text(phrases)


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (1, 31, 32, 3), (1, 32, 32, 1)])
def test_wrong_crops(clip: ClipEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 3\)"):
        clip.encode_crops(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("name", ["ViT-B-32", "/openai", "ViT-B-32/", "No-Such-Model/openai", "ViT-B-32/no_such_tag"])
def test_names_without_weights_are_refused(name: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ClipError) as caught:
        load_clip(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_clip(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ClipError, match="cannot be loaded"):
        load_clip(f"local-dir:{tmp_path / 'missing'}")
    (tmp_path / "open_clip_config.json").write_bytes(
        (Path(folder.removeprefix("local-dir:")) / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(ClipError, match="cannot be loaded"):
        load_clip(f"local-dir:{tmp_path}")


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"open_clip.*pip install 'hqsam\[text\]'"):
        load_clip("ViT-B-32/openai")
