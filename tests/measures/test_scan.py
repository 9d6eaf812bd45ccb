"""All measures of one scan together: what one of them means for the others."""

from dataclasses import replace

import numpy as np
import pytest

from bagau_bids.measures.quality import Registered
from bagau_bids.measures.regions import region_number
from bagau_bids.measures.scan import Maps, Noticed, measure_scan
from bagau_bids.measures.suspects import Suspect
from bagau_bids.spaces import Image

SHAPE = (20, 20, 20)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AREA = Suspect("bright", 7.5, (1.0, 2.0, 3.0), (31.0, 2.0, 3.0), "right, cortex", ((1, 3),) * 3)
NOTICED = Noticed(Registered(0.9, 0.4, 1.0, 30.0), (AREA,), ("its name",), 0.25, 0.5, 0.7)
OPTIONS = {"threshold": 0.5, "min_size_mm3": 0.0, "rule": "10mm", "infarct_wanted": False}
LESION = (slice(5, 7), slice(5, 7), slice(5, 7))
OTHER = (slice(9, 18), slice(2, 18), slice(2, 18))  # more than half of the brain


@pytest.fixture
def maps():
    brain = np.zeros(SHAPE, bool)
    brain[2:18, 2:18, 2:18] = True
    ventricles = np.zeros(SHAPE, bool)
    ventricles[9:11, 9:11, 9:11] = True
    flair = np.where(brain, 100.0, 0) + np.indices(SHAPE).sum(axis=0) % 2
    flair[LESION] = 200
    return Maps(
        flair=Image(flair, AFFINE),
        brain_mask=brain,
        ventricles=ventricles,
        wm_probseg=np.where(brain, 0.95, 0),
        template_t1w=np.where(brain, 70.0, 0),
        regions=np.where(brain, region_number("deep", "left"), 0).astype(np.uint8),
        known_lesions=None,
        template_points=Image(np.indices((2, 2, 2)).astype(float), np.diag([40.0, 40, 40, 1])),
    )


@pytest.fixture
def probability():
    found = np.zeros(SHAPE)
    found[LESION] = 0.9
    return found


def test_tables_masks_and_figures_tell_of_the_same_lesion(maps, probability):
    found = measure_scan(maps, probability, None, NOTICED, **OPTIONS)
    np.testing.assert_array_equal(found.found.wmh, probability > 0)
    np.testing.assert_array_equal(found.lesions > 0, probability > 0)
    np.testing.assert_array_equal(found.wmh_regions > 0, probability > 0)
    assert found.tables["volumes_table"].volume_voxels[0] == 8
    assert found.tables["lesions_table"].volume_mm3.tolist() == [pytest.approx(64)]
    assert found.tables["lesions_table"].flair_to_wm[0] == pytest.approx(2, abs=0.03)
    assert len(found.tables["fazekas_table"])
    assert "juxtaventricular" not in " ".join(found.tables["regions_table"]["name"])
    assert (found.infarct_ml, found.notes) == (None, ())


def test_what_was_noticed_before_is_among_the_figures(maps, probability):
    found = measure_scan(maps, probability, None, NOTICED, **OPTIONS)
    assert found.figures.registration_overlap == 0.9
    assert found.figures.csf_to_wm == pytest.approx(0.3, abs=0.01)
    assert (found.figures.clipped_share, found.figures.head_turn) == (0.25, 0.5)
    assert found.figures.mirrored_dice == 0.7
    assert found.figures.no_flair_signs == 1
    assert (found.figures.largest_bright_ml, found.figures.slice_tilt_degrees) == (7.5, None)
    words = {flag.figure: flag.words for flag in found.flags}
    assert words["largest_bright_ml"].endswith("31, 2, 3 mm in the template")


@pytest.mark.parametrize("kind", ["infarct", "known"])
def test_infarcts_and_known_lesions_are_no_normal_white_matter(maps, probability, kind):
    maps.flair.data[OTHER] = 300
    area = np.zeros(SHAPE)
    area[OTHER] = 0.9
    as_tissue = measure_scan(maps, probability, None, NOTICED, **OPTIONS)
    if kind == "known":
        maps = replace(maps, known_lesions=area > 0)
    found = measure_scan(
        maps, probability, area if kind == "infarct" else None, NOTICED, **OPTIONS
    )
    assert as_tissue.tables["lesions_table"].flair_to_wm[0] < 1
    assert found.figures.csf_to_wm == pytest.approx(3 * as_tissue.figures.csf_to_wm, rel=0.02)
    assert found.tables["lesions_table"].flair_to_wm[0] == pytest.approx(2, abs=0.03)


def test_without_ventricles_only_infratentorial_regions_are_told(maps, probability):
    maps = replace(maps, ventricles=np.zeros(SHAPE, bool))
    maps.regions[:6] = region_number("infratentorial", "left")
    found = measure_scan(maps, probability, None, NOTICED, **OPTIONS)
    np.testing.assert_array_equal(found.wmh_regions[:6] > 0, probability[:6] > 0)
    assert not found.wmh_regions[6:].any()
    assert "has no lateral ventricles" in found.notes[0]


@pytest.mark.parametrize("wanted", [False, True])
def test_an_infarct_nobody_asked_for_is_noted(maps, probability, wanted):
    infarct = np.zeros(SHAPE)
    infarct[OTHER] = 0.9
    options = {**OPTIONS, "infarct_wanted": wanted}
    found = measure_scan(maps, probability, infarct, NOTICED, **options)
    assert found.infarct_ml == pytest.approx(8 * 9 * 16 * 16 / 1000)
    assert any("--infarct puts them out" in note for note in found.notes) is not wanted
    assert (found.found.reported is None) is not wanted


def test_known_lesions_outside_the_brain_are_noted(maps, probability):
    known = np.zeros(SHAPE, bool)
    known[0, 0, 0] = True
    found = measure_scan(replace(maps, known_lesions=known), probability, None, NOTICED, **OPTIONS)
    assert "lies outside the brain mask" in found.notes[0]
    known[5, 5, 5] = True
    found = measure_scan(replace(maps, known_lesions=known), probability, None, NOTICED, **OPTIONS)
    assert found.notes == ()
