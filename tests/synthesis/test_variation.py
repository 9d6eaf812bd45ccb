"""Every variation of the synthesis engine on its own: it happens, and only where it should."""

from dataclasses import fields, is_dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from synthetic_heads import MIXTURE, STILL, affine, ball, labels

from bagau_bids.synthesis.acquisition import (
    AcquisitionSettings,
    Grid,
    degrade,
    draw_grid,
)
from bagau_bids.synthesis.deformation import PoseSettings, add_elastic, draw_pose
from bagau_bids.synthesis.engine import (
    AtlasSettings,
    FieldOfViewSettings,
    SynthesisSettings,
    brain_mask_settings,
    synthesise,
)
from bagau_bids.synthesis.fields import Draw
from bagau_bids.synthesis.heads import pool_settings
from bagau_bids.synthesis.infarcts import InfarctSettings
from bagau_bids.synthesis.intensities import IntensitySettings, add_confounders
from bagau_bids.synthesis.labels import CLASS_OF, Head
from bagau_bids.synthesis.lesions import (
    HeadMaps,
    LesionSettings,
    LesionShapes,
    draw_lesions,
    paint_lesions,
)

NEVER = (0.0, 0.0)
# Nothing but the averaging of 2 mm to 4 mm voxels.
CLEAN = AcquisitionSettings(
    in_plane_mm=(4.0, 4.0),
    slice_spacing_mm=(4.0, 4.0),
    isotropic_probability=0,
    sharp_probability=0,
    gap_fraction=NEVER,
    working_mm=2.0,
    blur_mm=NEVER,
    bias_amplitude=NEVER,
    noise=NEVER,
    gamma_log_sd=0,
    ringing_probability=0,
    motion_probability=0,
    slice_gain_probability=0,
    stripped_probability=0,
    smoothed_probability=0,
    histogram_probability=0,
    clipped_probability=0,
    jpeg_probability=0,
    quantised_probability=0,
)
WITHOUT_INFARCTS = InfarctSettings(
    infarct_probability=0, lacune_probability=0, cavity_probability=0
)
RIGHT = AtlasSettings(
    smooth_error_mm=NEVER,
    gross_probability=0,
    local_probability=0,
    blurred_probability=0,
    sharpened_probability=0,
    lower_probability=0,
    absent_probability=0,
)
EVEN = IntensitySettings(
    texture=NEVER,
    regional_variation=NEVER,
    bright_cortex_probability=0,
    flow_probability=0,
    choroid_probability=0,
    rim_probability=0,
)
DEEP = LesionSettings(
    none_probability=0,
    real_probability=0,
    periventricular_probability=0,
    deep_probability=1,
    labelled_probability=0,
    punctate_count=(20, 21),
    radius_mm=(4.0, 5.0),
    dirty_probability=0,
    falloff_probability=0,
    **MIXTURE,
)
PLAIN = SynthesisSettings(
    pose=STILL,
    view=FieldOfViewSettings(cut_probability=0),
    intensities=EVEN,
    lesions=DEEP,
    acquisition=CLEAN,
    infarcts=WITHOUT_INFARCTS,
    atlas=RIGHT,
)
MM4 = (4.0, 4.0, 4.0)


class Midway(Draw):
    """Draws the middle of every range and flat fields: what is left is the setting itself."""

    def uniform(self, limits):
        return sum(limits) / 2

    def normal(self, std=1.0):
        return std

    def smooth_field(self, shape, spacing_mm, scale_mm):
        return torch.zeros(shape)


@cache
def lopsided_head():
    """A head whose white matter reaches further to the left, its atlas being that of the map."""
    found = labels()
    found[26:][found[26:] == 2] = 3
    return Head(found, affine(), wm_atlas=(found == 2).astype(np.float32))


def scan_of(seed=0, **changes):
    return synthesise(lopsided_head(), seed, replace(PLAIN, **changes))


def correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


def centroid(weights, matrix):
    voxels = np.argwhere(weights > 0)
    mean = np.average(voxels, axis=0, weights=weights[weights > 0])
    return matrix[:3, :3] @ mean + matrix[:3, 3]


def numbers_in(settings, prefix=""):
    """Every setting with its name, those of settings inside settings too."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from numbers_in(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


@pytest.mark.parametrize("make", [SynthesisSettings, pool_settings, brain_mask_settings])
def test_every_variation_is_drawn_by_default(make):
    for name, value in numbers_in(make()):
        if name.endswith("_probability") and name != "intensities.random_contrast_probability":
            assert 0 < value < 1, name
        elif "_sd" in name or name.endswith(("_mm", "_fraction", "amplitude", "noise", "texture")):
            assert np.max(value) > 0, name


# Where the head lies


def test_heads_are_mirrored_as_often_as_asked():
    def mirrored(probability, seed):
        settings = replace(PoseSettings(), mirror_probability=probability)
        return np.linalg.det(draw_pose(Draw(seed), settings, np.zeros(3))) < 0

    assert not any(mirrored(0, seed) for seed in range(20))
    assert all(mirrored(1, seed) for seed in range(20))
    assert 5 < sum(mirrored(0.5, seed) for seed in range(30)) < 25


def test_a_mirrored_head_lies_on_the_other_side():
    left = scan_of()
    right = scan_of(pose=replace(STILL, mirror_probability=1))
    for name in ("wm_true", "wm_atlas"):
        (x, *_), (mirrored, *_) = (centroid(getattr(s, name), s.affine) for s in (left, right))
        assert x < -5
        assert mirrored == pytest.approx(-x, abs=1.0)


def test_elastic_displacements_are_smooth_and_as_large_as_asked():
    shape = (60, 60, 60)
    moved = [torch.zeros(shape) for _ in range(3)]
    add_elastic(moved, Draw(0), (2.0, 2.0, 2.0), (1.0, 2.0, 0.0), 20.0)
    assert float(moved[0].std()) == pytest.approx(1.0, rel=0.3)
    assert float(moved[1].std()) == pytest.approx(2.0, rel=0.3)
    assert not moved[2].any()
    for field in moved[:2]:
        assert float(field.diff(dim=0).std()) < 0.25 * float(field.std())


def test_elastic_heads_have_another_shape_and_their_atlas_with_it():
    stiff = scan_of()
    soft = scan_of(pose=replace(STILL, elastic_amplitude_mm=(6, 6)))
    both = (stiff.brain_mask & soft.brain_mask).sum()
    dice = 2 * both / (stiff.brain_mask.sum() + soft.brain_mask.sum())
    assert 0.8 < dice < 0.98
    assert correlation(soft.wm_atlas, soft.wm_true) > 0.9
    assert correlation(soft.wm_atlas, soft.wm_true) > correlation(soft.wm_atlas, stiff.wm_true)


# The atlas


@pytest.mark.parametrize("mirror", [0, 1])
def test_atlas_lies_on_the_white_matter(mirror):
    pose = PoseSettings(mirror_probability=mirror, translation_sd_mm=0)
    for seed in range(2):
        scan = scan_of(seed, pose=pose)
        agreement = correlation(scan.wm_atlas, scan.wm_true)
        assert agreement > 0.9
        assert correlation(scan.wm_atlas[::-1], scan.wm_true) < agreement - 0.2


def test_atlas_has_small_errors():
    exact, carried = scan_of(), scan_of(atlas=replace(RIGHT, smooth_error_mm=(2.0, 2.0)))
    np.testing.assert_array_equal(carried.wm_true, exact.wm_true)
    difference = np.abs(carried.wm_atlas - exact.wm_atlas)
    assert difference.max() > 0.1
    assert correlation(carried.wm_atlas, carried.wm_true) > 0.9
    shift = centroid(carried.wm_atlas, carried.affine) - centroid(exact.wm_atlas, exact.affine)
    assert np.linalg.norm(shift) < 2


def test_atlas_has_gross_errors():
    atlas = replace(
        RIGHT, gross_probability=1, gross_error_mm=(6.0, 10.0), gross_rotation_deg=NEVER
    )
    spot = ball((22, 27, 24), (3, 3, 3)).astype(np.float32)
    head = replace(lopsided_head(), wm_atlas=spot)
    exact = synthesise(head, 0, PLAIN)
    signs = set()
    for seed in range(4):
        scan = synthesise(head, seed, replace(PLAIN, atlas=atlas))
        shift = centroid(scan.wm_atlas, scan.affine) - centroid(exact.wm_atlas, exact.affine)
        assert ((np.abs(shift) > 5.7) & (np.abs(shift) < 10.3)).all(), shift
        signs.update(np.sign(shift))
    assert signs == {-1.0, 1.0}


# Lesions


def band_beside_a_ventricle(width_mm):
    """Labelled distances to a flat ventricle's wall, for a band of one width everywhere."""
    mm = (torch.arange(20) * 0.5)[:, None, None].expand(20, 4, 4)
    white = torch.full((20, 4, 4), CLASS_OF["white_matter"])
    around = HeadMaps(white, torch.zeros((20, 4, 4), dtype=torch.int64), mm, (0.5, 0.5, 0.5))
    settings = replace(
        DEEP,
        deep_probability=0,
        periventricular_probability=1,
        # Its undulations are about half of the setting.
        band_width_mm=(2 * width_mm, 2 * width_mm),
    )
    found = draw_lesions(around, None, Midway(0), settings)
    return set(mm[found].tolist())


@pytest.mark.parametrize("width_mm", [1.0, 1.5, 1.9])
def test_thin_bands_are_not_labelled(width_mm):
    assert band_beside_a_ventricle(width_mm) == set()


def test_wide_bands_are_labelled_down_to_the_wall():
    assert band_beside_a_ventricle(3.2) == {0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0}


def test_some_heads_have_no_lesion():
    around = HeadMaps(
        torch.full((8, 8, 8), CLASS_OF["labelled_lesion"]),
        torch.zeros((8, 8, 8), dtype=torch.int64),
        torch.full((8, 8, 8), 99.0),
        MM4,
    )
    settings = replace(DEEP, deep_probability=0, labelled_probability=1, none_probability=0.4)
    drawn = [bool(draw_lesions(around, None, Draw(seed), settings).any()) for seed in range(50)]
    assert 10 < sum(drawn) < 45


def test_dirty_white_matter_surrounds_lesions_and_is_not_labelled():
    x = torch.arange(32)[:, None, None].expand(32, 32, 32)
    white = x < 22
    lesions = torch.zeros((32, 32, 32), dtype=torch.bool)
    lesions[17:21, 12:20, 12:20] = True
    reach = torch.zeros_like(lesions)
    reach[14:24, 9:23, 9:23] = True  # 3 voxels: more than the edges are blurred

    def painted(probability):
        image = torch.ones((32, 32, 32))
        settings = LesionSettings(
            dirty_probability=probability,
            contrast=(0.5, 0.5),
            dirty=(0.3, 0.3),
            softness_mm=(0.3, 1.0),
        )
        mask = lesions.clone()
        paint_lesions(image, mask, white, Draw(0), (1.0, 1.0, 1.0), settings)
        assert torch.equal(mask, lesions)
        return image

    bare, dirty = painted(0), painted(1)
    assert (bare[~reach] == 1).all()
    halo = reach & ~lesions & white
    assert float((dirty - bare)[halo].mean()) > 0.01
    assert float((dirty - bare)[halo].min()) > -1e-6
    assert float(dirty[halo].mean()) < float(dirty[lesions].mean()) - 0.1
    torch.testing.assert_close(dirty[~white | lesions], bare[~white | lesions])


def test_real_lesions_are_shifted_by_millimetres():
    mask = np.zeros((12, 14, 16), bool)
    mask[3:5, 4:6, 5:7] = True
    shapes = LesionShapes.from_masks([mask], np.array([1.0, 2.0, 4.0]))
    settings = replace(DEEP, keep_component=(2, 2), shift_sd_mm=4.0)
    dense = shapes.draw_mask(Midway(0), settings).numpy().reshape(mask.shape)
    expected = np.zeros_like(mask)
    expected[7:9, 6:8, 6:8] = True
    np.testing.assert_array_equal(dense, expected)


def test_the_shift_of_real_lesions_has_its_standard_deviation():
    mask = np.zeros((61, 61, 61), bool)
    mask[30, 30, 30] = True
    spacing = np.array([0.5, 1.0, 2.0])
    shapes = LesionShapes.from_masks([mask], spacing)
    settings = replace(DEEP, keep_component=(2, 2), shift_sd_mm=3.0)
    found = [shapes.draw_mask(Draw(seed), settings).reshape(mask.shape) for seed in range(60)]
    shifts_mm = np.array([(np.argwhere(m.numpy())[0] - 30) * spacing for m in found])
    np.testing.assert_allclose(shifts_mm.std(axis=0), 3.0, rtol=0.35)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_real_lesions_that_leave_the_grid_are_dropped(axis, sign):
    mask = np.zeros((6, 7, 8), bool)
    edge = [slice(None)] * 3
    edge[axis] = slice(-2, None) if sign > 0 else slice(0, 2)
    mask[tuple(edge)] = True
    spacing = np.full(3, 1e3)  # no shift along the other axes
    spacing[axis] = 1.0
    shapes = LesionShapes.from_masks([mask], spacing)
    settings = replace(DEEP, keep_component=(2, 2), shift_sd_mm=float(sign))
    dense = shapes.draw_mask(Midway(0), settings).numpy().reshape(mask.shape)
    expected = mask.copy()
    inner = list(edge)
    inner[axis] = -2 if sign > 0 else 1
    expected[tuple(inner)] = False
    np.testing.assert_array_equal(dense, expected)


# Bright structures that are no lesions

TISSUES = (
    *("white_matter", "cortex", "hippocampus", "csf", "ventricle", "midline_ventricle"),
    *("choroid_plexus", "thalamus", "skull"),
)


def brightened(seed=0, **probabilities):
    """Classes that confounders changed, and the distances to the ventricle of what they did."""
    shape = (36, 20, 20)
    x = torch.arange(36)[:, None, None].expand(shape)
    classes = torch.tensor([CLASS_OF[name] for name in TISSUES])[x // 4]
    distance = (x % 4) * 0.8
    before = 0.5 + 0.1 * (classes % 5)
    image = before.clone()
    settings = replace(EVEN, **probabilities)
    add_confounders(image, classes, distance, Draw(seed), MM4, settings)
    assert (image >= before).all()
    changed = image > before + 0.01
    return {TISSUES[n] for n in (x[changed] // 4).unique()}, distance[changed]


@pytest.mark.parametrize(
    ("name", "tissues"),
    [
        ("bright_cortex", {"cortex", "hippocampus"}),
        ("flow", {"csf", "ventricle", "midline_ventricle"}),
        ("choroid", {"choroid_plexus"}),
        ("rim", {"white_matter"}),
    ],
)
def test_confounders_brighten_their_own_tissue_alone(name, tissues):
    found = [brightened(seed, **{f"{name}_probability": 1})[0] for seed in range(5)]
    assert set.union(*found) == tissues
    assert brightened(**{f"{name}_probability": 0})[0] == set()


def test_rims_are_never_wider_than_what_is_labelled():
    distances = torch.cat([brightened(seed, rim_probability=1)[1] for seed in range(5)])
    assert 0 < float(distances.max()) <= 2.0


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("intensities", {"bright_cortex_probability": 1}),
        ("intensities", {"flow_probability": 1}),
        ("intensities", {"choroid_probability": 1}),
        ("intensities", {"rim_probability": 1}),
        ("intensities", {"texture": (0.04, 0.04)}),
        ("intensities", {"regional_variation": (0.06, 0.06)}),
        ("lesions", {"dirty_probability": 1}),
        ("acquisition", {"blur_mm": (2.0, 2.0)}),
        ("acquisition", {"bias_amplitude": (0.3, 0.3)}),
        ("acquisition", {"slice_gain_probability": 1}),
        ("acquisition", {"motion_probability": 1}),
        ("acquisition", {"ringing_probability": 1}),
        ("acquisition", {"noise": (0.05, 0.05)}),
        ("acquisition", {"gamma_log_sd": 0.5}),
        ("acquisition", {"stripped_probability": 1}),
    ],
)
def test_what_changes_the_image_leaves_the_truth(part, change):
    changed = scan_of(**{part: replace(getattr(PLAIN, part), **change)})
    plain = plain_scan()
    assert plain.wmh_mask.any()
    for name in ("affine", "wmh_mask", "brain_mask", "wm_true", "wm_atlas"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(plain, name))
    if "choroid_probability" not in change:  # the head has no choroid plexus
        assert np.abs(changed.flair - plain.flair).max() > 0.02


@cache
def plain_scan():
    return scan_of()


# The scanner


def degraded(image, seed=0, **changes):
    grid = Grid(tuple(image.shape), MM4, (1, 1, 1), (1, 1, 1))
    return degrade(image, Draw(seed), grid, replace(CLEAN, **changes))


def test_without_artefacts_the_image_stays_but_for_its_scale():
    image = torch.rand((20, 20, 10), generator=torch.Generator().manual_seed(0)) + 0.1
    ratio = degraded(image) / image
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0, 0])))


def test_bias_field_is_smooth_and_as_strong_as_asked():
    drawn = [
        degraded(torch.ones(48, 48, 40), seed, bias_amplitude=(0.3, 0.3)).log()
        for seed in range(4)
    ]
    assert float(torch.stack(drawn).std()) == pytest.approx(0.3, rel=0.4)
    for field in drawn:
        assert float(field.std()) > 0.1
        for axis in range(3):
            assert float(field.diff(dim=axis).std()) < 0.2 * float(field.std())


def test_slice_gain_changes_whole_slices():
    image = degraded(torch.ones(20, 20, 30), slice_gain_probability=1, slice_gain_sd=(0.1, 0.1))
    slices = image[0, 0]
    torch.testing.assert_close(image, slices.expand_as(image))
    assert float(slices.std() / slices.mean()) == pytest.approx(0.1, rel=0.5)


def test_motion_repeats_the_object_faintly_along_one_axis():
    image = torch.zeros(60, 60, 9)
    image[28:32, 28:32, 4] = 1
    axes = set()
    for seed in range(6):
        found = degraded(image, seed, motion_probability=1)
        found = found / found.max()
        assert not found[:, :, [*range(4), *range(5, 9)]].any()
        ghosts = (found > 0) & (image == 0)
        assert ghosts.sum() in (16, 32)
        assert 0.01 < float(found[ghosts].mean()) < 0.2
        rows = {tuple(v) for v in ghosts.nonzero()[:, :2].tolist()}
        along = [axis for axis in (0, 1) if all(28 <= v[1 - axis] < 32 for v in rows)]
        axes.update(along)
        assert len(along) == 1
    assert axes == {0, 1}


def test_ringing_takes_the_finest_detail_in_plane():
    image = torch.ones(40, 44, 6)
    image[10:30, 12:30] = 3
    image[:, :, 3] *= 1.5
    found = degraded(image, ringing_probability=1).numpy()
    frequency = np.abs(np.fft.fftfreq(40))[:, None], np.abs(np.fft.fftfreq(44))[None]
    finest = (np.maximum(*frequency) > 0.43)[..., None]
    before, after = (np.abs(np.fft.fft2(i, axes=(0, 1))) for i in (image.numpy(), found))
    assert (before * finest).max() > 1
    assert (after * finest).max() < 1e-3
    # The mean of each slice stays, and so do the edges between slices.
    np.testing.assert_allclose(found.mean((0, 1)) / found[..., 0].mean(), [1, 1, 1, 1.5, 1, 1])


def test_noise_is_rician():
    image = torch.zeros(60, 60, 60)
    image[30:] = 1
    found = degraded(image, noise=(0.05, 0.05))
    sigma, air = float(found[30:].std()), found[:30]
    assert sigma / float(found[30:].mean()) == pytest.approx(0.05, rel=0.02)
    # Without signal a magnitude image follows a Rayleigh distribution.
    assert float(air.mean()) / sigma == pytest.approx(np.sqrt(np.pi / 2), rel=0.02)
    assert float(air.std()) / sigma == pytest.approx(np.sqrt(2 - np.pi / 2), rel=0.02)


def test_gamma_bends_the_grey_levels():
    image = torch.ones(16, 16, 16)
    image[:4], image[4:8] = 0.25, 0.5
    gammas = []
    for seed in range(40):
        low, middle, top = degraded(image, seed, gamma_log_sd=0.3)[[0, 4, 8], 0, 0].tolist()
        assert top == pytest.approx(1)
        gammas.append(np.log(middle) / np.log(0.5))
        assert np.log(low) / np.log(0.25) == pytest.approx(gammas[-1], rel=1e-4)
    assert np.std(np.log(gammas)) == pytest.approx(0.3, rel=0.4)


@pytest.mark.parametrize("axis", range(3))
def test_gaps_leave_part_of_each_slice_unused(axis):
    weights = [float(axis == n) for n in range(3)]
    settings = replace(
        CLEAN,
        slice_spacing_mm=(10.0, 10.0),
        working_mm=1.0,
        slice_axis_weights=tuple(weights),
        gap_fraction=(0.3, 0.3),
    )
    extent = np.array([100.0, 100.0, 100.0])
    grid = draw_grid(Draw(0), settings, extent)
    assert grid.factors == tuple(10 if n == axis else 4 for n in range(3))
    assert grid.used == tuple(7 if n == axis else 4 for n in range(3))
    dense = draw_grid(Draw(0), replace(settings, gap_fraction=NEVER), extent)
    assert dense.used == dense.factors


def test_voxels_hold_the_mean_of_what_they_cover():
    """At the rim of a structure whose fine grid is sharp, fractions appear, and add up."""
    scan = plain_scan()
    partial = (scan.wm_true > 0.05) & (scan.wm_true < 0.95)
    assert partial.mean() > 0.01
    # Voxels of 4 mm are means of eight of 2 mm.
    np.testing.assert_allclose(scan.wm_true * 8, np.round(scan.wm_true * 8), atol=1e-5)


def test_only_stripped_scans_have_an_empty_background():
    stripped = scan_of(acquisition=replace(CLEAN, stripped_probability=1))
    assert (stripped.flair[~stripped.brain_mask] == 0).mean() > 0.8
    assert (stripped.flair[stripped.brain_mask] > 0).mean() > 0.9
    assert (plain_scan().flair[~stripped.brain_mask] == 0).mean() < 0.1
