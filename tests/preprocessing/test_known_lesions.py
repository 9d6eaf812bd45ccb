"""Masks of known lesions on the FLAIR's grid, whatever grid they were drawn on."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.known_lesions import known_lesions_on
from bagau_bids.spaces import Grid

SHAPE = (40, 48, 12)
CENTRE, RADII = (14.0, -22.0, 9.0), (16.0, 12.0, 14.0)


def grid(shape=SHAPE, spacing=(3.0, 3.0, 8.0), turn=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*turn) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + (2, -3, 4)
    return shape, affine


def paint(shape, affine):
    """An ellipsoid far from the middle, from world coordinates."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return (((world - CENTRE) / np.array(RADII)) ** 2).sum(-1) < 1


def store(path, mask, affine, axes="RAS"):
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(change)
    image.set_qform(image.affine, 1)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.2, -0.1, 0.25)])
@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PSR", "ASL"])
def test_mask_on_the_flairs_grid_is_taken_as_it_is(tmp_path, axes, turn):
    shape, affine = grid(turn=turn)
    mask = paint(shape, affine)
    found = known_lesions_on(store(tmp_path / "m.nii.gz", mask, affine, axes), Grid(shape, affine))
    np.testing.assert_array_equal(found.mask, mask)
    assert not found.resampled
    assert found.notes == ()


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.2, -0.1, 0.25)])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_mask_of_another_grid_lands_where_the_lesion_is(tmp_path, axes, turn):
    drawn_on = grid((120, 140, 110), (1.1, 1.0, 1.2))
    path = store(tmp_path / "m.nii.gz", paint(*drawn_on), drawn_on[1], axes)
    shape, affine = grid(turn=turn)
    found = known_lesions_on(path, Grid(shape, affine))
    true = paint(shape, affine)
    dice = 2 * (found.mask & true).sum() / (found.mask.sum() + true.sum())
    assert dice > 0.95
    assert found.resampled
    assert "carried over by its world coordinates" in found.notes[0]


def test_values_of_lesions_do_not_matter(tmp_path):
    shape, affine = grid()
    mask = paint(shape, affine)
    values = np.where(mask, 3.5, 0.0)
    values[0, 0, 0] = np.nan
    nib.Nifti1Image(values.astype(np.float32), affine).to_filename(tmp_path / "m.nii")
    found = known_lesions_on(tmp_path / "m.nii", Grid(shape, affine))
    np.testing.assert_array_equal(found.mask, mask)


def test_empty_mask_excludes_nothing_and_says_so(tmp_path):
    shape, affine = grid()
    path = store(tmp_path / "m.nii.gz", np.zeros(shape), affine)
    found = known_lesions_on(path, Grid(shape, affine))
    assert not found.mask.any()
    assert found.notes[-1].endswith("the mask of known lesions is empty; nothing is excluded.")


def test_mask_of_another_world_is_an_error(tmp_path):
    shape, affine = grid()
    mask = paint(shape, affine)
    elsewhere = affine.copy()
    elsewhere[:3, 3] += 400
    path = store(tmp_path / "m.nii.gz", mask, elsewhere)
    with pytest.raises(InputImageError, match=r"m\.nii\.gz: the mask of known lesions lies else"):
        known_lesions_on(path, Grid(shape, affine))


def test_lesion_between_the_slices_excludes_nothing_and_says_so(tmp_path):
    shape, affine = grid()
    drawn_on = grid((120, 140, 110), (1.0, 1.0, 1.0))
    mask = np.zeros(drawn_on[0], bool)
    z = affine[2, 3] + 8 * 5 + 4  # half way from one slice to the next
    mask[60, 70, round((z - drawn_on[1][2, 3]) / 1.0)] = True
    found = known_lesions_on(store(tmp_path / "m.nii.gz", mask, drawn_on[1]), Grid(shape, affine))
    assert not found.mask.any()
    assert found.notes[-1].endswith("nothing is excluded.")


def test_damaged_mask_is_an_error(tmp_path):
    shape, affine = grid()
    path = store(tmp_path / "m.nii.gz", paint(shape, affine), affine)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputImageError, match="truncated or damaged"):
        known_lesions_on(path, Grid(shape, affine))
