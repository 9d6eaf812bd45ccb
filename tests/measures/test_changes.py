"""Changes of lesions on drawn masks whose changes are known."""

import json
from importlib.resources import files

import numpy as np
import pytest

from bagau_bids.measures.changes import (
    SMALLEST_MM3,
    STATES,
    change_of,
    count_changes,
    lesion_changes,
)
from bagau_bids.spaces import Image

SHAPE = (60, 20, 20)
AFFINE = np.eye(4)
AFFINE[:3, 3] = 5, -10, 20


def boxes(*places):
    """A mask of boxes: (first x, length along x) each, 4 x 4 voxels across."""
    mask = np.zeros(SHAPE, bool)
    for x, length in places:
        mask[x : x + length, 8:12, 8:12] = True
    return mask


@pytest.fixture
def table():
    """A stable, a growing, a shrinking, a gone, a new lesion and a tiny one."""
    before = boxes((2, 6), (12, 4), (22, 8), (34, 5))
    after = boxes((3, 6), (12, 8), (22, 4), (44, 5))
    after[55:57, 2:4, 2:4] = True
    return lesion_changes(Image(before, AFFINE), after)


def test_every_kind_of_change_is_told(table):
    found = {
        round(x - 5): change for x, change in zip(table.centroid_x_mm, table.change, strict=True)
    }
    assert found == {
        5: "stable",
        16: "growing",
        26: "shrinking",
        36: "gone",
        46: "new",
        56: "small",
    }


def test_volumes_gains_and_losses_are_counted(table):
    stable = table[table.change == "stable"].iloc[0]
    assert stable.volume_before_mm3 == stable.volume_after_mm3 == 6 * 16
    assert stable.gained_mm3 == stable.lost_mm3 == 16
    figures = count_changes(table)
    assert [figures[f"n_{state}"] for state in STATES] == [1] * 6
    assert figures["volume_before_mm3"] == 16 * (6 + 4 + 8 + 5)
    assert figures["volume_after_mm3"] == 16 * (6 + 8 + 4 + 5) + 8
    gain = figures["gained_mm3"] - figures["lost_mm3"]
    assert gain == figures["volume_after_mm3"] - figures["volume_before_mm3"]


def test_swapping_the_sessions_swaps_the_changes(table):
    swapped = {"new": "gone", "gone": "new", "growing": "shrinking", "shrinking": "growing"}
    after = boxes((2, 6), (12, 4), (22, 8), (34, 5))
    before = boxes((3, 6), (12, 8), (22, 4), (44, 5))
    before[55:57, 2:4, 2:4] = True
    other = lesion_changes(Image(before, AFFINE), after)
    assert other.change.tolist() == [swapped.get(change, change) for change in table.change]
    assert other.gained_mm3.tolist() == table.lost_mm3.tolist()


def test_lesions_that_merge_are_one_row():
    table = lesion_changes(Image(boxes((2, 5), (9, 5)), AFFINE), boxes((2, 12)))
    assert table.change.tolist() == ["stable"]
    assert table.volume_before_mm3.tolist() == [160]


def test_equal_masks_change_nothing_and_empty_ones_have_no_row():
    mask = boxes((2, 5), (20, 9))
    assert set(lesion_changes(Image(mask, AFFINE), mask).change) == {"stable"}
    empty = lesion_changes(Image(boxes(), AFFINE), boxes())
    assert len(empty) == 0
    assert count_changes(empty)["n_new"] == 0


@pytest.mark.parametrize("size", [1.0, 0.8, 2.0])
def test_volumes_are_of_the_voxels(size):
    affine = np.diag([size, size, size, 1])
    table = lesion_changes(Image(boxes(), affine), boxes((2, 5)))
    assert table.volume_after_mm3.tolist() == pytest.approx([80 * size**3])


def test_limits_lie_where_they_are_stated():
    assert abs(SMALLEST_MM3 - 14.137) < 1e-3
    assert change_of(0, 14.1) == "small"
    assert change_of(0, 14.2) == "new"
    assert change_of(14.2, 0) == "gone"
    assert change_of(100, 152) == "stable"
    assert change_of(100, 152.1) == "growing"
    assert change_of(152.1, 100) == "shrinking"


def test_masks_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        lesion_changes(Image(boxes(), AFFINE), np.zeros((3, 3, 3)))


def test_every_column_and_state_is_described(table):
    folder = files("bagau_bids.data").joinpath("tables")
    described = json.loads(folder.joinpath("lesion_changes.json").read_text())
    assert list(table.columns) == list(described)
    assert set(described["change"]["Levels"]) == set(STATES)
