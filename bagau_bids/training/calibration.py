"""Moving the point at which a network calls a voxel a lesion to the usual threshold."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import UsageError
from bagau_bids.measures.metrics import comparable_masks, dice
from bagau_bids.network.cards import UNCALIBRATED, Calibration
from bagau_bids.network.inference import segment
from bagau_bids.network.weights import LoadedNetwork
from bagau_bids.synthesis.pool import WMH

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))
FLAT_DICE = 0.005

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperatingPoint:
    """Agreement with the references at one threshold, over all scans.

    Parameters
    ----------
    threshold : float
        Of the probability.
    mean_dice : float
        Each scan counts the same, whatever its lesion load.
    worst_volume_error : float
        Largest error of a scan's volume, as a share of the reference's (0.25 for 25 % too much
        or too little). Scans without lesions in the reference are left out, as no share can be
        stated for them.
    """

    threshold: float
    mean_dice: float
    worst_volume_error: float


def has_lesions(scan: TrainingScan) -> bool:
    """Whether the reference of a scan has a voxel of WMH."""
    return bool((scan.reference == WMH).any())


def without_lesions(scans: Sequence[TrainingScan]) -> list[str]:
    """Names of the scans that :attr:`OperatingPoint.worst_volume_error` leaves out."""
    return [scan.name for scan in scans if not has_lesions(scan)]


def operating_points(
    network: LoadedNetwork, scans: Sequence[TrainingScan], device: torch.device
) -> list[OperatingPoint]:
    """Compare whole scans with their references at each of :data:`THRESHOLDS`.

    Parameters
    ----------
    network : LoadedNetwork
        In evaluation mode; its own calibration does not count.
    scans : sequence of TrainingScan
    device : torch.device

    Returns
    -------
    points : list of OperatingPoint
        In the order of the thresholds, at native resolution.

    Raises
    ------
    UsageError
        If no scan has a lesion in its reference.
    """
    if len(without_lesions(scans)) == len(scans):
        raise UsageError(
            f"{len(scans)} scans to calibrate on, none with a lesion (1) in its mask; expected "
            "at least one: choose other subjects, or check --masks"
        )
    bare = network.calibrated(Calibration())
    scores, errors = [], []
    for scan in scans:
        found = segment([bare], scan.inputs, scan.brain_mask, device=device).probability
        pairs = [comparable_masks(scan.reference, found >= level) for level in THRESHOLDS]
        scores.append([dice(true, result) for true, result in pairs])
        if has_lesions(scan):
            errors.append(
                [abs(int(result.sum()) - true.sum()) / true.sum() for true, result in pairs]
            )
    means, worst = np.mean(scores, axis=0), np.max(errors, axis=0)
    return [
        OperatingPoint(level, float(mean), float(error))
        for level, mean, error in zip(THRESHOLDS, means, worst, strict=True)
    ]


def note_lost_calibration(weights: Path, network: LoadedNetwork) -> None:
    """Say in the log that a network made from calibrated weights has no calibration of its own.

    Parameters
    ----------
    weights : Path
        Where the network is from.
    network : LoadedNetwork
        With its calibration as it was loaded.
    """
    point = network.card.calibration.threshold
    if point != UNCALIBRATED:
        log.warning(
            "%s: their operating point of %.2f is not taken over; what is made from them calls a "
            "lesion what has a probability of 0.5, and 'bagau calibrate' sets another point",
            weights,
            point,
        )


def best_point(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """Choose the threshold by Dice, and where Dice is flat by volumes.

    Of all points whose mean Dice is within :data:`FLAT_DICE` of the highest, the one with the
    smallest worst error of a volume; of equal ones, that nearest to 0.5.
    """
    highest = max(point.mean_dice for point in points)
    flat = [point for point in points if point.mean_dice >= highest - FLAT_DICE]
    return min(
        flat,
        key=lambda point: (point.worst_volume_error, abs(point.threshold - UNCALIBRATED)),
    )
