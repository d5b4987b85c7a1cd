"""Which operators an exported graph may hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hqsam.errors import ExportError

# Elementwise arithmetic, matrix products, convolutions and movements of data: known to TensorRT 8.6 and later, and to
# the WebAssembly backend of onnxruntime-web, which has every operator of onnxruntime's CPU.
_NAMES = """
    Add ArgMax Cast Concat Constant Conv ConvTranspose Cos Div Equal Erf Expand Flatten Floor Gather Gelu Gemm Greater
    GreaterOrEqual Identity LayerNormalization Less MatMul Max Mul Neg Not Pad Pow Range ReduceMax ReduceMean ReduceSum
    Relu Reshape Resize Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Transpose Unsqueeze Where
"""
_PLAIN = frozenset(_NAMES.split())
_INT8 = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "DequantizeLinear"})
"""What dynamic quantisation adds; onnxruntime has them, TensorRT does not."""


def operator_counts(proto: Any) -> dict[str, int]:
    """How often each operator occurs in an `onnx.ModelProto`; those of another domain with its name before a dot."""
    counts = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in proto.graph.node)
    return dict(sorted(counts.items()))


def require_portable(proto: Any, *, int8: bool = False) -> None:
    """Refuse a graph with control flow, shapes that depend on values, or operators that some runtime lacks.

    Args:
        proto: an `onnx.ModelProto`.
        int8: allow what dynamic quantisation adds.

    Raises:
        ExportError: it holds other operators or functions; the message names them.
    """
    allowed = _PLAIN | _INT8 if int8 else _PLAIN
    foreign = [name for name in operator_counts(proto) if name not in allowed]
    foreign += [function.name for function in proto.functions]
    if foreign:
        raise ExportError(
            f"the graph holds operators that not every ONNX runtime has: {', '.join(foreign)}; the versions of torch "
            "and onnxscript that are installed translate the model differently from those it was tested with"
        )
