"""Exported files against torch, against the published decoders, and in the predictor without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, save_checkpoint
from hqsam.cli import main
from hqsam.errors import DataError, ExportError
from hqsam.export import OnnxPredictor, export_decoder, export_encoder, proof
from hqsam.export.files import describe_exported
from hqsam.export.graphs import DecoderGraph
from hqsam.export.operators import require_portable
from hqsam.features import weights_fingerprint
from hqsam.models import Sam
from hqsam.models.decoding import Shown
from hqsam.postprocess import upscale_logits
from hqsam.registry import build_model, create_model, model_spec
from hqsam.types import ImageFeatures, Prompts
from tests.helpers import ROOT, fill_parameters, require_oracle
from tests.parity.oracles import build_pair

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow
SIDE, LOW = 128, 32
SIZES = [(SIDE, 96), (50, SIDE), (SIDE, SIDE), (SIDE, 1)]


def close(found: Any, expected: Any, limit: float = 1e-4) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    return found.shape == expected.shape and np.abs(found - expected).max() <= limit * np.abs(expected).max()


def session(path: Path) -> Any:
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def draw_prompts(count: int, points: int, *, masks: bool, seed: int = 0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand((count, points, 2), generator=generator) * SIDE
    kinds = torch.randint(-1, 4, (count, points), generator=generator)
    logits = torch.randn((count, 1, LOW, LOW), generator=generator) * 4 if masks else None
    return Prompts(coords, kinds, logits)


def features_of(model: Sam, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    channels = int(model.image_encoder.early_channels)
    return ImageFeatures(
        torch.randn((1, 256, 8, 8), generator=generator), torch.randn((1, channels, 8, 8), generator=generator)
    )


@pytest.fixture(scope="module")
def hq() -> Sam:
    return fill_parameters(build_model(model_spec("hq_test_tiny"))).eval()


@pytest.fixture(scope="module")
def folder(hq: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HQ model in both parts, with masks of the original size."""
    out = tmp_path_factory.mktemp("hq")
    written = export_decoder(hq, out / "decoder.onnx", full_size_masks=True, name="hq_test_tiny")
    assert written.difference is not None and written.difference < 1e-4
    written = export_encoder(hq, out / "encoder.onnx", name="hq_test_tiny")
    assert written.difference is not None and written.difference < 1e-4
    return out


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_encoder(hq: Sam, folder: Path, hw: tuple[int, int], batch: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch, *hw, 3), dtype=np.uint8)
    embedding, hq_features = session(folder / "encoder.onnx").run(None, {"image": images})
    features = hq.image_encoder(hq.preprocess(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert close(embedding, features.image_embedding) and close(hq_features, hq.hq_features(features))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(("count", "points"), [(1, 1), (1, 2), (5, 1), (2, 7), (1, 0)])
@torch.no_grad()
def test_decoder(hq: Sam, folder: Path, count: int, points: int, masks: bool) -> None:
    if not points and not masks:
        pytest.skip("says nothing")
    features, prompts = features_of(hq), draw_prompts(count, points, masks=masks)
    expected = hq.decode(features, prompts, candidates=(0, 1, 2, 3))
    hq_features = hq.hq_features(features)
    inputs = {"image_embeddings": features.image_embedding.numpy(), "hq_features": hq_features.numpy()}
    inputs |= proof.feed(prompts, (LOW, LOW)) | {"orig_im_size": np.array([90, 200], np.float32)}
    run = session(folder / "decoder.onnx").run
    low, iou, full = run(["low_res_masks", "iou_predictions", "masks"], inputs)
    assert expected.hq_logits is not None
    logits = expected.sam_logits + expected.hq_logits
    assert close(low, logits) and close(iou, expected.iou)
    assert close(full, upscale_logits(logits, (58, SIDE), (90, 200), SIDE))
    one_flag = run(["low_res_masks"], inputs | {"has_mask_input": inputs["has_mask_input"][:1]})[0]
    assert np.array_equal(one_flag, low)


@torch.no_grad()
def test_separate_summands(hq: Sam, folder: Path, tmp_path: Path) -> None:
    written = export_decoder(hq, tmp_path / "decoder.onnx", masks="all", separate=True)
    assert written.difference is not None and written.difference < 1e-4
    features, prompts = features_of(hq), draw_prompts(3, 2, masks=True)
    hq_features = hq.hq_features(features)
    expected = hq.decode(features, prompts, candidates=(0, 1, 2, 3))
    inputs = {"image_embeddings": features.image_embedding.numpy(), "hq_features": hq_features.numpy()}
    names = ["low_res_masks_sam", "low_res_masks_hq", "iou_predictions"]
    sam, own, iou = session(tmp_path / "decoder.onnx").run(names, inputs | proof.feed(prompts, (LOW, LOW)))
    assert close(sam, expected.sam_logits) and close(own, expected.hq_logits) and close(iou, expected.iou)
    with pytest.raises(DataError, match="gives SAM's and HQ's masks apart"):
        OnnxPredictor(folder / "encoder.onnx", tmp_path / "decoder.onnx")


@pytest.mark.parametrize("winograd", [False, True])
@torch.no_grad()
def test_masks_of_a_part_of_the_picture(hq: Sam, tmp_path: Path, winograd: bool) -> None:
    path = tmp_path / "decoder.onnx"
    export_decoder(hq, path, masks="all", separate=True, crop=True, winograd=winograd)
    features, prompts = features_of(hq), draw_prompts(3, 2, masks=True)
    hq_features = hq.hq_features(features)
    run = session(path).run
    names = ["low_res_masks_sam", "low_res_masks_hq", "iou_predictions"]
    for input_hw in [*SIZES, (SIDE, 70), (33, 20)]:
        shown = Shown.of_input(input_hw, (8, 8))
        expected = hq.decode(features, prompts, candidates=(0, 1, 2, 3), shown=input_hw)
        inputs = {"image_embeddings": features.image_embedding.numpy(), "hq_features": shown.cut(hq_features).numpy()}
        sam, own, iou = run(names, inputs | proof.feed(prompts, (LOW, LOW)))
        assert sam.shape[2:] == own.shape[2:] == tuple(4 * cells for cells in shown.cells)
        rows, columns = shown.logits
        assert expected.hq_logits is not None and close(iou, expected.iou)
        assert close(sam[..., :rows, :columns], expected.sam_logits[..., :rows, :columns])
        assert close(own[..., :rows, :columns], expected.hq_logits[..., :rows, :columns])


def test_filler_takes_no_part(hq: Sam, folder: Path) -> None:
    features, prompts = features_of(hq), draw_prompts(2, 2, masks=False)
    inputs = {
        "image_embeddings": features.image_embedding.numpy(),
        "hq_features": hq.hq_features(features).detach().numpy(),
    }
    inputs |= proof.feed(prompts, (LOW, LOW)) | {"orig_im_size": np.array([64, 64], np.float32)}
    wider = inputs | {
        "point_coords": np.pad(inputs["point_coords"], ((0, 0), (0, 3), (0, 0)), constant_values=9),
        "point_labels": np.pad(inputs["point_labels"], ((0, 0), (0, 3)), constant_values=-2),
    }
    run = session(folder / "decoder.onnx").run
    assert close(run(["low_res_masks"], wider)[0], run(["low_res_masks"], inputs)[0], 1e-5)


def test_what_the_files_say(hq: Sam, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("encoder", "decoder"):
        about = describe_exported(folder / f"{part}.onnx")
        assert about["part"] == part and about["model"] == "hq_test_tiny" and about["fusion"] == "sum"
        assert about["image_size"] == "128" and about["opset"] == "18" and about["mask_threshold"] == "0.0"
        assert about["weights"] == weights_fingerprint(hq)
        proto = onnx.load(folder / f"{part}.onnx")
        onnx.checker.check_model(proto, full_check=True)
        require_portable(proto)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
        assert str(ROOT).encode() not in proto.SerializeToString()
    assert describe_exported(folder / "encoder.onnx")["inputs"] == {"image": "(batch, height, width, 3)"}
    inputs = describe_exported(folder / "decoder.onnx")["inputs"]
    assert inputs["point_coords"] == "(num_prompts, num_points, 2)" and inputs["has_mask_input"] == "(num_flags)"
    assert main(["inspect", str(folder / "decoder.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["low_res_masks"] == "(num_prompts, 4, 32, 32)"


@pytest.mark.parametrize("hw", [(48, 80), (200, 150), (7, 300)])
def test_predictor(hq: Sam, folder: Path, hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    ours, exported = SamPredictor(hq), OnnxPredictor(folder / "encoder.onnx", folder / "decoder.onnx", threads=1)
    with pytest.raises(RuntimeError, match="no image is set"):
        exported.predict(box=[0, 0, 4, 4])
    ours.set_image(image)
    exported.set_image(image)
    assert close(exported.get_image_embedding(), ours.get_image_embedding())
    h, w = hw
    box, boxes = [1, 1, w - 2, h - 2], [[w * i / 20, 0, w * (i + 2) / 20, h - 1] for i in range(10)]
    logits = np.random.default_rng(1).normal(0, 4, (1, LOW, LOW))
    points = [[w / 2, h / 2], [w / 3, h / 4]]
    for prompt in (
        {"box": box},
        {"box": boxes},
        {"point_coords": points, "point_labels": [1, 0]},
        {"point_coords": points[:1], "point_labels": [1], "box": box, "mask_input": logits},
        {"mask_input": logits},
    ):
        for multimask in (False, True):
            for as_logits in (False, True):
                options = {**prompt, "multimask_output": multimask, "return_logits": as_logits}
                a, b = exported.predict(**options), ours.predict(**options)
                assert close(a[1], b[1]) and close(a[2], b[2])
                assert close(a[0], b[0]) if as_logits else (a[0] == b[0]).mean() >= 0.999
    with pytest.raises(ValueError, match="no prompt"):
        exported.predict()
    with pytest.raises(ValueError, match=r"mask_input must have shape \(1, 32, 32\)"):
        exported.predict(box=box, mask_input=np.zeros((1, 16, 16)))
    with pytest.raises(ValueError, match="must be floating-point logits, got bool"):
        exported.predict(box=box, mask_input=np.zeros((1, LOW, LOW), bool))
    with pytest.raises(ValueError, match="inverted"):
        exported.predict(box=[9, 0, 1, 1])


def test_prediction_without_torch(folder: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from hqsam.export import OnnxPredictor
predictor = OnnxPredictor({str(folder / "encoder.onnx")!r}, {str(folder / "decoder.onnx")!r})
predictor.set_image(np.zeros((40, 60, 3), np.uint8))
assert predictor.predict(box=[1, 1, 30, 30])[0].shape == (1, 40, 60)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=True)


@pytest.mark.parity
@pytest.mark.parametrize("hq_only", [False, True])
@torch.no_grad()
def test_published_hq_decoder(hq_only: bool, tmp_path: Path) -> None:
    oracle, ours = build_pair(model_spec("hq_test_tiny"))
    published = require_oracle("segment_anything_hq.utils.onnx")
    fusion = "hq" if hq_only else "sum"
    path = tmp_path / "decoder.onnx"
    masks = "single" if hq_only else "best"
    export_decoder(ours, path, fusion=fusion, masks=masks, interface="published", full_size_masks=True)
    reference = published.SamOnnxModel(oracle, hq_token_only=hq_only, multimask_output=not hq_only)
    compare_with_published(reference, ours, path, ["image_embeddings", "interm_embeddings"])
    outputs_of_all_blocks(path)


def outputs_of_all_blocks(path: Path) -> None:
    """HQ-SAM's own programs give a stack of four, of which only the first is read."""
    generator = np.random.default_rng(0)
    feed = {
        "image_embeddings": generator.standard_normal((1, 256, 8, 8)).astype(np.float32),
        "point_coords": np.array([[[10, 10], [50, 60]]], np.float32),
        "point_labels": np.array([[2, 3]], np.float32),
        "mask_input": np.zeros((1, 1, 32, 32), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([100, 128], np.float32),
    }
    stack = generator.standard_normal((4, 1, 8, 8, 32)).astype(np.float32)
    run = session(path).run
    four, one = (run(["low_res_masks"], {**feed, "interm_embeddings": part})[0] for part in (stack, stack[:1]))
    assert np.array_equal(four, one)


@pytest.mark.parametrize("head", ["mask", "early", "sam_token"])
def test_heads_of_comparisons_are_refused(head: str, tmp_path: Path) -> None:
    model = create_model("hq_test_tiny", device="cpu", head=head)
    model.head_state = "trained"
    for export in (export_encoder, export_decoder):
        with pytest.raises(ExportError, match=f"head='{head}'"):
            export(model, tmp_path / "file.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
@torch.no_grad()
def test_published_sam_decoder(tmp_path: Path) -> None:
    oracle, ours = build_pair(model_spec("sam_test_vit"))
    published = require_oracle("segment_anything.utils.onnx")
    path = tmp_path / "decoder.onnx"
    export_decoder(ours, path, masks="auto", full_size_masks=True)
    reference = published.SamOnnxModel(oracle, return_single_mask=True)
    compare_with_published(reference, ours, path, ["image_embeddings"])


def compare_with_published(reference: Any, ours: Sam, path: Path, of_image: list[str]) -> None:
    """The same inputs under the same names give the same three outputs; then several prompts against one by one."""
    features = features_of(ours)
    tensors = [features.image_embedding, features.early_feature.permute(0, 2, 3, 1)[None].contiguous()][: len(of_image)]
    images = {name: tensor.numpy() for name, tensor in zip(of_image, tensors, strict=True)}
    exported = session(path)
    published_names = [*of_image, "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
    assert [value.name for value in exported.get_inputs()] == published_names
    names = ["masks", "iou_predictions", "low_res_masks"]
    assert {value.name for value in exported.get_outputs()} == set(names)
    for points, has_mask, size in ((1, 0, (60, 128)), (2, 1, (300, 200)), (3, 1, (128, 128)), (6, 0, (77, 51))):
        prompts = draw_prompts(4, points, masks=True, seed=points)
        arrays = proof.feed(prompts, (LOW, LOW)) | {"has_mask_input": np.full(1, has_mask, np.float32)}
        arrays["orig_im_size"] = np.array(size, np.float32)
        together = exported.run(names, images | arrays)
        for row in range(4):
            one = {name: arrays[name][row : row + 1] for name in ("point_coords", "point_labels", "mask_input")}
            one |= {name: arrays[name] for name in ("has_mask_input", "orig_im_size")}
            found = exported.run(names, images | one)
            expected = reference(*tensors, *(torch.from_numpy(one[name]) for name in published_names[len(of_image) :]))
            for a, b, c in zip(found, expected, together, strict=True):
                assert close(a, b) and close(c[row : row + 1], b)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_reduced_number_types(hq: Sam, folder: Path, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    written = export_decoder(hq, path, dtype=dtype)
    assert written.difference is not None and 1e-5 < written.difference < proof.LIMITS[dtype]
    assert written.size_bytes < 0.6 * (folder / "decoder.onnx").stat().st_size
    assert written.metadata["hqsam.dtype"] == describe_exported(path)["dtype"] == dtype
    features, prompts = features_of(hq), draw_prompts(2, 3, masks=True)
    hq_features = hq.hq_features(features).detach()
    inputs = {"image_embeddings": features.image_embedding.numpy(), "hq_features": hq_features.numpy()}
    low, iou = session(path).run(None, inputs | proof.feed(prompts, (LOW, LOW)))
    assert low.dtype == iou.dtype == np.float32 and low.shape == (2, 4, LOW, LOW) and iou.shape == (2, 4)
    if dtype == "float16":
        with torch.no_grad():
            expected = hq.decode(features, prompts, candidates=(0, 1, 2, 3))
        assert expected.hq_logits is not None and close(low, expected.sam_logits + expected.hq_logits, 0.05)


def test_plain_sam_with_a_newer_opset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "sam.safetensors"
    sam = fill_parameters(build_model(model_spec("sam_test_vit"))).eval()
    save_checkpoint(sam, model)
    assert main(["export", str(model), "--out", str(tmp_path / "out"), "--opset", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in rows] == ["encoder", "decoder"]
    assert all(row["difference"] < 1e-4 and row["metadata"]["hqsam.opset"] == "20" for row in rows)
    exported = OnnxPredictor(tmp_path / "out/encoder.onnx", tmp_path / "out/decoder.onnx")
    ours = SamPredictor(create_model("sam_test_vit", model, device="cpu"))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for predictor in (ours, exported):
        predictor.set_image(image)
    for multimask in (False, True):
        a, b = (p.predict(box=[5, 5, 60, 50], multimask_output=multimask) for p in (exported, ours))
        assert a[0].shape == b[0].shape and close(a[1], b[1]) and close(a[2], b[2])


def test_a_file_that_differs_is_an_error(folder: Path) -> None:
    other = fill_parameters(build_model(model_spec("hq_test_tiny")), seed=1).eval()
    graph = DecoderGraph(other, fusion="sum", masks="all")
    with pytest.raises(ExportError, match="the exported decoder differs from the model by"):
        proof.prove_decoder(other, graph, True, folder / "decoder.onnx", "float32")
    with pytest.raises(ExportError, match="the exported encoder differs from the model by"):
        proof.prove_encoder(other, ["image_embeddings"], folder / "encoder.onnx", "float32")
