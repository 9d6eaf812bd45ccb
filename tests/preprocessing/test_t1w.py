"""The T1w on the FLAIR's grid: found from any orientation, refused where it does not belong."""

import nibabel as nib
import numpy as np
import pytest
from fake_elastix import answering
from scipy.spatial.transform import Rotation

from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.preprocessing import t1w
from bagau_bids.preprocessing.t1w import t1w_on_flair
from bagau_bids.spaces import Image


def ellipsoid(points, centre, radii):
    scaled = (points - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
    return (scaled**2).sum(axis=0) < 1


def head(points):
    """Scalp, brain, white matter and ventricles of a lopsided head at points (3, ...) in mm."""
    scalp = ellipsoid(points, (0, 0, -5), (76, 95, 80)) & ~ellipsoid(
        points, (0, 0, 0), (68, 86, 64)
    )
    brain = ellipsoid(points, (0, 0, 0), (62, 78, 56)) & ~ellipsoid(
        points, (0, 75, -45), (70, 50, 35)
    )
    white = ellipsoid(points, (22, -5, 5), (24, 50, 30)) | ellipsoid(
        points, (-22, 0, 5), (24, 55, 34)
    )
    white |= ellipsoid(points, (0, -45, -30), (10, 12, 25))
    ventricle = ellipsoid(points, (9, 8, 8), (6, 26, 10)) | ellipsoid(
        points, (-9, 8, 8), (5, 22, 9)
    )
    return scalp, brain, white & ~ventricle, ventricle


def points_of(shape, affine):
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def grid(shape, spacing):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.asarray(spacing) * (np.asarray(shape) - 1) / 2
    return affine


def flair_contrast(points):
    scalp, brain, white, ventricle = head(points)
    return (40 * scalp + 100 * brain - 25 * (white & brain) - 80 * (ventricle & brain)).astype(
        "f4"
    )


def t1_contrast(points):
    scalp, brain, white, ventricle = head(points)
    return (150 * scalp + 60 * brain + 40 * (white & brain) - 45 * (ventricle & brain)).astype(
        "f4"
    )


FLAIR_SHAPE = (72, 88, 24)
FLAIR_AFFINE = grid(FLAIR_SHAPE, (2.5, 2.5, 7.0))
T1_SHAPE = (64, 76, 66)


@pytest.fixture(scope="module")
def flair():
    points = points_of(FLAIR_SHAPE, FLAIR_AFFINE)
    noise = np.random.default_rng(0).normal(0, 2, FLAIR_SHAPE)
    return (flair_contrast(points) + noise).astype(np.float32), head(points)[1]


def moved_by(degrees, shift_mm):
    """A rigid map from places in the FLAIR's world to the same anatomy in the T1w's world."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift_mm
    return move


def write_t1w(path, move, orientation="RAS", shape=T1_SHAPE):
    """A T1w of the head moved by `move`, in a field of view that moves with it in part."""
    affine = grid(shape, (3.0, 3.0, 3.0))
    affine[:3, 3] += move[:3, 3]
    if orientation == "oblique":
        tilt = moved_by((17, 0, -9), (0, 0, 0))
        tilt[:3, 3] = move[:3, 3] - tilt[:3, :3] @ move[:3, 3]
        affine = tilt @ affine
    place = points_of(shape, np.linalg.inv(move) @ affine)
    noise = np.random.default_rng(1).normal(0, 2, shape)
    image = nib.Nifti1Image(np.abs(t1_contrast(place) + noise).astype("f4"), affine)
    if orientation != "oblique":
        image = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
            )
        )
    image.to_filename(path)
    return path


def worst_error_mm(found, move, brain):
    points = points_of(FLAIR_SHAPE, FLAIR_AFFINE)[:, brain]
    difference = (found - move)[:3, :3] @ points + (found - move)[:3, 3:]
    return float(np.sqrt((difference**2).sum(axis=0)).max())


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique"])
def test_moved_head_is_found_from_any_voxel_order(tmp_path, flair, orientation):
    image, brain = flair
    move = moved_by((4, -3, 5), (6, -4, 8))
    path = write_t1w(tmp_path / "t1.nii.gz", move, orientation)
    found = t1w_on_flair(path, Image(image, FLAIR_AFFINE), brain)
    assert found.data.shape == FLAIR_SHAPE
    assert found.data.dtype == np.float32
    assert found.start == "header"
    assert found.notes == ()
    assert worst_error_mm(found.transform, move, brain) < 1.5
    truth = t1_contrast(points_of(FLAIR_SHAPE, FLAIR_AFFINE))
    assert np.corrcoef(truth[brain], found.data[brain])[0, 1] > 0.9


@pytest.mark.slow
def test_head_far_away_is_found_from_its_centre(tmp_path, flair):
    image, brain = flair
    move = moved_by((10, 3, -6), (60, -90, 120))
    found = t1w_on_flair(
        write_t1w(tmp_path / "t1.nii.gz", move), Image(image, FLAIR_AFFINE), brain
    )
    assert found.start.startswith("centre of the head")
    assert "headers do not place T1w and FLAIR together" in found.notes[0]
    assert worst_error_mm(found.transform, move, brain) < 2.5


@pytest.fixture
def no_elastix(monkeypatch):
    def run_elastix(*args, **options):
        raise AssertionError("nothing should be registered")

    monkeypatch.setattr(t1w, "Elastix", answering(run_elastix))


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS"])
def test_t1w_on_the_same_grid_is_taken_as_it_is(tmp_path, flair, orientation, no_elastix):
    image, brain = flair
    truth = t1_contrast(points_of(FLAIR_SHAPE, FLAIR_AFFINE))
    stored = nib.Nifti1Image(truth, FLAIR_AFFINE).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(FLAIR_AFFINE), nib.orientations.axcodes2ornt(orientation)
        )
    )
    stored.to_filename(tmp_path / "t1.nii")
    found = t1w_on_flair(tmp_path / "t1.nii", Image(image, FLAIR_AFFINE), brain)
    assert (found.start, found.coverage, found.notes) == ("same grid", 1, ())
    np.testing.assert_array_equal(found.transform, np.eye(4))
    assert np.corrcoef(truth[brain], found.data[brain])[0, 1] > 0.97


def test_same_grid_that_does_not_match_is_noted(tmp_path, flair, no_elastix):
    image, brain = flair
    noise = np.random.default_rng(3).uniform(50, 150, FLAIR_SHAPE).astype("f4")
    nib.Nifti1Image(noise, FLAIR_AFFINE).to_filename(tmp_path / "t1.nii")
    found = t1w_on_flair(tmp_path / "t1.nii", Image(image, FLAIR_AFFINE), brain)
    assert "may not be aligned: mutual information" in found.notes[0]


def stay(fixed, moving, mask, stages, start, **options):
    """Stand-in for elastix that leaves every start as it is."""
    return []


@pytest.fixture
def lazy_elastix(monkeypatch):
    monkeypatch.setattr(t1w, "Elastix", answering(stay))
    monkeypatch.setattr(t1w, "_starts", lambda *images: [("header", np.eye(4))])


def test_other_image_is_refused(tmp_path, flair, lazy_elastix):
    image, brain = flair
    noise = np.random.default_rng(3).uniform(50, 150, (60, 70, 60)).astype("f4")
    path = tmp_path / "t1.nii"
    nib.Nifti1Image(noise, grid((60, 70, 60), (3, 3, 3))).to_filename(path)
    with pytest.raises(ProcessingError, match=r"t1.nii: could not be aligned .*expected at least"):
        t1w_on_flair(path, Image(image, FLAIR_AFFINE), brain)


def test_what_the_t1w_does_not_show_gets_its_median(tmp_path, flair, lazy_elastix):
    image, brain = flair
    affine = grid((60, 70, 26), (3, 3, 3))
    affine[2, 3] = -30
    nib.Nifti1Image(t1_contrast(points_of((60, 70, 26), affine)), affine).to_filename(
        tmp_path / "t1.nii"
    )
    found = t1w_on_flair(tmp_path / "t1.nii", Image(image, FLAIR_AFFINE), brain)
    assert 0.5 < found.coverage < 0.9
    assert "shows only" in found.notes[-1]
    missing = brain.copy()
    missing[:, :, points_of(FLAIR_SHAPE, FLAIR_AFFINE)[2, 0, 0] > -33] = False
    inside = found.data[brain & ~missing]
    assert np.abs(found.data[missing] / np.median(inside) - 1).max() < 0.35
    affine[2, 3] = -110
    nib.Nifti1Image(t1_contrast(points_of((60, 70, 26), affine)), affine).to_filename(
        tmp_path / "low.nii"
    )
    with pytest.raises(ProcessingError, match=r"only \d+ % of the brain of the FLAIR lies in"):
        t1w_on_flair(tmp_path / "low.nii", Image(image, FLAIR_AFFINE), brain)


def test_elastix_that_fails_from_every_start_is_told(tmp_path, flair, monkeypatch):
    def run_elastix(*args, **options):
        raise ProcessingError("its last words: no")

    monkeypatch.setattr(t1w, "Elastix", answering(run_elastix))
    monkeypatch.setattr(t1w, "search_start", lambda fixed, moving, *points: np.eye(4))
    path = write_t1w(tmp_path / "t1.nii", np.eye(4))
    with pytest.raises(ProcessingError, match="could not be registered.*header: its last words"):
        t1w_on_flair(path, Image(flair[0], FLAIR_AFFINE), flair[1])


def test_damaged_t1w_is_named(tmp_path, flair):
    path = tmp_path / "sub-1_T1w.nii.gz"
    path.write_bytes(b"")
    with pytest.raises(InputImageError, match=r"T1w of this FLAIR: .*sub-1_T1w.nii.gz: the file"):
        t1w_on_flair(path, Image(flair[0], FLAIR_AFFINE), flair[1])
