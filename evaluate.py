"""Evaluate a model: `python evaluate.py CONFIG.yaml [key=value ...]`, or the same under `torchrun`."""

from __future__ import annotations

from hqsam.engine.evaluation import main

if __name__ == "__main__":
    raise SystemExit(main())
