"""The loop of annotating, training and measuring: each round gives the annotators a model that knows their masks."""

from __future__ import annotations

from hqsam.rounds.running import RoundOptions, run_round
from hqsam.rounds.state import CURRENT_FILE, Round, Rounds, read_rounds

__all__ = ["CURRENT_FILE", "Round", "RoundOptions", "Rounds", "read_rounds", "run_round"]
