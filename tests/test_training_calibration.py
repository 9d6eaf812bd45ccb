"""Where a network calls a voxel a lesion, and moving it."""

import numpy as np
import pytest
import torch

from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.slices import network_input
from bagau_bids.training.calibration import (
    THRESHOLDS,
    OperatingPoint,
    best_point,
    move_threshold,
    operating_points,
)
from bagau_bids.training.dataset import TrainingScan

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


def small_network(seed=0):
    torch.manual_seed(seed)
    return BagauNet(BagauNetConfig(widths=(4, 4, 6, 6, 8))).eval()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.85])
def test_moved_threshold_is_one_half_and_the_order_stays(threshold):
    model = small_network()
    flair, atlas = torch.randn(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        before = torch.sigmoid(model(flair=flair, atlas=atlas)).double().numpy()
        move_threshold(model, threshold)
        after = torch.sigmoid(model(flair=flair, atlas=atlas)).double().numpy()
    odds = before / (1 - before) * (1 - threshold) / threshold
    np.testing.assert_allclose(after, odds / (1 + odds), atol=1e-5)
    in_order = after.ravel()[np.argsort(before, axis=None)]
    assert (np.diff(in_order) >= -1e-6).all()


class Ramp(torch.nn.Module):
    """Stand-in whose probability is the atlas."""

    inputs = ("flair", "atlas")

    def forward(self, flair, atlas):
        return torch.logit(atlas.clamp(1e-4, 1 - 1e-4))


def scan_with_best_threshold(level):
    """A brain whose probability falls along X, and a reference that is all above `level`."""
    brain = np.zeros((60, 60, 2), bool)
    brain[5:55, 5:55] = True
    probability = np.linspace(1, 0, 60, dtype=np.float32)[:, None, None] * brain
    flair = np.random.default_rng(0).normal(9, 1, brain.shape).astype(np.float32)
    inputs = network_input(flair, AFFINE, brain, probability)
    reference = ((probability >= level) & brain).astype(np.uint8)
    return TrainingScan("x", "x", 0, inputs, brain, reference, AFFINE)


@pytest.mark.parametrize("level", [0.2, 0.7])
def test_best_threshold_is_where_the_reference_ends(level):
    points = operating_points(Ramp(), [scan_with_best_threshold(level)], torch.device("cpu"))
    assert tuple(point.threshold for point in points) == THRESHOLDS
    best = best_point(points)
    assert best.threshold == pytest.approx(level, abs=0.051)
    assert best.mean_dice > 0.95
    assert best.worst_volume_error < 0.06


def test_scans_count_alike_and_the_worst_volume_tells():
    pair = [scan_with_best_threshold(0.2), scan_with_best_threshold(0.7)]
    device = torch.device("cpu")
    both, first, second = (operating_points(Ramp(), some, device) for some in (pair, *zip(pair)))
    for together, one, other in zip(both, first, second, strict=True):
        assert together.mean_dice == pytest.approx((one.mean_dice + other.mean_dice) / 2)
        assert together.worst_volume_error == max(one.worst_volume_error, other.worst_volume_error)


def test_where_dice_is_flat_volumes_decide_and_then_nearness_to_one_half():
    points = [
        OperatingPoint(0.2, 0.690, 0.00),
        OperatingPoint(0.6, 0.697, 0.30),
        OperatingPoint(0.7, 0.696, 0.20),
        OperatingPoint(0.8, 0.700, 0.25),
        OperatingPoint(0.9, 0.698, 0.20),
    ]
    assert best_point(points).threshold == 0.7
