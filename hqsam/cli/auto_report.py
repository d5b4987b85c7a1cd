"""`hqsam auto --report`: one picture from which a person sees whether a run's masks are of use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPORT_FILE = "report.png"
SAMPLES = 12
_COLUMNS, _SIDE = 4, 300
_WIDTH, _HEIGHT, _EDGE, _FONT = 310, 200, 34, 13
_BINS = 24
_INK, _BAR, _LINE = (60, 60, 60), (45, 105, 200), (210, 210, 210)
_TITLE = 40
"""Letters of a picture's name that are shown."""


@dataclass
class Quality:
    """What the files of a run say, one number for each mask but the last, which has one for each picture.

    Attributes:
        scores: predicted IoU.
        stability: stability score.
        shares: area as a share of the picture.
        counts: masks.
        empty: names of pictures without a mask.
    """

    scores: list[float] = field(default_factory=list)
    stability: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def add(self, content: Mapping[str, Any]) -> None:
        """Take in the JSON file of a picture."""
        image, annotations = content["image"], content["annotations"]
        self.scores += [item["predicted_iou"] for item in annotations]
        self.stability += [item["stability_score"] for item in annotations]
        self.shares += [item["area"] / (image["width"] * image["height"]) for item in annotations]
        self.counts.append(len(annotations))
        if not annotations:
            self.empty.append(image["file_name"])


def write_report(folder: Path, files: Sequence[Path], total: int) -> Path:
    """Write `report.png` into the folder of results.

    Args:
        folder: of the results.
        files: pictures that are finished.
        total: pictures of the run.

    Raises:
        OutputError: it cannot be written.
    """
    from PIL import Image

    from hqsam.checkpoints import atomic_path

    quality = Quality()
    for file in files:
        quality.add(json.loads((folder / f"{file.stem}.json").read_text("utf-8")))
    parts = [_heading(quality, total), _histograms(quality), *_samples(folder, files)]
    width = max(part.shape[1] for part in parts)
    sheet = _stacked(parts, width)
    with atomic_path(folder / REPORT_FILE) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    return folder / REPORT_FILE


def sample(files: Sequence[Path], count: int = SAMPLES) -> list[Path]:
    """Some of the files, evenly spaced, the first one among them."""
    step = max(1.0, len(files) / count)
    return [files[int(number * step)] for number in range(min(count, len(files)))]


def _heading(quality: Quality, total: int) -> NDArray[np.uint8]:
    masks, pictures = len(quality.scores), len(quality.counts)
    mean = f", {masks / pictures:.1f} a picture" if pictures else ""
    text = f"{pictures} of {total} pictures, {masks} masks{mean}"
    if quality.empty:
        names = ", ".join(name[:_TITLE] for name in quality.empty[:3])
        text += f"; {len(quality.empty)} without a mask: {names}{', ...' if len(quality.empty) > 3 else ''}"
    return _text(text)


def _histograms(quality: Quality) -> NDArray[np.uint8]:
    import numpy as np

    from hqsam.visualize import side_by_side

    most = max(quality.counts, default=0)
    shares = [math.log10(max(share, 1e-6)) for share in quality.shares]
    scores, stability = _span(quality.scores), _span(quality.stability)
    counts = [float(count) for count in quality.counts]
    panels = [
        _histogram(quality.scores, scores, _marks(scores)),
        _histogram(quality.stability, stability, _marks(stability)),
        _histogram(shares, (-5.0, 0.0), ("0.001 %", "", "100 %")),
        _histogram(counts, (-0.5, most + 0.5), ("0", "", str(most)), min(_BINS, most + 1)),
    ]
    titles = ["predicted IoU of a mask", "stability of a mask", "area of a mask, log scale", "masks of a picture"]
    return np.ascontiguousarray(side_by_side(panels, titles))


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _marks(span: tuple[float, float]) -> tuple[str, str, str]:
    return f"{span[0]:.2f}", f"{sum(span) / 2:.2f}", f"{span[1]:.2f}"


def _histogram(
    values: Sequence[float], span: tuple[float, float], marks: tuple[str, str, str], bins: int = _BINS
) -> NDArray[np.uint8]:
    """Counts in equal steps over the span, marked at its start, middle and end; what is beyond is in the last ones."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    counts, _ = np.histogram(np.clip(values, *span), bins=bins, range=span)
    panel = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    draw.font = ImageFont.load_default(_FONT)
    bottom, step, tallest = _HEIGHT - _EDGE, (_WIDTH - 2 * _EDGE) / bins, max(1, int(counts.max()))
    for place, count in enumerate(counts.tolist()):
        left = _EDGE + place * step
        top = bottom - (bottom - _EDGE) * count / tallest
        if count:
            draw.rectangle((left, top, max(left, left + step - 1), bottom), fill=_BAR)
    draw.line((_EDGE, bottom, _WIDTH - _EDGE, bottom), fill=_LINE)
    draw.text((_EDGE, _EDGE - 18), f"most: {tallest if len(values) else 0}", fill=_INK)
    for mark, share, anchor in zip(marks, (0.0, 0.5, 1.0), ("la", "ma", "ra"), strict=True):
        draw.text((_EDGE + share * (_WIDTH - 2 * _EDGE), bottom + 6), mark, fill=_INK, anchor=anchor)
    return np.array(panel)


def _samples(folder: Path, files: Sequence[Path]) -> list[NDArray[np.uint8]]:
    from hqsam.images import read_image
    from hqsam.visualize import enlarge, side_by_side

    panels, titles = [], []
    for file in sample(files):
        picture = folder / f"{file.stem}_overlay.jpg"
        if not picture.is_file():
            continue
        pixels = read_image(picture)
        panels.append(enlarge(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), _SIDE))
        titles.append(file.name if len(file.name) <= _TITLE else f"...{file.name[-_TITLE + 3 :]}")
    rows = range(0, len(panels), _COLUMNS)
    return [side_by_side(panels[row : row + _COLUMNS], titles[row : row + _COLUMNS]) for row in rows]


def _text(text: str) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT + 3)
    panel = Image.new("RGB", (math.ceil(font.getlength(text)) + 24, 36), "white")
    ImageDraw.Draw(panel).text((12, 10), text, fill=_INK, font=font)
    return np.array(panel)


def _stacked(parts: Sequence[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    )
