"""Without the optional package everything but LVIS's rules works, and those say what to install."""

from __future__ import annotations

import sys

import pytest

from hqsam.metrics import InstanceScores
from tests.unit.metrics.instance_cases import random_set


def test_lvis_rules_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from hqsam.metrics.lvis_matching import _lvis

    _lvis.cache_clear()
    monkeypatch.setitem(sys.modules, "lvis", None)
    monkeypatch.setitem(sys.modules, "lvis.eval", None)
    truth, records = random_set(3, lvis=True)
    for rules in ("coco", "lvis"):
        scores = InstanceScores({"set": truth}, rules=rules)  # type: ignore[arg-type]
        scores.merge([records])
        if rules == "coco":
            assert scores.compute()
            continue
        with pytest.raises(ImportError, match=r"pip install 'hqsam\[lvis\]'"):
            scores.compute()
    _lvis.cache_clear()
