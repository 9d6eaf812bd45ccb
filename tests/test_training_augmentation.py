"""Augmentation: what must stay together stays together, and nothing else is promised."""

import math

import pytest
import torch

from bagau_bids.training.augmentation import (
    AugmentationSettings,
    augment,
    random_matrices,
    vary_intensity,
)

STILL = AugmentationSettings(False, 0, 0, (1, 1), 0, 0, 0, 0)


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
    settings = AugmentationSettings(True, 0, 0, (1, 1), 0, 0, 0, 0)
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
    geometry = AugmentationSettings(gain=0, offset=0, log_gamma=0, noise=0)
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
    settings = AugmentationSettings(gain=0, offset=0, noise=0, log_gamma=log_gamma)
    near_zero = torch.full((4, 1, 2, 2), 0.01)
    varied = vary_intensity(near_zero, generator(), settings)
    torch.testing.assert_close(varied, near_zero, atol=1e-4, rtol=0)
