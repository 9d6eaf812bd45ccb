"""Masks in the template: there and back, in every orientation, and where nothing was seen."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bagau_bids.preprocessing.template_masks import LesionFrequency, mask_in_template
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.spaces import Grid, Image

GRID = Grid(
    (40, 44, 38), np.array([[2.0, 0, 0, -40], [0, 2, 0, -44], [0, 0, 2, -38], [0, 0, 0, 1]])
)


@pytest.fixture
def transform():
    """A tilt, a stretch and a B-spline of a few mm."""
    angle = np.deg2rad(12)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= [1.08, 0.95, 1.05]
    affine[:3, 3] = 3, -4, 6
    grid = np.diag([20.0, 20, 20, 1])
    grid[:3, 3] = -100
    coefficients = np.random.default_rng(2).normal(0, 3, (3, 11, 11, 11))
    return TemplateTransform(affine, Image(coefficients, grid))


def flair_grid(oriented_image):
    """Grid of 48 mm and more around the origin with thick slices, in each orientation."""
    image = nib.Nifti1Image(np.zeros((60, 50, 16), np.uint8), np.diag([1.2, 1.5, 5.0, 1]))
    codes = nib.aff2axcodes(oriented_image.affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    affine = turned.affine.copy()
    rotation = oriented_image.affine[:3, :3] / np.linalg.norm(
        oriented_image.affine[:3, :3], axis=0
    )
    affine[:3, :3] = rotation * np.linalg.norm(turned.affine[:3, :3], axis=0)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(turned.shape) - 1) / 2)
    return turned.shape, affine


def ball_in_template(points, centre, radius):
    return ((points - np.reshape(centre, (3, *(1,) * (points.ndim - 1)))) ** 2).sum(0) < radius**2


def test_a_ball_of_the_template_comes_back_from_the_flair(oriented_image, transform):
    """Drawn on the FLAIR through the forward transform, it must return to its place and size."""
    shape, affine = flair_grid(oriented_image)
    centre, radius = (6.0, -8.0, 4.0), 11.0
    world = np.moveaxis(
        nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0
    )
    mask = ball_in_template(transform.map_points(world), centre, radius)
    found = mask_in_template(Image(mask, affine), transform, GRID)
    place = GRID.affine[:3, :3] @ np.mean(np.nonzero(found), axis=1) + GRID.affine[:3, 3]
    np.testing.assert_allclose(place, centre, atol=0.7)
    assert found.sum() * 8 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.08)


def test_only_the_surroundings_are_mapped_and_nothing_is_lost(transform):
    """The same voxels as mapping every voxel of the grid, single voxels and edges included."""
    rng = np.random.default_rng(3)
    affine = np.diag([1.0, 1.3, 6.0, 1])
    affine[:3, 3] = -30, -30, -36
    mask = ndimage.binary_dilation(rng.random((60, 50, 12)) > 0.9993, iterations=2)
    mask[0, 0, 0] = True
    world = np.moveaxis(np.indices(GRID.shape), 0, -1)
    world = np.moveaxis(nib.affines.apply_affine(GRID.affine, world), -1, 0)
    voxel = transform.unmap_points(world)
    voxel = np.linalg.inv(affine)[:3, :3] @ voxel.reshape(3, -1) + np.linalg.inv(affine)[:3, 3:]
    expected = ndimage.map_coordinates(mask.astype(float), voxel, order=1) >= 0.5
    found = mask_in_template(Image(mask, affine), transform, GRID)
    np.testing.assert_array_equal(found, expected.reshape(GRID.shape))
    assert found.sum() > 100


def test_an_empty_mask_and_one_out_of_the_grid_have_no_voxel(transform):
    affine = np.eye(4)
    assert not mask_in_template(Image(np.zeros((9, 9, 9)), affine), transform, GRID).any()
    affine[:3, 3] = 500
    assert not mask_in_template(Image(np.ones((9, 9, 9)), affine), transform, GRID).any()


def test_frequency_is_of_the_scans_that_see_a_place():
    """Four scans: two with a lesion above, three that reach up there, four that see below."""
    tall, short = (40, 44, 38), (40, 44, 19)
    identity = TemplateTransform(np.eye(4))
    frequency = LesionFrequency(GRID)
    for number in range(4):
        mask = np.zeros(tall if number < 3 else short, np.uint8)
        mask[10:14, 10:14, 4:8] = number == 0
        if number in (1, 2):
            mask[20:24, 20:24, 30:34] = 1
        frequency.add(Image(mask, GRID.affine), identity)
    share = frequency.frequency()
    assert share[11, 11, 5] == pytest.approx(1 / 4)
    assert share[21, 21, 31] == pytest.approx(2 / 3)
    assert share[0, 0, 0] == 0
    assert frequency.seen()[20, 20, 5] == 4
    assert frequency.seen()[20, 20, 35] == 3


def test_places_that_few_scans_see_are_left_out():
    frequency = LesionFrequency(GRID)
    for number in range(3):
        mask = np.ones((40, 44, 38 if number == 0 else 19), np.uint8)
        frequency.add(Image(mask, GRID.affine), TemplateTransform(np.eye(4)))
    share = frequency.frequency()
    assert share[20, 20, 5] == 1
    assert share[20, 20, 35] == 0
