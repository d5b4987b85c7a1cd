"""One static HTML page that shows an evaluation: tables, plots and single cases, with all pictures inside the file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hqsam.checkpoints import atomic_path
from hqsam.engine.evaluation.report import EvalResult, lay_out, short_protocol

_QUALITY = 88
"""Of the JPEG files inside the page."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto } figcaption, .protocol { color: #555 }
"""


@dataclass(frozen=True)
class Figure:
    """A picture of the page.

    Attributes:
        file: PNG or JPEG file.
        caption: what it shows, plain text.
    """

    file: Path
    caption: str


def write_gallery(path: Path, result: EvalResult, sections: Mapping[str, Sequence[Figure]]) -> None:
    """Write the page.

    Args:
        path: the HTML file, replaced atomically.
        result: its numbers and protocol stand at the top.
        sections: heading -> pictures; headings without pictures are left out.

    Raises:
        OutputError: the file cannot be written.
    """
    name = str(result.protocol["model"].get("name", "model"))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style></head>',
        f"<body><h1>{html.escape(name)}: {html.escape(result.title)}</h1>",
        f'<p class="protocol">{html.escape(short_protocol(result.protocol))}; all of it is in results.md.</p>',
        *_table(result),
    ]
    for heading, figures in sections.items():
        if figures:
            parts += [f"<h2>{html.escape(heading)}</h2>", *map(_figure, figures)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*parts, "</body></html>"]) + "\n", encoding="utf-8")


def _table(result: EvalResult) -> list[str]:
    table = lay_out(result)
    lines = ["<table>", _row("th", table.heads, table.texts)]
    return [*lines, *(_row("td", cells, table.texts) for cells in table.body), "</table>"]


def _row(tag: str, cells: Sequence[str], texts: int) -> str:
    kinds = [""] * texts + [' class="number"'] * (len(cells) - texts)
    return "<tr>" + "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"


def _figure(figure: Figure) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(figure.file) as picture:
        picture.convert("RGB").save(buffer, format="JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" loading="lazy" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
