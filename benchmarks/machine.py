"""What a measurement was made on: processor, threads, versions, and how fast matrix products are there."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_PACKAGES = ("hqsam", "torch", "torchvision", "timm", "numpy", "segment-anything-hq")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU and versions, as JSON values."""
    facts: dict[str, Any] = {
        "cpu": _cpu_field("model name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16_units": has_bf16_units(torch.device("cpu")),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "device": device.type,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
        facts["cuda"] = torch.version.cuda
        facts["tf32_products"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def has_bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = f"{_cpu_field('flags') or ''} {_cpu_field('Features') or ''}"
    return bool(_BF16_FLAGS & set(flags.split()))


def matrix_rates(device: torch.device) -> dict[str, float]:
    """`matrix_rate` of the number types that the hardware multiplies."""
    shape = (8192, 8192, 8192) if device.type == "cuda" else (4096, 3072, 768)  # the latter a layer of ViT-B
    rates = {"float32": matrix_rate(device, torch.float32, shape)}
    if has_bf16_units(device):
        rates["bfloat16"] = matrix_rate(device, torch.bfloat16, shape)
    return rates


def matrix_rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float = 1.0) -> float:
    """Best rate of a matrix product in FLOP/s; the ceiling of what a network can reach here.

    On a CPU the faster of torch's BLAS and oneDNN.

    Args:
        device: where.
        dtype: of the factors.
        shape: rows, inner size and columns.
        seconds: products are repeated for so long, and at least three times.
    """
    generator = torch.Generator().manual_seed(0)
    rows, inner, columns = shape
    left = torch.randn(rows, inner, generator=generator).to(device, dtype)
    right = torch.randn(columns, inner, generator=generator).to(device, dtype).t()
    out = torch.mm(left, right)
    ways: list[Callable[[], object]] = [lambda: torch.mm(left, right, out=out)]
    if device.type == "cpu":  # torch's BLAS leaves out the widest vectors on some processors, its convolutions do not
        pixels, kernel = left.view(1, rows, 1, inner).permute(0, 3, 1, 2), right.t()[:, :, None, None]
        ways.append(lambda: F.conv2d(pixels, kernel))
    return 2 * rows * inner * columns / min(_best_seconds(way, device, seconds / len(ways)) for way in ways)


def _best_seconds(product: Callable[[], object], device: torch.device, seconds: float) -> float:
    best, end, done = float("inf"), time.perf_counter() + seconds, 0
    while done < 3 or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        product()
        synchronize(device)
        best, done = min(best, time.perf_counter() - start), done + 1
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a GPU is otherwise still at work when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Largest resident memory of this process (its children not counted), and of its GPU tensors, from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
        self.start_mb = _resident_mb("VmRSS")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float | None]:
        """Megabytes (10^6 bytes); None where the system does not say."""
        gpu = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else None
        return {"start_mb": self.start_mb, "peak_mb": _resident_mb("VmHWM"), "gpu_peak_mb": gpu}


def _resident_mb(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 / 1e6 if found else None


def _cpu_field(name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.split("\t")[0].strip() == name), None)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
