"""Lesions against slow, naive oracles; volumes survive orientation, shear and oblique grids."""

import itertools
import json
from importlib.resources import files

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagau_bids.measures import lesions

AFFINE = np.array([[0.9, 0, 0, -80.0], [0, 1.1, 0, -100], [0, 0, 3.0, -40], [0, 0, 0, 1]])


def oblique(affine, degrees=20.0):
    turn = np.eye(4)
    angle = np.deg2rad(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def naive_components(mask):
    """26-connected components by walking, each a sorted list of voxels."""
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    found = []
    while left:
        queue, component = [min(left)], []
        left.discard(queue[0])
        while queue:
            voxel = queue.pop()
            component.append(voxel)
            for step in steps:
                neighbour = tuple(np.add(voxel, step).tolist())
                if neighbour in left:
                    left.discard(neighbour)
                    queue.append(neighbour)
        found.append(sorted(component))
    return sorted(found, key=lambda component: (-len(component), component[0]))


def random_mask(seed, shape=(9, 8, 7), share=0.06):
    return np.random.default_rng(seed).random(shape) < share


@given(st.integers(0, 10_000))
def test_labels_agree_with_walking(seed):
    mask = random_mask(seed)
    labels = lesions.label_lesions(mask)
    expected = np.zeros(mask.shape, int)
    for number, component in enumerate(naive_components(mask), start=1):
        expected[tuple(np.transpose(component))] = number
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_small_lesions_go_and_those_of_the_limit_stay(seed, voxels):
    mask = random_mask(seed)
    limit = voxels * lesions.voxel_volume_mm3(AFFINE)
    expected = np.zeros(mask.shape, bool)
    for component in naive_components(mask):
        if len(component) >= voxels:
            expected[tuple(np.transpose(component))] = True
    np.testing.assert_array_equal(lesions.remove_small_lesions(mask, AFFINE, limit), expected)


def test_a_limit_of_zero_keeps_everything_in_a_new_array():
    mask = random_mask(3)
    kept = lesions.remove_small_lesions(mask, AFFINE, 0)
    np.testing.assert_array_equal(kept, mask)
    assert kept is not mask


@pytest.mark.parametrize(
    "affine",
    [AFFINE, AFFINE @ np.diag([-1, 1, 1, 1]), AFFINE @ np.diag([-1, -1, 1, 1]), oblique(AFFINE)],
    ids=["RAS", "LAS", "LPS", "oblique"],
)
def test_voxel_volume_does_not_depend_on_orientation(affine):
    assert lesions.voxel_volume_mm3(affine) == pytest.approx(0.9 * 1.1 * 3.0)


def test_voxel_volume_of_a_sheared_grid_is_its_determinant():
    sheared = np.diag([1.0, 2.0, 3.0, 1.0])
    sheared[0, 1] = 0.4
    assert lesions.voxel_volume_mm3(sheared) == pytest.approx(6.0)


def test_volume_table_of_three_lesions():
    mask = np.zeros((10, 10, 10), bool)
    mask[1:3, 1:3, 1:3] = True  # 8 voxels
    mask[6, 6, 6] = True
    mask[8, 1:4, 8] = True  # 3 voxels
    brain = np.ones_like(mask)
    table = lesions.volume_table(mask, AFFINE, brain)
    row = table.iloc[0]
    voxel = 0.9 * 1.1 * 3
    assert row.region == "all"
    assert (row.volume_voxels, row.n_lesions) == (12, 3)
    sizes = [row.volume_mm3, row.mean_lesion_mm3, row.median_lesion_mm3, row.max_lesion_mm3]
    assert sizes == pytest.approx([12 * voxel, 4 * voxel, 3 * voxel, 8 * voxel])
    assert row.brain_mm3 == pytest.approx(1000 * voxel)
    assert row.fraction_of_brain == pytest.approx(0.012)


def test_no_lesion_gives_zeros_and_missing_sizes_not_nan():
    empty = np.zeros((4, 4, 4), bool)
    table = lesions.volume_table(empty, AFFINE, np.ones_like(empty))
    text = table.to_csv(sep="\t", index=False, na_rep="n/a")
    values = dict(zip(*(line.split("\t") for line in text.splitlines()), strict=True))
    assert (values["volume_mm3"], values["volume_voxels"], values["n_lesions"]) == (
        "0.0",
        "0",
        "0",
    )
    assert values["mean_lesion_mm3"] == values["max_lesion_mm3"] == "n/a"
    assert values["fraction_of_brain"] == "0.0"
    assert "nan" not in text.lower().replace("n/a", "")
    assert lesions.volume_table(empty, AFFINE, empty).fraction_of_brain[0] is pd.NA
    assert lesions.lesion_table(empty.astype(int), AFFINE, empty, empty, empty).empty


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "SRA", "oblique"])
def test_lesion_table_does_not_depend_on_storage(code):
    rng = np.random.default_rng(5)
    mask = random_mask(5, share=0.03)
    probability, flair = rng.random(mask.shape), rng.normal(100, 20, mask.shape)
    brain = np.ones_like(mask)
    affine = oblique(AFFINE) if code == "oblique" else AFFINE

    def stored(data):
        image = nib.Nifti1Image(data.astype(float), affine)
        if code == "oblique":
            return image
        target = nib.orientations.axcodes2ornt(code)
        change = nib.orientations.ornt_transform(nib.io_orientation(affine), target)
        return image.as_reoriented(change)

    images = [stored(data) for data in (mask, probability, flair, brain)]
    labels = lesions.label_lesions(images[0].get_fdata())
    arrays = [image.get_fdata() for image in images[1:]]
    table = lesions.lesion_table(labels, images[0].affine, *arrays)

    low, high = np.percentile(flair, [5, 95])
    middle = flair[(flair >= low) & (flair <= high)]
    expected = []
    for component in naive_components(mask):
        where = tuple(np.transpose(component))
        centre = nib.affines.apply_affine(affine, np.mean(component, axis=0))
        contrast = (flair[where].mean() - middle.mean()) / middle.std()
        expected.append((len(component), *centre, probability[where].mean(), contrast))
    columns = ["volume_voxels", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm"]
    columns += ["mean_probability", "mean_flair_z"]
    found = sorted(table[columns].round(6).itertuples(index=False, name=None))
    np.testing.assert_allclose(found, sorted(np.round(expected, 6).tolist()), atol=1e-5)
    assert table.volume_voxels.is_monotonic_decreasing
    assert list(table["index"]) == list(range(1, len(table) + 1))


def test_every_column_is_described_with_its_unit():
    mask = random_mask(1)
    tables = {
        "volumes": lesions.volume_table(mask, AFFINE, mask),
        "lesions": lesions.lesion_table(lesions.label_lesions(mask), AFFINE, mask, mask, mask),
    }
    for name, table in tables.items():
        described = json.loads((files("bagau_bids.data") / f"tables/{name}.json").read_text())
        assert list(described) == list(table.columns)
        for column, entry in described.items():
            assert entry["Description"], column
            assert "Units" in entry or column in ("region", "index", "name")


def test_images_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        lesions.volume_table(np.zeros((2, 2, 2)), AFFINE, np.zeros((2, 2, 3)))
