"""Where a network calls a voxel a lesion, and moving it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from network_spy import loaded

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import UsageError
from bagau_bids.network.slices import network_input
from bagau_bids.spaces import Image
from bagau_bids.training.calibration import (
    THRESHOLDS,
    OperatingPoint,
    best_point,
    operating_points,
    without_lesions,
)

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


class Ramp(torch.nn.Module):
    """Stand-in whose probability is the atlas."""

    def forward(self, flair, atlas):
        return torch.logit(atlas.clamp(1e-4, 1 - 1e-4))


def scan_with_best_threshold(level):
    """A brain whose probability falls along X, and a reference that is all above `level`."""
    brain = np.zeros((60, 60, 2), bool)
    brain[5:55, 5:55] = True
    probability = np.linspace(1, 0, 60, dtype=np.float32)[:, None, None] * brain
    flair = np.random.default_rng(0).normal(9, 1, brain.shape).astype(np.float32)
    inputs = network_input(Image(flair, AFFINE), brain, probability)
    reference = ((probability >= level) & brain).astype(np.uint8)
    return TrainingScan("x", "x", 0, inputs, brain, reference, AFFINE)


@pytest.mark.parametrize("level", [0.2, 0.7])
def test_best_threshold_is_where_the_reference_ends(level):
    points = operating_points(
        loaded(Ramp()), [scan_with_best_threshold(level)], torch.device("cpu")
    )
    assert tuple(point.threshold for point in points) == THRESHOLDS
    best = best_point(points)
    assert best.threshold == pytest.approx(level, abs=0.051)
    assert best.mean_dice > 0.95
    assert best.worst_volume_error < 0.06


def test_an_earlier_calibration_is_taken_off():
    scans = [scan_with_best_threshold(0.7)]
    fresh = operating_points(loaded(Ramp()), scans, torch.device("cpu"))
    moved = loaded(Ramp(), threshold=0.7)
    assert operating_points(moved, scans, torch.device("cpu")) == fresh


def test_scans_count_alike_and_the_worst_volume_tells():
    pair = [scan_with_best_threshold(0.2), scan_with_best_threshold(0.7)]
    device = torch.device("cpu")
    both, first, second = (
        operating_points(loaded(Ramp()), some, device) for some in (pair, *zip(pair))
    )
    for together, one, other in zip(both, first, second, strict=True):
        assert together.mean_dice == pytest.approx((one.mean_dice + other.mean_dice) / 2)
        assert together.worst_volume_error == max(one.worst_volume_error, other.worst_volume_error)


def test_scan_without_lesions_counts_in_dice_and_not_in_volumes():
    diseased = scan_with_best_threshold(0.7)
    healthy = replace(diseased, name="h", reference=np.zeros_like(diseased.reference))
    other = replace(healthy, reference=np.where(diseased.reference, 2, 0).astype(np.uint8))
    device = torch.device("cpu")
    alone = operating_points(loaded(Ramp()), [diseased], device)
    together = operating_points(loaded(Ramp()), [diseased, healthy, other], device)
    assert without_lesions([diseased, healthy, other]) == ["h", "h"]
    for one, all_three in zip(alone, together, strict=True):
        assert all_three.worst_volume_error == one.worst_volume_error
    # Below 0.7 something is found in the healthy one; where 2 is not judged, from 0.7 on nothing.
    highest = together[THRESHOLDS.index(0.75)]
    assert highest.mean_dice == pytest.approx((alone[THRESHOLDS.index(0.75)].mean_dice + 1) / 3)


def test_scans_without_any_lesion_are_refused():
    scan = scan_with_best_threshold(0.7)
    healthy = replace(scan, reference=np.zeros_like(scan.reference))
    with pytest.raises(UsageError, match=r"2 scans to calibrate on, none with a lesion \(1\)"):
        operating_points(loaded(Ramp()), [healthy, healthy], torch.device("cpu"))


def test_where_dice_is_flat_volumes_decide_and_then_nearness_to_one_half():
    points = [
        OperatingPoint(0.2, 0.690, 0.00),
        OperatingPoint(0.6, 0.697, 0.30),
        OperatingPoint(0.7, 0.696, 0.20),
        OperatingPoint(0.8, 0.700, 0.25),
        OperatingPoint(0.9, 0.698, 0.20),
    ]
    assert best_point(points).threshold == 0.7
