"""Ablations: variants of a training run, each trained and evaluated in the same way, and one table of all."""

from hqsam.engine.ablations.program import main

__all__ = ["main"]
