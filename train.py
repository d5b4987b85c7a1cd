"""Train an HQ head: ``python train.py CONFIG.yaml [key=value ...]``, or the same under ``torchrun``."""

from __future__ import annotations

import sys

from hqsam.engine.training import main

if __name__ == "__main__":
    sys.exit(main())
