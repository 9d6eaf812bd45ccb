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

from bagau_bids.measures import lesions, regions
from bagau_bids.measures.regions import SIDES
from bagau_bids.spaces import Image

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
    np.testing.assert_array_equal(
        lesions.remove_small_lesions(Image(mask, AFFINE), limit), expected
    )


def test_a_limit_of_zero_keeps_everything_in_a_new_array():
    mask = random_mask(3)
    kept = lesions.remove_small_lesions(Image(mask, AFFINE), 0)
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
    table = lesions.volume_table(Image(mask, AFFINE), brain)
    row = table.iloc[0]
    voxel = 0.9 * 1.1 * 3
    assert row.region == "all"
    assert (row.volume_voxels, row.n_lesions) == (12, 3)
    sizes = [row.volume_mm3, row.mean_lesion_mm3, row.median_lesion_mm3, row.max_lesion_mm3]
    assert sizes == pytest.approx([12 * voxel, 4 * voxel, 3 * voxel, 8 * voxel])
    assert row.brain_mm3 == pytest.approx(1000 * voxel)
    assert row.fraction_of_brain == pytest.approx(0.012)


def two_regions(shape):
    """Left half periventricular, the right one deep."""
    numbers = np.full(shape, regions.region_number("periventricular", "left"))
    numbers[5:] = regions.region_number("deep", "right")
    return numbers


def test_rows_hold_the_volumes_of_what_is_no_wmh():
    mask = np.zeros((10, 10, 10), bool)
    mask[1, 1, 1] = True
    infarct = np.zeros_like(mask)
    infarct[3:7, 2, 2] = True  # 2 voxels on each side
    known = np.zeros_like(mask)
    known[8:, 5, 5] = True  # 2 voxels on the right, one of them outside the brain
    numbers = two_regions(mask.shape)
    numbers[9] = 0
    voxel = 0.9 * 1.1 * 3

    def rows(**options):
        table = lesions.volume_table(Image(mask, AFFINE), numbers > 0, numbers, **options)
        return table.set_index("region")

    told = rows(others={"infarct": infarct, "known_lesion": known})
    for column, expected in (
        ("infarct_mm3", {"all": 4, "left": 2, "right": 2, "periventricular": 2, "left-deep": 0}),
        ("known_lesion_mm3", {"all": 2, "right": 1, "deep": 1, "right-deep": 1, "left": 0}),
    ):
        found = told[column][list(expected)]
        assert found.tolist() == pytest.approx([voxel * count for count in expected.values()])
    assert told.volume_voxels["all"] == 1
    nothing = rows(others={"infarct": None})
    assert nothing.infarct_mm3.isna().all()
    assert nothing.known_lesion_mm3.isna().all()
    blind = rows(others={"infarct": infarct}, ventricles=False)
    assert blind.infarct_mm3["left"] == pytest.approx(2 * voxel)
    assert blind.infarct_mm3["deep"] is pd.NA


def test_rows_of_regions_hold_their_voxels_and_whole_lesions():
    mask = np.zeros((10, 10, 10), bool)
    mask[1:3, 1:3, 1:3] = True  # 8 voxels on the left
    mask[4:8, 6, 6] = True  # 4 voxels, 3 of them on the right
    table = lesions.volume_table(Image(mask, AFFINE), np.ones_like(mask), two_regions(mask.shape))
    rows = table.set_index("region")
    assert rows.index[0] == "all"
    assert rows.index.is_unique
    assert rows.volume_voxels["all"] == 12
    expected = {"periventricular": (9, 1, 8), "deep": (3, 1, 4), "left": (9, 1, 8)}
    expected |= {"right-deep": (3, 1, 4), "left-periventricular": (9, 1, 8)}
    for name, (voxels, count, largest) in expected.items():
        assert (rows.volume_voxels[name], rows.n_lesions[name]) == (voxels, count)
        assert rows.max_lesion_mm3[name] == pytest.approx(largest * 0.9 * 1.1 * 3)
    assert rows.fraction_of_wmh["deep"] == pytest.approx(0.25)
    for name in ("infratentorial", "left-deep", "right-juxtacortical"):
        assert (rows.volume_voxels[name], rows.n_lesions[name]) == (0, 0)
        assert rows.mean_lesion_mm3[name] is pd.NA
    assert "juxtaventricular" not in rows.index


@pytest.mark.parametrize("rule", ["10mm", "3mm"])
def test_regions_and_sides_add_up(rule):
    rng = np.random.default_rng(2)
    mask = random_mask(2)
    named = [regions.region_number(r, s) for r in regions.regions_of_rule(rule) for s in SIDES]
    numbers = rng.choice(named, mask.shape)
    rows = lesions.volume_table(Image(mask, AFFINE), np.ones_like(mask), numbers, rule)
    rows = rows.set_index("region")[["volume_voxels", "n_lesions"]]
    names = list(regions.regions_of_rule(rule))
    assert rows.loc[names].sum().tolist() == rows.loc["all"].tolist()
    assert rows.loc[list(SIDES)].sum().tolist() == rows.loc["all"].tolist()
    for side in SIDES:
        both = rows.loc[[f"{side}-{name}" for name in names]].sum()
        assert both.tolist() == rows.loc[side].tolist()


@pytest.mark.parametrize("rule", ["10mm", "3mm"])
def test_without_ventricles_regions_by_distance_are_missing_and_sides_are_not(rule):
    mask = random_mask(4)
    deep, below = (regions.region_number(name, "left") for name in ("deep", "infratentorial"))
    numbers = np.full(mask.shape, deep)
    numbers[: mask.shape[0] // 2] = below
    told = lesions.volume_table(Image(mask, AFFINE), np.ones_like(mask), numbers, rule)
    table = lesions.volume_table(
        Image(mask, AFFINE), np.ones_like(mask), numbers, rule, ventricles=False
    ).set_index("region")
    told = told.set_index("region")
    for name in told.index:
        known = not name.endswith(("ventricular", "deep", "juxtacortical"))
        of_region = table.loc[name].drop(["voxel_mm3", "brain_mm3"])
        assert of_region.isna().all() != known
        if known:
            assert table.loc[name].equals(told.loc[name])


def test_without_ventricles_lesions_have_a_side_and_no_region():
    labels = np.zeros((6, 6, 6), int)
    labels[1, 1, 1], labels[4, 4, 4] = 1, 2
    numbers = np.full(labels.shape, regions.region_number("deep", "right"))
    numbers[4] = regions.region_number("infratentorial", "left")
    points = Image(np.zeros((3, 2, 2, 2)), np.diag([5.0, 5, 5, 1]))
    around = lesions.Anatomy(numbers, np.full(labels.shape, np.inf), points, 1.0)
    ones = np.ones(labels.shape)
    table = lesions.lesion_table(Image(labels, np.eye(4)), ones, ones, ones, around)
    assert table.side.tolist() == ["right", "left"]
    assert pd.isna(table.region[0])
    assert table.region[1] == "infratentorial"
    assert table.ventricle_distance_mm.isna().all()


def test_no_lesion_gives_zeros_and_missing_sizes_not_nan():
    empty = np.zeros((4, 4, 4), bool)
    table = lesions.volume_table(Image(empty, AFFINE), np.ones_like(empty))
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
    assert values["fraction_of_wmh"] == "n/a"
    assert lesions.volume_table(Image(empty, AFFINE), empty).fraction_of_brain[0] is pd.NA
    nothing = lesions.volume_table(Image(empty, AFFINE), ~empty, np.ones(empty.shape, int))
    assert len(nothing) == 15
    assert set(nothing.volume_voxels) == set(nothing.n_lesions) == {0}
    assert lesions.lesion_table(Image(empty.astype(int), AFFINE), empty, empty, empty).empty


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
    table = lesions.lesion_table(Image(labels, images[0].affine), *arrays)

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


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "SRA", "oblique"])
def test_places_of_lesions_do_not_depend_on_storage(code):
    mask = random_mask(6, share=0.03)
    affine = oblique(AFFINE) if code == "oblique" else AFFINE
    to_template = oblique(np.diag([1.1, 0.9, 1.05, 1.0]), 11)
    to_template[:3, 3] = 5, -8, 12
    index = np.indices(mask.shape)
    zones = np.where(index[0] < 4, 3, 6)  # left periventricular, right deep
    distance = index[0] * 2.5 + 1
    lattice = np.diag([4.0, 7, 6, 1])  # nodes at the outermost voxels
    nodes = np.moveaxis(np.indices((3, 2, 2)), 0, -1)
    points = nib.affines.apply_affine(to_template @ affine @ lattice, nodes)

    def stored(data, grid):
        image = nib.Nifti1Image(np.asarray(data, float), grid)
        if code == "oblique":
            return image
        target = nib.orientations.axcodes2ornt(code)
        change = nib.orientations.ornt_transform(nib.io_orientation(affine), target)
        return image.as_reoriented(change)

    image, nodes = stored(mask, affine), stored(points, affine @ lattice)
    labels = lesions.label_lesions(image.get_fdata())
    brain = np.ones(labels.shape)
    anatomy = lesions.Anatomy(
        regions=stored(zones, affine).get_fdata().astype(int),
        ventricle_distance_mm=stored(distance, affine).get_fdata(),
        template_points=Image(np.moveaxis(nodes.get_fdata(), -1, 0), nodes.affine),
        white_matter=2.0,
    )
    table = lesions.lesion_table(Image(labels, image.affine), brain, 3 * brain, brain, anatomy)
    expected = []
    for component in naive_components(mask):
        where = tuple(np.transpose(component))
        centre = nib.affines.apply_affine(to_template @ affine, np.mean(component, axis=0))
        deep = (zones[where] == 6).mean() > 0.5
        home = ("deep", "right") if deep else ("periventricular", "left")
        expected.append((*np.round(centre, 4), distance[where].min(), 1.5, *home))
    columns = ["template_x_mm", "template_y_mm", "template_z_mm", "ventricle_distance_mm"]
    rounded = table[[*columns, "flair_to_wm", "region", "side"]].round(4)
    found = rounded.itertuples(index=False, name=None)
    for ours, theirs in zip(sorted(found), sorted(expected), strict=True):
        assert ours[:5] == pytest.approx(theirs[:5], abs=2e-4)
        assert ours[5:] == theirs[5:]


def test_what_is_not_known_of_a_lesion_is_missing():
    mask = random_mask(1)
    labels = lesions.label_lesions(mask)
    table = lesions.lesion_table(Image(labels, AFFINE), mask, mask, mask)
    unknown = ["region", "side", "template_x_mm", "ventricle_distance_mm", "flair_to_wm"]
    assert table[unknown].isna().all(axis=None)
    nowhere = lesions.Anatomy(
        regions=np.ones(mask.shape, int),
        ventricle_distance_mm=np.full(mask.shape, np.inf),
        template_points=Image(np.zeros((3, 2, 2, 2)), AFFINE),
        white_matter=None,
    )
    table = lesions.lesion_table(Image(labels, AFFINE), mask, mask, mask, nowhere)
    assert table[["ventricle_distance_mm", "flair_to_wm"]].isna().all(axis=None)
    assert table.region.isna().all()
    assert set(table.side) == {"left"}


def test_every_column_is_described_with_its_unit():
    mask = random_mask(1)
    tables = {
        "volumes": lesions.volume_table(Image(mask, AFFINE), mask),
        "lesions": lesions.lesion_table(
            Image(lesions.label_lesions(mask), AFFINE), mask, mask, mask
        ),
    }
    for name, table in tables.items():
        described = json.loads((files("bagau_bids.data") / f"tables/{name}.json").read_text())
        assert list(described) == list(table.columns)
        for column, entry in described.items():
            assert entry["Description"], column
            assert "Units" in entry or column in ("region", "side", "index", "name")


def test_images_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        lesions.volume_table(Image(np.zeros((2, 2, 2)), AFFINE), np.zeros((2, 2, 3)))
