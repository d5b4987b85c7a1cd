"""Variants measured in turns, each time in a process of their own.

A fresh process gives every variant its own allocator state and peak of memory; turns let whatever else the machine does
fall on all variants alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
"""Environment that tells glibc to keep large freed blocks."""
_ALLOCATOR = ("MALLOC_", "HQSAM_MALLOC", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class Job:
    """One thing to be measured.

    Attributes:
        name: of the variant.
        module: started as ``python -m MODULE SPEC.json RESULT.json``; it writes a JSON object.
        spec: what the module is told, as JSON values.
        environment: variables on top of this process's, from which settings of the allocator are removed.
    """

    name: str
    module: str
    spec: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


class JobError(RuntimeError):
    """A measuring process failed; the message has the end of what it said."""


def run_job(job: Job) -> dict[str, Any]:
    """Run a job in a new process and return what it measured.

    Raises:
        JobError: it failed.
    """
    threads = {"OMP_NUM_THREADS": str(job.spec["threads"])} if job.spec.get("threads") else {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_ALLOCATOR)}
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory(prefix="hqsam-benchmark-") as name:
        spec, result = Path(name, "spec.json"), Path(name, "result.json")
        spec.write_text(json.dumps(dict(job.spec)), encoding="utf-8")
        command = [sys.executable, "-m", job.module, str(spec), str(result)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**kept, **quiet, **threads, **job.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise JobError(f"{job.name} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured


def alternate(jobs: Sequence[Job], rounds: int, on_done: Callable[[Job], None]) -> dict[str, list[dict[str, Any]]]:
    """Every job once, then every job again, `rounds` times in all.

    Returns:
        The results of each job by its name, in the order of rounds.
    """
    results: dict[str, list[dict[str, Any]]] = {job.name: [] for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            results[job.name].append(run_job(job))
            on_done(job)
    return results


def medians(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median of every number over the rounds, with the lists that it comes from; the rest from the first round."""
    row: dict[str, Any] = {}
    for key, first in results[0].items():
        values = [result[key] for result in results]
        if isinstance(first, bool) or not isinstance(first, (int, float)):
            row[key] = first
        else:
            row[key] = median(values)
            row[f"{key}_rounds"] = values
    return row
