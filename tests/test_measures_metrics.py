"""Challenge metrics against a slow, literal oracle and frozen values of the reference tool."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bagau_bids.measures import metrics

AFFINE = np.diag([0.9, 1.1, 3.0, 1.0])


def pair(seed, shape=(7, 6, 5)):
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 1, 2], size=shape, p=[0.8, 0.15, 0.05])
    result = (rng.random(shape) < 0.12) | ((reference == 1) & (rng.random(shape) < 0.5))
    return reference, result


def components(voxels):
    left, found = set(voxels), []
    while left:
        queue, component = [left.pop()], set()
        while queue:
            voxel = queue.pop()
            component.add(voxel)
            near = {n for n in left if max(abs(a - b) for a, b in zip(n, voxel, strict=True)) == 1}
            left -= near
            queue.extend(near)
        found.append(component)
    return found


def surface(voxels, shape):
    """Voxels with an in-plane neighbour (of eight, on the grid) outside the set."""
    edge = []
    for x, y, z in voxels:
        for dx, dy in itertools.product((-1, 0, 1), repeat=2):
            on_grid = 0 <= x + dx < shape[0] and 0 <= y + dy < shape[1]
            if on_grid and (x + dx, y + dy, z) not in voxels:
                edge.append((x, y, z))
                break
    return edge


def oracle(reference, result, affine):
    truth = {tuple(v) for v in np.argwhere(reference == 1).tolist()}
    found = {tuple(v) for v in np.argwhere(result & (reference != 2)).tolist()}
    points = [
        [affine[:3, :3] @ v + affine[:3, 3] for v in surface(s, reference.shape)]
        for s in (truth, found)
    ]
    directed = [
        np.percentile([min(np.linalg.norm(p - q) for q in there) for p in here], 95)
        for here, there in (points, points[::-1])
    ]
    truth_lesions, found_lesions = components(truth), components(found)
    detected = sum(1 for lesion in truth_lesions if lesion & found)
    recall, precision = detected / len(truth_lesions), detected / len(found_lesions)
    return (
        2 * len(truth & found) / (len(truth) + len(found)),
        max(directed),
        100 * abs(len(truth) - len(found)) / len(truth),
        recall,
        precision,
        2 * recall * precision / (recall + precision) if detected else 0.0,
    )


def as_tuple(scores):
    return (
        scores.dice,
        scores.hausdorff95_mm,
        scores.volume_difference_percent,
        scores.lesion_recall,
        scores.lesion_precision,
        scores.lesion_f1,
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_scores_agree_with_the_naive_oracle(seed):
    reference, result = pair(seed)
    affine = AFFINE.copy()
    affine[:3, 3] = (5, -7, 11)
    affine[0, 1] = 0.2  # sheared: distances are those of world coordinates
    scores = metrics.challenge_scores(reference, result, affine)
    np.testing.assert_allclose(as_tuple(scores), oracle(reference, result, affine))


# Computed once with SimpleITK 2.5 by the steps of the challenge's evaluation script.
FROZEN = [
    (0.6811320754716981, 3.7624451582583087, 5.979255643685174, 0.675, 0.7941176470588235),
    (0.7392055267702936, 3.8275318418009254, 9.151113786875376, 0.8387096774193549, 26 / 28),
    (0.6456035767511177, 4.541971033972897, 11.139081183134046, 0.8, 0.7619047619047619),
]


def test_scores_agree_with_the_tool_of_the_challenge():
    rng = np.random.default_rng(0)

    def field():
        return ndimage.gaussian_filter(rng.normal(size=(40, 36, 12)), (2, 2, 0.7))

    for expected in FROZEN:
        base = field()
        reference = (base > np.quantile(base, 0.9)).astype(int)
        other = field()
        reference[other > np.quantile(other, 0.95)] = 2
        result = base + 0.5 * field() > np.quantile(base, 0.92)
        scores = metrics.challenge_scores(reference, result, AFFINE)
        np.testing.assert_allclose(as_tuple(scores)[:5], expected, rtol=1e-6)


def test_label_2_is_ignored_in_both_images():
    reference = np.zeros((6, 6, 3), int)
    reference[1:3, 1:3, 1] = 1
    reference[4, 4, 1] = 2
    result = reference > 0
    assert metrics.challenge_scores(reference, result, AFFINE) == metrics.Scores(1, 0, 0, 1, 1, 1)


def test_precision_counts_detected_reference_lesions():
    reference = np.zeros((9, 9, 3), int)
    reference[1, 1, 1] = reference[4, 1, 1] = reference[7, 1, 1] = 1
    result = np.zeros(reference.shape, bool)
    result[1:8, 1, 1] = True  # one lesion over three
    scores = metrics.challenge_scores(reference, result, AFFINE)
    assert (scores.lesion_recall, scores.lesion_precision) == (1.0, 3.0)
    assert scores.lesion_f1 == pytest.approx(1.5)


def test_empty_cases_are_decided():
    empty = np.zeros((5, 4, 3), int)
    some = empty.copy()
    some[2, 2, 1] = 1
    diagonal = float(np.linalg.norm([4 * 0.9, 3 * 1.1, 2 * 3.0]))

    def scores(reference, result):
        return as_tuple(metrics.challenge_scores(reference, result, AFFINE))

    assert scores(empty, empty) == (1, 0, 0, 1, 1, 1)
    assert scores(empty, some) == pytest.approx((0, diagonal, 100, 1, 0, 0))
    assert scores(some, empty) == pytest.approx((0, diagonal, 100, 0, 1, 0))
    only_other = 2 * some
    assert scores(only_other, some) == (1, 0, 0, 1, 1, 1)


def test_h95_does_not_depend_on_the_storage_of_the_slices():
    reference, result = pair(4)
    straight = metrics.challenge_scores(reference, result, AFFINE)
    flipped_affine = AFFINE @ np.array([[-1, 0, 0, 6], [0, -1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]])
    flipped = metrics.challenge_scores(reference[::-1, ::-1], result[::-1, ::-1], flipped_affine)
    np.testing.assert_allclose(as_tuple(flipped), as_tuple(straight))


def test_other_labels_and_other_grids_are_refused():
    with pytest.raises(ValueError, match="0, 1 .* and 2"):
        metrics.challenge_scores(np.full((2, 2, 2), 3), np.zeros((2, 2, 2)), AFFINE)
    with pytest.raises(ValueError, match="one grid"):
        metrics.challenge_scores(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), AFFINE)
