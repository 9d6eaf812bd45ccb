"""The brain mask: geometry around the network, stripped input, real FLAIRs."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage, stats

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.brain_mask import (
    brain_mask,
    clean_mask,
    farthest_apart,
    low_resolution,
    low_resolution_grid,
    on_dark_background,
    stripped_foreground,
)
from bagau_bids.spaces import Grid, Image, reorient


def tilted(affine, degrees=15):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def head(affine, shape):
    """A bright brain of 67 mm half axes (1260 ml) in a brighter shell, with dim noise."""
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    radius = np.linalg.norm(world, axis=-1)
    image = np.random.default_rng(0).uniform(0, 5, shape).astype(np.float32)
    image[radius < 85] = 300
    image[radius < 75] = 10
    brain = radius < 67
    image[brain] = 100
    return image, brain


def centred(spacing, shape):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def oracle(volume):
    """Stands in for the network: the largest piece of middle brightness, as probability."""
    middle = (volume > 0.4) & (volume < 0.8)
    numbered, _ = ndimage.label(ndimage.binary_erosion(middle))
    largest = numbered == 1 + np.argmax(np.bincount(numbered.ravel())[1:])
    grown = ndimage.binary_dilation(largest)
    return ndimage.gaussian_filter(grown.astype(np.float32), 0.7)


GRIDS = [
    ((1.0, 1.0, 6.0), (190, 196, 33)),
    ((2.0, 2.0, 2.0), (96, 96, 96)),
    ((3.5, 1.2, 1.2), (55, 160, 160)),
]


@pytest.mark.parametrize(("spacing", "shape"), GRIDS)
@pytest.mark.parametrize("oblique", [False, True])
def test_mask_lies_on_the_brain_whatever_the_grid(spacing, shape, oblique):
    affine = centred(spacing, shape)
    affine = tilted(affine) if oblique else affine
    image, brain = head(affine, shape)
    found = brain_mask(Image(image, affine), oracle)
    assert found.mask.shape == shape
    assert found.mask.dtype == bool
    assert not found.stripped
    assert dice(found.mask, brain) > 0.95


@pytest.mark.parametrize("level", [100.0, 99.3])
def test_a_stripped_brain_on_a_background_of_its_own_mean_is_not_cut(level):
    affine, shape = centred((2.0, 2.0, 4.0), (96, 96, 48)), (96, 96, 48)
    _, brain = head(affine, shape)
    noise = np.random.default_rng(0).normal(100, 10, shape).round()
    seen = []

    def network(volume):
        seen.append(volume)
        return (volume > 0.4).astype(np.float32)

    found = brain_mask(Image(np.where(brain, noise, level).astype(np.float32), affine), network)
    assert found.stripped
    assert dice(found.mask, brain) > 0.99
    corner, middle = seen[0][2, 2, 2], np.median(seen[0][20:28, 28:36, 28:36])
    assert corner == 0
    assert middle > 0.4


def test_a_dark_background_is_left_as_it_is():
    affine, shape = centred((2.0, 2.0, 4.0), (96, 96, 48)), (96, 96, 48)
    image, brain = head(affine, shape)
    ringing = np.where(brain, image, 0).astype(np.float32)
    ringing[40:50, 40:50, 20] = -3
    for flair in (image, np.where(brain, image, 0), ringing):
        assert on_dark_background(flair) is flair


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS"])
def test_the_stored_orientation_does_not_matter(codes):
    affine = centred((2.0, 2.0, 3.0), (96, 96, 64))
    image, _ = head(affine, (96, 96, 64))
    reference = brain_mask(Image(image, affine), oracle).mask
    stored = nib.Nifti1Image(image, affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    turned = reorient(Image(np.asarray(stored.dataobj), stored.affine))
    np.testing.assert_array_equal(brain_mask(turned, oracle).mask, reference)


def test_low_resolution_is_scaled_padded_and_in_place():
    shape = (101, 90, 20)
    affine = tilted(centred((1.7, 1.9, 7.0), shape))
    image, brain = head(affine, shape)
    low = low_resolution(Image(image, affine))
    assert all(size % 8 == 0 for size in low.data.shape)
    assert low.data.min() >= 0
    assert low.data.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(low.affine[:3, :3], axis=0), 3.0)
    weights = np.argwhere(low.data > 0.9)
    centre = nib.affines.apply_affine(low.affine, weights.mean(axis=0))
    assert np.linalg.norm(centre) < 4


def test_low_resolution_grid_covers_the_field_of_view():
    affine = tilted(centred((0.9, 0.9, 6.5), (256, 256, 20)))
    grid = low_resolution_grid(Grid((256, 256, 20), affine))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in (256, 256, 20)])).reshape(3, -1).T
    inside = nib.affines.apply_affine(np.linalg.inv(grid.affine) @ affine, corners)
    assert (inside >= -0.5).all()
    assert (inside <= np.array(grid.shape) - 0.5).all()


def test_stripped_input_is_detected():
    affine = centred((1.5, 1.5, 3.0), (110, 110, 60))
    image, brain = head(affine, (110, 110, 60))
    stripped = np.where(brain, image, -12.5).astype(np.float32)
    stripped[55:58, 50:60, 30] = -12.5  # a hole of background within the brain
    found = brain_mask(Image(stripped, affine), lambda volume: (volume > 0.2).astype(np.float32))
    assert found.stripped
    assert "without its skull" in found.notes[0]
    np.testing.assert_array_equal(found.mask, brain)


def test_a_head_on_a_zero_background_is_not_taken_for_stripped():
    shape = (110, 120, 60)
    affine = centred((2.0, 2.0, 4.0), shape)
    image, brain = head(affine, shape)
    image[image < 5] = 0  # scanners write exact zeros around the head
    assert (image == 0).mean() > 0.3
    assert stripped_foreground(Image(image, affine), brain) is None
    assert stripped_foreground(Image(image * brain, affine), brain) is not None


def test_an_empty_prediction_is_an_error():
    affine = centred((3.0, 3.0, 3.0), (48, 48, 48))
    image, _ = head(affine, (48, 48, 48))
    with pytest.raises(ProcessingError, match="found no brain"):
        brain_mask(Image(image, affine), np.zeros_like)


def test_clean_mask_keeps_one_piece_without_holes():
    mask = np.zeros((20, 20, 10), bool)
    mask[5:15, 5:15, 2:8] = True
    mask[8:10, 8:10, :] = False  # a tunnel, open above and below
    mask[0:2, 0:2, 0:2] = True
    expected = np.zeros_like(mask)
    expected[5:15, 5:15, 2:8] = True
    np.testing.assert_array_equal(clean_mask(mask), expected)
    assert not clean_mask(np.zeros((3, 3, 3), bool)).any()


@pytest.mark.realdata
@pytest.mark.parametrize("subject", ["tz01", "tz08"])
def test_real_flairs_agree_with_reference_masks(shared_data, subject):
    folder = shared_data / "ds-tabriz"
    path = folder / f"sub-{subject}" / "anat" / f"sub-{subject}_FLAIR.nii.gz"
    reference_folder = folder / "derivatives" / "auto" / f"sub-{subject}" / "anat"
    (reference_path,) = reference_folder.glob("*brain_mask.nii.gz")
    image = nib.as_closest_canonical(nib.load(path))
    reference = nib.as_closest_canonical(nib.load(reference_path)).get_fdata() > 0
    found = brain_mask(Image(image.get_fdata(dtype=np.float32), image.affine))
    assert dice(found.mask, reference) >= 0.9


@pytest.mark.parametrize(("sizes", "shift"), [((50, 40), 0.0), ((7, 300), 0.8), ((1, 1), 5.0)])
def test_samples_are_as_far_apart_as_scipy_says(sizes, shift):
    rng = np.random.default_rng(3)
    first, second = (np.sort(rng.normal(0, 1, size).round(1)) for size in sizes)  # with ties
    expected = stats.ks_2samp(first, second + shift).statistic
    assert farthest_apart(first, second + shift) == pytest.approx(expected)
