"""The map of regions that the package carries, and carrying it onto a FLAIR."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from bagau_bids.measures import regions as measures
from bagau_bids.preprocessing import template_regions
from bagau_bids.preprocessing.transforms import TemplateTransform, lattice_field
from bagau_bids.spaces import Grid


@pytest.fixture(scope="module")
def shipped():
    return template_regions.load_template_regions()


def group_at(shipped, point):
    voxel = np.round(apply_affine(np.linalg.inv(shipped.affine), point)).astype(int)
    return template_regions.GROUPS[int(shipped.data[tuple(voxel)]) - 1]


@pytest.mark.parametrize(
    ("point", "group"),
    [
        ((11, 5, 20), "lateral_ventricle"),  # body
        ((-27, -48, 7), "lateral_ventricle"),  # atrium
        ((25, -60, -38), "infratentorial"),  # cerebellum
        ((0, -28, -34), "infratentorial"),  # pons
        ((28, 0, 35), "white_matter"),  # centrum semiovale
        ((-28, 0, 35), "white_matter"),
        ((12, -20, 8), "deep_grey"),  # thalamus
        ((0, 20, 52), "other_csf"),  # between the hemispheres
    ],
)
def test_known_places_of_mni_space(shipped, point, group):
    assert group_at(shipped, point) == group


def test_map_is_symmetric_about_x_zero_and_its_card_agrees(shipped, repository):
    assert shipped.affine[0, 3] == -(shipped.data.shape[0] - 1) / 2
    np.testing.assert_array_equal(shipped.data, shipped.data[::-1])
    folder = repository / "bagau_bids" / "data" / "regions"
    card = json.loads(
        (folder / template_regions.FILE_NAME.replace(".nii.gz", ".json")).read_text()
    )
    assert tuple(card["Labels"].values()) == template_regions.GROUPS
    for number, name in card["Labels"].items():
        volume = float((shipped.data == int(number)).sum()) / 1000
        assert card["VolumesMl"][name] == pytest.approx(volume, abs=0.06)


def test_numbers_are_those_that_the_measures_know():
    numbers = {name: index for index, name in enumerate(template_regions.GROUPS, start=1)}
    assert numbers["lateral_ventricle"] == measures.LATERAL_VENTRICLE
    assert numbers["other_csf"] == measures.OTHER_CSF
    assert numbers["infratentorial"] == measures.INFRATENTORIAL
    assert numbers["cortex"] == measures.CORTEX
    assert min(numbers["white_matter"], numbers["deep_grey"]) > measures.CORTEX


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "oblique"])
def test_each_voxel_gets_the_number_of_its_place(shipped, code):
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(z=0.2, y=0.1, x=-0.3)
    to_template = turn @ np.diag([1.05, 0.95, 1.0, 1.0])
    to_template[:3, 3] = 4, -6, 9
    affine = np.diag([3.0, 3.0, 6.0, 1.0])
    affine[:3, 3] = -90, -120, -66
    shape = (60, 74, 26)
    if code == "oblique":
        affine = turn.T @ affine
    else:
        image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine).as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(affine), nib.orientations.axcodes2ornt(code)
            )
        )
        shape, affine = image.shape, image.affine
    flair = Grid(shape, affine)
    points = lattice_field(TemplateTransform(to_template), flair)
    groups, right = template_regions.carry_regions(shipped, points, flair)
    world = apply_affine(to_template @ affine, np.moveaxis(np.indices(shape), 0, -1))
    index = np.round(apply_affine(np.linalg.inv(shipped.affine), world)).astype(int)
    inside = ((index >= 0) & (index < shipped.data.shape)).all(axis=-1)
    expected = np.zeros(shape, int)
    expected[inside] = shipped.data[tuple(index[inside].T)]
    assert (groups == expected).mean() > 0.999  # places half-way between two voxels
    np.testing.assert_array_equal(
        right[np.abs(world[..., 0]) > 1e-3], world[..., 0][np.abs(world[..., 0]) > 1e-3] > 0
    )
