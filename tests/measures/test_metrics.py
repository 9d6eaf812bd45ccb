"""Challenge metrics against a slow, literal oracle and frozen values of the reference tool."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from bagau_bids.measures import metrics
from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.spaces import Image

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


def oracle_of_the_rest(reference, result, affine):
    """Voxel recall and precision, volumes, and four counts of each size of lesions."""
    truth = {tuple(v) for v in np.argwhere(reference == 1).tolist()}
    found = {tuple(v) for v in np.argwhere(result & (reference != 2)).tolist()}
    edges = affine[:3, :3].T
    voxel_ml = abs(float(np.dot(edges[0], np.cross(edges[1], edges[2])))) / 1000
    volumes = [len(truth) * voxel_ml, len(found) * voxel_ml]
    counts = []
    for name in ("small", "medium", "large"):
        sizes = {
            "small": lambda ml: ml < 0.1 - 1e-9,
            "medium": lambda ml: 0.1 - 1e-9 <= ml <= 1 + 1e-9,
            "large": lambda ml: ml > 1 + 1e-9,
        }
        for own, other in ((truth, found), (found, truth)):
            lesions = [c for c in components(own) if sizes[name](len(c) * voxel_ml)]
            counts += [len(lesions), sum(1 for c in lesions if c & other)]
    shared = len(truth & found)
    return (shared / len(truth), shared / len(found), *volumes, volumes[1] - volumes[0], *counts)


def rest_as_tuple(scores):
    counts = [
        number
        for size in (scores.small, scores.medium, scores.large)
        for number in (size.reference, size.detected, size.result, size.matching)
    ]
    return (
        scores.voxel_recall,
        scores.voxel_precision,
        scores.reference_ml,
        scores.result_ml,
        scores.volume_difference_ml,
        *counts,
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


@pytest.mark.parametrize("start", range(0, 100, 20))
def test_scores_of_100_random_pairs_agree_with_the_naive_oracle(start):
    affine = AFFINE.copy()
    affine[:3, 3] = (5, -7, 11)
    affine[0, 1] = 0.2  # sheared: distances are those of world coordinates
    for seed in range(start, start + 20):
        reference, result = pair(seed)
        # From 3 to 90 mm3 a voxel: each seed has another mixture of sizes.
        scaled = affine @ np.diag([1 + seed % 4, 1 + seed % 3, 1 + seed % 5, 1])
        scores = metrics.case_scores(Image(reference, scaled), result)
        exact = {"rtol": 0, "atol": 1e-9}
        np.testing.assert_allclose(as_tuple(scores), oracle(reference, result, scaled), **exact)
        rest = oracle_of_the_rest(reference, result, scaled)
        np.testing.assert_allclose(rest_as_tuple(scores), rest, **exact)


SHAPES = st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(1, 4))


@st.composite
def masks(draw):
    """Two masks on one small grid, and a voxel size."""
    shape = draw(SHAPES)
    both = [draw(hnp.arrays(bool, shape)) for _ in range(2)]
    sizes = draw(st.tuples(*[st.floats(0.4, 8)] * 3))
    return both[0], both[1], np.diag([*sizes, 1.0])


@settings(max_examples=100, deadline=None)
@given(masks())
def test_scores_of_any_two_masks_agree_with_the_naive_oracle(drawn):
    truth, found, affine = drawn
    assume(truth.any() and found.any())
    assume(all(surface({tuple(v) for v in np.argwhere(m)}, m.shape) for m in (truth, found)))
    scores = metrics.case_scores(Image(truth.astype(int), affine), found)
    expected = oracle(truth.astype(int), found, affine)
    np.testing.assert_allclose(as_tuple(scores), expected, rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(masks())
def test_scores_are_finite_and_turn_round_with_the_masks(drawn):
    truth, found, affine = drawn
    there = metrics.case_scores(Image(truth.astype(int), affine), found)
    back = metrics.case_scores(Image(found.astype(int), affine), truth)
    assert np.isfinite((*as_tuple(there), *rest_as_tuple(there))).all()
    assert 0 <= there.dice <= 1
    assert there.dice == back.dice
    assert there.hausdorff95_mm == pytest.approx(back.hausdorff95_mm)
    assert there.volume_difference_ml == -back.volume_difference_ml
    assert (there.voxel_recall, there.voxel_precision) == (back.voxel_precision, back.voxel_recall)
    assert (there.dice == 1) == np.array_equal(truth, found)


def test_a_mask_that_fills_its_slices_has_a_distance_too():
    full = np.zeros((3, 4, 5), bool)
    full[:, :, 1:3] = True
    assert metrics.hausdorff95_mm(Image(full, AFFINE), full) == 0
    one = np.zeros_like(full)
    one[:, :, 1] = True
    assert metrics.hausdorff95_mm(Image(full, AFFINE), one) == pytest.approx(3.0)


def test_random_pairs_have_lesions_of_all_sizes():
    """Otherwise the comparison with the oracle would show little."""
    total = np.zeros(12, int)
    for seed in range(100):
        affine = AFFINE @ np.diag([1 + seed % 4, 1 + seed % 3, 1 + seed % 5, 1])
        reference, result = pair(seed)
        total += rest_as_tuple(metrics.case_scores(Image(reference, affine), result))[5:]
    assert total.min() > 20


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
        scores = metrics.challenge_scores(Image(reference, AFFINE), result)
        np.testing.assert_allclose(as_tuple(scores)[:5], expected, rtol=1e-6)


def test_label_2_is_ignored_in_both_images():
    reference = np.zeros((6, 6, 3), int)
    reference[1:3, 1:3, 1] = 1
    reference[4, 4, 1] = 2
    result = reference > 0
    assert metrics.challenge_scores(Image(reference, AFFINE), result) == metrics.Scores(
        1, 0, 0, 1, 1, 1
    )


def test_precision_counts_detected_reference_lesions():
    reference = np.zeros((9, 9, 3), int)
    reference[1, 1, 1] = reference[4, 1, 1] = reference[7, 1, 1] = 1
    result = np.zeros(reference.shape, bool)
    result[1:8, 1, 1] = True  # one lesion over three
    scores = metrics.challenge_scores(Image(reference, AFFINE), result)
    assert (scores.lesion_recall, scores.lesion_precision) == (1.0, 3.0)
    assert scores.lesion_f1 == pytest.approx(1.5)


def test_empty_cases_are_decided():
    empty = np.zeros((5, 4, 3), int)
    some = empty.copy()
    some[2, 2, 1] = 1
    diagonal = float(np.linalg.norm([4 * 0.9, 3 * 1.1, 2 * 3.0]))

    def scores(reference, result):
        return as_tuple(metrics.challenge_scores(Image(reference, AFFINE), result))

    assert scores(empty, empty) == (1, 0, 0, 1, 1, 1)
    assert scores(empty, some) == pytest.approx((0, diagonal, 100, 1, 0, 0))
    assert scores(some, empty) == pytest.approx((0, diagonal, 100, 0, 1, 0))
    for reference, result, voxels in (
        (empty, empty, (1, 1)),
        (empty, some, (1, 0)),
        (some, empty, (0, 1)),
    ):
        more = metrics.case_scores(Image(reference, AFFINE), result)
        assert (more.voxel_recall, more.voxel_precision) == voxels
        assert np.isfinite(rest_as_tuple(more)).all()
    only_other = 2 * some
    assert scores(only_other, some) == (1, 0, 0, 1, 1, 1)


def test_h95_does_not_depend_on_the_storage_of_the_slices():
    reference, result = pair(4)
    straight = metrics.challenge_scores(Image(reference, AFFINE), result)
    flipped_affine = AFFINE @ np.array([[-1, 0, 0, 6], [0, -1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]])
    flipped = metrics.challenge_scores(
        Image(reference[::-1, ::-1], flipped_affine), result[::-1, ::-1]
    )
    np.testing.assert_allclose(as_tuple(flipped), as_tuple(straight))


def test_other_labels_and_other_grids_are_refused():
    with pytest.raises(ValueError, match="0, 1 .* and 2"):
        metrics.challenge_scores(Image(np.full((2, 2, 2), 3), AFFINE), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="one grid"):
        metrics.challenge_scores(Image(np.zeros((2, 2, 2)), AFFINE), np.zeros((2, 2, 3)))


def test_sizes_are_told_apart_at_their_limits():
    cube = voxel_volume_mm3(np.diag([0.1, 0.1, 1000.0, 1.0]))  # 10 mm3, with a rounding error
    reference = np.zeros((9, 60, 3), int)
    for row, voxels in ((0, 9), (2, 10), (4, 11)):
        reference[row, :voxels, 1] = 1
    counts = metrics.lesion_counts_by_size(reference == 1, reference == 1, cube)
    assert [size.reference for size in counts] == [1, 2, 0]
    counts = metrics.lesion_counts_by_size(reference == 1, reference == 1, 100.0)
    assert [size.reference for size in counts] == [0, 2, 1]


def test_each_lesion_is_judged_in_the_class_of_its_own_size():
    affine = np.diag([10.0, 10.0, 0.5, 1.0])  # 0.05 ml a voxel
    reference = np.zeros((15, 30, 5), int)
    reference[1, 1:25, 2] = 1  # 1.2 ml, met by a small lesion
    reference[5, 1, 2] = 1  # 0.05 ml, met by a large one
    reference[13, 1, 2] = 1  # 0.05 ml, missed
    result = np.zeros(reference.shape, bool)
    result[1, 1, 2] = True  # 0.05 ml
    result[5, 1:25, 2] = True  # 1.2 ml
    result[9, 1:5, 2] = True  # 0.2 ml, false
    scores = metrics.case_scores(Image(reference, affine), result)
    assert scores.small == metrics.LesionCounts(reference=2, detected=1, result=1, matching=1)
    assert scores.medium == metrics.LesionCounts(reference=0, detected=0, result=1, matching=0)
    assert scores.large == metrics.LesionCounts(reference=1, detected=1, result=1, matching=1)
    assert (scores.small.recall, scores.small.precision) == (0.5, 1.0)
    assert scores.small.f1 == pytest.approx(2 / 3)
    assert (scores.medium.recall, scores.medium.precision, scores.medium.f1) == (1.0, 0.0, 0.0)
    assert scores.large.f1 == 1.0
    assert (scores.reference_lesions, scores.result_lesions) == (3, 3)
    assert metrics.LesionCounts(0, 0, 0, 0).f1 == 1.0
