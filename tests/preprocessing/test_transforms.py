"""The transform between FLAIR and template: points, fields, inverse, elastix and ITK forms."""

import time

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.hdf5_times import forget_times, lookup3
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    forward_field,
    from_elastix,
    inverse_field,
    jacobian_determinant,
    lattice_field,
    read_itk_forward,
    sample,
    write_itk_forward,
    write_itk_inverse,
)
from bagau_bids.spaces import Grid, Image, resample

LPS = np.array([-1.0, -1.0, 1.0])


def rotation(axis, degrees):
    first, second = (i for i in range(3) if i != axis)
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def make_affine():
    affine = np.eye(4)
    affine[:3, :3] = rotation(0, 14) @ rotation(2, -6) @ np.diag([1.1, 0.95, 1.05])
    affine[:3, 3] = 7, -12, 20
    return affine


@pytest.fixture
def transform():
    """An affine and a B-spline of a few mm on a tilted grid of 20 mm over 200 mm."""
    rng = np.random.default_rng(5)
    grid = np.eye(4)
    grid[:3, :3] = 20 * rotation(1, 9) @ rotation(0, -5)
    grid[:3, 3] = grid[:3, :3] @ np.full(3, -5.0)
    return TemplateTransform(make_affine(), Image(rng.normal(0, 3, (3, 11, 12, 13)), grid))


@pytest.fixture
def points():
    return np.random.default_rng(6).uniform(-45, 45, (3, 40))


def bspline_weight(x):
    """Return the cubic B-spline's value, piece by piece."""
    x = abs(x)
    if x < 1:
        return 2 / 3 - x**2 + x**3 / 2
    return (2 - x) ** 3 / 6 if x < 2 else 0.0


def naive_map(transform, point):
    """Map one point by summing over all nodes."""
    mapped = transform.affine[:3, :3] @ point + transform.affine[:3, 3]
    node = np.linalg.inv(transform.bspline.affine) @ [*mapped, 1]
    moved = mapped.copy()
    for i, j, k in np.ndindex(*transform.bspline.shape[1:]):
        weight = np.prod([bspline_weight(c - n) for c, n in zip(node, (i, j, k), strict=False)])
        moved += weight * transform.bspline.data[:, i, j, k]
    return moved


def test_points_are_mapped_as_the_sum_over_all_nodes(transform, points):
    mapped = transform.map_points(points)
    for index in range(3):
        np.testing.assert_allclose(mapped[:, index], naive_map(transform, points[:, index]))


def test_the_inverse_brings_points_back(transform, points):
    np.testing.assert_allclose(
        transform.unmap_points(transform.map_points(points)), points, atol=0.01
    )
    affine = transform.affine_only()
    assert affine.bspline is None
    np.testing.assert_allclose(affine.unmap_points(affine.map_points(points)), points)


def test_nothing_is_displaced_far_from_the_grid(transform):
    far = np.array([[500.0], [0.0], [0.0]])
    assert not transform.displacement(far).any()


def test_elastix_parameters_are_read_in_its_own_world():
    """A stage about a centre, then a B-spline of one node, worked out by hand in LPS."""
    start = np.eye(4)
    start[:3, 3] = 5, 0, 0
    matrix, centre, shift = rotation(2, 30), np.array([10.0, 20.0, -5.0]), np.array([1.0, 2, 3])
    affine = {
        "Transform": ("AffineTransform",),
        "CenterOfRotationPoint": tuple(map(str, centre)),
        "TransformParameters": tuple(map(str, [*matrix.ravel(), *shift])),
    }
    size, node = (7, 6, 5), (3, 2, 2)
    coefficients = np.zeros((3, *size))
    coefficients[(slice(None), *node)] = 4.0, -2.0, 1.0
    direction = rotation(0, 20)
    bspline = {
        "Transform": ("BSplineTransform",),
        "GridSize": tuple(map(str, size)),
        "GridIndex": ("0", "0", "0"),
        "GridSpacing": ("10", "11", "12"),
        "GridOrigin": ("-30", "-20", "-10"),
        # elastix writes direction cosines column by column
        "GridDirection": tuple(map(str, direction.T.ravel())),
        # and coefficients with x fastest
        "TransformParameters": tuple(map(str, coefficients.transpose(0, 3, 2, 1).ravel())),
    }
    node_lps = direction @ (np.array([10, 11, 12]) * node) + [-30, -20, -10]
    before_lps = np.linalg.inv(matrix) @ (node_lps - centre - shift) + centre
    point = before_lps * LPS - [5, 0, 0]
    mapped = from_elastix(start, [affine, bspline]).map_points(point[:, None])[:, 0]
    expected = (node_lps + (2 / 3) ** 3 * np.array([4.0, -2.0, 1.0])) * LPS
    np.testing.assert_allclose(mapped, expected)


def test_a_rigid_stage_of_elastix_is_what_itk_makes_of_it():
    import itk

    angles, shift, centre = (0.3, -0.2, 0.5), (4.0, -6.0, 2.5), (10.0, 20.0, -5.0)
    theirs = itk.Euler3DTransform[itk.D].New()
    theirs.SetCenter(centre)
    theirs.SetRotation(*angles)
    theirs.SetTranslation(shift)
    stage = {
        "Transform": ("EulerTransform",),
        "CenterOfRotationPoint": tuple(map(str, centre)),
        "TransformParameters": tuple(map(str, (*angles, *shift))),
    }
    ours = from_elastix(np.eye(4), [stage])
    point = np.array([12.0, -31.0, 44.0])
    expected = np.array(theirs.TransformPoint((point * LPS).tolist())) * LPS
    np.testing.assert_allclose(ours.map_points(point[:, None])[:, 0], expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 6.5)])
def test_fields_agree_with_mapping_every_voxel(transform, spacing):
    affine = np.eye(4)
    affine[:3, :3] = rotation(0, -11) * spacing
    affine[:3, 3] = -20, -25, -15
    shape = (30, 28, 5)
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    forward = forward_field(transform, Grid(shape, affine)).reshape(3, -1)
    inverse = inverse_field(transform, Grid(shape, affine)).reshape(3, -1)
    np.testing.assert_allclose(forward, transform.map_points(world), atol=0.1)
    np.testing.assert_allclose(inverse, transform.unmap_points(world), atol=0.3)


def test_a_grid_of_one_slice_has_a_field(transform):
    assert forward_field(transform, Grid((4, 5, 1), np.eye(4))).shape == (3, 4, 5, 1)


def test_sampling_an_image_at_its_own_voxels_returns_it(oriented_image):
    data = np.asarray(oriented_image.dataobj)
    image = Image(data, oriented_image.affine)
    voxels = np.indices(data.shape)
    world = nib.affines.apply_affine(oriented_image.affine, np.moveaxis(voxels, 0, -1))
    world = np.moveaxis(world, -1, 0)
    for order in (0, 1):
        found = sample(image, world, order)
        inner = (slice(1, -1),) * 3
        np.testing.assert_allclose(found[inner], data[inner], rtol=1e-4)
    assert not sample(image, world + 1000).any()


def test_the_jacobian_is_the_change_of_volume():
    grid = np.diag([2.0, 3.0, 4.0, 1.0])
    voxels = np.indices((6, 7, 8)).reshape(3, -1)
    world = grid[:3, :3] @ voxels
    matrix = rotation(0, 10) @ np.diag([1.2, 1.1, 0.9])
    stretched = (matrix @ world).reshape(3, 6, 7, 8)
    np.testing.assert_allclose(jacobian_determinant(Image(stretched, grid)), 1.2 * 1.1 * 0.9)
    mirrored = (np.diag([-1, 1, 1]) @ world).reshape(3, 6, 7, 8)
    np.testing.assert_allclose(jacobian_determinant(Image(mirrored, grid)), -1)


def itk_map(path, points):
    """Map RAS points with ITK alone, as another program would."""
    import itk

    composite = itk.transformread(str(path))[0]
    mapped = [composite.TransformPoint((LPS * p).tolist()) for p in points.T]
    return np.array([LPS * np.array(list(p)) for p in mapped]).T


def test_itk_reads_the_same_mapping_from_the_forward_file(transform, points, tmp_path):
    path = tmp_path / "forward.h5"
    write_itk_forward(transform, path)
    np.testing.assert_allclose(itk_map(path, points), transform.map_points(points), atol=1e-6)
    again = read_itk_forward(path)
    np.testing.assert_allclose(again.map_points(points), transform.map_points(points), atol=1e-6)


def test_itk_reads_the_opposite_mapping_from_the_inverse_file(transform, points, tmp_path):
    path = tmp_path / "inverse.h5"
    template = Grid((76, 76, 76), np.diag([2.0, 2.0, 2.0, 1.0]))
    template.affine[:3, 3] = -75
    write_itk_inverse(transform, template, path)
    np.testing.assert_allclose(itk_map(path, points), transform.unmap_points(points), atol=0.3)


def test_an_affine_alone_is_written_and_read(transform, points, tmp_path):
    affine = transform.affine_only()
    write_itk_forward(affine, tmp_path / "forward.h5")
    write_itk_inverse(affine, Grid((9, 9, 9), np.eye(4)), tmp_path / "inverse.h5")
    again = read_itk_forward(tmp_path / "forward.h5")
    np.testing.assert_allclose(again.map_points(points), affine.map_points(points))
    np.testing.assert_allclose(
        itk_map(tmp_path / "inverse.h5", points), affine.unmap_points(points)
    )


def test_a_transform_is_the_same_bytes_whenever_it_is_written(transform, points, tmp_path):
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    write_itk_forward(transform, first)
    time.sleep(1.1)  # HDF5 counts seconds
    write_itk_forward(transform, second)
    assert first.read_bytes() == second.read_bytes()
    read = read_itk_forward(second).map_points(points)
    np.testing.assert_allclose(read, transform.map_points(points), atol=1e-4)


def test_a_file_of_another_kind_of_transform_is_refused(transform, tmp_path):
    path = tmp_path / "inverse.h5"
    write_itk_inverse(transform, Grid((5, 5, 5), np.eye(4)), path)
    with pytest.raises(ProcessingError, match=r"inverse\.h5: .*DisplacementFieldTransform"):
        read_itk_forward(path)


def test_lattice_gives_the_points_back_between_its_nodes(transform, oriented_image):
    shape, affine = oriented_image.shape, oriented_image.affine
    points = lattice_field(transform, oriented_image)
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    expected = transform.map_points(world).reshape(3, *shape)
    axes = [Image(axis, points.affine) for axis in points.data]
    found = np.stack([resample(axis, oriented_image, cval=None) for axis in axes])
    assert np.abs(found - expected).max() < 0.3
    assert points.data.dtype == np.float32


def test_lattice_of_a_grid_of_one_slice(transform):
    points = lattice_field(transform, Grid((9, 8, 1), np.diag([3.0, 3.0, 6.0, 1.0])))
    assert points.shape[-1] == 1
    expected = transform.map_points(np.array([[24.0], [21.0], [0.0]]))
    np.testing.assert_allclose(points.data[:, -1, -1, 0], expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(points.affine[:3, 2], [0, 0, 6])


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"", 0xDEADBEEF), (b"Four score and seven years ago", 0x17770551)],
)
def test_the_checksum_is_that_of_its_author(text, value):
    """Values that Bob Jenkins' lookup3.c gives for its own test."""
    assert lookup3(text) == value


def test_what_only_looks_like_a_header_is_left_alone(tmp_path):
    content = b"x" * 9 + b"OHDR\x02\x20" + bytes(range(1, 60))
    path = tmp_path / "file"
    path.write_bytes(content)
    forget_times(path)
    assert path.read_bytes() == content
