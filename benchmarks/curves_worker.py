"""One cost curve, in its own process: ``python -m benchmarks.curves_worker SPEC RESULT``.

The sizes of a curve are run in rising order in one process, as a user's program would go on growing. Memory is what a
size's peak adds to what the process had before the first one, with the model built: a leak would show as a rise of the
last points.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import PeakMemory, describe_machine, matrix_rates, synchronize
from hqsam import Prompt, SamPredictor
from hqsam.images import read_image
from hqsam.registry import build_model, create_model, model_spec
from hqsam.rle import encode_masks

SLICE = 64
"""Boxes of one call where their masks are kept as run lengths."""
ONE_LOOK: Any = {"multimask_output": False, "refine": "none", "upsampling": "bilinear"}
"""What is asked, whatever the weights recommend: the published program's question."""
Step = tuple[int, Callable[[], object]]


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the curve: for every size its seconds, megabytes above the model, and megabytes of what it returned."""
    device = torch.device(spec["device"])
    predictor, picture = _predictor(spec["model"], device), read_image(spec["picture"])
    steps = _CURVES[spec["curve"]](predictor, picture, spec["sizes"])
    before = _held(device)
    points = []
    for size, call in steps:
        memory = PeakMemory(device)
        synchronize(device)
        start = time.perf_counter()
        returned = call()
        synchronize(device)
        seconds, used = time.perf_counter() - start, memory.read()
        peak = used["gpu_peak_mb"] if device.type == "cuda" else used["peak_mb"]
        above = None if peak is None or before is None else peak - before
        points.append({"size": size, "seconds": seconds, "above_mb": above, "returned_mb": _megabytes(returned)})
        del returned
    return {"points": points}


def _prompts(predictor: SamPredictor, picture: NDArray[np.uint8], sizes: list[int]) -> Iterator[Step]:
    """Boxes on one image, some at a time, each mask kept as run lengths."""
    predictor.set_image(picture)

    def call(boxes: NDArray[np.float64]) -> None:
        kept: list[Any] = []
        for start in range(0, len(boxes), SLICE):
            masks, _, _ = predictor.predict(box=boxes[start : start + SLICE], **ONE_LOOK)
            kept += encode_masks(masks[:, 0])

    call(_boxes(1, picture))
    yield from ((size, partial(call, _boxes(size, picture))) for size in sizes)


def _at_once(predictor: SamPredictor, picture: NDArray[np.uint8], sizes: list[int]) -> Iterator[Step]:
    """Boxes on one image in one call, whose masks and logits are returned."""
    predictor.set_image(picture)

    def call(boxes: NDArray[np.float64]) -> object:
        return predictor.predict(box=boxes, **ONE_LOOK)

    call(_boxes(1, picture))
    yield from ((size, partial(call, _boxes(size, picture))) for size in sizes)


def _side(predictor: SamPredictor, picture: NDArray[np.uint8], sizes: list[int]) -> Iterator[Step]:
    """Square images of a side in pixels, each encoded and asked one box."""
    for size in sizes:
        image = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
        yield size, partial(_ask, predictor, image)


def _batch(predictor: SamPredictor, picture: NDArray[np.uint8], sizes: list[int]) -> Iterator[Step]:
    """Images encoded and decoded together."""
    height, width = picture.shape[:2]
    prompt = Prompt(box=(width * 0.2, height * 0.2, width * 0.8, height * 0.8))
    segment = partial(predictor.segment, **ONE_LOOK)
    for size in sizes:
        yield size, partial(segment, [picture] * size, [prompt] * size, batch_size=size)


def _images(predictor: SamPredictor, picture: NDArray[np.uint8], sizes: list[int]) -> Iterator[Step]:
    """Images one after the other; a size counts all from the first one on."""
    for before, size in zip([0, *sizes], sizes, strict=False):

        def call(first: int = before, last: int = size) -> None:
            for number in range(first, last):
                _ask(predictor, np.roll(picture, number, axis=1))

        yield size, call


def _ask(predictor: SamPredictor, image: NDArray[np.uint8]) -> object:
    height, width = image.shape[:2]
    predictor.set_image(image)
    box = [width * 0.2, height * 0.2, width * 0.8, height * 0.8]
    return predictor.predict(box=box, **ONE_LOOK)


def _boxes(count: int, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = picture.shape[:2]
    corners = np.sort(np.random.default_rng(count).uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4)
    boxes: NDArray[np.float64] = corners * [width, height, width, height]
    return boxes


def _held(device: torch.device) -> float | None:
    """Megabytes that the process, or its tensors on a GPU, take now."""
    return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else PeakMemory(device).start_mb


def _megabytes(returned: object) -> float:
    return sum(part.nbytes for part in returned) / 1e6 if isinstance(returned, tuple) else 0.0


def _predictor(name: str, device: torch.device) -> SamPredictor:
    if name == "hq_vit_tiny":
        return SamPredictor(create_model("hq_vit_tiny.embedded", device=device))
    torch.manual_seed(0)
    model = build_model(model_spec(name)).to(device).eval()
    model.head_state = "trained"  # random weights cost what trained ones do
    return SamPredictor(model)


_CURVES: dict[str, Callable[[SamPredictor, NDArray[np.uint8], list[int]], Iterator[Step]]] = {
    "prompts": _prompts,
    "at_once": _at_once,
    "side": _side,
    "batch": _batch,
    "images": _images,
}


def facts(spec: dict[str, Any]) -> dict[str, Any]:
    """The machine and its rate of matrix products."""
    device = torch.device(spec["device"])
    return {"machine": describe_machine(device), "matrix_rates": matrix_rates(device)}


def main(spec_file: str, result_file: str) -> None:
    """Measure what the specification says and write the result."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    result = facts(spec) if spec["curve"] == "facts" else measure(spec)
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
