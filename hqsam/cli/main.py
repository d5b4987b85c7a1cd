"""Entry point of `hqsam`: collects the subcommands and turns errors that a user can cause into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from hqsam import __version__
from hqsam.cli import auto, check_data, compare, convert, engine, export, inspect, models, predict, serve
from hqsam.cli import round as rounds
from hqsam.cli.options import HELP_SETTINGS

BAD_INPUT = 2

app = typer.Typer(
    name="hqsam",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP_SETTINGS,
)
app.command("predict", context_settings=HELP_SETTINGS)(predict.predict)
app.command("auto", context_settings=HELP_SETTINGS)(auto.auto)
app.command("serve", context_settings=HELP_SETTINGS)(serve.serve)
app.command("round", context_settings=HELP_SETTINGS)(rounds.round_)
app.command("compare", context_settings=HELP_SETTINGS)(compare.compare)
app.command("train", context_settings=HELP_SETTINGS)(engine.train)
app.command("evaluate", context_settings=HELP_SETTINGS)(engine.evaluate)
app.command("ablate", context_settings=HELP_SETTINGS)(engine.ablate)
app.command("check-data", context_settings=HELP_SETTINGS)(check_data.check_data)
app.command("inspect", context_settings=HELP_SETTINGS)(inspect.inspect)
app.command("convert", context_settings=HELP_SETTINGS)(convert.convert)
app.command("export", context_settings=HELP_SETTINGS)(export.export)
app.add_typer(models.app, name="models")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Promptable segmentation with precise boundaries: SAM with a small learned HQ head.

    \b
    hqsam predict photo.jpg --box 60,40,420,360
    hqsam models

    Bad input ends with exit code 2 and one line; HQSAM_TRACEBACK=1 shows where it was found.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 success, 2 bad input.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    try:
        result = typer.main.get_command(app).main(
            args=None if argv is None else list(argv), prog_name="hqsam", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("hqsam: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # the reader of a pipe (`| head`) left; Python would complain again while flushing at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _user_error(error)
        if message is None or os.environ.get("HQSAM_TRACEBACK") == "1":
            raise
        typer.echo(f"hqsam: error: {message}", err=True)
        return BAD_INPUT


def _user_error(error: Exception) -> str | None:
    """The message for errors that a user can cause, None for all others, which are bugs and keep their traceback."""
    # Usage errors belong to a copy of click inside new versions of typer and to click itself in older ones, so
    # they are told by what they can do.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        return f"{describe()} (see --help)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) if isinstance(error, (ValueError, OSError)) else None
