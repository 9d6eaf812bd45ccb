"""Losses against the formulas, written out on arrays."""

import numpy as np
import pytest
import torch

from bagau_bids.training.losses import cross_entropy_loss, missed_lesion_loss, tversky_loss


def naive_tversky(logits, target, weight, smooth):
    indices = []
    for image, labels in zip(logits[:, 0], target[:, 0], strict=True):
        judged = labels != 2
        p = 1 / (1 + np.exp(-image[judged]))
        truth = labels[judged] == 1
        hit, missed, invented = p[truth].sum(), (1 - p[truth]).sum(), p[~truth].sum()
        indices.append((hit + smooth) / (hit + weight * missed + (1 - weight) * invented + smooth))
    return 1 - np.mean(indices)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 1, 8, 9)), rng.integers(0, 3, size=(3, 1, 8, 9))


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.7])
def test_tversky_follows_the_formula(batch, weight):
    logits, target = batch
    found = tversky_loss(
        torch.tensor(logits), torch.tensor(target), false_negative_weight=weight, smooth=2.0
    )
    assert float(found) == pytest.approx(naive_tversky(logits, target, weight, 2.0), rel=1e-5)


def test_each_image_may_have_its_own_weight(batch):
    logits, target = (torch.tensor(array) for array in batch)
    weights = torch.tensor([0.2, 0.5, 0.9])
    found = tversky_loss(logits, target, false_negative_weight=weights)
    alone = [
        tversky_loss(logits[n : n + 1], target[n : n + 1], false_negative_weight=float(weights[n]))
        for n in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(alone).mean())


def test_default_punishes_missing_more_than_inventing():
    truth = torch.zeros(1, 1, 10, 10)
    truth[..., :4, :] = 1
    missed, invented = truth.clone(), truth.clone()
    missed[..., 3, :] = 0
    invented[..., 4, :] = 1
    losses = [float(tversky_loss(40 * (said - 0.5), truth)) for said in (missed, invented)]
    assert losses[0] > losses[1]
    assert losses[0] == pytest.approx(1 - 31 / (30 + 7 + 1), abs=1e-4)


def test_empty_image_called_empty_costs_nothing():
    target = torch.zeros(1, 1, 6, 6)
    assert float(tversky_loss(torch.full((1, 1, 6, 6), -40.0), target)) == pytest.approx(0)


def test_cross_entropy_follows_the_formula(batch):
    logits, target = batch
    judged = target != 2
    p = 1 / (1 + np.exp(-logits[judged]))
    expected = -np.mean(np.where(target[judged] == 1, np.log(p), np.log(1 - p)))
    found = cross_entropy_loss(torch.tensor(logits), torch.tensor(target))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [tversky_loss, cross_entropy_loss])
def test_pixels_not_judged_do_not_matter(batch, loss):
    logits, target = (torch.tensor(array) for array in batch)
    changed = torch.where(target == 2, -logits + 3, logits)
    assert float(loss(logits, target)) == pytest.approx(float(loss(changed, target)))


def test_nothing_judged_is_no_error():
    target = torch.full((1, 1, 4, 4), 2)
    assert float(cross_entropy_loss(torch.zeros(1, 1, 4, 4), target)) == 0


def test_infarct_is_background_of_wmh_and_target_of_its_own_output():
    target = torch.tensor([0, 1, 2, 3, 4]).view(1, 1, 1, 5)
    logits = torch.tensor([0.3, -0.2, 2.0, 1.0, -3.0]).view(1, 1, 1, 5)
    p = logits.sigmoid().flatten().tolist()
    wmh = -(np.log(1 - p[0]) + np.log(p[1]) + np.log(1 - p[3])) / 3
    assert float(cross_entropy_loss(logits, target)) == pytest.approx(wmh, rel=1e-5)
    infarct = -sum(np.log(p[n] if n >= 3 else 1 - p[n]) for n in range(5)) / 5
    found = cross_entropy_loss(logits, target, output="infarct")
    assert float(found) == pytest.approx(infarct, rel=1e-5)
    hit, missed = p[3] + p[4], 2 - p[3] - p[4]
    invented = p[0] + p[1] + p[2]
    index = (hit + 1) / (hit + 0.6 * missed + 0.4 * invented + 1)
    found = tversky_loss(logits, target, false_negative_weight=0.6, output="infarct")
    assert float(found) == pytest.approx(1 - index, rel=1e-5)


def test_small_lesions_count_as_much_as_large_ones():
    target = torch.zeros(1, 1, 10, 10)
    target[..., :5, :] = 1  # 50 pixels
    target[..., 8, 8] = 1
    share = torch.where(target == 1, 1 / 50, 0.0)
    share[..., 8, 8] = 1.0
    missing_small = 40 * (target - 0.5)
    missing_small[..., 8, 8] = -20
    missing_large = torch.full((1, 1, 10, 10), -20.0)
    missing_large[..., 8, 8] = 20
    for logits in (missing_small, missing_large):
        loss = float(missed_lesion_loss(logits, target, share))
        assert loss == pytest.approx(0.5, abs=1e-3)
    nothing = missed_lesion_loss(missing_small, torch.zeros_like(target), share)
    assert float(nothing) == 0
