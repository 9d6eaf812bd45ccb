"""What the trainings share of a step of the optimiser."""

import math

import pytest
import torch
from torch import nn

from bagau_bids.training.optimisation import cosine_share, move_average


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
