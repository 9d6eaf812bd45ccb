"""What the trainings share of a step of the optimiser."""

import math

import torch
from torch import nn

LOWEST_RATE = 0.01  # share of the learning rate at the end of the cosine schedule


def cosine_share(progress: float) -> float:
    """Share of the learning rate: half a cosine from 1 down to :data:`LOWEST_RATE`.

    Parameters
    ----------
    progress : float
        Share of the steps that is done, 0 to 1.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return LOWEST_RATE + (1 - LOWEST_RATE) * cosine


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an exponential average of parameters and batch-norm statistics on by a step.

    Parameters
    ----------
    average : torch.nn.Module
        Changed in place.
    model : torch.nn.Module
        The network under training, of the same architecture.
    decay : float
        Share of the average that stays.
    """
    current = model.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])
