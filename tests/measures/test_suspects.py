"""Large areas of one side at the cortex are found and placed; what both sides have is not."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

from bagau_bids.measures import regions, suspects
from bagau_bids.spaces import Image

THICK = np.diag([2.0, 2, 6, 1])
CUBES = np.diag([3.0, 3, 3, 1])
TILT = np.array([[0.985, -0.174, 0, 0], [0.174, 0.985, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def ellipsoid(world, radii, centre=(0, 0, 0)):
    return (((world - centre) / np.asarray(radii, float)) ** 2).sum(-1) < 1


def head(grid=THICK, tilt=None):
    """A head about the origin of the template; its FLAIR lies `tilt` away from there.

    Returns the FLAIR, its affine, its anatomy, and each voxel's place in the template.
    """
    to_template = np.eye(4) if tilt is None else tilt
    shape = tuple(int(140 / step) for step in np.diag(grid)[:3])
    affine = grid.copy()
    affine[:3, 3] = -np.diag(grid)[:3] * (np.array(shape) - 1) / 2
    world = apply_affine(to_template @ affine, np.moveaxis(np.indices(shape), 0, -1))
    brain = ellipsoid(world, (55, 65, 55))
    groups = np.where(brain, regions.WHITE_MATTER, 0)
    groups[brain & ~ellipsoid(world, (46, 56, 46))] = regions.CORTEX
    ventricles = ellipsoid(world, (20, 25, 10))
    groups[ventricles] = regions.LATERAL_VENTRICLE
    flair = np.where(brain, 100.0, 20.0)
    flair[groups == regions.CORTEX] = 110
    flair[ventricles] = 20
    flair += np.random.default_rng(1).normal(0, 4, shape)
    anatomy = suspects.Anatomy(
        brain_mask=brain,
        ventricles=ventricles,
        groups=groups,
        right=world[..., 0] > 0,
        to_template=to_template,
        white_matter=100.0,
    )
    return flair, affine, anatomy, world


@pytest.mark.parametrize(("grid", "tilt"), [(THICK, None), (CUBES, None), (THICK, TILT)])
@pytest.mark.parametrize(("kind", "value"), [("bright", 150.0), ("dark", 25.0)])
def test_an_area_at_the_cortex_is_found_at_its_place(grid, tilt, kind, value):
    flair, affine, anatomy, world = head(grid, tilt)
    centre = np.array([40, -20, 10])
    painted = ellipsoid(world, (15, 15, 15), centre) & anatomy.brain_mask
    (area,) = suspects.find_suspects(Image(np.where(painted, value, flair), affine), anatomy)
    true_ml = painted.sum() * abs(np.linalg.det(affine)) / 1000
    assert area.kind == kind
    assert area.volume_ml == pytest.approx(true_ml, rel=0.5)
    assert np.linalg.norm(np.subtract(area.template_mm, world[painted].mean(axis=0))) < 6
    found = apply_affine(np.linalg.inv(anatomy.to_template), area.template_mm)
    np.testing.assert_allclose(area.centre_mm, found, atol=0.2)
    assert area.place == "right, cortex and white matter"
    middle = np.argwhere(painted).mean(axis=0)
    assert all(low <= at < high for (low, high), at in zip(area.box, middle, strict=True))
    assert all(high <= size for (_, high), size in zip(area.box, flair.shape, strict=True))


def test_what_is_normal_symmetrical_deep_or_small_is_not_found():
    flair, affine, anatomy, world = head()
    assert suspects.find_suspects(Image(flair, affine), anatomy) == ()
    for radii, centres in (
        ((15, 15, 15), [(40, -20, 10), (-40, -20, 10)]),  # both sides
        ((10, 10, 12), [(26, 10, 15)]),  # white matter that does not reach the cortex
        ((5, 5, 6), [(48, 0, 0)]),  # half a millilitre
    ):
        painted = flair.copy()
        for centre in centres:
            painted[ellipsoid(world, radii, centre) & anatomy.brain_mask] = 150
        assert suspects.find_suspects(Image(painted, affine), anatomy) == (), radii


def test_nothing_is_found_where_white_matter_is_not_known():
    flair, affine, anatomy, _ = head()
    unknown = replace(anatomy, white_matter=None)
    assert suspects.find_suspects(Image(flair * 2, affine), unknown) == ()
    empty = np.zeros(flair.shape)
    assert suspects.white_matter_level(flair, anatomy.brain_mask, empty) is None
    sure = anatomy.groups == regions.WHITE_MATTER
    assert suspects.white_matter_level(flair, anatomy.brain_mask, sure) == pytest.approx(100, 0.02)
    assert suspects.white_matter_level(-flair, anatomy.brain_mask, sure) is None


def test_the_fit_of_the_template_is_the_map_that_made_the_points():
    truth = TILT @ np.diag([1.1, 0.9, 1, 1])
    truth[:3, 3] = (3, -8, 12)
    lattice = np.diag([6.0, 6, 6, 1])
    index = np.moveaxis(np.indices((5, 6, 7)), 0, -1)
    points = np.moveaxis(apply_affine(truth @ lattice, index), -1, 0)
    np.testing.assert_allclose(suspects.fit_template(Image(points, lattice)), truth, atol=1e-9)


def test_figures_and_places_are_those_of_the_largest():
    def area(kind, volume, x):
        where = {"centre_mm": (0.0, 0, 0), "template_mm": (x, -20.4, 3.0), "box": ((0, 1),) * 3}
        return suspects.Suspect(kind, volume, place="left, cortex", **where)

    areas = [area("bright", 9.5, -31.0), area("bright", 2.0, 40.0)]
    assert suspects.suspect_figures(areas) == {"largest_bright_ml": 9.5, "largest_dark_ml": 0.0}
    assert suspects.places_in_words(areas) == {
        "largest_bright_ml": "left, cortex, its centre at -31, -20, 3 mm in the template"
    }
