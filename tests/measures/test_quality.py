"""Quality figures on images whose figures are known."""

import json
from dataclasses import asdict, fields
from importlib.resources import files

import numpy as np
import pytest
from scipy import ndimage

from bagau_bids.measures import quality
from bagau_bids.spaces import Image

AFFINE = np.diag([1.0, 2.0, 4.0, 1.0])


def scan(noise_sd=5.0):
    rng = np.random.default_rng(0)
    shape = (40, 40, 20)
    brain = np.zeros(shape, bool)
    brain[5:35, 5:35, 4:16] = True
    wm = np.where(brain, 1.0, 0.0)
    wmh = np.zeros(shape, bool)
    wmh[10:14, 10:14, 8:10] = True
    flair = rng.normal(100, noise_sd, shape)
    flair[wmh] += 60
    return flair, brain, wm, wmh


def test_figures_of_a_known_image():
    flair, brain, wm, wmh = scan()
    figures = quality.scan_quality(Image(flair, AFFINE), brain, wm, wmh)
    assert figures.slice_thickness_mm == 4
    assert figures.in_plane_mm == 2
    assert figures.brain_volume_ml == pytest.approx(30 * 30 * 12 * 8 / 1000)
    assert figures.wm_snr == pytest.approx(100 / 5, rel=0.05)
    assert figures.wmh_wm_contrast == pytest.approx(1.6, rel=0.02)
    assert [v for k, v in asdict(figures).items() if k.startswith("cut_")] == [0, 0, 0]


def test_every_figure_is_described_in_order():
    described = json.loads((files("bagau_bids.data") / "tables/quality.json").read_text())
    assert list(described) == [field.name for field in fields(quality.Figures)]
    assert all(entry["Units"] and entry["Description"] for entry in described.values())


def test_lesions_and_their_neighbours_do_not_count_as_white_matter():
    _, brain, wm, wmh = scan()
    region = quality.normal_white_matter(brain, wm, wmh)
    assert not region[9:15, 9:15, 7:11].any()
    assert np.count_nonzero(region) == np.count_nonzero(brain) - 6 * 6 * 4


def test_missing_figures_are_none():
    flair, brain, wm, wmh = scan()
    figures = quality.scan_quality(Image(flair, AFFINE), brain, wm, np.zeros_like(wmh))
    assert figures.wmh_wm_contrast is None
    figures = quality.scan_quality(Image(flair, AFFINE), brain, np.zeros_like(wm), wmh)
    assert figures.wm_snr is None
    assert quality.signal_to_noise(np.ones((9, 9, 9)), np.ones((9, 9, 9), bool)) is None


def head(noise=3.0):
    """A brain of 100 in skull of 10, scalp of 60 and noisy air; mm are voxels, RAS."""
    rng = np.random.default_rng(1)
    mm = np.indices((70, 80, 40)) - np.array((34.5, 39.5, 14.5))[:, None, None, None]
    radius = np.sqrt(((mm / np.array((24, 28, 20))[:, None, None, None]) ** 2).sum(axis=0))
    brain = radius < 1
    flair = np.select([brain, radius < 1.25, radius < 1.35], [100.0, 10.0, 60.0], 0.0)
    flair = np.hypot(flair + rng.normal(0, noise, flair.shape), rng.normal(0, noise, flair.shape))
    return flair, brain, np.where(radius < 0.8, 1.0, 0.0), np.zeros(brain.shape, bool)


def figures_of(flair, brain, wm, wmh, **options):
    return quality.scan_quality(Image(flair, np.eye(4)), brain, wm, wmh, **options)


@pytest.mark.parametrize("noise", [2.0, 5.0, 10.0])
def test_noise_is_measured_in_spite_of_shading(noise):
    flair, brain, wm, wmh = head(noise)
    shaded = flair * np.linspace(0.7, 1.3, flair.shape[0])[:, None, None]
    assert figures_of(flair, brain, wm, wmh).noise_snr == pytest.approx(100 / noise, rel=0.05)
    assert figures_of(shaded, brain, wm, wmh).noise_snr == pytest.approx(100 / noise, rel=0.1)
    assert figures_of(flair, brain, wm, wmh).stripe_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_stripes_along_one_axis(axis):
    flair, brain, wm, wmh = head()
    wave = 10 * np.sin(2.1 * np.arange(flair.shape[axis]))
    striped = flair + np.expand_dims(wave, [other for other in range(3) if other != axis])
    assert figures_of(striped, brain, wm, wmh).stripe_ratio > 2


def test_stripes_are_looked_for_in_the_slice_wherever_it_lies():
    flair, brain, wm, wmh = head()
    thin = np.diag([4.0, 1.0, 1.0, 1.0])  # sagittal slices
    wave = 10 * np.sin(2.1 * np.arange(flair.shape[2]))
    assert quality.scan_quality(Image(flair + wave, thin), brain, wm, wmh).stripe_ratio > 2


def test_copies_of_the_head_in_the_air_and_noise_are_told_apart():
    flair, brain, wm, wmh = head(6.0)
    grid = np.diag([2.0, 2.0, 2.0, 1.0])  # a head of true size
    clean = quality.scan_quality(Image(flair, grid), brain, wm, wmh).ghost_to_wm
    copies = flair + 0.15 * np.roll(flair, (35, 40), (0, 1))
    ghosted = quality.scan_quality(Image(copies, grid), brain, wm, wmh).ghost_to_wm
    assert clean < 0.05
    assert ghosted > 2 * clean
    blank = np.where(flair > 30, flair, 0)
    assert figures_of(blank, brain, wm, wmh).ghost_to_wm is None


@pytest.mark.parametrize("axis", [0, 2])
def test_a_slice_that_jumps(axis):
    flair, brain, wm, wmh = head()
    affine = np.diag([4.0 if axis == 0 else 1.0, 1.0, 1.0, 1.0])
    steady = quality.scan_quality(Image(flair, affine), brain, wm, wmh).slice_jump
    index = [slice(None)] * 3
    index[axis] = flair.shape[axis] // 2 if axis == 0 else 14
    flair[tuple(index)] *= 0.7
    jumping = quality.scan_quality(Image(flair, affine), brain, wm, wmh).slice_jump
    assert steady < 0.02
    assert jumping == pytest.approx(0.3, abs=0.03)


def test_a_mask_that_is_too_small_leaves_tissue_outside():
    flair, brain, wm, wmh = head()
    assert figures_of(flair, brain, wm, wmh).tissue_outside_mask < 0.1
    small = ndimage.binary_erosion(brain, iterations=6)
    assert figures_of(flair, small, wm, wmh).tissue_outside_mask > 0.9


def test_white_matter_on_csf_or_outside_the_brain_is_misfit():
    flair, brain, wm, wmh = head()
    assert figures_of(flair, brain, wm, wmh).wm_misfit == 0
    moved = np.roll(wm, 12, axis=0)
    outside = ((moved > 0) & ~brain).sum() / (moved > 0).sum()
    found = figures_of(flair, brain, moved, wmh).wm_misfit
    assert found == pytest.approx(outside, abs=0.01)
    assert found > 0.1


def test_uncertainty_of_known_probabilities():
    probability = np.zeros((10, 10, 10))
    probability[:2] = 0.5
    probability[2:4] = 0.9
    probability[4] = 0.05
    mask = probability >= 0.5
    found = quality.uncertainty(probability, mask, 0.002)
    assert found["wmh_soft_ml"] == pytest.approx((100 + 180 + 5) * 0.002)
    assert found["wmh_soft_to_hard"] == pytest.approx(285 / 400)
    ninth = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert found["wmh_entropy"] == pytest.approx((1 + ninth) / 2)
    sure = quality.uncertainty((probability > 0).astype(float), mask, 0.002)
    assert sure["wmh_entropy"] == pytest.approx(0, abs=1e-9)
    nothing = quality.uncertainty(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), 1.0)
    assert nothing == {"wmh_soft_ml": 0.0, "wmh_soft_to_hard": None, "wmh_entropy": None}


def test_figures_of_the_registration_are_handed_on():
    flair, brain, wm, wmh = head()
    registered = quality.Registered(0.9, 0.3, 0.95, csf=25.0)
    found = figures_of(flair, brain, wm, wmh, registered=registered)
    names = ("registration_overlap", "registration_information", "fov_coverage")
    assert [getattr(found, name) for name in names] == [0.9, 0.3, 0.95]
    assert found.csf_to_wm == pytest.approx(0.25, rel=0.01)


def test_empty_masks_give_no_figure_and_no_failure():
    flair, brain, _, wmh = head()
    nothing = np.zeros_like(brain)
    found = quality.scan_quality(
        Image(flair, np.eye(4)), nothing, nothing, wmh, np.zeros(brain.shape)
    )
    for name in ("noise_snr", "stripe_ratio", "slice_jump", "ghost_to_wm", "wm_misfit"):
        assert getattr(found, name) is None
    assert all(value is None or np.isfinite(value) for value in asdict(found).values())


@pytest.mark.parametrize(
    ("face", "name", "area_cm2"),
    [
        (np.s_[:, :, -1], "cut_superior_cm2", 6 * 8 * 1 * 2 / 100),
        (np.s_[:, :, 0], "cut_inferior_cm2", 6 * 8 * 1 * 2 / 100),
        (np.s_[0], "cut_sides_cm2", 8 * 4 * 2 * 4 / 100),
        (np.s_[:, -1], "cut_sides_cm2", 6 * 4 * 1 * 4 / 100),
    ],
)
def test_area_of_brain_on_a_face(face, name, area_cm2):
    brain = np.zeros((6, 8, 4), bool)
    brain[face] = True
    assert quality.cut_areas_cm2(Image(brain, AFFINE))[name] >= area_cm2 - 1e-9
    inner = np.zeros_like(brain)
    inner[1:-1, 1:-1, 1:-1] = True
    assert sum(quality.cut_areas_cm2(Image(inner, AFFINE)).values()) == 0
