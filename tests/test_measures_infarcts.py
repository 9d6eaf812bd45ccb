"""A voxel is WMH, infarct or neither."""

import numpy as np
import pytest

from bagau_bids.measures.infarcts import tell_apart


@pytest.mark.parametrize(
    ("wmh", "infarct", "threshold", "expected"),
    [
        (0.9, 0.1, 0.5, "wmh"),
        (0.1, 0.9, 0.5, "infarct"),
        (0.4, 0.49, 0.5, "neither"),
        (0.9, 0.8, 0.5, "wmh"),
        (0.8, 0.9, 0.5, "infarct"),
        (0.7, 0.7, 0.5, "infarct"),
        (0.5, 0.49, 0.5, "wmh"),
        (0.49, 0.5, 0.5, "infarct"),
        (0.6, 0.5, 0.7, "infarct"),
        (0.4, 0.49, 0.3, "wmh"),
    ],
)
def test_a_voxel_is_one_or_neither(wmh, infarct, threshold, expected):
    masks = tell_apart(np.full((2, 1, 1), wmh), np.full((2, 1, 1), infarct), threshold)
    for name, mask in zip(("wmh", "infarct"), masks, strict=True):
        assert (mask == (expected == name)).all()


def test_without_infarcts_the_threshold_decides():
    wmh, infarct = tell_apart(np.array([0.2, 0.5, 0.9]), None, 0.5)
    assert wmh.tolist() == [False, True, True]
    assert not infarct.any()
