"""Stacks of slices: every one, the right side in the right place, outlines where the mask is."""

import base64
import io
import re

import numpy as np
import pytest
from block_head import SHAPE, volumes_of
from matplotlib.path import Path as Polygon
from PIL import Image

from bagau_bids.reports import stacks


def picture(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int)


def filled(path, shape):
    """Pixels whose centre lies inside an odd number of the path's closed pieces."""
    rows, columns = np.indices(shape)
    centres = np.column_stack([2 * columns.ravel() + 1, 2 * rows.ravel() + 1])
    inside = np.zeros(len(centres), int)
    for piece in re.findall(r"M([^z]*)z", path):
        numbers = np.array([float(number) for number in re.findall(r"-?\d+", piece)])
        corners = np.cumsum(numbers.reshape(-1, 2), axis=0)
        inside += Polygon([*corners, corners[0]]).contains_points(centres)
    return (inside % 2).reshape(shape).astype(bool)


@pytest.mark.parametrize("seed", range(4))
def test_outline_encloses_exactly_the_pixels_of_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < 0.4
    mask[0] = True  # reaches the edge
    assert (filled(stacks.outline_path(mask), mask.shape) == mask).all()


def test_outline_of_a_ring_has_a_hole_and_that_of_nothing_is_empty():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    path = stacks.outline_path(mask)
    assert path.count("M") == 2
    assert (filled(path, mask.shape) == mask).all()
    assert stacks.outline_path(np.zeros((9, 9), bool)) == ""


def test_outline_of_a_block_follows_its_edges():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 1:4] = True
    numbers = re.findall(r"-?\d+", stacks.outline_path(mask))
    corners = np.cumsum(np.array(numbers, int).reshape(-1, 2), axis=0)
    assert corners.min(axis=0).tolist() == [2, 4]
    assert corners.max(axis=0).tolist() == [8, 12]
    assert len(corners) == 8  # straight edges, corners cut


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "PSL", "oblique"])
def test_right_front_and_top_are_where_the_letters_say(orientation):
    planes, _ = stacks.scan_planes(volumes_of(orientation=orientation))
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]
    letters = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    for plane in planes:
        assert "".join(plane.letters) == letters[plane.name]
        grey = picture(plane.pictures[plane.opening])[..., 0]
        assert grey.shape == (plane.rows, plane.columns)
        bright = grey > 1.2 * np.median(grey)
        rows, columns = np.nonzero(bright)
        assert rows.mean() < plane.rows / 2  # anterior or superior
        assert columns.mean() < plane.columns / 2  # right or anterior
        assert (filled(plane.paths[plane.opening], grey.shape) == bright).all()
        heat = picture(plane.probabilities[plane.opening])[..., 3]
        assert ((heat > 0) == bright).all()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
def test_slices_have_their_numbers_positions_and_areas(orientation):
    volumes = volumes_of(orientation=orientation)
    planes, _ = stacks.scan_planes(volumes)
    for plane in planes:
        index = plane.first - 1 + np.arange(len(plane.pictures))
        others = tuple(axis for axis in range(3) if axis != plane.axis)
        counts = np.count_nonzero(volumes.mask, axis=others)[index]
        assert plane.areas_mm2 == (counts * 4.0).tolist()
        assert sum(plane.areas_mm2) == 4.0 * volumes.mask.sum()
        assert plane.total == volumes.flair.shape[plane.axis]
        step = np.diff(plane.positions_mm)
        assert step == pytest.approx(volumes.affine[plane.axis, plane.axis], abs=0.11)
        assert plane.bars.count("M") == np.count_nonzero(counts)
    if orientation != "oblique":
        axial = planes[0]
        assert axial.positions_mm[axial.opening] == -30 + 2 * (axial.first - 1 + axial.opening)


def test_air_is_left_out_but_no_slice_as_scanned():
    planes, _ = stacks.scan_planes(volumes_of())
    axial, coronal, sagittal = planes
    # The head and 6 mm, three voxels, on both sides.
    assert (sagittal.first, len(sagittal.pictures)) == (4, 34)
    assert (axial.columns, axial.rows) == (34, 42)
    assert (axial.width_mm, coronal.height_mm) == (68.0, 64.0)
    (thick,), _ = stacks.scan_planes(volumes_of(spacing=(2.0, 2.0, 6.0)))
    assert (thick.first, len(thick.pictures)) == (1, SHAPE[2])


def test_specks_of_noise_do_not_make_a_head():
    volumes = volumes_of()
    volumes.flair[1, 2, 3] = 190
    (axial, *_), _ = stacks.scan_planes(volumes)
    assert (axial.columns, axial.rows) == (34, 42)


def test_slices_as_scanned_alone_where_they_are_thick():
    planes, _ = stacks.scan_planes(volumes_of(spacing=(6.0, 2.0, 2.0)))
    assert [plane.name for plane in planes] == ["sagittal"]


def test_grey_values_leave_room_above_the_window():
    planes, coding = stacks.scan_planes(volumes_of())
    assert coding.media_type == "image/png"
    grey = picture(planes[0].pictures[planes[0].opening])[..., 0]
    expected = [0, round(255 * 0.5 / stacks.HEADROOM), round(255 * 0.75 / stacks.HEADROOM)]
    assert sorted(np.unique(grey)) == expected


def test_probability_is_invisible_below_its_lowest_value():
    probability = np.zeros(SHAPE, np.float32)
    probability[10:20, 10:20, 10] = 0.09
    probability[20:30, 10:20, 20] = 1.0
    (axial, *_), _ = stacks.scan_planes(volumes_of(probability=probability))
    assert axial.probabilities[10 - axial.first + 1] == ""
    heat = picture(axial.probabilities[20 - axial.first + 1])
    shown = heat[heat[..., 3] > 0]
    assert len(shown) == 100
    # The end of "plasma", opacity 0.85.
    assert np.abs(shown - [240, 249, 33, 217]).max() <= 1


def test_first_coding_that_fits_is_taken():
    rng = np.random.default_rng(0)
    volumes = volumes_of()
    noisy = volumes.flair + rng.normal(0, 10, SHAPE).astype(np.float32)
    volumes = stacks.Volumes(noisy, volumes.affine, volumes.window, volumes.mask)
    sizes = []
    # Voxels of 2 mm are too large to be halved.
    for best in (coding for coding in stacks.CODINGS if coding.step == 1):
        planes, coding = stacks.scan_planes(volumes, sizes[-1] - 1 if sizes else 10**9)
        assert coding == best
        sizes.append(sum(plane.size_bytes for plane in planes))
    assert sizes == sorted(sizes, reverse=True)
    assert [plane.name for plane in planes] == ["axial"]
    assert picture(planes[0].pictures[0]).shape[0] == round(planes[0].rows / 2)
    assert stacks.scan_planes(volumes, 1)[1] == stacks.CODINGS[-1]


def test_fine_volumes_keep_all_planes_at_half_resolution():
    rng = np.random.default_rng(0)
    plain = volumes_of(spacing=(0.5, 0.5, 0.5))
    noisy = plain.flair + rng.normal(0, 10, SHAPE).astype(np.float32)
    volumes = stacks.Volumes(noisy, plain.affine, plain.window, plain.mask)
    sizes = []
    for room in (10**9, 0, 0):
        whole, _ = stacks.scan_planes(volumes, sizes[-1] - 1 if room == 0 else room)
        sizes.append(sum(plane.size_bytes for plane in whole))
    every = stacks.scan_planes(volumes)[0]
    assert [plane.step for plane in whole] == [2, 2, 2]
    for half, full in zip(whole, every, strict=True):
        assert (half.columns, half.rows, half.first) == (full.columns, full.rows, full.first)
        assert half.positions_mm == full.positions_mm[::2]
        assert half.areas_mm2 == full.areas_mm2[::2]
        assert half.paths == full.paths[::2]
        assert picture(half.pictures[0]).shape[:2] == (half.rows // 2, half.columns // 2)
