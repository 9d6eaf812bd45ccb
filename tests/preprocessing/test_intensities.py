"""Numbers that nobody measured: wrapped, far beyond all others, clipped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.intensities import (
    clipped_share,
    refuse_wrapped,
    repair_extremes,
)

SHAPE = (30, 34, 8)


def head(brightest=1000.0, seed=0):
    """A continuous image: smooth blobs over a ball, and some noise."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), (2, 2, 1))
    axes = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in SHAPE)]
    ball = np.clip(1.5 - 1.5 * sum(axis**2 for axis in axes), 0, 1)
    image = ball * (0.7 + 0.3 * smooth / np.abs(smooth).max()) + rng.uniform(0, 0.02, SHAPE)
    return (image / image.max() * brightest).astype(np.float32)


@pytest.mark.parametrize("brightest", [33_500, 40_000, 60_000])
def test_unsigned_numbers_read_as_signed_are_refused(brightest):
    wrapped = head(brightest).astype(np.uint16).view(np.int16).astype(np.float32)
    assert wrapped.min() < 0
    with pytest.raises(InputImageError, match=r"wrapped round: at \d+ places"):
        refuse_wrapped(wrapped)


@pytest.mark.parametrize("slope", [0.01, 3.0])
def test_wrapped_numbers_are_found_whatever_the_scaling(slope):
    wrapped = head(200).astype(np.uint8).view(np.int8).astype(np.float32)
    with pytest.raises(InputImageError, match="wrapped round"):
        refuse_wrapped(wrapped * np.float32(slope))


@pytest.mark.parametrize(
    ("below", "above"), [(-300, 1000), (-5000, 12_000), (-15_000, 9_000), (-4, 32_000)]
)
def test_signed_numbers_read_as_unsigned_are_refused(below, above):
    """Noise about zero, normalised images, a little ringing: what lies below became highest."""
    signed = head(above - below) + below
    wrapped = signed.astype(np.int16).view(np.uint16).astype(np.float32)
    assert wrapped.max() > 65_500
    with pytest.raises(InputImageError, match=r"at \d+ places .* \(most likely signed read as"):
        refuse_wrapped(wrapped * np.float32(0.3))


@pytest.mark.parametrize("scale", [1, 158, 1e-3])
def test_bright_tissue_beside_nothing_is_not_taken_for_wrapped_numbers(scale):
    """A drawn or stripped head, which has no whole numbers that end where a type does."""
    bright = head() > 300
    ramp = np.linspace(0.9, 1, bright.size).reshape(bright.shape)
    refuse_wrapped((scale * np.where(bright, ramp, 7e-6 * ramp)).astype(np.float32))


def test_signed_bytes_read_as_unsigned_are_refused():
    signed = (head(160) - 60).astype(np.int8)
    with pytest.raises(InputImageError, match="signed read as unsigned"):
        refuse_wrapped(signed.view(np.uint8).astype(np.float32))


@pytest.mark.parametrize("levels", [(0, 1000), (0, 60, 100), (10, 30, 1000)])
def test_images_of_few_levels_and_bright_fills_are_not_taken_for_wrapped_ones(levels):
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE).astype(np.float32)
    ball = np.digitize(head(), np.linspace(200, 700, len(levels) - 1))
    few = (np.asarray(levels, np.float32)[ball] + noise * levels[-1]).astype(np.float32)
    refuse_wrapped(few)
    refuse_wrapped(np.clip(few, 0, None))
    refuse_wrapped(np.where(head() > 300, head(), np.float32(65_535)))
    bright = head()
    bright[15, 17, 4], bright[10, 20, 3] = 60_000, 65_535
    refuse_wrapped(bright)


def test_normalised_images_are_not_taken_for_wrapped_ones():
    image = head()
    for seed in range(5):
        refuse_wrapped(((head(seed=seed) - image.mean()) / image.std()).astype(np.float32))
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    refuse_wrapped(noise)
    refuse_wrapped(np.where(image > 200, (image - 600) / 200, -3).astype(np.float32))


def test_one_strange_voxel_becomes_what_its_neighbours_are():
    image = head()
    image[15, 17, 4] = np.median(np.delete(image[14:17, 16:19, 3:6].ravel(), 13))
    for value in (-32768.0, 65535.0, 1e30, -1e30):
        broken = image.copy()
        broken[15, 17, 4] = value
        found = repair_extremes(broken)
        np.testing.assert_array_equal(found.volume, image)
        assert "1 voxel(s) of" in found.notes[0]
        assert broken[15, 17, 4] == np.float32(value)


def test_several_strange_voxels_beside_each_other_are_replaced():
    image = head()
    image[14:16, 17, 4] = -32768
    image[0, 0, 0] = 1e20
    found = repair_extremes(image)
    assert found.volume.min() >= 0
    assert found.volume.max() <= 1000
    assert "3 voxel(s) of -32768 to 1e+20" in found.notes[0]


def test_a_fill_far_below_becomes_the_lowest_value():
    image = head()
    inside = image > 300
    found = repair_extremes(np.where(inside, image, np.float32(-32768)))
    np.testing.assert_array_equal(found.volume[inside], image[inside])
    assert set(found.volume[~inside]) == {image[inside].min()}
    assert f"{(~inside).sum()} voxels of -32768, far outside" in found.notes[0]


def test_ordinary_images_stay_as_they_are():
    image = head()
    bright = image.copy()
    bright[15, 17, 4] = 2500  # a vessel, two and a half times the rest
    for ordinary in (image, bright, image - 400, (image > 300).astype(np.float32)):
        found = repair_extremes(ordinary)
        assert found.volume is ordinary
        assert found.notes == ()


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-3, 1e4),
    shift=st.floats(-1e3, 1e3),
    places=st.sets(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), min_size=1, max_size=5),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_a_repaired_image_has_no_extremes_and_the_rest_untouched(scale, shift, places, sign):
    image = (head() * np.float32(scale) + np.float32(shift)).astype(np.float32)
    broken = image.copy()
    where = tuple(np.array(sorted(places)).T)
    broken[where] = sign * (np.abs(image).max() + 1) * 50
    found = repair_extremes(broken).volume
    assert image.min() <= found.min()
    assert found.max() <= image.max()
    kept = np.ones(SHAPE, bool)
    kept[where] = False
    np.testing.assert_array_equal(found[kept], image[kept])


def test_clipping_is_a_share_of_the_brain():
    image, brain = head(), np.zeros(SHAPE, bool)
    brain[10:20, 10:20, 2:6] = True
    assert clipped_share(image, brain) <= 1 / brain.sum()
    limit = np.percentile(image[brain], 90)
    assert clipped_share(np.minimum(image, limit), brain) == pytest.approx(0.1, abs=0.01)


def test_zero_background_of_a_brain_of_little_contrast_stays():
    volume = np.zeros((20, 20, 20), np.float32)
    volume[5:15, 5:15, 5:15] = np.random.default_rng(0).uniform(100, 105, (10, 10, 10))
    repaired, notes = repair_extremes(volume)
    np.testing.assert_array_equal(repaired, volume)
    assert notes == ()
