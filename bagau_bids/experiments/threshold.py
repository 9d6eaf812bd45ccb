"""The sanity baseline: bright voxels of the atlas' white matter, as a network of no layers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.synthesis.pool import WMH, training_shard

WHITE_MATTER = 0.5  # probability in the atlas from which a voxel counts as white matter
CANDIDATES = np.round(np.arange(0.5, 6.01, 0.1), 1)  # z-scores
CERTAIN = 20.0  # logit


class IntensityThreshold(nn.Module):
    """Says lesion where the z-scored FLAIR is above a threshold in the atlas' white matter.

    Parameters
    ----------
    z_score : float
    """

    inputs = ("flair", "atlas")

    def __init__(self, z_score: float) -> None:
        super().__init__()
        self.z_score = z_score

    def forward(self, flair: Tensor, atlas: Tensor) -> Tensor:
        """Logits, (N, 1, H, W) as both inputs."""
        found = (flair > self.z_score) & (atlas >= WHITE_MATTER)
        return torch.where(found, CERTAIN, -CERTAIN)


def choose_threshold(scans: Sequence[TrainingScan]) -> float:
    """Z-score with the best mean Dice over scans, on the network's slices.

    Parameters
    ----------
    scans : sequence of TrainingScan
        Of the training, validation included; never those that are tested on.
    """
    dice = np.zeros((len(scans), len(CANDIDATES)))
    for row, scan in enumerate(scans):
        shard = training_shard(scan.inputs, scan.reference)
        judged = shard.target <= WMH
        truth = (shard.target == WMH)[judged]
        z_score = np.where(
            shard.channels["atlas"] >= WHITE_MATTER, shard.channels["flair"], -np.inf
        )[judged]
        for column, candidate in enumerate(CANDIDATES):
            found = z_score > candidate
            both = np.count_nonzero(found & truth)
            dice[row, column] = 2 * both / max(1, found.sum() + truth.sum())
    return float(CANDIDATES[dice.mean(axis=0).argmax()])
