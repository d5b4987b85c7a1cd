"""`hqsam serve`: annotate a folder of pictures in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hqsam.cli.options import DEFAULT_MODEL, CheckpointFile, Device, ModelName, load_model

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, also in folders below.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the annotations.", show_default=False)]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; others than this machine need --token.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535)]
Token = Annotated[str | None, typer.Option("--token", help="Only who opens /?token=... is let in.")]
Labels = Annotated[str, typer.Option("--labels", metavar="A,B,C", help="Names of the kinds of objects.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="What can be made again. Default: .cache in --out.")
]
Runtime = Annotated[
    Path | None, typer.Option("--runtime", metavar="DIR", help="onnxruntime-web, to decode in the browser.")
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
    cache: Cache = None,
    runtime: Runtime = None,
    threads: Threads = None,
) -> None:
    """Annotate a folder of pictures in the browser, by clicks and boxes.

    \b
    hqsam serve photos/ --out annotations/ --labels cat,dog
    hqsam train configs/train/finetune.yaml data.train=[annotations/annotations.json]
    """
    if host not in LOOPBACK and not token:
        raise ValueError(f"--host {host} lets other machines in: give a --token too")
    _require_app_extra()
    import torch
    import uvicorn

    from hqsam.serve.app import create_app
    from hqsam.serve.service import Service, Settings

    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
        folder=folder,
        out=out,
        model_name=model,
        labels=[text.strip() for text in labels.split(",") if text.strip()],
        cache=cache,
        runtime=runtime,
    )
    service = Service(settings, load_model(model, checkpoint, device))
    typer.echo(f"{len(service.pictures)} pictures; open http://{host}:{port}/  (Ctrl+C ends the server)")
    uvicorn.run(create_app(service, host=host, token=token), host=host, port=port, log_level="warning")


def _require_app_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(f"hqsam serve needs {' and '.join(missing)}: pip install 'hqsam[app]'")
