"""Evaluation: every benchmark of both papers, in any number of processes, each number with its protocol."""

from hqsam.engine.evaluation.program import EvaluationStopped, evaluate, main, run

__all__ = ["EvaluationStopped", "evaluate", "main", "run"]
