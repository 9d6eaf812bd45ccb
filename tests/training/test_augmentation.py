"""Augmentation: what must stay together stays together, and nothing else is promised."""

import math
from dataclasses import replace

import pytest
import torch
from still_slices import STILL

from bagau_bids.training.augmentation import (
    AugmentationSettings,
    TransplantSettings,
    augment,
    random_matrices,
    spoil_atlas,
    transplant,
    vary_intensity,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_slices(count=2, size=60):
    x, y = torch.meshgrid(torch.arange(size) * 1.0, torch.arange(size) * 1.0, indexing="ij")
    flair = torch.stack([torch.sin(x / (5 + n)) + y / size + 0.5 for n in range(count)])[:, None]
    target = (flair > 1).to(torch.uint8)
    return flair, flair.clamp(0, 1), target


def test_nothing_asked_nothing_changed():
    batch = smooth_slices()
    result = augment(*batch, (60, 60), generator(), STILL)
    torch.testing.assert_close(result[0], batch[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(result[1], batch[1], atol=1e-4, rtol=0)
    assert torch.equal(result[2], batch[2])


def test_crop_takes_the_middle():
    batch = smooth_slices()
    result = augment(*batch, (32, 48), generator(), STILL)
    torch.testing.assert_close(result[0], batch[0][..., 14:46, 6:54], atol=1e-4, rtol=0)
    assert torch.equal(result[2], batch[2][..., 14:46, 6:54])


def test_mirror_swaps_left_and_right_in_about_half():
    flair, atlas, target = smooth_slices(40)
    settings = replace(STILL, mirror=True)
    result, _, labels = augment(flair, atlas, target, (60, 60), generator(), settings)
    mirrored = [
        torch.allclose(new, old.flip(-2), atol=1e-3)
        for new, old in zip(result, flair, strict=True)
    ]
    same = [torch.allclose(new, old, atol=1e-3) for new, old in zip(result, flair, strict=True)]
    assert sum(mirrored) + sum(same) == 40
    assert 8 < sum(mirrored) < 32
    for new, old, flipped in zip(labels, target, mirrored, strict=True):
        assert torch.equal(new, old.flip(-2) if flipped else old)


def test_flair_atlas_and_target_are_deformed_alike():
    flair, _, _ = smooth_slices(6)
    target = (flair > 1).to(torch.uint8)
    geometry = replace(STILL, mirror=True, rotation_deg=15, shear_rad=0.1, zoom=(0.9, 1.1))
    new_flair, new_atlas, new_target = augment(
        flair, flair.clone(), target, (60, 60), generator(3), geometry
    )
    torch.testing.assert_close(new_flair, new_atlas, atol=1e-4, rtol=0)
    assert not torch.allclose(new_flair, flair, atol=0.05)
    disagree = (new_target == 1) != (new_flair > 1)
    assert disagree[..., 10:-10, 10:-10].float().mean() < 0.02


def test_pixels_not_judged_keep_their_label():
    flair, atlas, target = smooth_slices()
    target[..., 20:40, 20:40] = 2
    result = augment(flair, atlas, target, (60, 60), generator(), STILL)[2]
    assert torch.equal(result, target)


def test_matrices_stay_within_their_limits():
    settings = AugmentationSettings()
    matrices = random_matrices(500, generator(), settings)
    volume = torch.linalg.det(matrices).abs().rsqrt()  # zoom, as shearing keeps areas
    assert volume.min() >= 0.9 - 1e-4
    assert volume.max() <= 1.1 + 1e-4
    columns = matrices[:, :, 0] * torch.linalg.det(matrices).sign()[:, None]
    angle = torch.atan2(columns[:, 1], columns[:, 0])
    assert angle.abs().max() <= math.radians(15) + 1e-4
    assert angle.abs().max() > math.radians(12)


def test_same_seed_same_batch():
    batch = smooth_slices()
    first, again, other = (
        augment(*batch, (60, 60), generator(seed), AugmentationSettings()) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_intensities_vary_but_zero_stays():
    flair = torch.randn((8, 1, 20, 20), generator=generator(5))
    flair[..., :10] = 0
    varied = vary_intensity(flair, generator(), AugmentationSettings())
    assert (varied[..., :10] == 0).all()
    assert not torch.allclose(varied[..., 10:], flair[..., 10:], atol=1e-3)
    assert varied.min() >= -6
    assert varied.max() <= 10


@pytest.mark.parametrize("log_gamma", [-0.5, 0.5])
def test_gamma_keeps_the_middle_of_the_brain(log_gamma):
    settings = replace(STILL, log_gamma=log_gamma)
    near_zero = torch.full((4, 1, 2, 2), 0.01)
    varied = vary_intensity(near_zero, generator(), settings)
    torch.testing.assert_close(varied, near_zero, atol=1e-4, rtol=0)


def test_sharpness_runs_from_a_mean_of_neighbours_to_more_contrast_between_them():
    flair = torch.zeros(1, 1, 9, 9) + 1e-6
    flair[0, 0, 4, 4] = 0.9
    blurred = vary_intensity(flair, generator(), replace(STILL, sharpness=(1, 1)))
    torch.testing.assert_close(blurred[0, 0, 3:6, 3:6], torch.full((3, 3), 0.1), atol=1e-4, rtol=0)
    sharper = vary_intensity(flair, generator(), replace(STILL, sharpness=(-1, -1)))
    torch.testing.assert_close(sharper[0, 0, 4, 4].item(), 1.7, atol=1e-4, rtol=0)


def test_shading_is_smooth_and_of_the_size_asked_for():
    flair = torch.full((200, 1, 40, 40), 0.5)
    field = vary_intensity(flair, generator(), replace(STILL, shading=0.3)) - flair
    assert 0.05 < field.std() < 0.3
    assert field.diff(dim=-1).abs().max() < 0.2


def test_a_spoilt_atlas_is_shifted_or_blank_and_the_others_are_left_alone():
    atlas = torch.rand((400, 1, 40, 30), generator=generator(4)) + 0.1
    settings = replace(STILL, atlas_shift_probability=0.2, atlas_shift_mm=10)
    settings = replace(settings, atlas_blank_probability=0.1)
    spoilt = spoil_atlas(atlas, generator(), settings)
    blank = (spoilt == 0).all(dim=(1, 2, 3))
    same = (spoilt == atlas).all(dim=(1, 2, 3))
    assert 20 < blank.sum() < 60
    assert 260 < same.sum() < 310
    for old, new in zip(atlas[~blank & ~same], spoilt[~blank & ~same], strict=True):
        shifts = [
            (r, c) for r in range(-10, 11) for c in range(-10, 11) if is_shift(old, new, r, c)
        ]
        assert len(shifts) == 1


def is_shift(old, new, rows, columns):
    """Whether the pixels (i, j) of `old` went to (i + rows, j + columns) of `new`."""
    height, width = old.shape[-2:]
    expected = torch.zeros_like(old)
    for i in (max(0, rows), min(height, height + rows) - 1):
        for j in range(max(0, columns), min(width, width + columns)):
            expected[0, i, j] = old[0, i - rows, j - columns]
            if new[0, i, j] != expected[0, i, j]:
                return False
    return True


def test_further_channels_follow_the_geometry_and_stay_when_the_atlas_is_spoilt():
    flair, _, target = smooth_slices(6)
    settings = replace(AugmentationSettings(), atlas_blank_probability=1.0)
    both = torch.cat((flair, flair), dim=1)
    _, guides, _ = augment(flair, both, target, (60, 60), generator(), settings)
    still = replace(STILL, rotation_deg=15, shear_rad=0.1, zoom=(0.9, 1.1), mirror=True)
    deformed, _, _ = augment(flair, flair, target, (60, 60), generator(), still)
    assert (guides[:, :1] == 0).all()
    torch.testing.assert_close(guides[:, 1:], deformed)


def test_few_grey_levels_are_whole_steps():
    flair = torch.randn((6, 1, 30, 30), generator=generator(1))
    settings = replace(STILL, coarse_probability=1.0, coarse_step=(0.25, 0.25))
    varied = vary_intensity(flair, generator(), settings)
    torch.testing.assert_close(varied, (flair / 0.25).round() * 0.25, atol=1e-4, rtol=0)
    some = vary_intensity(flair, generator(), replace(settings, coarse_probability=0.5))
    unchanged = [torch.allclose(a, b, atol=1e-4) for a, b in zip(some, flair, strict=True)]
    assert 0 < sum(unchanged) < 6


def test_strong_blur_lowers_the_noise_of_some_slices():
    flair = torch.randn((20, 1, 40, 40), generator=generator(2))
    settings = replace(STILL, blur_probability=0.5)
    varied = vary_intensity(flair, generator(), settings)
    ratio = varied.std(dim=(1, 2, 3)) / flair.std(dim=(1, 2, 3))
    assert 4 <= int((ratio < 0.98).sum()) <= 16
    assert (ratio <= 1.001).all()


def test_atlas_contrast_turns_about_one_half_and_keeps_zero():
    atlas = torch.linspace(0, 1, 101).expand(8, 1, 5, 101).contiguous()
    settings = replace(STILL, atlas_contrast_probability=1.0, atlas_contrast=(0.5, 4.0))
    varied = spoil_atlas(atlas, generator(), settings)
    assert (varied[..., 0] == 0).all()
    torch.testing.assert_close(varied[..., 50], torch.full((8, 1, 5), 0.5))
    slope = (varied[:, 0, 0, 51] - varied[:, 0, 0, 49]) / 0.02
    assert slope.min() >= 0.49
    assert slope.max() <= 4.01
    assert slope.max() > 1.5 * slope.min()


def test_shift_moves_each_slice_by_its_own_and_leaves_zero_behind():
    atlas = torch.ones((30, 1, 60, 60))
    atlas[..., 30, 30] = 0.5
    settings = replace(STILL, atlas_shift_probability=0.5, atlas_shift_mm=9.0)
    spoilt = spoil_atlas(atlas, generator(4), settings)
    places = [tuple(torch.nonzero(one[0] == 0.5)[0].tolist()) for one in spoilt]
    assert 5 < sum(place == (30, 30) for place in places) < 25
    assert max(abs(n - 30) for place in places for n in place) <= 9
    for (row, column), one in zip(places, spoilt, strict=True):
        expected = torch.zeros(60, 60)
        rows, columns = row - 30, column - 30
        expected[max(rows, 0) : 60 + min(rows, 0), max(columns, 0) : 60 + min(columns, 0)] = 1
        expected[row, column] = 0.5
        assert torch.equal(one[0], expected)


def host_and_donor():
    flair = 0.3 * torch.randn((4, 1, 40, 40), generator=generator(7))
    flair[..., :4] = 0  # outside of the brain
    target = torch.zeros((4, 1, 40, 40), dtype=torch.uint8)
    target[:, :, 20:24, 20:24] = 1
    donor = torch.zeros_like(target)
    donor[:, :, 8:12, 2:12] = 1
    donor[:, :, 18:22, 20:30] = 1  # on and beside what is there already
    donor[:, :, 30:34, 8:12] = 3
    return flair, target, donor


ALWAYS = TransplantSettings(probability=1.0, anywhere=1.0, unevenness=0.0, contrast=(2.0, 2.0))


def test_transplanted_lesions_are_bright_labelled_and_away_from_others():
    flair, target, donor = host_and_donor()
    painted, labels = transplant(flair, target, donor, flair * 0, generator(), ALWAYS)
    added = painted - flair
    assert (labels[:, :, 8:12, 4:12] == 1).all()
    assert (labels[:, :, 30:34, 8:12] == 3).all()
    assert (labels[..., :4] == 0).all()
    assert (painted[..., :4] == 0).all()
    assert torch.equal(labels[:, :, 16:28, 16:28], target[:, :, 16:28, 16:28])
    middle, edge = added[:, :, 9:11, 7:9], added[:, :, 8, 7:9]
    assert (middle > 1.8).all()
    assert (middle <= 2.0 + 1e-5).all()
    assert (edge < middle.amin()).all()  # soft
    assert (added[:, :, 20:24, 20:24] == 0).all()


def test_transplants_need_white_matter_unless_anywhere():
    flair, target, donor = host_and_donor()
    strict = replace(ALWAYS, anywhere=0.0)
    atlas = torch.zeros_like(flair)
    atlas[:, :, :20] = 0.9
    _, labels = transplant(flair, target, donor, atlas, generator(), strict)
    assert (labels[:, :, 8:12, 4:12] == 1).all()
    assert (labels[:, :, 30:34, 8:12] == 0).all()


def test_slices_without_a_transplant_stay_as_they_are():
    flair, target, donor = host_and_donor()
    never = replace(ALWAYS, probability=0.0)
    painted, labels = transplant(flair, target, donor, flair * 0 + 1, generator(), never)
    assert torch.equal(painted, flair)
    assert torch.equal(labels, target)


def test_labels_of_infarcts_are_deformed_too():
    flair, atlas, target = smooth_slices()
    target[..., 10:20, 10:20] = 3
    target[..., 40:50, 40:50] = 4
    result = augment(flair, atlas, target, (60, 60), generator(), STILL)[2]
    assert torch.equal(result, target)
