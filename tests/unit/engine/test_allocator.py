"""The allocator's setting, each time in a fresh interpreter: counted page faults, no times."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from hqsam.engine.allocator import keep_freed_memory
from tests.helpers import ROOT

PROGRAM = """
import resource, sys
import torch
import hqsam, hqsam.engine.training, hqsam.engine.evaluation
from hqsam.engine.allocator import keep_freed_memory

done = {call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(16 * 2**20)  # 64 MB; the heap finds its size
before = faults()
for _ in range(4):
    torch.ones(16 * 2**20)
print(done, faults() - before)
"""
KEPT, CALL = 2_000, 'keep_freed_memory(torch.device("cpu"))'
"""More faults than this come from four fresh blocks alone, even in pages of 16 KB."""


def run(call: str, **environment: str) -> tuple[bool, int]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "HQSAM_MALLOC"))}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, check=True)
    answer, faults = done.stdout.split()
    return answer == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_fetched_once() -> None:
    done, faults = run(CALL)
    assert done and faults < KEPT


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_model_of_the_command_line_comes_with_it() -> None:
    """Whatever the command does with the model, its process keeps freed memory."""
    load = '(__import__("hqsam.cli.options").cli.options.load_model("hq_test_tiny", None, "cpu"), True)[1]'
    assert run(load)[1] < KEPT < run(load, HQSAM_MALLOC="0")[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_importing_the_library_changes_nothing() -> None:
    done, faults = run("None")
    assert not done and faults > KEPT


def test_the_switch_leaves_the_allocator_alone() -> None:
    assert not run(CALL, HQSAM_MALLOC="0")[0]


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not keep_freed_memory(torch.device("cpu"))


def test_other_devices_and_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keep_freed_memory(torch.device("cuda"))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_freed_memory(torch.device("cpu"))
