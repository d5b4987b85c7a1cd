"""What several subcommands share: options, and reading prompts from text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hqsam.models import Sam

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DEFAULT_MODEL = "hq_vit_tiny.embedded"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on standard output.")]
ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="Model name; `hqsam models` lists them.")]
CheckpointFile = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FILE", help="Weights for an untagged model name.")
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one.")
]


def parse_numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    """Finite numbers from `text`, separated by commas.

    Args:
        text: e.g. "60,40,420,360".
        counts: how many there may be.
        form: what is expected, for the message.

    Raises:
        ValueError: not numbers, not finite, or another count.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{form} expected, got {text!r}")
    return numbers


def parse_box(text: str) -> list[float]:
    """A box x0,y0,x1,y1 in pixels of the image. Whether it makes sense is the predictor's decision."""
    return parse_numbers(text, (4,), "--box x0,y0,x1,y1 in pixels")


def parse_point(text: str) -> tuple[float, float, int]:
    """A point x,y or x,y,label in pixels of the image; label 1 (the default) is inside the object, 0 outside."""
    x, y, *rest = parse_numbers(text, (2, 3), "--point x,y or x,y,label in pixels")
    label = rest[0] if rest else 1.0
    if label not in (0.0, 1.0):
        raise ValueError(f"the label of --point must be 1 (inside the object) or 0 (outside), got {text!r}")
    return x, y, int(label)


def load_model(name: str, checkpoint: Path | None, device: str) -> Sam:
    """The model of the command line, with weights: without a file those that its name stands for.

    On a CPU this process keeps freed memory from then on.

    Raises:
        ValueError: unknown name or device, a file that does not fit, or weights that cannot be downloaded.
    """
    from hqsam.engine.allocator import keep_freed_memory
    from hqsam.registry import create_model, model_spec

    tagged = "." in name
    chosen = "pretrained" if checkpoint is None and not tagged and model_spec(name).tags else checkpoint
    model = create_model(name, chosen, device=device_exists(device))
    keep_freed_memory(model.device)
    return model


def describe_file(path: Path) -> str:
    """A file's name, size and time of change: runs write the same names with other content."""
    if not path.is_file():
        return str(path)
    status = path.stat()
    return f"{path.name}, {status.st_size} bytes, {status.st_mtime_ns}"


def device_exists(name: str) -> str:
    """The device's name, after checking that this machine has it.

    Raises:
        ValueError: torch does not know the device, or finds none of its kind here.
    """
    import torch

    if name == "auto":
        return name
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}); legal: auto, cpu, cuda, cuda:N, mps"
        ) from error
    return name
