"""House limits of the package, without exceptions: file and function size, no hidden randomness."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "hqsam"
FILES = sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
MAX_FILE, MAX_FUNCTION = 400, 50
# reading and restoring generator states is what an exact resume needs
STATE_ACCESS = {"getstate", "setstate", "get_state", "set_state", "get_rng_state", "set_rng_state"}
SEEDED_NUMPY = {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox", "BitGenerator"}
DRAWING_TORCH = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
# models are initialised from torch's global generator, as every nn.Module is
GLOBAL_TORCH_ALLOWED = "models"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function, lines: list[str]) -> int:
    """Non-blank lines of a function from its `def` on, without its docstring."""
    start, skipped = function.lineno, range(0)
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        skipped = range(first.lineno, (first.end_lineno or first.lineno) + 1)
    numbers = range(start, (function.end_lineno or start) + 1)
    return sum(1 for number in numbers if number not in skipped and lines[number - 1].strip())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= MAX_FILE, f"{len(lines)} lines"
    for function in functions(path):
        count = length(function, lines)
        assert count <= MAX_FUNCTION, f"{function.name} (line {function.lineno}) has {count} lines"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def hidden_random_calls(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, last = dotted(node.func), dotted(node.func).rsplit(".", 1)[-1]
        keywords = {keyword.arg for keyword in node.keywords}
        if name == "random.Random" and node.args:
            continue  # a generator of its own, with a seed
        allowed = STATE_ACCESS if name.startswith("random.") else STATE_ACCESS | SEEDED_NUMPY
        if name.startswith(("random.", "np.random.", "numpy.random.")) and last not in allowed:
            yield f"{name} (line {node.lineno})"
        elif name.endswith("default_rng") and not node.args and "seed" not in keywords:
            yield f"{name} without a seed (line {node.lineno})"
        elif name.startswith("torch.") and last in DRAWING_TORCH and "generator" not in keywords:
            if path.relative_to(PACKAGE).parts[0] != GLOBAL_TORCH_ALLOWED:
                yield f"{name} without generator= (line {node.lineno})"
        elif name == "print":
            yield f"print (line {node.lineno})"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_hidden_randomness_and_no_print(path: Path) -> None:
    assert not list(hidden_random_calls(path))
