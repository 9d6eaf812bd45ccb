"""A voxel is WMH, infarct or neither."""

import numpy as np
import pytest

from bagau_bids.measures.infarcts import find, tell_apart
from bagau_bids.spaces import Image


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


def test_small_pieces_are_neither_and_what_is_not_wanted_is_not_reported():
    wmh, infarct = np.zeros((2, 6, 6, 6))
    wmh[1:3, 1:3, 1:3], wmh[5, 5, 5] = 0.9, 0.9
    infarct[3:5, 3:5, 3:5], infarct[0, 5, 0] = 0.9, 0.9
    affine = np.diag([1.0, 2.0, 1.0, 1.0])
    found = find(Image(wmh, affine), infarct, threshold=0.5, min_size_mm3=10, wanted=True)
    assert (found.wmh.sum(), found.infarct.sum(), found.reported.sum()) == (8, 9, 8)
    assert found.infarct_ml(affine) == pytest.approx(0.018)
    quiet = find(Image(wmh, affine), infarct, threshold=0.5)
    assert (quiet.wmh.sum(), quiet.infarct.sum(), quiet.reported) == (9, 9, None)
    blind = find(Image(wmh, affine), None, threshold=0.5, wanted=True)
    assert (blind.wmh.sum(), blind.infarct.sum(), blind.reported) == (9, 0, None)
    assert blind.infarct_ml(affine) is None
