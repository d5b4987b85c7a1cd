"""`hqsam models`: what can be built by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hqsam.cli.options import HELP_SETTINGS, JsonFlag

app = typer.Typer(
    help="List the models that can be built by name, and download weights.\n\n\b\nhqsam models\n"
    "hqsam models list 'hq_*' --json\nhqsam models download hq_vit_l",
    invoke_without_command=True,
    context_settings=HELP_SETTINGS,
    rich_markup_mode=None,
)


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show()


@app.command("list", context_settings=HELP_SETTINGS)
def show(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Shell-style pattern, e.g. 'hq_*'.")] = "*",
    as_json: JsonFlag = False,
) -> None:
    """List model names; a tag after the dot says where weights come from.

    \b
    hqsam models list 'hq_*'
    """
    from hqsam.registry import list_models, model_spec

    names = list_models(pattern)
    if as_json:
        specs = {name: model_spec(name) for name in names}
        rows = [{"name": n, "hq": s.hq, "image_size": s.image_size, "tags": list(s.tags)} for n, s in specs.items()]
        typer.echo(json.dumps(rows))
        return
    if not names:
        raise ValueError(f"no model name matches {pattern!r}; `hqsam models` lists all")
    typer.echo("\n".join(names))


@app.command("download", context_settings=HELP_SETTINGS)
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model name, with or without the tag `official`.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model's published weights, unless they are here already, and say what and where they are.

    \b
    hqsam models download hq_vit_l
    hqsam models download sam_vit_b.official --json

    HQSAM_CACHE names the folder; HF_HUB_OFFLINE=1 forbids the network.
    """
    from hqsam.checkpoints import inspect_checkpoint
    from hqsam.hub import fetch_weights
    from hqsam.registry import model_spec

    spec = model_spec(name)
    if name.endswith(".embedded"):
        raise ValueError(f"the weights of {name!r} come with the package; there is nothing to download")
    info = inspect_checkpoint(fetch_weights(spec.name))
    row = {"name": spec.name, "path": str(info.path), "size_bytes": info.size_bytes, "layout": info.layout}
    typer.echo(json.dumps(row) if as_json else f"{info.path}: {info.title}, {info.size_bytes:,} bytes")
