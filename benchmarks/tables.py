"""Results for people: what a run was made on, and one row for each variant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table


def machine_lines(result: dict[str, Any]) -> Iterator[str]:
    """The machine, its rate of matrix products and the versions, line by line."""
    machine = result["machine"]
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['simd']}, "
        f"{machine['memory_gb']} GB, {machine['system']}, {machine['libc']}"
    )
    if "gpu" in machine:
        yield f"{machine['gpu']}, {machine['gpu_memory_gb']} GB, CUDA {machine['cuda']}"
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in result["matrix_rates"].items())
    yield f"matrix products, measured: {rates}"
    yield ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def describe(result: dict[str, Any]) -> Iterator[str]:
    """`machine_lines`, and what the variants of the training benchmark have in common."""
    yield from machine_lines(result)
    settings = result["settings"]
    yield (
        f"batch {settings['batch']}, {settings['workers']} loading processes, {settings['rounds']} rounds of at least "
        f"{settings['steps']} steps and {settings['seconds']:g} s after {settings['warmup']} to warm up; medians"
    )
    if result["left_out"]:
        reason = "" if result["bf16_units"] else " (bf16 is left out: this processor has no bf16 units)"
        yield f"left out: {'; '.join(result['left_out'])}{reason}"


def train_table(model: str, result: dict[str, Any]) -> Table:
    """Samples/s, ratio to the published loop, waiting, share of the measured rate of matrix products, memory."""
    on_gpu = result["machine"]["device"] == "cuda"
    size = result["image_sizes"][f"hq_{model}"]
    table = Table(title=f"Training {model}, {size} px, {result['machine']['device']}", title_justify="left")
    columns = ["samples/s", "ratio", "s/step", "waiting", "of peak", "peak MB"]
    columns += ["GPU peak MB", "recipe, h"] if on_gpu else []
    table.add_column("variant", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in result["models"][model].items():
        cells = [
            f"{row['samples_per_second']:.3g}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
            f"{row['seconds_per_step']:.3g}",
            f"{row['wait_share']:.0%}",
            f"{row['matrix_share']:.0%}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        ]
        cells += [f"{row['gpu_peak_mb']:.0f}", f"{row['recipe_hours']:.2f}"] if on_gpu else []
        table.add_row(name, *cells)
    return table
