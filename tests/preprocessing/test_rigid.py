"""Rigid alignment of sessions: the fit, the way half, and a known movement found again."""

import nibabel as nib
import numpy as np
import pytest
from fake_derivatives import drawn_head
from fake_elastix import answering

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing import rigid
from bagau_bids.preprocessing.rigid import (
    align_sessions,
    brain_overlap,
    fit_rigid,
    half_way,
    movement,
    start_from_template,
)
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.spaces import Grid, Image, resample


def rigid_matrix(degrees=(6.0, -4.0, 8.0), shift=(5.0, -3.0, 7.0)):
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (i for i in range(3) if i != axis)
        turn = np.eye(4)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = shift
    return matrix


def apply(matrix, points):
    return matrix[:3, :3] @ points + matrix[:3, 3:]


def test_a_rigid_transform_is_fitted_exactly():
    points = np.random.default_rng(0).normal(0, 40, (3, 50))
    matrix = rigid_matrix()
    np.testing.assert_allclose(fit_rigid(points, apply(matrix, points)), matrix, atol=1e-9)


def test_a_mirror_image_is_not_fitted_by_a_reflection():
    points = np.random.default_rng(0).normal(0, 40, (3, 50))
    found = fit_rigid(points, points * [[-1], [1], [1]])
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)


def test_twice_half_the_way_is_the_whole():
    matrix = rigid_matrix()
    half = half_way(matrix)
    np.testing.assert_allclose(half @ half, matrix, atol=1e-9)
    np.testing.assert_allclose(half[:3, :3] @ half[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(half_way(np.eye(4)), np.eye(4))


def test_movement_is_the_angle_and_the_way_of_the_centre():
    matrix = rigid_matrix((0, 0, 30), (0, 0, 0))
    angle, shift = movement(matrix, np.array([10.0, 0, 0]))
    assert angle == pytest.approx(30)
    assert shift == pytest.approx(2 * 10 * np.sin(np.deg2rad(15)))


def test_overlap_counts_only_what_both_scans_cover():
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 2:8, 2:8] = True
    assert brain_overlap(Image(mask, np.eye(4)), Image(mask, np.eye(4))) == 1
    assert brain_overlap(Image(mask, np.eye(4)), Image(mask[:, :, :5], np.eye(4))) == 1
    far = np.eye(4)
    far[0, 3] = 100
    assert brain_overlap(Image(mask, np.eye(4)), Image(mask, far)) == 0


def test_the_start_goes_through_the_template(oriented_image):
    """Exact where both transforms to the template share all that is not rigid."""
    rotation = oriented_image.affine[:3, :3] / np.linalg.norm(
        oriented_image.affine[:3, :3], axis=0
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, 3.0, 5.0])
    to_template = rigid_matrix((10, 0, 0)) @ np.diag([1.1, 0.9, 1.05, 1])
    moved = rigid_matrix()
    image = Image(np.ones((40, 30, 20), np.float32), affine)
    mask = np.ones(image.data.shape, bool)
    found = start_from_template(
        (image, mask, TemplateTransform(to_template)),
        (image, mask, TemplateTransform(to_template @ np.linalg.inv(moved))),
    )
    np.testing.assert_allclose(found, moved, atol=1e-6)


@pytest.fixture
def sessions():
    """One head, and the same moved and scanned again on other slices."""
    flair, affine, brain, _, _ = drawn_head(spacing=(4.0, 4.0, 4.0), shape=(48, 56, 40))
    moved = rigid_matrix((5, 3, -6), (4, -6, 3))
    rng = np.random.default_rng(1)
    # The ellipsoids of the brain turn about its axes almost unseen: a mark breaks the symmetry.
    flair[26:32, 34:42, 22:28] += 60
    other = affine @ np.diag([1, 1, 1.25, 1.0])
    grid = Grid((48, 56, 32), other)
    again = resample(Image(flair, moved @ affine), grid) + rng.normal(0, 2, grid.shape)
    mask = resample(Image(brain, moved @ affine), grid) > 0.5
    first = Image(flair, affine), brain, TemplateTransform(np.eye(4))
    rough = rigid_matrix((2, 0, -2), (2, 2, 0)) @ np.linalg.inv(moved)
    second = Image(again.astype(np.float32), other), mask, TemplateTransform(rough)
    return first, second, moved


@pytest.mark.slow
def test_a_known_movement_is_found_from_a_rough_start(sessions):
    first, second, moved = sessions
    start = start_from_template(first, second)
    found, overlap = align_sessions(first, second)
    points = np.array(np.nonzero(first[1]))
    points = nib.affines.apply_affine(first[0].affine, points.T).T
    before, after = (
        np.linalg.norm(apply(m, points) - apply(moved, points), axis=0) for m in (start, found)
    )
    assert before.mean() > 2
    assert after.mean() < 0.5
    assert overlap > 0.95
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


def test_brains_that_do_not_meet_are_refused(sessions, monkeypatch):
    first, second, _ = sessions
    identity = {
        "Transform": ("EulerTransform",),
        "CenterOfRotationPoint": ("0", "0", "0"),
        "TransformParameters": ("0", "0", "0", "0", "0", "90"),
    }
    monkeypatch.setattr(rigid, "Elastix", answering(lambda *args, **options: [identity]))
    with pytest.raises(ProcessingError, match="could not be aligned: .* expected at least 0.85"):
        align_sessions(first, second)


@pytest.mark.parametrize("mask", [np.zeros((48, 56, 40), bool), np.ones((3, 3, 3), bool)])
def test_brain_masks_that_do_not_fit_are_refused(sessions, mask):
    (image, _, transform), second, _ = sessions
    with pytest.raises(ProcessingError, match="does not fit its FLAIR"):
        align_sessions((image, mask, transform), second)
