"""From a module to an ONNX graph: tracing, number types, whatever a graph needs to stand alone."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hqsam.export.extra import import_extra
from hqsam.models import Sam

ExportDtype = Literal["float32", "float16", "int8"]
DTYPES: tuple[ExportDtype, ...] = ("float32", "float16", "int8")

Axes = Mapping[int, str]
"""Names of the dimensions that may have any length, by position; "4*rows" is four times as long as "rows"."""

_NO_LIMIT = 2**62
_SMALL = 64
"""Matrices with a side below it stay in float32: coordinates, and rows of single output tokens."""


def exportable(model: Sam, dtype: ExportDtype) -> Sam:
    """A copy of the model on the CPU in the number type of the graph; int8 begins as float32.

    The constants that normalise a picture stay in float32.
    """
    mean, std = model.pixel_mean.float().cpu(), model.pixel_std.float().cpu()
    twin = copy.deepcopy(model).to("cpu", torch.float16 if dtype == "float16" else torch.float32).eval()
    twin.pixel_mean, twin.pixel_std = mean, std
    return twin.requires_grad_(False)


def trace(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Axes]],
    outputs: Mapping[str, Axes],
    opset: int,
    *,
    largest_constant: int = _NO_LIMIT,
    at_most: Mapping[str, int] | None = None,
) -> Any:
    """Trace a module to an `onnx.ModelProto` whose weights are inside.

    Args:
        module: in eval mode.
        inputs: an example and the free dimensions of each input, in the order of `forward(first, *others)`. Equal
            names mean equal lengths.
        outputs: free dimensions of the outputs.
        opset: version of the operator set.
        largest_constant: numbers of a tensor that is computed here because it depends on constants alone; what is
            larger, and larger than what it is computed from, every runtime computes when it opens the file.
        at_most: limits of dimensions, by name.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        import_extra(package)
    optimizer = import_extra("onnxscript.optimizer")
    dims = _dimensions({name for _, axes in inputs.values() for name in axes.values()}, at_most or {})
    shapes = [{axis: dims[name] for axis, name in axes.items()} or None for _, axes in inputs.values()]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(shapes[0], tuple(shapes[1:])) if len(shapes) > 1 else (shapes[0],),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        optimizer.optimize(
            program.model,  # type: ignore[union-attr]
            onnx_shape_inference=False,
            input_size_limit=_NO_LIMIT,
            output_size_limit=largest_constant,
        )
    proto = program.model_proto  # type: ignore[union-attr]
    _forget_the_source(proto)
    _name_axes(proto.graph.input, {name: axes for name, (_, axes) in inputs.items()})
    _name_axes(proto.graph.output, outputs)
    return proto


def _dimensions(names: set[str], at_most: Mapping[str, int]) -> dict[str, Any]:
    """What `torch.export` calls the dimensions of these names."""
    split = {name: name.rpartition("*")[::2] for name in names}
    plain = {base: torch.export.Dim(base, max=at_most.get(base)) for _, base in split.values()}
    return {name: int(factor) * plain[base] if factor else plain[base] for name, (factor, base) in split.items()}


def to_int8(proto: Any, prove: Callable[[Path], object]) -> Any:
    """Store the weights of large matrix products as 8-bit integers; activations are quantised as they come.

    Args:
        proto: an `onnx.ModelProto` in float32; used up.
        prove: looks at the float32 file before it is quantised: afterwards a mistake and a rounding look alike.

    Returns:
        Another one. Convolutions, and products with a side below 64, stay as they are.
    """
    onnx = import_extra("onnx")
    quantization = import_extra("onnxruntime.quantization")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]
    weights = {node.name: shapes.get(node.input[1], ()) for node in products}
    kept = [name for name, shape in weights.items() if len(shape) != 2 or min(shape) < _SMALL]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        # beside the graph, since a single file ends at 2 GB
        onnx.save_model(proto, source, save_as_external_data=True, location="weights")
        prove(source)
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=kept,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
        result = onnx.load(target)
    _forget_the_source(result)
    return result


def add_full_size_masks(proto: Any, image_size: int) -> None:
    """Add SAM's postprocessing: an input `orig_im_size` (2,) and an output `masks` (N, M, H, W), float32 logits.

    The low-resolution logits are upsampled to the model's frame, cut to the resized picture and resized to the
    original, as in SAM's own export.

    Args:
        proto: an `onnx.ModelProto` with the output `low_res_masks`; changed in place.
        image_size: side S of the model's square input.
    """
    onnx = import_extra("onnx")
    make, graph, kinds = onnx.helper, proto.graph, onnx.TensorProto

    def constant(name: str, values: Sequence[float], kind: int) -> str:
        graph.initializer.append(make.make_tensor(f"full_size.{name}", kind, [len(values)], values))
        return f"full_size.{name}"

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = output if output == "masks" else f"full_size.{output}"
        graph.node.append(make.make_node(operator, inputs, [name], f"full_size/{output}", **attributes))
        return name

    linear = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    zeros, axes = constant("zeros", [0, 0], kinds.INT64), constant("axes", [2, 3], kinds.INT64)
    one_pixel, half = constant("one", [1.0], kinds.FLOAT), constant("half", [0.5], kinds.FLOAT)
    times4 = constant("scales", [1.0, 1.0, 4.0, 4.0], kinds.FLOAT)
    side = constant("side", [float(image_size)], kinds.FLOAT)

    longest = add("ReduceMax", ["orig_im_size"], "longest", keepdims=1)
    scale = add("Div", [side, longest], "scale")
    rounded = add("Add", [add("Mul", ["orig_im_size", scale], "scaled"), half], "rounded")
    inside = add("Max", [add("Floor", [rounded], "floor"), one_pixel], "inside")
    frame = add("Resize", ["low_res_masks", "", times4], "frame", **linear)
    ends = add("Cast", [inside], "ends", to=kinds.INT64)
    content = add("Slice", [frame, zeros, ends, axes], "content")
    lead = add("Shape", ["low_res_masks"], "lead", start=0, end=2)
    size = add("Cast", ["orig_im_size"], "size", to=kinds.INT64)
    shape = add("Concat", [lead, size], "shape", axis=0)
    add("Resize", [content, "", "", shape], "masks", **linear)
    graph.input.append(make.make_tensor_value_info("orig_im_size", kinds.FLOAT, [2]))
    low = next(value for value in graph.output if value.name == "low_res_masks")
    masks_of = low.type.tensor_type.shape.dim[1]
    dims = ["num_prompts", masks_of.dim_value or masks_of.dim_param, "original_height", "original_width"]
    graph.output.append(make.make_tensor_value_info("masks", kinds.FLOAT, dims))


def _forget_the_source(proto: Any) -> None:
    """Drop what the exporter notes about the program it ran in, paths among it, and shapes that it inferred."""
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("doc_string")
    proto.graph.ClearField("value_info")
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _name_axes(values: Any, axes: Mapping[str, Axes]) -> None:
    for value in values:
        for axis, name in axes[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' talk about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
