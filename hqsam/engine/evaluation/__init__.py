"""Evaluation: every benchmark of both papers, in any number of processes, each number with its protocol."""

from hqsam.engine.evaluation.masks import evaluate
from hqsam.engine.evaluation.program import main, run
from hqsam.engine.evaluation.runner import EvaluationStopped

__all__ = ["EvaluationStopped", "evaluate", "main", "run"]
