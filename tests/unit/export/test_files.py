"""What needs no tracing: operators that are replaced, the allow-list, files, messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hqsam.cli import main
from hqsam.errors import DataError, ExportError
from hqsam.export import MissingExtraError, OnnxPredictor, export_decoder, export_encoder, files, proof
from hqsam.export.operators import operator_counts, require_portable
from hqsam.export.predictor import _bilinear
from hqsam.export.rewriting import PortableOperators
from hqsam.postprocess import upscale_logits
from hqsam.registry import build_model, model_spec
from tests.helpers import ROOT

onnx = pytest.importorskip("onnx")


def small_graph(operator: str = "Add", domain: str = "") -> Any:
    """y = operator(x, weight)."""
    make = onnx.helper
    value = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3])
    result = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])
    weight = onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "weight")
    node = make.make_node(operator, ["x", "weight"], ["y"], domain=domain)
    graph = make.make_graph([node], "graph", [value], [result], [weight])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)


def test_replaced_operators_compute_the_same() -> None:
    draw = torch.Generator().manual_seed(0)
    taps = torch.randn(2, 9, 5 * 7, generator=draw)
    q, k, v = (torch.randn(2, 3, length, 4, generator=draw) for length in (5, 6, 6))
    keep = torch.tensor([[True] * 6, [True, False, True, False, True, True]])[:, None, None]
    bias = torch.randn(3, 5, 6, generator=draw)
    maps, rows, columns = (torch.randn(shape, generator=draw) for shape in ((2, 3, 4, 5), (3, 7, 5), (4, 6, 5)))

    def compute() -> list[torch.Tensor]:
        return [
            F.fold(taps, (5, 7), kernel_size=3, padding=1),
            F.scaled_dot_product_attention(q, k, v),
            F.scaled_dot_product_attention(q, k, v, attn_mask=keep),
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
            torch.einsum("bhwc,hkc->bhwk", maps, rows),
            torch.einsum("bhwc,wkc->bhwk", maps, columns),
            torch.einsum("bhwc,c->bhw", maps, rows[0, 0]),
            taps[:1].expand(4, -1, -1),
            taps.expand(2, -1, -1),
        ]

    plain = compute()
    with PortableOperators():
        portable = compute()
        with pytest.raises(NotImplementedError):
            F.fold(taps, (7, 9), kernel_size=3)
    for a, b in zip(plain, portable, strict=True):
        torch.testing.assert_close(a, b)


def test_graphs_with_other_operators_are_refused() -> None:
    require_portable(small_graph())
    assert operator_counts(small_graph()) == {"Add": 1}
    for operator, domain in (("Loop", ""), ("Einsum", ""), ("ScatterND", ""), ("Add", "com.microsoft")):
        with pytest.raises(ExportError, match=f"{domain}.*{operator}"):
            require_portable(small_graph(operator, domain))
    with pytest.raises(ExportError, match="MatMulInteger"):
        require_portable(small_graph("MatMulInteger"))
    require_portable(small_graph("MatMulInteger"), int8=True)


def test_a_file_that_is_not_proved_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "new" / "graph.onnx"

    def refuse(file: Path) -> None:
        assert file.is_file()
        raise ExportError("differs")

    with pytest.raises(ExportError, match="differs"):
        files.write_graph(small_graph(), path, {}, refuse)
    assert list(path.parent.iterdir()) == []
    size, answer = files.write_graph(small_graph(), path, {"hqsam.model": "m"}, lambda file: file.stat().st_size)
    assert size == answer == path.stat().st_size and [p.name for p in path.parent.iterdir()] == ["graph.onnx"]


def test_weights_beyond_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(files, "ONE_FILE_BYTES", 4)
    path = tmp_path / "graph.onnx"

    def run(file: Path) -> list[float]:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": np.ones(3, np.float32)})[0].tolist()

    size, answer = files.write_graph(small_graph(), path, {"hqsam.part": "decoder"}, run)
    assert answer == run(path) == [2.0, 3.0, 4.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx", "graph.onnx.data"]
    assert size >= 12
    assert files.describe_exported(path)["part"] == "decoder"


def test_inspect_tells_what_an_onnx_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    files.write_graph(small_graph(), path, {"hqsam.part": "encoder", "hqsam.model": "hq_vit_b"}, lambda _: None)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "encoder" in text and "hq_vit_b" in text and "x=(3)" in text and "Add=1" in text
    path.write_bytes(b"no graph")
    assert main(["inspect", str(path)]) == 2
    assert main(["inspect", str(tmp_path / "missing.onnx")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("hw", [(64, 64), (48, 80), (333, 7), (1, 5), (200, 150)])
def test_two_products_are_the_two_resizes(hw: tuple[int, int]) -> None:
    inside = (64 * hw[0] // max(hw) or 1, 64 * hw[1] // max(hw) or 1)
    low = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down, across = (_bilinear(inside[axis], hw[axis]) @ _bilinear(16, 64)[: inside[axis]] for axis in (0, 1))
    expected = upscale_logits(low, inside, hw, 64)[0, 0].numpy()
    assert np.allclose(down @ low[0, 0].numpy() @ across.T, expected, atol=1e-12)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_sentence(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    model = build_model(model_spec("hq_test_tiny"))
    with pytest.raises(MissingExtraError, match=rf"need {package} .*pip install 'hqsam\[onnx\]'"):
        export_decoder(model, tmp_path / "decoder.onnx")
    assert main(["export", "hq_test_tiny", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "hqsam[onnx]" in error and len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = build_model(model_spec("hq_test_tiny"))
    assert proof.prove_encoder(model, ["image_embeddings"], tmp_path / "encoder.onnx", "float32") is None
    assert "was not compared with the model: ONNX files need onnxruntime" in caplog.text
    with pytest.raises(MissingExtraError, match="need onnxruntime"):
        export_decoder(model, tmp_path / "decoder.onnx", dtype="int8")
    with pytest.raises(MissingExtraError, match="need onnxruntime"):
        OnnxPredictor(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype must be one of"),
        ({"opset": 17}, "opset must be 18 ... 23, got 17"),
        ({"interface": "official"}, "interface must be one of"),
        ({"masks": "three"}, "masks must be one of"),
        ({"fusion": "both"}, "fusion must be one of"),
        ({"separate": True, "fusion": "hq"}, "separate summands are those of"),
        ({"separate": True, "masks": "best"}, "separate summands are those of"),
        ({"separate": True, "full_size_masks": True}, "separate summands are those of"),
        ({"crop": True, "fusion": "sam"}, "cropped by its `hq_features`"),
        ({"crop": True, "interface": "published"}, "cropped by its `hq_features`"),
        ({"crop": True, "full_size_masks": True}, "cropped by its `hq_features`"),
        ({"winograd": True, "dtype": "float16"}, "rounds too much in float16"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_copied(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hqsam.export.exporting.exportable", lambda *_: pytest.fail("copied"))
    model = build_model(model_spec("hq_test_tiny"))
    with pytest.raises(ValueError, match=message):
        export_decoder(model, tmp_path / "decoder.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, untrained = build_model(model_spec("sam_test_tiny")), build_model(model_spec("hq_test_tiny"))
    untrained.head_state = "untrained"
    with pytest.raises(ValueError, match="plain SAM"):
        export_decoder(plain, tmp_path / "decoder.onnx", fusion="sum")
    with pytest.raises(ValueError, match="untrained"):
        export_encoder(untrained, tmp_path / "encoder.onnx")
    with pytest.raises(ExportError, match=r"ends with \.onnx"):
        export_encoder(plain, tmp_path / "encoder.pth")
    assert main(["export", "no_such_model", "--out", str(tmp_path)]) == 2
    assert main(["export", "missing.pth", "--out", str(tmp_path)]) == 2
    assert main(["export", str(ROOT / "hqsam/assets/hq_head.safetensors"), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "unknown model" in lines[0] and "missing.pth" in lines[1] and "whole model" in lines[2]
    assert list(tmp_path.iterdir()) == []


def test_files_that_the_predictor_refuses(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    with pytest.raises(DataError, match="not found"):
        OnnxPredictor(path, other)
    path.write_bytes(b"something")
    with pytest.raises(DataError, match="cannot open"):
        OnnxPredictor(path, other)

    def write(file: Path, part: str, weights: str, masks: str = "all") -> None:
        about = {"hqsam.part": part, "hqsam.weights": weights, "hqsam.masks": masks}
        files.write_graph(small_graph(), file, about if part else {}, lambda _: None)

    for first, second, message in (
        (("", "1"), ("decoder", "1"), "did not export"),
        (("decoder", "1"), ("encoder", "1"), "should be an exported encoder, but is the decoder"),
        (("encoder", "1"), ("decoder", "2"), "different models or weights"),
        (("encoder", "1"), ("decoder", "1", "auto"), "number of points"),
    ):
        write(path, *first)
        write(other, *second)
        with pytest.raises(DataError, match=message):
            OnnxPredictor(path, other)


def test_the_predictor_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom hqsam.export import OnnxPredictor"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=True)
