"""One head, stored in many voxel orders, must give one answer: the seams between the rooms.

The head is painted from world coordinates, so that the truth is known on every grid without
resampling. It is lopsided in all directions: a flip anywhere between two rooms moves the lesions.
"""

import nibabel as nib
import numpy as np
import pytest
import torch
from network_spy import loaded
from nibabel.affines import apply_affine

from bagau_bids.network.inference import segment
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing.bias_field import correct_bias_field
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.conform import conform, to_source
from bagau_bids.preprocessing.transforms import TemplateTransform, forward_field, sample
from bagau_bids.spaces import Image, reorient

KINDS = ["RAS", "LAS", "LPS", "PSR", "ASL", "SAL", "oblique"]
LESION_MM = ((-30, 32, 18), (26, -38, -8), (-14, -20, 26))  # left front, right back, left top


class ThresholdNetwork(torch.nn.Module):
    """Stands in for a trained network: bright voxels are lesions."""

    def forward(self, flair, atlas):
        return (flair - 4.0) * 20 + 0 * atlas


def _ellipsoid(world, radii, centre=(0, 0, 0)):
    return (((world - centre) / np.asarray(radii, float)) ** 2).sum(-1) < 1


def _paint(shape, affine):
    """FLAIR, brain and lesions on a grid."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    brain = _ellipsoid(world, (58, 74, 46))
    lesions = np.zeros(shape, bool)
    for number, centre in enumerate(LESION_MM):
        lesions |= _ellipsoid(world, (13, 16 - number, 12), centre)
    flair = 20.0 * _ellipsoid(world, (68, 84, 56)) + 80.0 * brain + 70.0 * lesions
    flair += 4 * np.sin(world[..., 0] / 3) * np.cos(world[..., 1] / 4)
    return flair.astype(np.float32), brain, lesions


def _grid(kind):
    shape = np.array([80, 96, 26])
    affine = np.diag([1.8, 1.8, 4.5, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2) + (3, -4, 5)
    if kind == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = nib.eulerangles.euler2mat(z=0.12, y=-0.1, x=0.25)
        return tuple(shape), turn @ affine
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    image = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(kind)
        )
    )
    return image.shape, image.affine


@pytest.fixture(params=KINDS)
def stored(request, tmp_path):
    """Path of the FLAIR as it is stored, its image, and the true lesions on its grid."""
    shape, affine = _grid(request.param)
    flair, _, lesions = _paint(shape, affine)
    image = nib.Nifti1Image(flair, affine)
    image.set_qform(affine, 1)
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    nib.save(image, path)
    image = nib.load(path)
    return path, image, lesions


def _dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def _segment(path):
    """Lesion probability on the conformed grid, and that grid's affine."""
    scan = conform(path)
    _, brain, _ = _paint(scan.data.shape, scan.affine)
    inputs = network_input(Image(scan.data, scan.affine), brain, brain.astype("f4"))
    result = segment([loaded(ThresholdNetwork())], inputs, brain)
    return result.probability, scan.affine


def test_the_mask_lies_on_the_lesions_of_the_stored_file(stored, tmp_path):
    path, image, lesions = stored
    probability, _ = _segment(path)
    nib.save(to_source(probability >= 0.5, image, np.uint8), tmp_path / "mask.nii.gz")
    result = nib.load(tmp_path / "mask.nii.gz")
    assert result.shape == image.shape
    assert result.affine.tobytes() == image.affine.tobytes()
    mask = result.get_fdata() > 0
    assert _dice(mask, lesions) > 0.9
    assert mask.sum() == pytest.approx(lesions.sum(), rel=0.1)


def test_the_mask_does_not_depend_on_how_the_file_is_stored(stored, tmp_path):
    path, image, _ = stored
    if np.count_nonzero(image.affine[:3, :3]) > 3:
        pytest.skip("an oblique grid has other voxels; compared with the truth instead")
    reference = tmp_path / "reference_FLAIR.nii.gz"
    shape, affine = _grid("RAS")
    nib.save(nib.Nifti1Image(_paint(shape, affine)[0], affine), reference)
    expected, _ = _segment(reference)
    native = to_source(_segment(path)[0], image, np.float32)
    in_common = reorient(Image(np.asarray(native.dataobj), native.affine))
    assert np.allclose(in_common.affine, affine, atol=1e-4)
    assert _dice(in_common.data >= 0.5, expected >= 0.5) == 1
    assert np.allclose(in_common.data, expected, atol=0.02)


def test_the_network_sees_left_on_low_rows_and_front_on_high_columns(stored):
    scan = conform(stored[0])
    _, brain, lesions = _paint(scan.data.shape, scan.affine)
    inputs = network_input(Image(scan.data, scan.affine), brain, lesions.astype("f4"))
    atlas = inputs.channels["atlas"]
    depth, size, _ = atlas.shape
    low, high = slice(0, size // 2), slice(size // 2, size)
    upper, lower = (
        inputs.channels["atlas"][depth // 2 + 2 :],
        inputs.channels["atlas"][: depth // 2],
    )
    assert upper[:, low, high].sum() > 800  # left front
    assert upper[:, low, low].sum() > 800  # left top, a little to the back
    assert lower[:, high, low].sum() > 800  # right back
    assert upper[:, high, high].sum() == 0
    assert lower[:, low, low].sum() == 0
    bright = inputs.channels["flair"] > 4
    assert _dice(bright, inputs.channels["atlas"] > 0.5) > 0.9


def test_the_template_arrives_where_the_anatomy_is(stored, tmp_path):
    path, image, lesions = stored
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(z=-0.15, y=0.05, x=0.1) @ np.diag([1.1, 0.95, 1.0])
    turn[:3, 3] = 7, -18, 9
    template_shape, template_affine = (96, 114, 96), np.diag([-2.0, 2.0, 2.0, 1.0])
    template_affine[:3, 3] = 100, -130, -90
    _, _, in_template = _paint(template_shape, np.linalg.inv(turn) @ template_affine)
    scan = conform(path)
    points = forward_field(TemplateTransform(turn), scan)
    warped = sample(Image(in_template, template_affine), points)
    nib.save(to_source(warped, image, np.float32), tmp_path / "warped.nii.gz")
    assert _dice(nib.load(tmp_path / "warped.nii.gz").get_fdata() > 0.5, lesions) > 0.95


def test_the_brain_mask_comes_back_to_the_brain(stored):
    path, image, _ = stored
    scan = conform(path)

    def predict(coarse):
        return (coarse > 0.6 * coarse.max()).astype(np.float32)

    found = brain_mask(Image(scan.data, scan.affine), predict)
    back = np.asarray(to_source(found.mask, image, np.uint8).dataobj) > 0
    _, brain, _ = _paint(image.shape, image.affine)
    assert _dice(back, brain) > 0.95


def test_the_bias_field_stays_on_its_side(stored):
    scan = conform(stored[0])
    _, brain, lesions = _paint(scan.data.shape, scan.affine)
    world = apply_affine(scan.affine, np.moveaxis(np.indices(scan.data.shape), 0, -1))
    field = np.exp(world @ [0.003, -0.002, 0.002])
    corrected = correct_bias_field(
        Image(scan.data * field, scan.affine), brain, grid_mm=8.0, iterations=(10, 10)
    )
    tissue = brain & ~lesions
    before, after = (scan.data * field)[tissue], corrected.data[tissue]
    assert after.std() / after.mean() < 0.5 * before.std() / before.mean()
