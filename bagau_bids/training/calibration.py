"""Moving the point at which a network calls a voxel a lesion to the usual threshold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bagau_bids.measures.metrics import comparable_masks, dice
from bagau_bids.network.inference import segment_input
from bagau_bids.training.dataset import TrainingScan

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))
USUAL_THRESHOLD = 0.5


def dice_by_threshold(
    model: nn.Module, scans: Sequence[TrainingScan], device: torch.device
) -> dict[float, float]:
    """Mean Dice over whole scans at each of :data:`THRESHOLDS`.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    scans : sequence of TrainingScan
        Each counts the same, whatever its lesion load.
    device : torch.device

    Returns
    -------
    mean_dice : dict of float to float
        By threshold of the probability, at native resolution.
    """
    scores = []
    for scan in scans:
        found = segment_input([model], scan.inputs, scan.brain_mask, device=device).probability
        scores.append(
            [dice(*comparable_masks(scan.reference, found >= level)) for level in THRESHOLDS]
        )
    return dict(zip(THRESHOLDS, np.mean(scores, axis=0).tolist(), strict=True))


def best_threshold(mean_dice: dict[float, float]) -> float:
    """Threshold with the highest mean Dice; of equal ones, that nearest to 0.5."""
    return max(mean_dice, key=lambda level: (mean_dice[level], -abs(level - USUAL_THRESHOLD)))


@torch.no_grad()
def move_threshold(model: nn.Module, threshold: float) -> None:
    """Shift a network's logits so that a probability of `threshold` becomes 0.5.

    The order of voxels by probability stays what it was.

    Parameters
    ----------
    model : torch.nn.Module
        With its last convolution as ``model.head``, as BAGAU-Net and the U-Net have it; changed
        in place.
    threshold : float
        Between 0 and 1, both excluded.
    """
    head: Any = model.head
    head.bias -= math.log(threshold / (1 - threshold))
