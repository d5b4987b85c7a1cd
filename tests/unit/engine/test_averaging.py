"""The running average of weights."""

from __future__ import annotations

import pytest
import torch

from hqsam.engine.averaging import WeightAverage


def test_average_is_the_recursion() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    average = WeightAverage([parameter], 0.9)
    expected = parameter.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            parameter += 0.1 * step
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(average.values[0], expected, rtol=1e-12, atol=0)


def test_in_place_gives_every_bit_back() -> None:
    parameters = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2, 2))]
    average = WeightAverage(parameters, 0.5)
    trained = [parameter.detach().clone() + 1 for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, trained, strict=True):
            parameter.copy_(value)
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        assert all(torch.equal(p, v) for p, v in zip(parameters, average.values, strict=True))
        raise RuntimeError("inside")
    assert all(torch.equal(p, v) for p, v in zip(parameters, trained, strict=True))


def test_other_parameters_are_refused() -> None:
    average = WeightAverage([torch.zeros(3)], 0.5)
    with pytest.raises(ValueError, match="average of 1 parameters"):
        average.load([torch.zeros(2)])


def test_an_average_that_begins_at_trained_parameters_has_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    average = WeightAverage([parameter], 0.5)
    average.load([parameter])  # as a run that kept none so far goes on with one
    assert not average.values[0].requires_grad
