from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hqsam.cli.text_prompts import make_text_request
from hqsam.text import DEFAULT_DETECTOR
from hqsam.text.detector import DEFAULT_THRESHOLD
from hqsam.text.extra import MissingExtraError, import_extra
from tests.helpers import ROOT


def test_only_text_prompts_load_the_extra() -> None:
    code = "import hqsam, hqsam.registry, hqsam.predictor, hqsam.cli, hqsam.text, sys\n"
    code += "print([name for name in ('transformers', 'open_clip', 'tokenizers') if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_line_has_the_defaults_of_the_library() -> None:
    """It states them by itself, so that its help does not load torch."""
    request = make_text_request(["a dog"], None, None, None)
    assert request is not None
    assert (request.detector, request.threshold) == (DEFAULT_DETECTOR, DEFAULT_THRESHOLD)


def test_a_package_that_fails_to_import_says_why() -> None:
    with pytest.raises(MissingExtraError, match=r"no_such_package_at_all.*pip install 'hqsam\[text\]'"):
        import_extra("no_such_package_at_all")
