"""Volume to network plane and back."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.network.slices import (
    PLANE_SIZE,
    SlicePlane,
    average_thin_slices,
    from_slices,
    network_input,
    place_plane,
    require_white_matter,
    to_slices,
    z_score,
)
from bagau_bids.spaces import Image, reorient


def head(spacing, extent_mm=(140, 170), shape_mm=(190, 220), slices=6):
    """A smooth volume and an off-centre elliptic brain; spacing in mm."""
    shape = (round(shape_mm[0] / spacing[0]), round(shape_mm[1] / spacing[1]), slices)
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    x_mm, y_mm = x * spacing[0], y * spacing[1]
    flair = 100 + 30 * np.sin(x_mm / 15) * np.cos(y_mm / 20) + 5 * z
    radius = ((x_mm - 90) / (extent_mm[0] / 2)) ** 2 + ((y_mm - 115) / (extent_mm[1] / 2)) ** 2
    brain = (radius <= 1) & (z > 0)
    return flair.astype(np.float32), brain, np.diag([*spacing, 5.0, 1.0])


def test_pixels_lie_where_the_plane_says():
    """An image that holds its own coordinates tells where each pixel was sampled."""
    spacing = (0.8, 1.25)
    plane = SlicePlane((250, 170, 2), spacing, (120.0, 85.5))
    x, y, _ = np.meshgrid(*(np.arange(n) for n in plane.shape), indexing="ij")
    rows = to_slices(x * spacing[0], plane)[0]
    columns = to_slices(y * spacing[1], plane)[1]
    offsets = np.arange(PLANE_SIZE) - 99.5
    inner = slice(10, -10)
    expected_rows = (120 * 0.8 + offsets)[inner, None] + np.zeros(PLANE_SIZE - 20)
    np.testing.assert_allclose(rows[inner, inner], expected_rows, atol=0.05)
    expected_columns = (85.5 * 1.25 + offsets)[None, inner] + np.zeros((PLANE_SIZE - 20, 1))
    np.testing.assert_allclose(columns[inner, inner], expected_columns, atol=0.05)


def test_linear_interpolation_between_coarse_voxels():
    rng = np.random.default_rng(0)
    volume = rng.random((80, 90, 2)).astype(np.float32)
    plane = SlicePlane(volume.shape, (2.0, 2.0), (40.0, 45.0))
    points = [40 + (np.arange(200) - 99.5) / 2, 45 + (np.arange(200) - 99.5) / 2]
    grid = np.meshgrid(*points, indexing="ij")
    naive = ndimage.map_coordinates(volume[..., 1], grid, order=1)
    kept = ((grid[0] >= 0) & (grid[0] <= 79)) & ((grid[1] >= 0) & (grid[1] <= 89))
    result = to_slices(volume, plane)[1]
    np.testing.assert_allclose(result[kept], naive[kept], atol=1e-5)
    beyond = (grid[0] < -0.5) | (grid[0] > 79.5) | (grid[1] < -0.5) | (grid[1] > 89.5)
    assert (result[beyond] == 0).all()


def test_fine_voxels_are_averaged_not_aliased():
    x, y, _ = np.meshgrid(np.arange(400), np.arange(400), np.arange(1), indexing="ij")
    checkers = ((x + y) % 2).astype(np.float32)
    plane = SlicePlane((400, 400, 1), (0.25, 0.25), (199.5, 199.5))
    inside = to_slices(checkers, plane)[0, 60:140, 60:140]
    np.testing.assert_allclose(inside, 0.5, atol=0.02)


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.9, 0.9), (1.0, 1.0), (1.4, 1.1), (0.6, 2.0)])
def test_round_trip_inside_the_brain(spacing):
    flair, brain, affine = head(spacing)
    plane, _ = place_plane(Image(brain, affine))
    back = from_slices(to_slices(flair, plane), plane)
    assert back.shape == flair.shape
    assert np.abs(back - flair)[brain].max() < 1.0  # of a contrast of 60


@pytest.mark.parametrize("axis", [0, 1])
def test_voxels_of_thick_slices_that_are_not_axial_have_the_mean_of_their_pixels(axis):
    """Oracle: each pixel in a hundred parts, which count for the voxel that their middle is in."""
    spacing, shape = [1.0, 1.0], [180, 180, 2]
    spacing[axis], shape[axis] = 6.0, 30
    plane = SlicePlane(tuple(shape), tuple(spacing), tuple((n - 1) / 2 for n in shape[:2]))
    slices = np.random.default_rng(0).random((2, PLANE_SIZE, PLANE_SIZE)).astype(np.float32)
    found = from_slices(slices, plane)
    parts = np.repeat(np.moveaxis(slices, 1 + axis, 0), 100, axis=0)
    place_mm = (np.arange(100 * PLANE_SIZE) + 0.5) / 100 - PLANE_SIZE / 2
    voxel = np.floor(place_mm / 6 + 15).astype(int)
    across = np.stack([parts[voxel == number].mean(axis=0) for number in range(30)])
    expected = np.moveaxis(across, 1, -1)[:, 10:-10]  # (slice, other axis) -> (.., slice)
    np.testing.assert_allclose(np.moveaxis(found, axis, 0), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("spacing", "across"),
    [
        ((1, 1), (False, False)),
        ((3, 3), (False, False)),
        ((1, 2.4), (False, False)),
        ((2, 2.6), (False, False)),
        ((1, 2.5), (False, True)),
        ((6, 1), (True, False)),
    ],
)
def test_which_axis_runs_across_thick_slices(spacing, across):
    plane = SlicePlane((9, 9, 9), spacing, (4.0, 4.0))
    assert (plane.across_slices(0), plane.across_slices(1)) == across


def test_a_lesion_in_one_thick_slice_stays_in_it():
    plane = SlicePlane((180, 30, 2), (1.0, 6.0), (89.5, 14.5))
    volume = np.zeros(plane.shape, np.float32)
    volume[80:100, 12] = 1
    back = from_slices((to_slices(volume, plane) >= 0.5).astype(np.float32), plane)
    np.testing.assert_array_equal(back >= 0.5, volume >= 0.5)


def test_round_trip_follows_the_anatomy_in_every_orientation(oriented_image):
    """The plane is laid in the RAS-ordered volume, so storage order does not matter."""
    stored = Image(oriented_image.get_fdata(dtype=np.float32), oriented_image.affine)
    image = reorient(stored)
    data, affine = ndimage.gaussian_filter(image.data, (1.5, 1.5, 0)), image.affine
    brain = np.zeros(data.shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    plane, _ = place_plane(Image(brain, affine))
    np.testing.assert_allclose(plane.spacing_mm, nib.affines.voxel_sizes(affine)[:2])
    slices = to_slices(data, plane)
    back = from_slices(slices, plane)
    assert np.abs(back - data)[brain].max() < 0.1 * np.ptp(data)
    if nib.aff2axcodes(oriented_image.affine) != ("R", "A", "S"):
        reference = np.random.default_rng(7).uniform(1, 100, (11, 13, 7)).astype(np.float32)
        reference = ndimage.gaussian_filter(reference, (1.5, 1.5, 0))
        np.testing.assert_allclose(slices, to_slices(reference, plane), rtol=1e-4, atol=1e-3)


def test_z_score_between_the_percentiles():
    rng = np.random.default_rng(1)
    flair = rng.normal(300, 20, (20, 20, 5)).astype(np.float32)
    flair[0, 0, 0], flair[1, 1, 1] = 1e6, -1e6
    brain = np.ones(flair.shape, bool)
    result = z_score(flair, flair[brain], "FLAIR")
    ordered = np.sort(flair.ravel())
    middle = ordered[(ordered >= np.percentile(flair, 5)) & (ordered <= np.percentile(flair, 95))]
    expected = (flair[2] - middle.mean()) / middle.std()
    np.testing.assert_allclose(result[2], expected, rtol=1e-3, atol=1e-3)
    assert result.max() == 10
    assert result.min() == -6


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_that_are_not_axial_are_normalised_as_they_are_seen(axis):
    """The brain of the network's slices has the spread that it has in axial scans: 1."""
    spacing = [1.0, 1.0]
    spacing[axis] = 6.0
    flair, brain, affine = head(spacing)
    flair += np.random.default_rng(0).normal(0, 20, flair.shape).astype(np.float32)
    inputs = network_input(Image(flair, affine), brain, brain.astype(np.float32))
    seen = inputs.channels["flair"][inputs.brain]
    low, high = np.percentile(seen, (5, 95))
    middle = seen[(seen >= low) & (seen <= high)]
    assert middle.std() == pytest.approx(1, abs=0.01)
    assert middle.mean() == pytest.approx(0, abs=0.01)


def test_network_input_is_zero_beyond_five_mm_of_the_brain_in_plane():
    flair, brain, affine = head((0.8, 0.8))
    flair[~brain] = 1e4
    inputs = network_input(Image(flair, affine), brain, brain.astype(np.float32))
    assert inputs.channels["flair"].shape == (6, PLANE_SIZE, PLANE_SIZE)
    assert inputs.channels["flair"].dtype == inputs.channels["atlas"].dtype == np.float32
    for number in range(6):
        if not inputs.brain[number].any():
            assert (inputs.channels["flair"][number] == 0).all()
            continue
        distance = ndimage.distance_transform_edt(~inputs.brain[number])
        assert (inputs.channels["flair"][number][distance > 5] == 0).all()
        assert (inputs.channels["flair"][number][(distance > 2) & (distance <= 5)] == 10).all()
    assert inputs.notes == ()


def test_a_huge_load_of_lesions_stays_bright():
    """They widen the spread that they are measured by; 1.6 times the rest is 2 z-scores still."""
    flair, brain, affine = head((1.0, 1.0))
    flair = np.random.default_rng(0).normal(100, 5, flair.shape).astype(np.float32)
    places = np.argwhere(brain)
    lesions = np.zeros_like(brain)
    lesions[tuple(places[places[:, 1] >= np.percentile(places[:, 1], 87.5)].T)] = True
    flair[lesions] = 160
    seen = network_input(Image(flair, affine), brain, brain * 1.0).channels["flair"]
    plane, _ = place_plane(Image(brain, affine))
    assert np.median(seen[to_slices(lesions, plane) == 1]) > 2


def test_network_input_does_not_depend_on_gain_and_offset():
    flair, brain, affine = head((1.0, 1.0))
    first = network_input(Image(flair, affine), brain, brain * 0.5)
    second = network_input(Image(7 * flair - 90, affine), brain, brain * 0.5)
    np.testing.assert_allclose(first.channels["flair"], second.channels["flair"], atol=1e-3)


@pytest.mark.parametrize("thickness_mm", [0.6, 0.8, 1.0, 1.2, 2.0, 2.9])
def test_thin_slices_are_averaged_to_three_mm(thickness_mm):
    """Oracle: the image as a staircase of 0.01 mm steps, averaged over 3 mm about each middle."""
    image = np.random.default_rng(0).random((2, 3, 12)).astype(np.float32)
    steps = round(thickness_mm / 0.01)
    staircase = np.repeat(image, steps, axis=2)
    expected = []
    for number in range(image.shape[2]):
        middle = number * steps + steps / 2
        first, last = max(0, round(middle - 150)), min(staircase.shape[2], round(middle + 150))
        expected.append(staircase[..., first:last].mean(axis=2))
    result = average_thin_slices(image, thickness_mm)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.stack(expected, axis=2), atol=2e-3)


@pytest.mark.parametrize("thickness_mm", [3.0, 6.5])
def test_thick_slices_stay_as_they_are(thickness_mm):
    image = np.random.default_rng(0).random((2, 3, 5)).astype(np.float32)
    assert np.array_equal(average_thin_slices(image, thickness_mm), image)


def test_thin_scan_looks_to_the_network_like_a_thick_one():
    """The same head cut in slices of 3 mm and of 1 mm, whose noise is sqrt(3) as strong."""
    random = np.random.default_rng(0)
    thick = np.full((80, 80, 10), 100.0, np.float32)
    thick[:, 40:] = 110.0  # grey matter
    lesion = (slice(20, 30), slice(20, 30), slice(4, 7))
    thick[lesion] = 150.0
    thin = np.repeat(thick, 3, axis=2) + random.normal(0, 12 * 3**0.5, (80, 80, 30))
    thick += random.normal(0, 12, thick.shape)
    seen = []
    for flair, thickness_mm in ((thick, 3.0), (thin, 1.0)):
        affine = np.diag([1.0, 1.0, thickness_mm, 1.0])
        brain = np.ones(flair.shape, bool)
        inputs = network_input(
            Image(flair.astype(np.float32), affine), brain, np.zeros_like(flair)
        )
        middles = round(3 / thickness_mm) * np.arange(10) + round(3 / thickness_mm) // 2
        seen.append(inputs.channels["flair"][middles, 60:140, 60:140])
    thick_seen, thin_seen = seen
    bright, dark = thick_seen[5, 20:30, 20:30], thick_seen[5, 20:30, 5:15]
    assert thin_seen.std() == pytest.approx(thick_seen.std(), rel=0.02)
    assert thin_seen[5, 20:30, 20:30].mean() == pytest.approx(bright.mean(), rel=0.05)
    assert thin_seen[5, 20:30, 5:15].mean() == pytest.approx(dark.mean(), rel=0.25)


def test_brain_is_centred():
    flair, brain, affine = head((1.0, 1.0))
    where = np.argwhere(network_input(Image(flair, affine), brain, flair * 0).brain)
    middle = (where.min(axis=0) + where.max(axis=0)) / 2
    np.testing.assert_allclose(middle[1:], 99.5, atol=0.5)


def test_long_brain_gets_a_larger_plane_and_a_note():
    flair, brain, affine = head((1.0, 1.0), extent_mm=(150, 224), shape_mm=(190, 250))
    inputs = network_input(Image(flair, affine), brain, flair * 0)
    assert inputs.channels["flair"].shape[1:] == (256, 256)
    assert inputs.notes
    assert "more than the usual 200 mm" in inputs.notes[0]
    back = from_slices(to_slices(flair, inputs.plane), inputs.plane)
    assert np.abs(back - flair)[brain].max() < 1.0


def test_impossible_brain_is_refused():
    flair, brain, affine = head((1.0, 1.0))
    with pytest.raises(ProcessingError, match=r"expected at most 256 mm; check .* voxel sizes"):
        network_input(Image(flair, affine * 2), brain, flair)


def test_empty_mask_is_refused():
    flair, brain, affine = head((1.0, 1.0))
    with pytest.raises(ProcessingError, match="brain mask is empty"):
        network_input(Image(flair, affine), brain & False, flair)


def test_constant_brain_is_refused():
    flair, brain, affine = head((1.0, 1.0))
    with pytest.raises(ProcessingError, match="FLAIR is constant"):
        network_input(Image(np.full_like(flair, 3), affine), brain, flair)


def test_images_on_different_grids_are_refused():
    flair, brain, affine = head((1.0, 1.0))
    with pytest.raises(ValueError, match="differ in shape"):
        network_input(Image(flair, affine), brain, flair[1:])


def test_white_matter_map_that_misses_the_brain_is_refused():
    _, brain, _ = head((1.0, 1.0))
    beside = np.where(brain, 0.0, 1.0)
    with pytest.raises(ProcessingError, match=r"covers 0\.0 % of the brain mask.*about 30 %"):
        require_white_matter(beside, brain)


def test_white_matter_map_on_another_scale_is_refused():
    _, brain, _ = head((1.0, 1.0))
    with pytest.raises(ProcessingError, match="whose values go from 0 to 1"):
        require_white_matter(brain * 0.004, brain)


def test_little_white_matter_is_enough():
    _, brain, _ = head((1.0, 1.0))
    wm_probseg = np.zeros(brain.shape, np.float32)
    inside = np.argwhere(brain)
    wm_probseg[tuple(inside[: len(inside) // 40].T)] = 0.6
    require_white_matter(wm_probseg, brain)
