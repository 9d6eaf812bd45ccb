"""Where things are in the brain: right on the template itself, for any number of threads."""

import numpy as np
import pytest

from bagau_bids.measures.regions import region_number
from bagau_bids.preprocessing.brain_map import map_brain
from bagau_bids.preprocessing.template_regions import GROUPS, load_template_regions
from bagau_bids.preprocessing.transforms import TemplateTransform, lattice_field
from bagau_bids.spaces import Image

STEP = 3  # voxels of the template's map, which are 1 mm, that a voxel of the FLAIR is wide
BRIGHTNESS = {"lateral_ventricle": 20, "other_csf": 25, "white_matter": 100}
INFARCT_MM = (45.0, -30.0, 20.0)  # right, posterior, superior; in the parietal lobe


@pytest.fixture(scope="module")
def scan():
    """A FLAIR that looks as the template's map, with a bright ball that reaches the cortex."""
    template = load_template_regions()
    groups = template.data[::STEP, ::STEP, ::STEP]
    affine = template.affine @ np.diag([STEP, STEP, STEP, 1.0])
    level = np.array([0, *(BRIGHTNESS.get(name, 115) for name in GROUPS)], np.float32)
    data = level[groups] + np.random.default_rng(0).normal(0, 1, groups.shape)
    index = np.indices(groups.shape).reshape(3, -1)
    away = affine[:3, :3] @ index + affine[:3, 3:] - np.array(INFARCT_MM)[:, None]
    ball = (np.linalg.norm(away, axis=0) <= 16).reshape(groups.shape)
    data[ball & (groups > 0)] = 190
    flair = Image(data.astype(np.float32), affine)
    white = (groups == 1 + GROUPS.index("white_matter")).astype(np.float32)
    points = lattice_field(TemplateTransform(np.eye(4)), flair)
    return flair, groups, white, points


@pytest.fixture(scope="module")
def mapped(scan):
    flair, groups, white, points = scan
    return map_brain(flair, groups > 0, white, points, None, "10mm")


def test_ventricles_regions_and_sides_are_those_of_the_template(scan, mapped):
    flair, groups, _, _ = scan
    assert mapped.ventricles.source == "flair"
    truth = groups == 1 + GROUPS.index("lateral_ventricle")
    both = 2 * (mapped.ventricles.mask & truth).sum()
    assert both / (mapped.ventricles.mask.sum() + truth.sum()) > 0.9
    cerebellum = np.rint(np.linalg.inv(flair.affine) @ [-30, -60, -45, 1])[:3].astype(int)
    assert mapped.regions[tuple(cerebellum)] == region_number("infratentorial", "left")
    assert not mapped.regions[groups == 0].any()
    assert mapped.coverage == pytest.approx(1, abs=0.02)


def test_a_bright_area_at_the_cortex_is_suspected(mapped):
    (suspect,) = mapped.suspects
    assert suspect.kind == "bright"
    assert suspect.volume_ml == pytest.approx(4 / 3 * np.pi * 16**3 / 1000, rel=0.4)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(scan, mapped, threads):
    flair, groups, white, points = scan
    again = map_brain(flair, groups > 0, white, points, None, "10mm", threads)
    np.testing.assert_array_equal(again.regions, mapped.regions)
    np.testing.assert_array_equal(again.told_regions, mapped.told_regions)
    np.testing.assert_array_equal(again.ventricles.mask, mapped.ventricles.mask)
    assert (again.suspects, again.coverage) == (mapped.suspects, mapped.coverage)
