"""One variant of the inference benchmark, in its own process: ``python -m benchmarks.inference_worker SPEC RESULT``.

The published package and ours have the same names, so both run the same lines here. The specification's `kind` is
"encode", "boxes", "automatic" or "start"; "facts" describes the machine and writes the weights that all programs load.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import PeakMemory, describe_machine, has_bf16_units, matrix_rates, synchronize

PACKAGES = {"published": "segment_anything_hq", "ours": "hqsam"}


class Prepared(NamedTuple):
    """What is timed, and what else is said of it."""

    call: Callable[[], object]
    describe: Callable[[], dict[str, Any]] = dict


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Build, warm up, and time single calls; the median counts, memory from before the warm-up on."""
    device = torch.device(spec["device"])
    prepared = _PREPARE[spec["kind"]](spec, device)
    memory = PeakMemory(device)
    for _ in range(spec["warmup"]):
        prepared.call()
    seconds: list[float] = []
    while len(seconds) < spec["steps"] or sum(seconds) < spec["seconds"]:
        synchronize(device)
        start = time.perf_counter()
        prepared.call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    used = memory.read()
    start_mb, peak_mb = used["start_mb"], used["peak_mb"]
    above = None if start_mb is None or peak_mb is None else peak_mb - start_mb
    gpu = used["gpu_peak_mb"]
    return {"seconds": median(seconds), "calls": len(seconds), "above_mb": above, "gpu_mb": gpu, **prepared.describe()}


def _encode(spec: dict[str, Any], device: torch.device) -> Prepared:
    if spec["program"] == "timm":
        net, image = _timm_encoder(spec).to(device), torch.zeros(1, 3, 1024, 1024, device=device)
        return Prepared(torch.no_grad()(lambda: net(image)))
    predictor, picture = _predictor(spec, device), _picture(spec)
    if spec["compiled"]:
        predictor.model.image_encoder.compile()
    return Prepared(lambda: predictor.set_image(picture))


def _boxes(spec: dict[str, Any], device: torch.device) -> Prepared:
    predictor, picture = _predictor(spec, device), _picture(spec)
    predictor.set_image(picture)
    generator = np.random.default_rng(0)
    corners = np.sort(generator.uniform(0, 1, (spec["count"], 2, 2)), axis=1).reshape(-1, 4)
    height, width = picture.shape[:2]
    pixels = torch.from_numpy(corners * [width, height, width, height]).float().to(device)
    boxes = predictor.transform.apply_boxes_torch(pixels, (height, width))
    return Prepared(lambda: predictor.predict_torch(None, None, boxes=boxes, multimask_output=False))


def _automatic(spec: dict[str, Any], device: torch.device) -> Prepared:
    package = importlib.import_module(PACKAGES[spec["program"]])
    options = {
        "points_per_side": spec["points"],
        **({"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0} if spec["all"] else {}),
    }
    generator, picture = package.SamAutomaticMaskGenerator(_model(spec, device), **options), _picture(spec)
    found: list[Any] = []

    def call() -> None:
        found[:] = generator.generate(picture)

    return Prepared(call, lambda: {"records": len(found)})


def start(spec: dict[str, Any]) -> dict[str, Any]:
    """From a fresh interpreter that has torch: the import, the model from its file, the first answer to a box."""
    begin = time.perf_counter()
    importlib.import_module(PACKAGES[spec["program"]])
    imported = time.perf_counter()
    predictor = _predictor(spec, torch.device(spec["device"]))
    loaded = time.perf_counter()
    predictor.set_image(_picture(spec))
    predictor.predict(box=np.array([100.0, 100.0, 300.0, 300.0]), multimask_output=False)
    answered = time.perf_counter()
    return {"import_seconds": imported - begin, "load_seconds": loaded - imported, "first_seconds": answered - loaded}


def facts(spec: dict[str, Any]) -> dict[str, Any]:
    """The machine and its rate of matrix products; random weights (of vit_tiny: the embedded ones) are written."""
    from hqsam.checkpoints import save_checkpoint
    from hqsam.registry import build_model, create_model, model_spec

    device = torch.device(spec["device"])
    for name, path in spec["weights"].items():
        torch.manual_seed(0)
        embedded = name == "vit_tiny"
        model = create_model("hq_vit_tiny.embedded") if embedded else build_model(model_spec(f"hq_{name}"))
        save_checkpoint(model.float(), path)
    return {
        "machine": describe_machine(device),
        "bf16_units": has_bf16_units(device),
        "matrix_rates": matrix_rates(device),
    }


def _model(spec: dict[str, Any], device: torch.device) -> Any:
    if spec["program"] == "ours" and spec["dtype"]:
        from hqsam.registry import create_model

        return create_model(f"hq_{spec['model']}", spec["weights"], device=device, dtype=spec["dtype"])
    package = importlib.import_module(PACKAGES[spec["program"]])
    model = package.sam_model_registry[spec["model"]](checkpoint=spec["weights"]).to(device).eval()
    return model


def _predictor(spec: dict[str, Any], device: torch.device) -> Any:
    package = importlib.import_module(PACKAGES[spec["program"]])
    return package.SamPredictor(_model(spec, device))


def _timm_encoder(spec: dict[str, Any]) -> torch.nn.Module:
    from hqsam.registry import build_model, model_spec

    encoder = build_model(model_spec(f"hq_{spec['model']}")).eval().image_encoder
    encoder.in_parts = False  # type: ignore[assignment]
    return encoder


def _picture(spec: dict[str, Any]) -> NDArray[np.uint8]:
    from hqsam.images import read_image

    return read_image(spec["picture"])


_PREPARE = {"encode": _encode, "boxes": _boxes, "automatic": _automatic}


def main(spec_file: str, result_file: str) -> None:
    """Measure what the specification says and write the result."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    what = {"facts": facts, "start": start}.get(spec["kind"], measure)
    Path(result_file).write_text(json.dumps(what(spec)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
