from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import fill_parameters, require_oracle


def test_fill_parameters_is_deterministic_and_well_scaled() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 3))

    first, second, other = (fill_parameters(build(), seed) for seed in (0, 0, 1))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
        assert not value.is_floating_point() or not torch.equal(value, other.state_dict()[key])
    assert first[2].weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)
    assert abs(first[2].weight.mean().item()) < 1e-3
    assert first[1].running_var.min() >= 0.8
    # the first value is frozen: it must not depend on a library's version
    assert first[0].bias[0].item() == pytest.approx(-0.007737079635, abs=1e-9)


def test_missing_oracle_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HQSAM_REQUIRE_ORACLES", "0")
    with pytest.raises(pytest.skip.Exception, match="no_such_oracle"):
        require_oracle("no_such_oracle")
    monkeypatch.setenv("HQSAM_REQUIRE_ORACLES", "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_oracle"):
        require_oracle("no_such_oracle")
