"""How a scan was made and processed, in words."""

from dataclasses import replace

import msgspec
import pytest
from fake_derivatives import write_scan

from bagau_bids.bids.tables import column_descriptions
from bagau_bids.reports.results import find_results
from bagau_bids.reports.scan_tables import Grade, Volumes, grade_note, quality_rows, settings


@pytest.fixture
def words(tmp_path):
    """Say in words how a scan was processed whose record differs in something of one step."""
    write_scan(tmp_path, {"sub": "1"})
    (scan,) = find_results(tmp_path)

    def words(step, **changes):
        steps, change = scan.record.steps, msgspec.structs.replace
        steps = change(steps, **{step: change(getattr(steps, step), **changes)})
        return dict(settings(replace(scan, record=change(scan.record, steps=steps))))

    words.attempt = scan.record.steps.registration.attempts[0]
    return words


@pytest.mark.parametrize(("count", "end"), [(1, "0.93"), (2, ", 2 attempts"), (3, ", 3 attempts")])
def test_more_than_one_attempt_is_told(words, count, end):
    told = words("registration", attempts=(words.attempt,) * count)["Registration"]
    assert told.startswith("MNI152NLin2009cSym, affine and B-spline, brain overlap (Dice) 0.93")
    assert told.endswith(end)


def test_registration_by_the_affine_alone_is_told(words):
    assert ", affine only, " in words("registration", stage="affine")["Registration"]


@pytest.mark.parametrize(("degrees", "end"), [(0.4, "not tilted"), (0.5, "tilted by 0°")])
def test_tilt_is_told_from_half_a_degree_on(words, degrees, end):
    assert words("conform", tilt_degrees=degrees)["FLAIR"].endswith(f"in the order LPS, {end}")


@pytest.mark.parametrize(("tta", "told"), [(True, True), (False, False)])
def test_mirroring_is_told(words, tta, told):
    assert (
        words("segmentation", tta=tta)["Model"].endswith(
            "; averaged with the mirrored FLAIR (--tta)"
        )
        is told
    )


def test_figures_of_quality_are_told_with_what_they_mean(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    (scan,) = find_results(tmp_path)
    rows = quality_rows(scan)
    known = {one.description for one in column_descriptions("quality").values()}
    assert rows
    assert {row.meaning for row in rows} <= known - {""}


@pytest.mark.parametrize(
    ("grade", "near_mm3", "told"), [(0, 590.0, True), (1, 590.0, False), (0, 0.0, False)]
)
def test_a_volume_near_the_ventricles_that_no_grade_counts_is_explained(grade, near_mm3, told):
    volumes = [
        Volumes("all", 900.0, 90.0, 3.0),
        Volumes("periventricular", near_mm3, 59.0, 1.0),
        Volumes("left-periventricular", near_mm3, 59.0, 1.0),
        Volumes("deep", 310.0, 31.0, 2.0),
    ]
    grades = [Grade("periventricular", grade, 0.0, ()), Grade("deep", 0, 0.0, ())]
    said = grade_note(volumes, grades)
    assert ("although 0.59 ml lie around the ventricles" in said) is told
    assert ("within 3 mm of them" in said) is told
    assert bool(said) is told
