"""`train.py` for a test of `torchrun`: the second process of the first attempt is killed after a few steps."""

from __future__ import annotations

import os
import sys

from hqsam.engine.logs import RunLog
from hqsam.engine.training import main
from tests.integration.forked import kill_after

if __name__ == "__main__":
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_attempt and os.environ["RANK"] == "1":
        kill_after(RunLog, "steps", 4)
    sys.exit(main())
