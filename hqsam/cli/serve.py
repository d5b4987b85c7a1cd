"""`hqsam serve`: annotate a folder of pictures in the browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hqsam.cli.options import DEFAULT_MODEL, CheckpointFile, Device, ModelName, load_model

if TYPE_CHECKING:
    from hqsam.serve.service import Service, Settings

INCOMPLETE = 1
PATIENCE = 5
"""Seconds that requests may take after Ctrl+C, before the server ends all the same."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, also in folders below.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the annotations.", show_default=False)]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; others than this machine need --token.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535)]
Token = Annotated[str | None, typer.Option("--token", help="Only who opens /?token=... is let in.")]
Labels = Annotated[str, typer.Option("--labels", metavar="A,B,C", help="Names of the kinds of objects.")]
Boxes = Annotated[
    Path | None,
    typer.Option("--boxes", metavar="FILE", help="A detector's boxes (COCO results) to make proposals from."),
]
Proposals = Annotated[
    bool, typer.Option("--proposals/--no-proposals", help="Propose masks in images ahead of the one that is looked at.")
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Write annotations.json anew from the annotation files, and end.")
]
Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="What can be made again. Default: .cache in --out.")
]
CacheSize = Annotated[
    float, typer.Option("--cache-gb", min=0, metavar="GB", help="Disk for embeddings; those used longest ago go.")
]
Runtime = Annotated[
    Path | None, typer.Option("--runtime", metavar="DIR", help="onnxruntime-web, to decode in the browser.")
]
RoundsFolder = Annotated[
    Path | None, typer.Option("--rounds", metavar="DIR", help="Take the current model of hqsam round, and follow it.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads of the model.")]


def serve(
    folder: Folder,
    out: Out,
    model: ModelName = DEFAULT_MODEL,
    checkpoint: CheckpointFile = None,
    device: Device = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Token = None,
    labels: Labels = "",
    boxes: Boxes = None,
    proposals: Proposals = False,
    cache: Cache = None,
    cache_gb: CacheSize = 20,
    runtime: Runtime = None,
    threads: Threads = None,
    rounds: RoundsFolder = None,
    rebuild: Rebuild = False,
) -> None:
    """Annotate a folder of pictures in the browser, by clicks, boxes and proposals.

    \b
    hqsam serve photos/ --out annotations/ --labels cat,dog
    hqsam check-data annotations/annotations.json
    hqsam train configs/train/finetune.yaml data.train=[annotations/annotations.json]

    Every change is saved at once, in one JSON file an image; annotations.json (COCO) has all accepted objects and
    follows within seconds. Only this machine is let in, unless there is a --host and a --token; see docs/serve.md.
    """
    if host not in LOOPBACK and not token:
        raise ValueError(f"--host {host} lets other machines in: give a --token too")
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise ValueError("--token may have letters, digits and . _ ~ - alone: it is part of an address")
    require_app_extra()
    from hqsam.serve.service import Settings

    settings = Settings(
        folder=folder,
        out=out,
        model_name=model,
        labels=list(dict.fromkeys(text.strip() for text in labels.split(",") if text.strip())),
        cache=cache,
        cache_gb=cache_gb,
        runtime=runtime,
        boxes=boxes,
        proposals=proposals,
    )
    if rebuild:
        _rebuild(settings)
        return
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    _run(_service(settings, checkpoint, device, rounds), host, port, token)


def _run(service: Service, host: str, port: int, token: str | None) -> None:
    import uvicorn

    from hqsam.serve.app import create_app

    shown = f"[{host}]" if ":" in host else host
    opened = f"?token={token}" if token else ""
    typer.echo(f"{len(service.pictures)} pictures; open http://{shown}:{port}/{opened}  (Ctrl+C ends the server)")
    app = create_app(service, host=host, token=token)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=PATIENCE)


def _service(settings: Settings, checkpoint: Path | None, device: str, rounds: Path | None) -> Service:
    """With `--rounds` the current model, of which the name's tag or the checkpoint is the first."""
    from hqsam.serve.following import ModelFile
    from hqsam.serve.service import Service

    if rounds is None:
        return Service(settings, load_model(settings.model_name, checkpoint, device))
    base = settings.model_name.partition(".")[0]
    file = ModelFile(rounds / "current.safetensors", lambda path: load_model(base, path, device))
    return Service(settings, file.newest() or load_model(settings.model_name, checkpoint, device), file)


def _rebuild(settings: Settings) -> None:
    from hqsam.serve.coco import write_coco
    from hqsam.serve.service import open_store

    written = write_coco(open_store(settings), settings.labels)
    typer.echo(f"{written.path}: {written.objects} objects in {written.images} images")
    for problem in written.damaged:
        typer.echo(f"hqsam: {problem}", err=True)
    for name in written.strange:
        typer.echo(f"hqsam: {name} is of a picture that is not in {settings.folder}", err=True)
    if written.damaged or written.strange:
        raise typer.Exit(INCOMPLETE)


def require_app_extra() -> None:
    """Refuse to go on without the packages of the app extra.

    Raises:
        ValueError: one is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(f"hqsam serve needs {' and '.join(missing)}: pip install 'hqsam[app]'")
