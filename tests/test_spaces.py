import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from bagau_bids import spaces
from bagau_bids.errors import InputImageError
from bagau_bids.spaces import Grid, Image

ALL_ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(["LR", "PA", "IS"])
    for code in itertools.product(*axes)
]


def _trilinear(data, point):
    """Value between the eight voxels around a point, border repeated; one point at a time."""
    low = np.floor(point).astype(int)
    value = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        index = low + corner
        weight = np.prod([w if c else 1 - w for c, w in zip(corner, point - low, strict=True)])
        value += weight * data[tuple(np.clip(index, 0, np.array(data.shape) - 1))]
    return value


def _stored_as(data, affine, codes):
    image = nib.Nifti1Image(data, affine)
    stored = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    return np.asarray(stored.dataobj), stored.affine


def test_voxel_sizes_of_tilted_voxels(oriented_image):
    assert np.allclose(
        spaces.voxel_sizes(oriented_image.affine), oriented_image.header.get_zooms(), atol=1e-5
    )


def test_resample_agrees_with_reading_off_point_by_point(oriented_image):
    data, affine = oriented_image.get_fdata(), oriented_image.affine
    target = spaces.isotropic_grid(oriented_image, 3.1)
    target.affine[:3, 3] += 2, -3, 1
    target.affine[:3, 1] += 0.2, 0, 0.4
    found = spaces.resample(Image(data, affine), target, cval=-5)
    to_voxel = np.linalg.inv(affine) @ target.affine
    for index in itertools.product(*(range(0, n, 2) for n in target.shape)):
        point = (to_voxel @ [*index, 1])[:3]
        inside = (point >= -0.5).all() and (point <= np.array(data.shape) - 0.5).all()
        expected = _trilinear(data, point) if inside else -5
        assert found[index] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resample_to_its_own_grid_changes_nothing(oriented_image, order):
    data = oriented_image.get_fdata(dtype=np.float32)
    same = spaces.resample(Image(data, oriented_image.affine), oriented_image, order)
    assert same.dtype == np.float32
    assert np.allclose(same, data, atol=1e-3)


def test_resample_of_a_mask_by_nearest_neighbour_keeps_its_values(oriented_image):
    mask = Image(oriented_image.get_fdata() > 50, oriented_image.affine)
    found = spaces.resample(mask, Grid((9, 9, 9), np.diag([2, 2, 2, 1])), 0)
    assert set(np.unique(found)) <= {0.0, 1.0}


def test_resample_keeps_the_outer_half_of_a_thick_slice():
    data = np.full((4, 4, 5), 7.0)
    thick = np.diag([1.0, 1.0, 6.0, 1.0])
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[2, 3] = -4
    column = spaces.resample(Image(data, thick), Grid((4, 4, 36), fine))[2, 2]
    world = np.arange(36) - 4
    assert np.array_equal(column == 7, (world >= -3) & (world <= 27))
    assert (column[(world < -3) | (world > 27)] == 0).all()


def test_field_of_view_is_where_a_point_lies_between_the_voxel_corners(oriented_image):
    """Asked voxel by voxel; the outer half of the outermost voxels belongs to it."""
    shape, affine = oriented_image.shape, oriented_image.affine
    other_shape, other = (9, 8, 7), np.diag([3.0, 4, 5, 1])
    other[:3, 3] = affine[:3, 3] - 6
    found = spaces.field_of_view(oriented_image, Grid(other_shape, other))
    to_voxel = np.linalg.inv(affine) @ other
    for index in itertools.product(*map(range, other_shape)):
        place = to_voxel[:3, :3] @ index + to_voxel[:3, 3]
        assert found[index] == all(-0.5 <= p <= n - 0.5 for p, n in zip(place, shape, strict=True))


def test_resample_repeats_the_border_on_request():
    data = np.arange(5.0 * 5 * 5).reshape(5, 5, 5)
    shifted = np.eye(4)
    shifted[0, 3] = 40
    found = spaces.resample(Image(data, np.eye(4)), Grid(data.shape, shifted), cval=None)
    assert np.allclose(found, data[-1:])


def test_isotropic_grid_covers_the_field_of_view_about_the_same_centre(oriented_image):
    shape, affine = oriented_image.shape, oriented_image.affine
    new = spaces.isotropic_grid(oriented_image, 2.5)
    assert np.allclose(spaces.voxel_sizes(new.affine), 2.5)
    centres = [
        a @ [*((np.array(s) - 1) / 2), 1] for s, a in ((shape, affine), (new.shape, new.affine))
    ]
    assert np.allclose(*centres)
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape])))
    in_new = nib.affines.apply_affine(np.linalg.inv(new.affine) @ affine, corners)
    assert (in_new >= -0.5 - 1e-6).all()
    assert (in_new <= np.array(new.shape) - 0.5 + 1e-6).all()
    smaller = (np.array(new.shape) - 1) * 2.5
    assert (smaller < np.array(shape) * spaces.voxel_sizes(affine)).all()


def test_isotropic_grid_at_the_spacing_of_a_cubic_grid_is_that_grid():
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 30, -20, 10
    same = spaces.isotropic_grid(Grid((10, 11, 12), affine), 2.0)
    assert same.shape == (10, 11, 12)
    assert np.allclose(same.affine, affine)


def test_orthonormal_affine_leaves_orthonormal_ones_alone(oriented_image):
    repaired = spaces.orthonormal_affine(oriented_image.affine)
    assert np.allclose(repaired, oriented_image.affine, atol=1e-6)


@pytest.mark.parametrize("handedness", [1, -1])
def test_orthonormal_affine_is_the_polar_factor(oriented_image, handedness):
    sheared = oriented_image.affine @ np.diag([handedness, 1.0, 1.0, 1.0])
    sizes = spaces.voxel_sizes(sheared)
    sheared[:3, 2] += 0.05 * sheared[:3, 1]
    assert spaces.shear_degrees(sheared) > 1
    repaired = spaces.orthonormal_affine(sheared)
    assert spaces.shear_degrees(repaired) < 1e-5
    expected, _ = polar(sheared[:3, :3] / spaces.voxel_sizes(sheared))
    assert np.allclose(repaired[:3, :3] / spaces.voxel_sizes(repaired), expected)
    assert np.allclose(spaces.voxel_sizes(repaired), sizes, rtol=0.01)
    assert np.array_equal(repaired[:, 3], sheared[:, 3])
    assert np.sign(np.linalg.det(repaired)) == np.sign(np.linalg.det(sheared))


def test_shear_is_an_angle():
    sheared = np.eye(4)
    sheared[:3, 1] = np.sin(np.deg2rad(3)), np.cos(np.deg2rad(3)), 0
    assert spaces.shear_degrees(sheared) == pytest.approx(3)


def test_orthonormal_affine_refuses_what_is_beyond_repair():
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(InputImageError, match=r"26\.6 degrees away.*at most 5.*resample"):
        spaces.orthonormal_affine(sheared)


def test_box_that_is_cut_out_keeps_its_voxels_in_their_places(oriented_image):
    data, affine = np.asarray(oriented_image.dataobj), oriented_image.affine
    part = spaces.crop(Image(data, affine), (slice(1, 5), slice(0, 3), slice(2, 4)))
    assert np.array_equal(part.data, data[1:5, 0:3, 2:4])
    assert np.allclose(part.affine @ [2, 1, 1, 1], affine @ [3, 1, 3, 1])


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
def test_reorient_is_nibabels_canonical_and_has_an_exact_inverse(codes):
    rng = np.random.default_rng(3)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, :3] = affine[:3, :3] @ np.array([[1, 0.02, 0], [-0.02, 1, 0.1], [0, -0.1, 1]])
    data, stored_affine = _stored_as(rng.normal(size=(4, 5, 6)), affine, codes)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, stored_affine))
    stored = Image(data, stored_affine)
    ras = spaces.reorient(stored)
    assert np.array_equal(ras.data, canonical.get_fdata())
    assert np.array_equal(ras.affine, canonical.affine)
    assert np.array_equal(spaces.restore_orientation(ras.data, stored), data)


def test_restore_orientation_refuses_an_array_of_another_grid():
    with pytest.raises(ValueError, match=r"\(4, 5, 6\).*\(4, 6, 6\)"):
        spaces.restore_orientation(np.zeros((4, 5, 6)), Grid((4, 6, 6), np.eye(4)))


def test_grid_distance_is_that_of_the_farthest_corner():
    first, second = np.diag([1.0, 2, 3, 1]), np.diag([1.0, 2, 3.5, 1])
    second[0, 3] = 4
    assert spaces.grid_distance_mm(Grid((5, 6, 7), first), first) == 0
    # The corner of index 6 is 6 * 0.5 mm off in z, and all are 4 mm off in x.
    grid = Grid((5, 6, 7, 1), first)
    assert spaces.grid_distance_mm(grid, second) == pytest.approx(5)


SHEARED = np.array([[2.0, 0.1, 0, -9], [0, 2, 0, -8], [0, 0, 5, -7], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("shape", "shift_mm", "expected"),
    [((5, 6, 7), 0.001, True), ((5, 6, 7), 0.02, False), ((5, 6, 8), 0, False)],
)
def test_same_grid_means_same_voxels_in_the_same_places(shape, shift_mm, expected):
    moved = SHEARED.copy()
    moved[1, 3] += shift_mm
    assert spaces.same_grid(Grid((5, 6, 7), SHEARED), Grid(shape, moved)) is expected


def test_small_rotation_counts_by_how_far_the_corners_move():
    turned = SHEARED.copy()
    turned[0, 1] += 1e-3
    assert spaces.same_grid(Grid((5, 6, 7), SHEARED), Grid((5, 6, 7), turned))
    assert not spaces.same_grid(Grid((5, 60, 7), SHEARED), Grid((5, 60, 7), turned))


@st.composite
def grids(draw):
    """Grids of any voxel order, voxel size and tilt, somewhere."""
    shape = tuple(draw(st.tuples(*[st.integers(5, 9)] * 3)))
    sizes = draw(st.tuples(*[st.floats(0.5, 7)] * 3))
    angles = draw(st.tuples(*[st.floats(-40, 40)] * 3))
    origin = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ (np.eye(3)[list(order)] * signs) * sizes
    affine[:3, 3] = origin
    return Grid(shape, affine)


def _places(grid):
    """World coordinates (mm) of all voxel centres, (..., 3), one matrix product a voxel."""
    found = np.empty((*grid.shape, 3))
    for index in itertools.product(*(range(n) for n in grid.shape)):
        found[index] = (grid.affine @ [*index, 1])[:3]
    return found


@settings(max_examples=40, deadline=None)
@given(grid=grids())
def test_a_voxel_of_any_grid_keeps_its_place_in_ras_order_and_comes_back(grid):
    """Oracle: an image that holds its own world coordinates."""
    places = _places(grid)
    for axis in range(3):
        stored = Image(places[..., axis], grid.affine)
        ras = spaces.reorient(stored)
        np.testing.assert_allclose(ras.data, _places(ras)[..., axis], atol=1e-6)
        np.testing.assert_array_equal(spaces.restore_orientation(ras.data, stored), stored.data)
    # Each axis runs most along its own. Tilted by 45 degrees from all, no order is the nearest.
    directions = ras.affine[:3, :3] / spaces.voxel_sizes(ras.affine)
    if np.abs(directions).max(axis=0).min() > np.sqrt(0.5):
        assert directions.diagonal().min() > np.sqrt(0.5)


@settings(max_examples=40, deadline=None)
@given(source=grids(), target=grids(), slope=st.tuples(*[st.floats(-2, 2)] * 3))
def test_what_is_linear_in_the_world_is_read_off_exactly(source, target, slope):
    values = _places(source) @ slope
    middle = (source.affine @ [*((np.array(source.shape) - 1) / 2), 1])[:3]
    about = target.affine.copy()
    about[:3, 3] += middle - (about @ [*((np.array(target.shape) - 1) / 2), 1])[:3]
    there = Grid(target.shape, about)
    found = spaces.resample(Image(values, source.affine), there, cval=np.nan)
    index = _places(Grid(there.shape, np.linalg.inv(source.affine) @ about))
    last = np.array(source.shape) - 1
    inner = ((index >= 0) & (index <= last)).all(axis=-1)
    outer = ((index < -0.501) | (index > last + 0.501)).any(axis=-1)
    scale = 1 + np.abs(values).max()
    np.testing.assert_allclose(
        found[inner] / scale, (_places(there) @ slope)[inner] / scale, atol=1e-4
    )
    assert np.isnan(found[outer]).all()


@settings(max_examples=40, deadline=None)
@given(grid=grids(), spacing_mm=st.floats(0.7, 4))
def test_cubic_grids_cover_any_field_of_view_and_no_voxel_more(grid, spacing_mm):
    cubic = spaces.isotropic_grid(grid, spacing_mm)
    np.testing.assert_allclose(spaces.voxel_sizes(cubic.affine), spacing_mm)
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in grid.shape))))
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    to_index = np.linalg.inv(cubic.affine)
    index = world @ to_index[:3, :3].T + to_index[:3, 3]
    last = np.array(cubic.shape) - 0.5
    assert (index >= -0.5 - 1e-4).all()
    assert (index <= last + 1e-4).all()
    assert (index.min(axis=0) < 0.5 + 1e-4).all()
    assert (index.max(axis=0) > last - 1 - 1e-4).all()
