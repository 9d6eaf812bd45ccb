"""Ventricles and regions on heads whose anatomy is known; in every voxel order."""

import json
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import synthetic_heads
from nibabel.affines import apply_affine

from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.measures import regions
from bagau_bids.spaces import Image, reorient

KINDS = ["RAS", "LAS", "LPS", "ASL", "oblique"]
WHITE, CSF = 70.0, 12.0


def ellipsoid(world, radii, centre=(0, 0, 0)):
    return (((world - centre) / np.asarray(radii, float)) ** 2).sum(-1) < 1


def paint(shape, affine, widen=1.0, noise=3.0):
    """FLAIR, brain, groups of a template whose ventricles are narrower, true ventricles."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    brain = ellipsoid(world, (62, 78, 58))
    cortex = brain & ~ellipsoid(world, (55, 71, 51))
    stem = ellipsoid(world, (16, 18, 24), (0, -30, -40))
    third = ellipsoid(world, (3, 12, 8), (0, -8, -14))
    true, prior = np.zeros(shape, bool), np.zeros(shape, bool)
    for side in (-1, 1):
        centre = (side * 16, 2, 8)
        true |= ellipsoid(world, np.array((8, 34, 9)) * widen, centre)
        prior |= ellipsoid(world, (6, 30, 7), centre)
    groups = np.where(brain, 5, 0)
    groups[cortex] = regions.CORTEX
    groups[stem & brain] = regions.INFRATENTORIAL
    groups[third] = regions.OTHER_CSF
    groups[prior] = regions.LATERAL_VENTRICLE
    flair = np.where(brain, WHITE + 15.0 * cortex, 0)
    flair[true | third] = CSF
    flair += np.random.default_rng(1).normal(0, noise, shape) * brain
    return flair, brain, groups, true & brain


def grid(kind):
    shape, affine = (88, 104, 36), np.diag([1.6, 1.6, 3.6, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    if kind == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = nib.eulerangles.euler2mat(z=0.1, y=-0.08, x=0.2)
        return shape, turn @ affine
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(kind)
        )
    )
    return image.shape, image.affine


def conformed(kind, **options):
    """Paint on a grid as stored, then bring everything to RAS order, as the workflow does."""
    shape, stored = grid(kind)
    images = [reorient(Image(data, stored)) for data in paint(shape, stored, **options)]
    return (*(image.data for image in images), images[0].affine)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widen", [1.0, 1.4])
def test_ventricles_follow_the_flair_where_the_template_is_narrower(kind, widen):
    flair, brain, groups, true, affine = conformed(kind, widen=widen)
    found = regions.find_ventricles(Image(flair, affine), brain, groups == 5, groups)
    assert found.source == "flair"
    assert found.notes == ()
    assert dice(found.mask, true) > 0.97
    assert dice((groups == regions.LATERAL_VENTRICLE), true) < 0.8
    assert CSF < found.csf_threshold < WHITE


def test_sulci_and_the_third_ventricle_are_left_out():
    flair, brain, groups, true, affine = conformed("RAS")
    flair[(groups == regions.CORTEX) & (np.arange(36) % 3 == 0)] = CSF
    found = regions.find_ventricles(Image(flair, affine), brain, groups == 5, groups)
    assert not found.mask[groups == regions.OTHER_CSF].any()
    assert dice(found.mask, true) > 0.97


def test_lesions_at_the_wall_and_plexus_inside_change_nothing_and_little():
    flair, brain, groups, true, affine = conformed("RAS")
    world = apply_affine(affine, np.moveaxis(np.indices(flair.shape), 0, -1))
    flair[ellipsoid(world, (6, 12, 6), (30, 2, 8)) & ~true] = 120
    flair[ellipsoid(world, (1.5, 10, 1.8), (16, -6, 8))] = 90  # choroid plexus
    found = regions.find_ventricles(Image(flair, affine), brain, groups == 5, groups)
    assert dice(found.mask, true) > 0.97
    assert found.mask[ellipsoid(world, (1.5, 8, 1.8), (16, -6, 8))].all()


def test_without_contrast_the_template_is_taken_and_that_is_said():
    flair, brain, groups, _, affine = conformed("RAS")
    bright = np.where(brain, WHITE, 0)
    found = regions.find_ventricles(Image(bright, affine), brain, groups == 5, groups)
    assert found.source == "template"
    assert "CSF is not darker" in found.notes[0]
    np.testing.assert_array_equal(found.mask, groups == regions.LATERAL_VENTRICLE)
    none = np.where(groups == regions.LATERAL_VENTRICLE, 5, groups)
    found = regions.find_ventricles(Image(flair, affine), brain, none == 5, none)
    assert "outside the scan" in found.notes[0]
    assert not found.mask.any()


def test_ventricles_of_a_synthetic_head_with_its_own_labels():
    labels, affine = synthetic_heads.labels(), synthetic_heads.affine()
    brain = (labels > 0) & (labels < 500)
    true = np.isin(labels, (4, 43))
    brightness = {2: 0.75, 3: 1.0, 4: 0.2, 43: 0.2, 16: 0.85, 24: 0.2}
    flair = np.zeros(labels.shape)
    for number, value in brightness.items():
        flair[labels == number] = value
    flair += np.random.default_rng(0).normal(0, 0.04, flair.shape)
    groups = np.select(
        [true & (np.indices(labels.shape)[1] < 30), labels == 24, labels == 16, labels == 3],
        [regions.LATERAL_VENTRICLE, regions.OTHER_CSF, regions.INFRATENTORIAL, regions.CORTEX],
        5,
    )
    found = regions.find_ventricles(Image(flair, affine), brain, labels == 2, groups)
    assert dice(found.mask, true) > 0.99


def region_at(numbers, affine, point):
    voxel = np.round(apply_affine(np.linalg.inv(affine), point)).astype(int)
    return int(numbers[tuple(voxel)])


# World points: 5 and 12 mm beside the left ventricle's wall, and others.
POINTS = {
    "10mm": {
        (-30, 2, 8): "left-periventricular",
        (30, 2, 8): "right-periventricular",
        (-37.5, 2, 8): "left-deep",
        (37.5, 2, 8): "right-deep",
        (50, 20, 8): "right-juxtacortical",
        (3, -30, -42): "right-infratentorial",
        (-3, -30, -42): "left-infratentorial",
    },
    "3mm": {
        (-25, 2, 8): "left-juxtaventricular",
        (-30, 2, 8): "left-periventricular",
        (35, 2, 8): "right-periventricular",
        (41, 2, 8): "right-deep",
        (50, 20, 8): "right-juxtacortical",
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list(POINTS))
def test_regions_at_known_places_in_every_voxel_order(kind, rule):
    _, brain, groups, true, affine = conformed(kind)
    world = apply_affine(affine, np.moveaxis(np.indices(brain.shape), 0, -1))
    distance = regions.distance_mm(true, affine)
    numbers = regions.partition(Image(groups, affine), world[..., 0] > 0, brain, distance, rule)
    lookup = regions.lookup_table(rule).set_index("index").name
    found = {point: lookup[region_at(numbers, affine, point)] for point in POINTS[rule]}
    assert found == POINTS[rule]
    np.testing.assert_array_equal(numbers > 0, brain)
    assert set(np.unique(numbers)) == {0, *lookup.index}


def test_partition_is_what_the_distances_say():
    rng = np.random.default_rng(3)
    shape, affine = (14, 13, 12), np.diag([2.0, 2.0, 3.0, 1.0])
    groups = np.full(shape, 5)
    groups[rng.random(shape) < 0.01] = regions.LATERAL_VENTRICLE
    groups[rng.random(shape) < 0.02] = regions.CORTEX
    brain, right = np.ones(shape, bool), rng.random(shape) < 0.5
    places = [np.argwhere(groups == n) * (2, 2, 3) for n in (1, regions.CORTEX)]
    mm = np.indices(shape).reshape(3, -1).T * (2, 2, 3)
    to_ventricle, to_cortex = (
        np.sqrt(((mm[:, None] - place) ** 2).sum(-1)).min(axis=1).reshape(shape)
        for place in places
    )
    distance = regions.distance_mm(groups == regions.LATERAL_VENTRICLE, affine)
    np.testing.assert_allclose(distance, to_ventricle, atol=1e-5)
    numbers = regions.partition(Image(groups, affine), right, brain, distance, "3mm")
    expected = np.select(
        [to_ventricle <= 3, to_ventricle <= 13, to_cortex <= 4], [0, 1, 3], default=2
    )
    np.testing.assert_array_equal(numbers, 1 + 2 * expected + right)


def test_without_ventricles_or_brain_nothing_fails():
    shape, affine = (6, 5, 4), np.eye(4)
    distance = regions.distance_mm(np.zeros(shape, bool), affine)
    assert np.isinf(distance).all()
    groups, right = np.full(shape, 5), np.zeros(shape, bool)
    numbers = regions.partition(
        Image(groups, affine), right, np.ones(shape, bool), distance, "10mm"
    )
    assert set(np.unique(numbers)) == {regions.region_number("deep", "left")}
    empty = regions.partition(
        Image(groups, affine), right, np.zeros(shape, bool), distance, "10mm"
    )
    assert not empty.any()


def test_map_of_the_brain_tells_ventricles_apart_and_nothing_it_cannot():
    numbers = np.array([[[0, 3, 4, 9, 10, 5]]], np.uint8)  # 9 and 10 are infratentorial
    ventricles = np.array([[[0, 1, 0, 0, 0, 0]]], bool)
    near, nowhere = np.zeros(numbers.shape), np.full(numbers.shape, np.inf)
    assert regions.brain_map(numbers, ventricles, near).ravel().tolist() == [0, 11, 4, 9, 10, 5]
    found = regions.brain_map(numbers, np.zeros_like(ventricles), nowhere)
    assert found.ravel().tolist() == [0, 0, 0, 9, 10, 0]
    table = regions.brain_lookup_table("10mm").set_index("index")["name"]
    assert table[11] == "lateral-ventricles"
    assert table[4] == "right-periventricular"
    assert table[9] == "left-infratentorial"
    assert table.is_unique


@pytest.mark.parametrize("rule", PERIVENTRICULAR_RULES)
def test_lookup_table_names_each_number_once(rule):
    table = regions.lookup_table(rule)
    assert list(table.columns) == ["index", "name", "abbreviation", "color", "mapping"]
    assert len(table) == 2 * len(regions.regions_of_rule(rule))
    for column in ("index", "name", "abbreviation", "color"):
        assert table[column].is_unique
    assert set(table.mapping) == {7}
    assert set(regions.RULES) == set(PERIVENTRICULAR_RULES)
    described = json.loads((files("bagau_bids.data") / "tables/volumes.json").read_text())
    assert set(regions.REGIONS) < set(described["region"]["Levels"])
