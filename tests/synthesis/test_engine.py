"""The synthesis engine: reproducible scans whose truth lies where their image says."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from synthetic_heads import MIXTURE, STILL

from bagau_bids.errors import InputImageError
from bagau_bids.synthesis.acquisition import Grid, average_slabs
from bagau_bids.synthesis.deformation import (
    head_coordinates,
    nearest_index,
    rotation_matrix,
    sample_linear,
)
from bagau_bids.synthesis.engine import (
    SynthesisSettings,
    brain_mask_settings,
    synthesise,
)
from bagau_bids.synthesis.fields import Draw, blur, wide_blur
from bagau_bids.synthesis.infarcts import InfarctSettings
from bagau_bids.synthesis.intensities import IntensitySettings, draw_class_means
from bagau_bids.synthesis.labels import CLASS_NAMES, CLASS_OF, Head, load_head
from bagau_bids.synthesis.lesions import LesionSettings, LesionShapes


def ball(shape, centre, radii):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1


@pytest.fixture(scope="module")
def head():
    """A head of shells, 2 mm: scalp, skull, CSF, cortex, white matter, ventricles."""
    shape, centre = (80, 100, 90), (40, 50, 45)
    labels = np.zeros(shape, np.int16)
    for label, radii in (
        (511, (38, 48, 43)),
        (515, (36, 46, 41)),
        (24, (34, 44, 39)),
        (3, (32, 42, 37)),
        (2, (28, 38, 33)),
    ):
        labels[ball(shape, centre, radii)] = label
    labels[ball(shape, (35, 50, 47), (4, 14, 5))] = 4
    labels[ball(shape, (45, 50, 47), (4, 14, 5))] = 43
    labels[ball(shape, (40, 40, 20), (6, 6, 6))] = 16
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -80, -100, -90
    return Head(labels, affine, wm_atlas=(labels == 2).astype(np.float32))


def ml(mask, affine):
    return mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000


def test_one_seed_gives_one_scan(head):
    first, second = synthesise(head, 3), synthesise(head, 3)
    for name in ("flair", "affine", "wmh_mask", "brain_mask", "wm_true", "wm_atlas"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    other = synthesise(head, 4)
    assert other.flair.shape != first.flair.shape or not np.array_equal(other.flair, first.flair)


@pytest.mark.parametrize("settings", [SynthesisSettings(), brain_mask_settings()])
def test_scans_are_finite_and_of_one_shape(head, settings):
    for seed in range(4):
        scan = synthesise(head, seed, settings)
        assert np.isfinite(scan.flair).all()
        assert scan.flair.min() >= 0
        assert scan.flair.dtype == np.float32
        for name in ("wmh_mask", "brain_mask", "wm_true", "wm_atlas"):
            assert getattr(scan, name).shape == scan.flair.shape
        assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
        assert scan.wm_true.min() >= 0
        assert scan.wm_true.max() <= 1


def test_truth_keeps_its_place_and_volume_without_deformation(head):
    settings = replace(SynthesisSettings(), pose=STILL)
    settings = replace(
        settings,
        view=replace(settings.view, cut_probability=0, bottom_margin_mm=(5, 8)),
        acquisition=replace(settings.acquisition, gap_fraction=(0, 0)),
    )
    brain = np.isin(head.labels, (2, 3, 4, 43, 16)) | (
        (head.labels == 24) & (np.arange(90) >= 14)[None, None]
    )
    scan = synthesise(head, 0, settings)
    assert ml(scan.brain_mask, scan.affine) == pytest.approx(ml(brain, head.affine), rel=0.03)
    # Without a pose the scan's world is the label map's, about the brain's centre.
    found = nib.affines.apply_affine(scan.affine, np.argwhere(scan.brain_mask)).mean(axis=0)
    true = nib.affines.apply_affine(head.affine, np.argwhere(brain)).mean(axis=0)
    np.testing.assert_allclose(found, true - head.brain_points.mean(axis=0), atol=1.0)


def test_lesions_lie_in_white_matter_and_are_bright(head):
    lesions = LesionSettings(
        none_probability=0, deep_probability=1, contrast=(0.8, 0.9), **MIXTURE
    )
    base = SynthesisSettings(lesions=lesions, infarcts=InfarctSettings(lacune_probability=0))
    plain = replace(
        base,
        acquisition=replace(
            base.acquisition, noise=(0, 0), bias_amplitude=(0, 0), slice_spacing_mm=(1, 2)
        ),
    )
    scan = synthesise(head, 1, plain)
    assert ml(scan.wmh_mask, scan.affine) > 0.2
    assert scan.wm_true[scan.wmh_mask].mean() > 0.8
    normal = (scan.wm_true > 0.99) & ~scan.wmh_mask
    assert scan.flair[scan.wmh_mask].mean() > 1.2 * scan.flair[normal].mean()


def test_a_head_may_have_no_lesion(head):
    settings = SynthesisSettings(lesions=LesionSettings(none_probability=1))
    assert not synthesise(head, 0, settings).wmh_mask.any()


def test_real_shapes_keep_their_volume(head):
    shape = head.labels.shape
    mask = ball(shape, (25, 60, 45), (4, 5, 4)) | ball(shape, (52, 30, 40), (3, 3, 3))
    shapes = LesionShapes.from_masks([mask], head.spacing_mm)
    assert [len(np.unique(c)) for c in shapes.components] == [2]
    only_real = LesionSettings(
        none_probability=0,
        real_probability=1,
        periventricular_probability=0,
        deep_probability=0,
        labelled_probability=0,
        keep_component=(1, 1),
        shift_sd_mm=0,
        **MIXTURE,
    )
    settings = replace(SynthesisSettings(lesions=only_real, label_fraction=0.5), pose=STILL)
    settings = replace(
        settings,
        view=replace(settings.view, cut_probability=0),
        acquisition=replace(
            settings.acquisition, isotropic_probability=1, isotropic_mm=(1.0, 1.0)
        ),
    )
    scan = synthesise(head, 0, settings, shapes)
    assert ml(scan.wmh_mask, scan.affine) == pytest.approx(ml(mask, head.affine), rel=0.05)


def test_stripped_scans_have_a_constant_background(head):
    base = SynthesisSettings()
    settings = replace(base, acquisition=replace(base.acquisition, stripped_probability=1))
    scan = synthesise(head, 2, settings)
    assert (scan.flair == 0).mean() > 0.2
    assert (scan.flair[scan.brain_mask] > 0).mean() > 0.9


def test_tilted_slices_give_an_oblique_affine(head):
    pose = replace(STILL, tilt_probability=1, tilt_sd_deg=(15, 0, 0))
    scan = synthesise(head, 0, replace(SynthesisSettings(), pose=pose))
    directions = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    assert abs(directions[1, 2]) > 0.02


def test_flair_contrast_orders_the_tissues():
    means = [draw_class_means(Draw(seed), IntensitySettings()) for seed in range(30)]
    for mean in means:
        assert mean[CLASS_OF["csf"]] < mean[CLASS_OF["white_matter"]] < mean[CLASS_OF["cortex"]]
    fat = [float(m[CLASS_OF["skin"]] / m[CLASS_OF["white_matter"]]) for m in means]
    assert min(fat) < 0.5
    assert max(fat) > 1.5
    free = [
        draw_class_means(Draw(seed), IntensitySettings(random_contrast_probability=1))
        for seed in range(30)
    ]
    brighter = [m[CLASS_OF["csf"]] > m[CLASS_OF["white_matter"]] for m in free]
    assert 5 < sum(brighter) < 25


def test_smooth_field_has_unit_variance_and_its_scale():
    draw = Draw(0)
    fields = [draw.smooth_field((60, 50, 40), (1.0, 1.0, 2.0), 10.0) for _ in range(5)]
    assert float(torch.stack(fields).std()) == pytest.approx(1.0, abs=0.15)
    field = fields[0]
    neighbour = float((field[1:] * field[:-1]).mean() / field.square().mean())
    far = float((field[30:] * field[:-30]).mean() / field.square().mean())
    assert neighbour > 0.95
    assert abs(far) < 0.4


def test_blur_is_a_gaussian_and_keeps_the_sum():
    volume = torch.zeros(31, 31, 31)
    volume[15, 15, 15] = 1
    blurred = blur(volume, (2.0, 2.0, 2.0))
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(blurred[15, 15, 17] / blurred[15, 15, 15]) == pytest.approx(
        np.exp(-0.5), abs=1e-4
    )
    assert blur(volume, (0.0, 0.0, 0.0)) is volume
    assert float(wide_blur(volume, (3.0, 3.0, 3.0)).sum()) == pytest.approx(1.0, abs=0.1)


def test_slabs_are_averaged_without_their_gaps():
    fine = torch.arange(12.0).reshape(1, 1, 12).expand(2, 4, 12)
    grid = Grid(shape=(2, 2, 3), spacing_mm=(1, 2, 4), factors=(1, 2, 4), used=(1, 2, 3))
    coarse = average_slabs(fine, grid)
    assert tuple(coarse.shape) == grid.shape
    np.testing.assert_allclose(coarse[0, 0], [1.0, 5.0, 9.0])
    # working_to_scan says where each working voxel lies: 0, 1, 2 are averaged to scan voxel 0.
    index = grid.working_to_scan() @ [0, 0.5, 1, 1]
    np.testing.assert_allclose(index, [0, 0, 0, 1])


def test_coordinates_and_sampling_agree_with_a_loop():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(6, 7, 8)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix((5, -7, 11)) * 0.9
    matrix[:3, 3] = 1.0, 0.6, 0.4
    coordinates = head_coordinates((4, 5, 3), matrix, torch.device("cpu"))
    index, inside = nearest_index(coordinates, volume.shape)
    linear = sample_linear(torch.from_numpy(volume), coordinates)
    for voxel in np.ndindex(4, 5, 3):
        place = (matrix @ [*voxel, 1])[:3]
        nearest = np.round(place).astype(int)
        in_grid = bool((nearest >= 0).all() and (nearest < volume.shape).all())
        assert bool(inside[voxel]) == in_grid
        if in_grid:
            assert volume.ravel()[int(index[voxel])] == volume[tuple(nearest)]
        low = np.floor(place).astype(int)
        if (low >= 0).all() and (low + 1 < volume.shape).all():
            part = place - low
            expected = sum(
                volume[tuple(low + np.array(corner))] * np.prod(np.where(corner, part, 1 - part))
                for corner in np.ndindex(2, 2, 2)
            )
            assert float(linear[voxel]) == pytest.approx(expected, abs=1e-4)


def test_septum_and_spinal_csf_get_classes_of_their_own(head):
    classes = head.classes.numpy()
    assert classes[40, 50, 47] == CLASS_OF["septum"]
    assert (classes[:, :, :14] != CLASS_OF["csf"]).all()
    assert (classes == CLASS_OF["spinal_csf"]).any()
    assert CLASS_NAMES[classes[34, 50, 47]] == "ventricle"


def test_load_head_reorients_to_ras(tmp_path, head):
    image = nib.Nifti1Image(head.labels, head.affine)
    stored = image.as_reoriented(np.array([[0, -1], [2, -1], [1, 1]]))
    nib.save(stored, tmp_path / "labels.nii.gz")
    loaded = load_head(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(loaded.labels, head.labels)
    np.testing.assert_allclose(loaded.affine, head.affine)


def test_load_head_refuses_what_is_no_label_map(tmp_path):
    nib.save(nib.Nifti1Image(np.full((5, 5, 5), 7, np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputImageError, match="no white-matter label"):
        load_head(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputImageError, match="no readable NIfTI"):
        load_head(tmp_path / "b.nii.gz")


def test_head_refuses_arrays_that_do_not_belong_together(head):
    with pytest.raises(InputImageError, match="expected 3"):
        Head(np.zeros((4, 4), np.int16), np.eye(4))
    with pytest.raises(InputImageError, match="resample it"):
        Head(head.labels, head.affine, wm_atlas=np.zeros((2, 2, 2), np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_anatomy(head):
    ours, theirs = synthesise(head, 5), synthesise(head, 5, device="cuda")
    assert ours.flair.shape == theirs.flair.shape
    both = (ours.brain_mask & theirs.brain_mask).sum()
    assert 2 * both / (ours.brain_mask.sum() + theirs.brain_mask.sum()) > 0.999
