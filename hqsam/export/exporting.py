"""Export a model's encoder and decoder to ONNX files that are proved against the model before they appear."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hqsam.errors import ExportError
from hqsam.export.conversion import DTYPES, Axes, ExportDtype, add_full_size_masks, exportable, to_int8, trace
from hqsam.export.extra import import_extra
from hqsam.export.files import write_graph
from hqsam.export.graphs import MASKS, DecoderGraph, EncoderGraph, Masks, image_inputs
from hqsam.export.operators import operator_counts, require_portable
from hqsam.export.proof import prove_decoder, prove_encoder
from hqsam.features import weights_fingerprint
from hqsam.models import FULL_HEAD, Sam, head_title
from hqsam.models.encoders import STRIDE
from hqsam.types import Fusion

Interface = Literal["hqsam", "published"]
"""What passes from the encoder to the decoder of an HQ model: `hq_features`, computed once per picture, or the
`interm_embeddings` of HQ-SAM's own export, with which each prompt computes them again."""

OPSETS = (18, 23)
"""Lowest and highest version of the operator set."""
DEFAULT_OPSET = 18

_logger = logging.getLogger(__name__)

_PROMPTS, _TOKENS = "num_prompts", "num_points"
_LARGEST_CONSTANT = 2**18
"""Of the decoder: the positions of the embedding's grid are larger, and would be a fifth of the file."""
_EXAMPLE_PROMPTS, _EXAMPLE_TOKENS = 2, 3
_CELLS = ("rows", "columns")
_PART: Axes = {2: "4*rows", 3: "4*columns"}
"""Free dimensions of a part of the features, and of its masks."""


@dataclass(frozen=True)
class ExportedFile:
    """What was written.

    Attributes:
        path: the file; weights beyond 2 GB are beside it, in a file of the same name with `.data` at its end.
        size_bytes: of both.
        operators: how often each operator occurs.
        metadata: what the file says about itself.
        difference: the largest difference from the model relative to its largest magnitude, over all outputs and two
            aspect ratios; None where onnxruntime is not installed and nothing was compared.
    """

    path: Path
    size_bytes: int
    operators: Mapping[str, int]
    metadata: Mapping[str, str]
    difference: float | None


def export_encoder(
    model: Sam,
    path: str | PathLike[str],
    *,
    dtype: ExportDtype = "float32",
    fusion: Fusion | None = None,
    interface: Interface = "hqsam",
    opset: int = DEFAULT_OPSET,
    name: str = "",
) -> ExportedFile:
    """Write the image encoder, with preprocessing, as an ONNX file.

    Input `image` (B, height, width, 3) uint8 RGB: pictures resized so that their long side is the model's input size.
    Outputs in float32: `image_embeddings` (B, 256, h, w), and with HQ `hq_features` (B, 32, 4h, 4w).

    Args:
        model: on any device, in any number type.
        path: ends with `.onnx`; an old file is replaced once the new one is complete and proved.
        dtype: of the weights and the arithmetic; "int8" is dynamic quantisation of large matrix products.
        fusion: what the decoder will make; "sam" needs no HQ features. None is the model's default.
        interface: "published" writes HQ-SAM's `interm_embeddings` (1, B, h, w, C) in place of `hq_features`.
        opset: version of the operator set.
        name: the model's name, for the metadata.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ExportError: impossible options; a graph with operators that runtimes refuse; a file that differs from the
            model. Nothing is written then.
        ValueError: a fusion that the model cannot do.
    """
    path = _checked(path, dtype, interface, opset)
    chosen = model.resolve_fusion(fusion)
    _require_whole_head(model, chosen)
    use_hq, published = chosen != "sam", interface == "published"
    twin, side = exportable(model, dtype), model.image_size
    graph = EncoderGraph(twin, use_hq=use_hq, published=published)
    example = torch.zeros((2, side * 3 // 4, side // 2, 3), dtype=torch.uint8)
    outputs: dict[str, Axes] = {
        output: {1: "batch"} if output == "interm_embeddings" else {0: "batch"} for output in graph.output_names
    }
    proto = trace(graph, {"image": (example, {0: "batch", 1: "height", 2: "width"})}, outputs, opset)
    about = _about(model, model=name, part="encoder", dtype=dtype, fusion=chosen, interface=interface, opset=str(opset))
    return _finish(proto, path, dtype, about, partial(prove_encoder, model, graph.output_names))


def export_decoder(
    model: Sam,
    path: str | PathLike[str],
    *,
    dtype: ExportDtype = "float32",
    fusion: Fusion | None = None,
    masks: Masks = "all",
    full_size_masks: bool = False,
    interface: Interface = "hqsam",
    separate: bool = False,
    crop: bool = False,
    winograd: bool = False,
    opset: int = DEFAULT_OPSET,
    name: str = "",
) -> ExportedFile:
    """Write the prompt encoder and the mask decoder as an ONNX file, for N prompts of one picture.

    Inputs in float32, with the names and the meaning of SAM's own export: `image_embeddings` (1, 256, h, w),
    `hq_features` (1, 32, 4h, 4w) with HQ, `point_coords` (N, K, 2) xy in pixels of the resized picture, `point_labels`
    (N, K): 1 inside, 0 outside, 2 and 3 box corners, -1 SAM's padding token, -2 filler that takes no part;
    `mask_input` (N, 1, 4h, 4w) logits, `has_mask_input` (N,) or (1,). Outputs: `low_res_masks` (N, M, 4h, 4w) logits
    and `iou_predictions` (N, M).

    Args:
        model: as in `export_encoder`.
        path: as in `export_encoder`.
        dtype: as in `export_encoder`.
        fusion: "sum", "hq" or "sam"; None is the model's default.
        masks: "all", SAM's candidates 0 to 3, of which 0 answers clear prompts and 1 to 3 ambiguous ones; "single",
            candidate 0; "best", the best-scored of 1 to 3; "auto", as SAM's export with `--return-single-mask`: the
            best of 1 to 3 for prompts of one or two tokens, else 0. `fusion="hq"` has one mask in any case, beside the
            scores of these.
        full_size_masks: also read `orig_im_size` (2,), height and width, and return `masks` (N, M, H, W) logits.
        interface: "published" reads HQ-SAM's `interm_embeddings` (any, 1, h, w, C) in place of `hq_features`.
        separate: return the two summands of `fusion="sum"` in place of `low_res_masks`, so that a program can show
            either or their sum after one call: `low_res_masks_sam` (N, M, 4h, 4w), SAM's logits beside the HQ token
            (all but those of plain SAM, where it takes no part), and `low_res_masks_hq` (N, 1, 4h, 4w).
        crop: `hq_features` may also be the top-left (1, 32, 4a, 4b) of the features, and masks are then of that part,
            (N, M, 4a, 4b): the padding of pictures that are not square need not be decoded. The last two of its rows
            and columns differ from those of the whole where it was cut.
        winograd: compute the 3x3 convolution by Winograd's minimal filtering: for onnxruntime-web on a processor. In
            float32 alone.
        opset: version of the operator set.
        name: the model's name, for the metadata.

    Raises:
        MissingExtraError, ExportError, ValueError: as in `export_encoder`.
    """
    path = _checked(path, dtype, interface, opset)
    if masks not in MASKS:
        raise ExportError(f"masks must be one of {MASKS}, got {masks!r}")
    chosen = model.resolve_fusion(fusion)
    _require_whole_head(model, chosen)
    if model.resolve_score(None, chosen) != "sam":
        _logger.warning("the score head is left out: the file's scores, and its best mask, are by SAM's own score")
    graph_of = partial(
        DecoderGraph,
        fusion=chosen,
        masks=masks,
        published=interface == "published",
        separate=separate,
        crop=crop,
        winograd=winograd,
    )
    _check_options(graph_of(model), dtype, full_size_masks)
    graph = graph_of(exportable(model, dtype))
    proto = _traced_decoder(graph, opset)
    if full_size_masks:
        add_full_size_masks(proto, model.image_size)
    about = _about(
        model,
        model=name,
        part="decoder",
        dtype=dtype,
        fusion="separate" if separate else chosen,
        interface=interface,
        opset=str(opset),
        masks=masks,
    )
    return _finish(proto, path, dtype, about, partial(prove_decoder, model, graph, full_size_masks))


def _check_options(graph: DecoderGraph, dtype: ExportDtype, full_size_masks: bool) -> None:
    """Refuse options of a decoder that exclude each other."""
    fusion, masks = graph.fusion, graph.choice
    if graph.separate and (fusion != "sum" or masks not in ("all", "single") or full_size_masks):
        raise ExportError(
            'separate summands are those of fusion="sum", of masks="all" or "single" and at low resolution; got '
            f"fusion={fusion!r}, masks={masks!r}, full_size_masks={full_size_masks}"
        )
    if graph.crop and (fusion == "sam" or graph.published or full_size_masks):
        raise ExportError("a decoder is cropped by its `hq_features`, and its masks are of low resolution")
    if graph.winograd and dtype != "float32":
        raise ExportError(f"winograd rounds too much in {dtype}; it takes float32")


def _traced_decoder(graph: DecoderGraph, opset: int) -> Any:
    part = _PART if graph.crop else {}
    outputs: dict[str, Axes] = {output: {0: _PROMPTS, **part} for output in graph.output_names}
    outputs["iou_predictions"] = {0: _PROMPTS}
    most = dict.fromkeys(_CELLS, graph.model.image_size // STRIDE)
    inputs = _decoder_inputs(graph.model, graph)
    proto = trace(graph, inputs, outputs, opset, largest_constant=_LARGEST_CONSTANT, at_most=most)
    # every use of the flags broadcasts, so that one flag answers for all prompts
    _input(proto, "has_mask_input").type.tensor_type.shape.dim[0].dim_param = "num_flags"
    # published programs give the features of all global blocks; the first is read
    if "interm_embeddings" in graph.input_names:
        _input(proto, "interm_embeddings").type.tensor_type.shape.dim[0].dim_param = "num_blocks"
    return proto


def _decoder_inputs(model: Sam, graph: DecoderGraph) -> dict[str, tuple[Tensor, Axes]]:
    """An example of each input and its free dimensions."""
    grid = model.image_size // STRIDE
    early = int(model.image_encoder.early_channels)  # type: ignore[arg-type]
    of_image = {"hq_features": (1, 32, 4 * grid, 4 * grid), "interm_embeddings": (1, 1, grid, grid, early)}
    inputs: dict[str, tuple[Tensor, Axes]] = {"image_embeddings": (torch.zeros(1, 256, grid, grid), {})}
    for name in image_inputs(graph.fusion != "sam", graph.published):
        inputs[name] = (torch.zeros(of_image[name]), {})
    if graph.crop:  # an example of other lengths than the whole: these would be taken for fixed ones
        inputs["hq_features"] = (torch.zeros(1, 32, 4 * (grid // 2), 4 * (grid // 2 + 1)), _PART)
    n, k = _EXAMPLE_PROMPTS, _EXAMPLE_TOKENS
    inputs["point_coords"] = (torch.zeros(n, k, 2), {0: _PROMPTS, 1: _TOKENS})
    inputs["point_labels"] = (torch.ones(n, k), {0: _PROMPTS, 1: _TOKENS})
    inputs["mask_input"] = (torch.zeros(n, 1, 4 * grid, 4 * grid), {0: _PROMPTS})
    inputs["has_mask_input"] = (torch.zeros(n), {0: _PROMPTS})
    return inputs


def _input(proto: Any, name: str) -> Any:
    return next(value for value in proto.graph.input if value.name == name)


def _require_whole_head(model: Sam, fusion: Fusion) -> None:
    """Refuse heads that are made for comparisons: what the files take and give would be another thing for each."""
    if fusion != "sam" and model.head != FULL_HEAD:
        raise ExportError(
            f"this model's head is {head_title(str(model.head))} (head={model.head!r}); the published head alone is "
            'exported, or plain SAM with fusion="sam"'
        )


def _checked(path: str | PathLike[str], dtype: str, interface: str, opset: int) -> Path:
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"an ONNX file ends with .onnx, got {path}")
    if dtype not in DTYPES:
        raise ExportError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if dtype == "int8":
        import_extra("onnxruntime")
    if interface not in get_args(Interface):
        raise ExportError(f"interface must be one of {get_args(Interface)}, got {interface!r}")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset must be {OPSETS[0]} ... {OPSETS[1]}, got {opset}")
    return path


def _about(sam: Sam, **entries: str) -> dict[str, str]:
    entries |= {
        "version": _version(),
        "image_size": str(sam.image_size),
        "mask_threshold": str(sam.mask_threshold),
        "weights": weights_fingerprint(sam),
    }
    return {f"hqsam.{key}": value for key, value in entries.items()}


def _version() -> str:
    try:
        return version("hqsam")
    except PackageNotFoundError:  # the source tree alone
        return "unknown"


def _finish(
    proto: Any,
    path: Path,
    dtype: ExportDtype,
    about: Mapping[str, str],
    prove: Callable[[Path, ExportDtype], float | None],
) -> ExportedFile:
    """Quantise if that is wanted, check the operators, describe, write and prove."""
    if dtype == "int8":
        proto = to_int8(proto, lambda file: prove(file, "float32"))
    require_portable(proto, int8=dtype == "int8")
    operators = operator_counts(proto)
    size, difference = write_graph(proto, path, about, lambda file: prove(file, dtype))
    return ExportedFile(path, size, operators, dict(about), difference)
