"""Images that are no head, and heads that are not as they should be: refused, flagged or the same.

The heads are drawn from the ICBM maps at 2 x 2 x 4 mm; brain mask and template are the real ones.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bagau_bids.datasets.phantom import LAYOUTS, _settings
from bagau_bids.errors import ProcessingError
from bagau_bids.measures.flags import raised_flags
from bagau_bids.measures.metrics import dice
from bagau_bids.measures.quality import Figures, cut_areas_cm2
from bagau_bids.preprocessing import registration
from bagau_bids.preprocessing.bias_field import correct_bias_field
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.registration import register_template
from bagau_bids.preprocessing.template import find_template
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.engine import synthesise
from bagau_bids.synthesis.icbm_head import icbm_head

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scan():
    layout = replace(LAYOUTS[2], in_plane_mm=2.0, slice_mm=4.0)
    return synthesise(icbm_head(2.0), 1, _settings(layout))


@pytest.fixture(scope="module")
def flair(scan):
    return Image(np.asarray(scan.flair, np.float32), scan.affine)


@pytest.fixture(scope="module")
def brain(scan):
    return np.asarray(scan.brain_mask) > 0


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return find_template("ICBM152NLin2009aSym", cache_dir=tmp_path_factory.mktemp("template"))


def air(shape):
    return np.abs(np.random.default_rng(0).normal(0, 5, shape)).astype(np.float32)


def distances_mm(image):
    """Distance of each voxel from the middle, along each axis, (3, X, Y, Z)."""
    middle = (np.array(image.shape) - 1)[:, None, None, None] / 2
    return (np.indices(image.shape) - middle) * voxel_sizes(image.affine)[:, None, None, None]


def registered(image, template):
    found = brain_mask(image)
    corrected = correct_bias_field(image, found.mask)
    return register_template(corrected, found.mask, template, method="sloppy")


def test_noise_alone_is_refused(flair):
    noise = Image(np.abs(np.random.default_rng(1).normal(0, 20, flair.shape)), flair.affine)
    with pytest.raises(ProcessingError, match="the image holds noise alone"):
        brain_mask(noise)


def test_legs_are_refused(flair, template):
    across, forward, _ = distances_mm(flair)
    image = air(flair.shape)
    for middle in (-60, 60):
        radius = np.hypot(across - middle, forward)
        image[radius < 55] += 150
        image[radius < 15] -= 80  # bone
    with pytest.raises(ProcessingError, match=r"expected .* and a head"):
        registered(Image(image, flair.affine), template)


def test_an_upside_down_head_is_refused(flair, template):
    turned = Image(np.ascontiguousarray(flair.data[:, ::-1, ::-1]), flair.affine)
    words = "looks like right, posterior and inferior of the head"
    with pytest.raises(ProcessingError, match=words):
        registered(turned, template)


def test_a_phantom_object_raises_a_flag(flair, template):
    """A bottle of water: the template fits nothing in it, whatever its outline."""
    across, forward, _ = distances_mm(flair)
    bottle = air(flair.shape)
    bottle[np.hypot(across, forward) < 70] += 300
    found = registered(Image(bottle, flair.affine), template).used
    assert found.mutual_information < 0.1
    figures = Figures(registration_information=found.mutual_information)
    assert {flag.name for flag in raised_flags(figures)} == {"registration"}


@pytest.mark.parametrize("half", [slice(None, 19), slice(19, None)])
def test_half_a_head_raises_flags_and_is_outlined_as_far_as_it_goes(flair, brain, half):
    """The slices below, or above, were not taken."""
    affine = flair.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (half.start or 0)
    part = Image(np.ascontiguousarray(flair.data[:, :, half]), affine)
    found = brain_mask(part).mask
    assert dice(brain[:, :, half], found) > 0.9
    figures = Figures(
        brain_volume_ml=float(found.sum() * voxel_sizes(affine).prod() / 1000),
        **cut_areas_cm2(Image(found, affine)),
    )
    assert {flag.name for flag in raised_flags(figures)} <= {"brain mask", "field of view"}
    assert "brain mask" in {flag.name for flag in raised_flags(figures)}


def test_the_direction_of_half_a_head_is_not_judged(flair, brain, template, monkeypatch):
    """Its upper half fits the template better in another direction, and lies as it says."""
    monkeypatch.setattr(registration, "_starts", lambda *_: iter([("none", np.eye(4))]))
    part, mask = (array[:, :, 19:] for array in (flair.data, brain))
    affine = flair.affine.copy()
    affine[:3, 3] += affine[:3, 2] * 19
    upper = Image(np.ascontiguousarray(part), affine)
    assert register_template(upper, mask, template, method="sloppy").head_turn is None
    whole = register_template(flair, brain, template, method="sloppy")
    assert 0 < whole.head_turn < 1


def test_a_defaced_head_has_the_same_brain(flair, brain):
    _, forward, up = distances_mm(flair)
    away = ndimage.distance_transform_edt(~brain, sampling=voxel_sizes(flair.affine))
    face = (forward > 20) & (up < 0) & (away > 6)
    assert face.sum() > 1000
    defaced = Image(np.where(face, 0, flair.data).astype(np.float32), flair.affine)
    assert dice(brain_mask(flair).mask, brain_mask(defaced).mask) > 0.98


def test_a_head_with_contrast_agent_has_the_same_brain(flair, brain):
    """Meninges, scalp and vessels three times as bright."""
    away = ndimage.distance_transform_edt(~brain, sampling=voxel_sizes(flair.affine))
    bright = np.where((away > 0) & (away < 5), 3, 1) * flair.data
    enhanced = Image(bright.astype(np.float32), flair.affine)
    assert dice(brain_mask(flair).mask, brain_mask(enhanced).mask) > 0.95
