"""What the trainings share of a step of the optimiser."""

import math

import pytest
import torch
from torch import nn

from bagau_bids.errors import ProcessingError
from bagau_bids.training.optimisation import (
    average_decay,
    cosine_share,
    finite_gradient_norm,
    finite_loss,
    go_on_from,
    move_average,
)


@pytest.mark.parametrize(("progress", "share"), [(0, 1), (0.5, 0.505), (1, 0.01)])
def test_rate_falls_by_half_a_cosine_to_a_hundredth(progress, share):
    assert math.isclose(cosine_share(progress), share)


def test_average_keeps_its_share_of_parameters_and_statistics():
    average, model = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    with torch.no_grad():
        average.weight.fill_(1.0)
        model.weight.fill_(5.0)
    average.running_mean.fill_(2.0)
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(7)
    move_average(average, model, 0.75)
    assert float(average.weight.detach()) == 2.0
    assert float(average.running_mean) == 4.0
    assert int(average.num_batches_tracked) == 7
    assert float(model.weight.detach()) == 5.0


@pytest.mark.parametrize(("step", "expected"), [(0, 1 / 10), (90, 0.91), (10_000, 0.998)])
def test_average_warms_up(step, expected):
    assert math.isclose(average_decay(step, 0.998), expected)
    assert average_decay(0, 0.998, start=11) == 1 / 11


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e37, 2e6])
def test_a_gradient_that_is_none_is_told_with_the_step(value):
    assert finite_gradient_norm(5.0, 7, "") == 5.0
    with pytest.raises(ProcessingError, match=r"gradient is \S+ at step 7, .*; do this"):
        finite_gradient_norm(value, 7, "do this")


def test_a_loss_that_is_no_number_is_told_with_the_step():
    assert finite_loss(0.5, 7, "") == 0.5
    for loss in (math.nan, math.inf):
        with pytest.raises(ProcessingError, match=rf"the loss is {loss} at step 7: .*; do this"):
            finite_loss(loss, 7, "do this")


def test_last_good_checkpoint_is_named_if_there_is_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert go_on_from(path, "--fast") == "start again with --fast"
    path.touch()
    assert go_on_from(path, "--fast") == f"go on from {path} with --resume and --fast"
