from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hqsam.text.detections import Detections, make_detections, suppress
from hqsam.text.detector import DetectorError, TransformersDetector, load_detector
from hqsam.text.extra import MissingExtraError
from hqsam.text.families import FAMILIES, GroundingFamily
from tests.unit.text.tiny_text_models import DETECTOR_KINDS, build_detector_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_detector_folder(tmp_path_factory.mktemp(kind), kind) for kind in DETECTOR_KINDS}


@pytest.fixture(scope="module")
def detectors(folders: dict[str, Path]) -> dict[str, TransformersDetector]:
    return {kind: load_detector(folder, nms_iou=None) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_boxes_lie_in_the_image_and_the_best_comes_first(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8], kind: str
) -> None:
    found = detectors[kind].detect(image, ["a dog", "red ball"], 0.05)
    assert len(found.boxes) > 0
    assert found.boxes.shape == (len(found.scores), 4)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert set(found.phrase_index) <= {0, 1}
    x0, y0, x1, y1 = found.boxes.T
    assert (x0 >= 0).all()
    assert (x0 < x1).all()
    assert (x1 <= 60).all()
    assert (y0 >= 0).all()
    assert (y0 < y1).all()
    assert (y1 <= 40).all()
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores > 0.05).all()


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_boxes_are_those_of_the_model_in_original_pixels(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8], kind: str
) -> None:
    """Against the model's own normalised answer: OWLv2 pads to a square, the others stretch or keep the shape."""
    detector = detectors[kind]
    inputs = FAMILIES[kind].encode(detector.model, detector.processor, image, ["a dog"])
    with torch.no_grad():
        answer = detector.model(**inputs)
    scores = answer.logits[0].sigmoid().amax(dim=1)
    cx, cy, width, height = answer.pred_boxes[0].unbind(1)
    corners = torch.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], dim=1)
    corners = corners * (60 if kind == "owlv2" else torch.tensor([60, 40, 60, 40]))
    expected = make_detections(
        corners[scores > 0.05], scores[scores > 0.05], torch.zeros(int((scores > 0.05).sum())), (40, 60)
    )
    found = detector.detect(image, ["a dog"], 0.05)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_nothing_found_is_an_empty_result(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8], kind: str
) -> None:
    found = detectors[kind].detect(image, ["a dog", "red ball"], 1.0)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.phrase_index.shape == (0,)


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_owl_answers_each_phrase_by_itself(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8], kind: str
) -> None:
    """The order of the phrases changes their numbers and nothing else."""
    ab = detectors[kind].detect(image, ["a dog", "red ball"], 0.05)
    ba = detectors[kind].detect(image, ["red ball", "a dog"], 0.05)
    np.testing.assert_allclose(ab.boxes, ba.boxes, atol=1e-4)
    np.testing.assert_array_equal(ab.phrase_index, 1 - ba.phrase_index)


def test_grounding_phrases_are_the_spans_between_periods(detectors: dict[str, TransformersDetector]) -> None:
    tokenizer = detectors["grounding-dino"].processor.tokenizer
    ids = tokenizer("a dog. red ball. c.")["input_ids"]
    # every letter is a token: [CLS] a d o g . r e d b a l l . c . [SEP]
    spans = GroundingFamily._spans(tokenizer, ids, 3)
    assert spans == [[1, 2, 3, 4], [6, 7, 8, 9, 10, 11, 12], [14]]
    with pytest.raises(ValueError, match="3 phrases where 2"):
        GroundingFamily._spans(tokenizer, ids, 2)


def test_grounding_box_belongs_to_the_phrase_of_its_strongest_token(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8]
) -> None:
    detector = detectors["grounding-dino"]
    inputs = FAMILIES["grounding-dino"].encode(detector.model, detector.processor, image, ["a dog", "c"])
    length = inputs["input_ids"].shape[1]

    class Answer:
        logits = torch.full((1, 3, length), -9.0)
        pred_boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]] * 3])

    Answer.logits[0, 0, 2] = 3.0  # "d"
    Answer.logits[0, 1, 6] = 2.0  # "c"
    raw = FAMILIES["grounding-dino"].decode(detector.processor, Answer, inputs, 0.3, (40, 60), 2)
    assert raw.phrase_index.tolist() == [0, 1]
    np.testing.assert_allclose(raw.scores, torch.tensor([3.0, 2.0]).sigmoid())
    np.testing.assert_allclose(raw.boxes[0], [24, 16, 36, 24], atol=1e-4)


def test_periods_and_capitals_do_not_split_a_grounding_phrase(
    detectors: dict[str, TransformersDetector], image: NDArray[np.uint8]
) -> None:
    a = detectors["grounding-dino"].detect(image, ["St. Bernard", "cat?"], 0.05)
    b = detectors["grounding-dino"].detect(image, ["st bernard", "cat"], 0.05)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.phrase_index, b.phrase_index)


@pytest.mark.parametrize(
    ("kind", "phrases", "threshold", "message"),
    [
        ("owlvit", [], 0.3, "at least one word"),
        ("owlvit", ["a", "  "], 0.3, "at least one word"),
        ("owlvit", "a dog", 0.3, "a list of strings"),
        ("owlvit", ["a"], 1.5, "0..1, got 1.5"),
        ("owlvit", ["a"], float("nan"), "0..1, got nan"),
        ("owlvit", ["a very long phrase indeed"], 0.3, "this detector reads 16"),
        ("grounding-dino", ["a dog", "..."], 0.3, "at least one word"),
        ("grounding-dino", ["a dog"] * 20, 0.3, "this detector reads 48"),
    ],
)
def test_wrong_requests(
    detectors: dict[str, TransformersDetector],
    image: NDArray[np.uint8],
    kind: str,
    phrases: Any,
    threshold: float,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        detectors[kind].detect(image, phrases, threshold)


def test_float_images_are_refused(detectors: dict[str, TransformersDetector]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        detectors["owlvit"].detect(np.zeros((8, 8, 3), np.float32), ["a"])  # type: ignore[arg-type]


def test_the_number_of_boxes_is_limited(folders: dict[str, Path], image: NDArray[np.uint8]) -> None:
    full = load_detector(folders["grounding-dino"], nms_iou=None)
    all_boxes = full.detect(image, ["a dog"], 0.01)
    full.max_detections = 3
    np.testing.assert_array_equal(full.detect(image, ["a dog"], 0.01).boxes, all_boxes.boxes[:3])


def test_a_folder_that_is_no_detector(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(DetectorError, match="cannot be loaded"):
        load_detector(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DetectorError, match="cannot be loaded") as caught:
        load_detector(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folders["owlvit"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(key for key in tensors if key.startswith("box_head"))
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DetectorError, match=r"lacks 1 of its weights, e\.g\. box_head"):
        load_detector(tmp_path)


def test_another_kind_of_model_is_refused() -> None:
    class Other:
        class config:
            model_type = "omdet-turbo"

    with pytest.raises(DetectorError, match="one of grounding-dino, mm-grounding-dino, owlv2, owlvit"):
        TransformersDetector(Other(), None)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hqsam\[text\]'"):
        load_detector("owlvit")


def test_raw_boxes_are_cut_sorted_and_cleaned() -> None:
    boxes = [[-5, -5, 10, 10], [70, 5, 90, 9], [5, 5, 5, 9], [1, 2, 3, np.nan], [20, 20, 99, 99], [0, 0, 1, 1]]
    found = make_detections(boxes, [0.5, 0.9, 0.8, 0.9, 0.6, np.inf], [0, 1, 2, 3, 4, 5], (40, 60))
    assert found.boxes.tolist() == [[20, 20, 60, 40], [0, 0, 10, 10]]
    assert found.phrase_index.tolist() == [4, 0]


def test_suppression_ignores_the_phrase() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 1]))
    assert suppress(found, 0.7).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(suppress(found, 1.0).scores) == 3
    assert len(suppress(found.rows(slice(0)), 0.5).scores) == 0
    with pytest.raises(ValueError, match=r"0\.\.1, got 2"):
        suppress(found, 2)
