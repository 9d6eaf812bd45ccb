"""Infarcts, loads of every size, wrong atlases and stored grey levels of synthetic scans."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_heads import SHAPE, affine, ball, coarse, labels

from bagau_bids.synthesis import heads
from bagau_bids.synthesis.acquisition import AcquisitionSettings, Grid
from bagau_bids.synthesis.atlas import AtlasSettings
from bagau_bids.synthesis.engine import SynthesisSettings, synthesise
from bagau_bids.synthesis.fields import Draw
from bagau_bids.synthesis.infarcts import (
    CORE,
    HIDDEN,
    THIN_RIM,
    VISIBLE,
    WIDE_RIM,
    InfarctSettings,
    draw_pathology,
)
from bagau_bids.synthesis.labels import CLASS_OF, Head
from bagau_bids.synthesis.lesions import (
    HeadMaps,
    LesionSettings,
    LesionShapes,
    draw_lesions,
)
from bagau_bids.synthesis.storage import double_pixels, jpeg, store

NEVER = (0.0, 0.0)
COARSE = coarse(SynthesisSettings(), 3.0)
ALWAYS = InfarctSettings(
    infarct_probability=1, second_probability=0, lacune_probability=0, cavity_probability=0
)
STORED = AcquisitionSettings(
    smoothed_probability=0,
    histogram_probability=0,
    clipped_probability=0,
    jpeg_probability=0,
    quantised_probability=0,
)
GRID = Grid((40, 36, 4), (1.0, 1.0, 4.0), (1, 1, 1), (1, 1, 1))


@pytest.fixture(scope="module")
def head():
    found = labels()
    found[ball((22, 32, 10), (4, 3, 2))] = 7
    return Head(found, affine(), wm_atlas=np.isin(found, (2, 16, 7)).astype(np.float32))


@pytest.fixture(scope="module")
def shapes():
    """An infarct that reaches the cortex, and a small one deep in white matter."""
    masks = [ball((10, 30, 26), (6, 6, 6)), ball((14, 18, 26), (1.5, 1.5, 1.5))]
    return LesionShapes.from_masks(masks, np.full(3, 4.0))


def around(head, spacing=4.0):
    index = torch.arange(head.labels.size).reshape(SHAPE)
    distance = head.ventricle_distance.float() * 0.1
    return HeadMaps(head.classes.int(), index, distance, (spacing,) * 3)


def test_one_seed_gives_one_infarct_and_no_wmh_inside(head, shapes):
    settings = replace(COARSE, infarcts=ALWAYS)
    settings = replace(
        settings,
        lesions=replace(
            settings.lesions, none_probability=0, heavy_probability=1, small_probability=0
        ),
    )
    seen = 0
    for seed in range(6):
        scan = synthesise(head, seed, settings, None, "cpu", shapes)
        again = synthesise(head, seed, settings, None, "cpu", shapes)
        np.testing.assert_array_equal(scan.infarct_mask, again.infarct_mask)
        np.testing.assert_array_equal(scan.flair, again.flair)
        assert not (scan.wmh_mask & scan.infarct_mask).any()
        assert not (scan.hidden_mask & ~scan.infarct_mask).any()
        seen += bool(scan.infarct_mask.any() and scan.wmh_mask.any())
    assert seen >= 3


def test_infarcts_are_bright(head, shapes):
    settings = replace(COARSE, infarcts=replace(ALWAYS, gain=(0.8, 0.8), opacity=(0.9, 0.9)))
    settings = replace(
        settings,
        acquisition=replace(settings.acquisition, stripped_probability=0, noise=NEVER),
        lesions=replace(settings.lesions, none_probability=1),
    )
    ratios = []
    for seed in range(6):
        scan = synthesise(head, seed, settings, None, "cpu", shapes)
        white = (scan.wm_true > 0.95) & ~scan.infarct_mask
        if scan.infarct_mask.sum() > 50:
            ratios.append(scan.flair[scan.infarct_mask].mean() / scan.flair[white].mean())
    assert len(ratios) >= 2
    assert min(ratios) > 1.15


def test_only_small_deep_infarcts_are_hidden(head, shapes):
    settings = replace(ALWAYS, shift_sd_mm=0.0)
    found = {VISIBLE: 0, HIDDEN: 0}
    for seed in range(8):
        codes = draw_pathology(head, shapes, Draw(seed), settings)
        (code,) = set(np.unique(codes)) - {0}
        # 1.5 ml are 23 voxels of 64 mm3: the one at the cortex has hundreds.
        voxels = np.count_nonzero(codes)
        assert code == (VISIBLE if voxels > 100 else HIDDEN)
        found[code] += 1
    assert min(found.values()) > 0
    moved = LesionShapes.from_masks([ball((7, 27, 24), (1.5, 1.5, 1.5))], np.full(3, 4.0))
    at_cortex = draw_pathology(head, moved, Draw(0), settings)
    assert set(np.unique(at_cortex)) == {0, VISIBLE}


def test_no_infarct_without_shapes(head):
    settings = replace(COARSE, infarcts=replace(ALWAYS, cavity_probability=1))
    assert draw_pathology(head, None, Draw(0), settings.infarcts) is None
    assert not synthesise(head, 0, settings).infarct_mask.any()


def test_infarcts_reach_the_targets_of_a_shard(head, shapes):
    settings = replace(COARSE, infarcts=replace(ALWAYS, shift_sd_mm=0.0))
    labels_seen = set()
    for seed in range(4):
        scan = synthesise(head, seed, settings, None, "cpu", shapes)
        shard = heads.scan_shard(scan, np.random.default_rng(seed))
        labels_seen |= set(np.unique(shard.target))
        assert (3 in shard.target) == bool((scan.infarct_mask & ~scan.hidden_mask).sum() > 20)
    assert {0, 3} <= labels_seen


def test_scans_of_a_head_carry_its_infarcts(head, shapes):
    prepared = heads.TrainingHead(head, None, shapes)
    settings = replace(COARSE, infarcts=ALWAYS)
    drawn = [heads.draw_scan(prepared, seed, settings).infarct_mask.any() for seed in range(3)]
    assert any(drawn)


@pytest.mark.parametrize(("width_mm", "rim"), [(0.9, THIN_RIM), (4.0, WIDE_RIM)])
def test_wide_rims_of_lacunes_are_not_judged(head, width_mm, rim):
    settings = replace(
        ALWAYS,
        infarct_probability=0,
        lacune_probability=1,
        lacune_count=(40, 41),
        lacune_radius_mm=(5.0, 6.0),
        rim_probability=1,
        rim_width_mm=(width_mm, width_mm),
    )
    codes = draw_pathology(head, None, Draw(1), settings)
    assert set(np.unique(codes)) == {0, CORE, rim}
    classes = head.classes.numpy().ravel()
    assert not np.isin(
        classes[codes > 0], [CLASS_OF[n] for n in ("csf", "ventricle", "skull")]
    ).any()


def test_cavities_have_a_core_inside_their_rim(head, shapes):
    settings = replace(
        ALWAYS,
        infarct_probability=0,
        cavity_probability=1,
        cavity_ml=(9, 90),
        rim_width_mm=(3.0, 3.0),
        shift_sd_mm=0.0,
    )
    codes = draw_pathology(head, shapes, Draw(0), settings).reshape(SHAPE)
    assert (codes[10, 30, 26], codes[16, 30, 26]) == (CORE, WIDE_RIM)
    np.testing.assert_array_equal(codes > 0, ball((10, 30, 26), (6, 6, 6)))
    scan = synthesise(head, 0, replace(COARSE, infarcts=settings), None, "cpu", shapes)
    assert scan.not_judged_mask.any()
    assert not (scan.not_judged_mask & scan.wmh_mask).any()


def test_shares_of_loads(head):
    place = around(head)
    settings = LesionSettings()
    drawn = [draw_lesions(place, None, Draw(seed), settings) for seed in range(80)]
    voxels = np.array([int(mask.sum()) for mask in drawn])
    assert 0.06 < np.mean(voxels == 0) < 0.4  # 0.18, and small ones beside the head
    few = (voxels > 0) & (voxels * 0.064 < 3.0)
    assert 0.15 < few.mean() < 0.6
    assert np.mean(voxels * 0.064 > 15) > 0.05


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("infratentorial", ("brain_stem", "cerebellar_white_matter")),
        ("juxtacortical", ("cortex",)),
    ],
)
def test_lesions_lie_beyond_the_cerebral_white_matter(head, place, names):
    kinds = ("infratentorial", "grey", "juxtacortical")
    settings = LesionSettings(
        none_probability=0,
        small_probability=0,
        heavy_probability=0,
        periventricular_probability=0,
        deep_probability=0,
        labelled_probability=0,
        elsewhere_radius_mm=(4.0, 8.0),
        **{f"{kind}_probability": float(kind == place) for kind in kinds},
    )
    seen = set()
    for seed in range(6):
        found = draw_lesions(around(head), None, Draw(seed), settings)
        seen |= set(head.classes[found].unique().tolist())
    assert {CLASS_OF[name] for name in names} <= seen
    allowed = {"infratentorial": names, "juxtacortical": (*names, "white_matter")}[place]
    assert seen <= {CLASS_OF[name] for name in allowed}


def test_heavy_loads_are_thick_rims_labelled_to_the_wall(head):
    settings = LesionSettings(none_probability=0, small_probability=0, heavy_probability=1)
    place = around(head)
    for seed in range(3):
        found = draw_lesions(place, None, Draw(seed), settings)
        near = (place.classes == CLASS_OF["white_matter"]) & (place.ventricle_distance_mm <= 4.0)
        assert float(found[near].float().mean()) > 0.2
        assert found[place.ventricle_distance_mm > 5.0].any()


def test_rims_spare_the_corpus_callosum():
    found = labels()
    found[22:][found[22:] == 2] = 41
    one = Head(labels(), affine()).ventricle_distance.numpy()
    two = Head(found, affine()).ventricle_distance.numpy()
    changed = one != two
    assert changed.any()
    assert (two[changed] > one[changed]).all()
    assert set(np.argwhere(changed)[:, 0]) <= set(range(19, 25))


# The atlas


RIGHT = AtlasSettings(
    smooth_error_mm=NEVER,
    gross_probability=0,
    local_probability=0,
    blurred_probability=0,
    sharpened_probability=0,
    lower_probability=0,
    absent_probability=0,
)


def atlas_of(head, seed=0, **changes):
    return synthesise(head, seed, replace(COARSE, atlas=replace(RIGHT, **changes)))


def test_an_absent_atlas_is_zero_everywhere(head):
    assert atlas_of(head).wm_atlas.max() > 0.9
    assert atlas_of(head, absent_probability=1).wm_atlas.max() == 0


def test_blurred_and_sharpened_atlases(head):
    exact = atlas_of(head).wm_atlas
    partial = {
        name: np.mean((found > 0.1) & (found < 0.9))
        for name, found in (
            ("exact", exact),
            ("blurred", atlas_of(head, blurred_probability=1, blurred_mm=(5, 5)).wm_atlas),
            ("sharp", atlas_of(head, sharpened_probability=1, sharpened=(8, 8)).wm_atlas),
        )
    }
    assert partial["sharp"] < partial["exact"] < partial["blurred"]


def test_lower_parts_are_missing_and_the_rest_is_right(head):
    exact, without = atlas_of(head), atlas_of(head, lower_probability=1)
    lost = exact.wm_atlas - without.wm_atlas
    assert lost.max() > 0.8
    upper = slice(exact.wm_atlas.shape[2] * 2 // 3, None)
    np.testing.assert_array_equal(without.wm_atlas[..., upper], exact.wm_atlas[..., upper])
    assert lost.min() > -1e-6


def test_local_and_turned_atlases_are_another_but_alike(head):
    exact = atlas_of(head).wm_atlas.ravel()
    local = atlas_of(head, local_probability=1, local_error_mm=(6, 6)).wm_atlas.ravel()
    turned = atlas_of(
        head, gross_probability=1, gross_error_mm=NEVER, gross_rotation_deg=(15, 15)
    ).wm_atlas.ravel()
    for found in (local, turned):
        assert 0.3 < np.corrcoef(found, exact)[0, 1] < 0.985


# Grey levels as they are stored


def smooth_image(seed=0):
    field = Draw(seed).smooth_field(GRID.shape, GRID.spacing_mm, 9.0)
    return ((field - field.min()) / (field.max() - field.min())).clamp(0, 1)


def test_eight_bit_scans_have_few_levels():
    image = smooth_image()
    assert len(image.unique()) > 1000
    stored = store(image, Draw(0), GRID, replace(STORED, quantised_probability=1))
    assert len(stored.unique()) <= 256
    assert float((stored - image / image.max()).abs().max()) <= 0.5 / 255 + 1e-6


def test_clipped_scans_have_a_ceiling():
    image = smooth_image()
    stored = store(
        image, Draw(0), GRID, replace(STORED, clipped_probability=1, clipped=(0.6, 0.6))
    )
    torch.testing.assert_close(stored, image.clamp(max=0.6))


def test_histogram_changes_keep_the_order():
    image = smooth_image()
    stored = store(image, Draw(3), GRID, replace(STORED, histogram_probability=1))
    order = image.flatten().argsort()
    assert float(stored.flatten()[order].diff().min()) >= -1e-6
    assert float((stored - image).abs().max()) > 0.02
    assert (float(stored.min()), float(stored.max())) == pytest.approx((0, 1), abs=1e-5)


def test_smoothing_takes_noise():
    image = Draw(0).noise(GRID.shape).abs()
    stored = store(image, Draw(0), GRID, replace(STORED, smoothed_probability=1))
    assert float(stored.std()) < 0.8 * float(image.std())


def test_jpeg_loses_more_at_lower_quality_and_is_its_own_transform():
    image = smooth_image()[:37, :30]  # no multiple of 8
    finest = jpeg(image, 100.0)
    assert finest.shape == image.shape
    assert float((finest - image).abs().max()) < 4 / 255
    errors = [float((jpeg(image, q) - image).square().mean()) for q in (90.0, 50.0, 10.0)]
    assert errors == sorted(errors)
    flat = torch.full((16, 16, 2), 128 / 255)
    torch.testing.assert_close(jpeg(flat, 10.0), flat)


def test_jpeg_agrees_with_a_transform_of_scipy():
    from scipy.fft import dctn, idctn

    from bagau_bids.synthesis.storage import _JPEG_TABLE

    image = torch.rand((16, 8, 1), generator=torch.Generator().manual_seed(0))
    block = image.numpy()[8:, :, 0] * 255.0 - 128
    table = np.array(_JPEG_TABLE) * 1.0
    expected = idctn(np.round(dctn(block, norm="ortho") / table) * table, norm="ortho")
    found = jpeg(image, 50.0)[8:, :, 0].numpy() * 255 - 128
    np.testing.assert_allclose(found, np.maximum(expected, -128), atol=0.02)


def test_finer_pixels_lie_where_the_coarser_did(head):
    ramp = torch.arange(5.0)[:, None, None].expand(5, 4, 2).contiguous()
    finer = double_pixels(ramp)
    assert tuple(finer.shape) == (10, 8, 2)
    np.testing.assert_allclose(finer[1:-1, 0, 0], np.arange(1, 9) / 2 - 0.25)
    fine = replace(
        COARSE, acquisition=replace(COARSE.acquisition, interpolated_below_mm=9.0), atlas=RIGHT
    )
    plain, doubled = (synthesise(head, 2, s) for s in (replace(COARSE, atlas=RIGHT), fine))
    spacing = [np.linalg.norm(s.affine[:3, :3], axis=0) for s in (plain, doubled)]
    np.testing.assert_allclose(*spacing)
    middle = []
    for scan in (plain, doubled):
        points = np.argwhere(scan.brain_mask) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
        middle.append(points.mean(axis=0))
    np.testing.assert_allclose(middle[0], middle[1], atol=0.7)
