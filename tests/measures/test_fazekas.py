"""The estimate of the Fazekas grades on lesions of known size and place."""

import json
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.measures import fazekas
from bagau_bids.measures.regions import distance_mm, region_number
from bagau_bids.spaces import Image

SHAPE, AFFINE = (90, 80, 9), np.diag([1.0, 1.0, 5.0, 1.0])
WALL = 20  # the ventricle is everything left of it


def estimate(mask, regions=None, affine=AFFINE):
    ventricle = np.zeros(SHAPE, bool)
    ventricle[:WALL] = True
    regions = np.full(SHAPE, region_number("deep", "left")) if regions is None else regions
    table = fazekas.fazekas_table(Image(mask, affine), distance_mm(ventricle, affine), regions)
    return dict(zip(table.scale, table.fazekas_estimate, strict=True)), table


def band(thickness, first=WALL):
    mask = np.zeros(SHAPE, bool)
    mask[first : first + thickness, 10:60, 3:6] = True
    return mask


@pytest.mark.parametrize(
    ("thickness", "grade"), [(0, 0), (1, 1), (4, 1), (6, 2), (9, 2), (12, 3), (30, 3)]
)
def test_thickness_of_a_band_at_the_ventricle(thickness, grade):
    assert estimate(band(thickness))[0]["periventricular"] == grade


def test_a_lesion_away_from_the_ventricle_is_no_band():
    grades, table = estimate(band(6, first=WALL + 12))
    assert grades["periventricular"] == 0
    assert table.measured_mm[0] == 0


@pytest.mark.parametrize(
    ("long", "short", "grade"),
    [(1, 1, 0), (3, 1, 1), (8, 3, 1), (11, 2, 2), (24, 3, 2), (26, 2, 3), (40, 30, 3)],
)
def test_longest_diameter_in_the_deep_white_matter(long, short, grade):
    mask = np.zeros(SHAPE, bool)
    mask[40 : 40 + short, 15 : 15 + long, 4] = True
    assert estimate(mask)[0]["deep"] == grade
    assert estimate(mask)[0]["periventricular"] == 0


def test_slices_are_measured_one_by_one_and_voxel_by_voxel():
    mask = np.zeros(SHAPE, bool)
    for level in range(6):
        mask[50 + level, 20 + level, level] = True  # a line through six slices
    assert fazekas.longest_axial_diameter_mm(Image(mask, AFFINE)) == pytest.approx(1.0)
    mask[30, 10, 2] = mask[33, 14, 2] = True
    mask[30:34, 10:15, 2] = True
    assert fazekas.longest_axial_diameter_mm(Image(mask, AFFINE)) == pytest.approx(
        5 + 1, rel=0.005
    )


def test_diameter_of_an_oblique_and_anisotropic_grid():
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(z=0.5, y=0.3, x=-0.2)
    affine = turn @ np.diag([0.5, 2.0, 5.0, 1.0])
    mask = np.zeros(SHAPE, bool)
    mask[10:41, 5:10, 3] = True
    points = nib.affines.apply_affine(affine, np.argwhere(mask))
    longest = max(np.linalg.norm(points - point, axis=1).max() for point in points)
    found = fazekas.longest_axial_diameter_mm(Image(mask, affine))
    assert found == pytest.approx(longest + 1.25, rel=0.005)


def test_infratentorial_lesions_do_not_count():
    regions = np.full(SHAPE, region_number("infratentorial", "right"))
    assert set(estimate(band(12) | band(20, first=45), regions)[0].values()) == {0}


def test_no_lesion_is_grade_zero():
    grades, table = estimate(np.zeros(SHAPE, bool))
    assert set(grades.values()) == {0}
    assert table.measured_mm.tolist() == [0, 0]


@pytest.mark.parametrize("thickness", [0, 30])
def test_without_ventricles_in_the_scan_nothing_is_estimated(thickness):
    nowhere = np.full(SHAPE, np.inf)
    regions = np.full(SHAPE, region_number("deep", "left"))
    table = fazekas.fazekas_table(Image(band(thickness), AFFINE), nowhere, regions)
    lines = table.to_csv(sep="\t", index=False, na_rep="n/a").splitlines()
    assert lines[1:] == ["periventricular\tn/a\tn/a", "deep\tn/a\tn/a"]


def test_every_column_is_described_and_called_an_estimate():
    described = json.loads((files("bagau_bids.data") / "tables/fazekas.json").read_text())
    assert list(described) == list(estimate(band(3))[1].columns)
    assert "stimate" in described["fazekas_estimate"]["LongName"]
    assert described["measured_mm"]["Units"] == "mm"
