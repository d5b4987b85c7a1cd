"""`hqsam round`: train on what was annotated, and keep the new model if it is better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hqsam.cli.options import JsonFlag
from hqsam.cli.serve import require_app_extra

if TYPE_CHECKING:
    from hqsam.rounds import Round

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, as given to hqsam serve.")]
Annotations = Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="Its --out.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the training, see hqsam train --keys.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all rounds.", show_default=False)]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A training configuration. Default: one for small data."),
]
HeldOut = Annotated[
    int | None,
    typer.Option("--held-out", min=1, max=9, help="Tenths of the images to measure on; 2, fixed by the first round."),
]
MinMasks = Annotated[int, typer.Option("--min-masks", min=1, help="A round needs as many masks to train on.")]
MinHeldOut = Annotated[int, typer.Option("--min-held-out", min=2, help="And as many images to measure on.")]
Abandon = Annotated[bool, typer.Option("--abandon", help="Give up the round that was interrupted, and end.")]


def round_(
    folder: Folder,
    annotations: Annotations,
    out: Out,
    overrides: Overrides = None,
    config: ConfigFile = None,
    held_out: HeldOut = None,
    min_masks: MinMasks = 20,
    min_held_out: MinHeldOut = 10,
    abandon: Abandon = False,
    as_json: JsonFlag = False,
) -> None:
    """Train on what was annotated with hqsam serve, and keep the new model if it is better.

    \b
    hqsam serve photos/ --out annotations/ --rounds rounds/
    hqsam round photos/ annotations/ --out rounds/

    Fine-tunes the HQ head of the last round's model (of the embedded one in the first), measures both on images that
    are never trained on, and replaces rounds/current.safetensors only if the new one is clearly better; a server with
    --rounds takes it up by itself. The same command goes on with a round that was interrupted. See docs/rounds.md.
    """
    require_app_extra()
    from hqsam.engine.distributed import World, configure_logging
    from hqsam.engine.evaluation.runner import EvaluationStopped
    from hqsam.engine.signals import STOPPED
    from hqsam.rounds import RoundOptions, run_round
    from hqsam.rounds.running import NothingNewError, StoppedError, abandon_round
    from hqsam.serve.service import Settings, open_store

    configure_logging(World())
    if abandon:
        typer.echo(f"round {abandon_round(out).number} is given up")
        return
    store = open_store(Settings(folder=folder, out=annotations, model_name=""))
    options = RoundOptions(
        config=config,
        overrides=overrides or (),
        held_out_tenths=held_out,
        min_masks=min_masks,
        min_held_out=min_held_out,
    )
    try:
        found = run_round(store, out, options)
    except NothingNewError as reason:
        typer.echo(f"nothing to do: {reason}", err=as_json)
        return
    except (StoppedError, EvaluationStopped):
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(STOPPED) from None
    typer.echo(json.dumps(asdict(found)) if as_json else _describe(found, out))


def _describe(found: Round, out: Path) -> str:
    which = "its model is the current one" if found.outcome == "adopted" else "the old model stays"
    return f"round {found.number}: {found.reason}; {which}. {out / 'report.md'} has all rounds"
