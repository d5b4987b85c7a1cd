"""`hqsam models`: what can be built by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hqsam.cli.options import HELP_SETTINGS, JsonFlag

app = typer.Typer(
    help="List the models that can be built by name.\n\n\b\nhqsam models\nhqsam models list 'hq_*' --json",
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
