"""Pictures: the right side in the right place, true aspect, outlines where the mask is."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bagau_bids import spaces
from bagau_bids.reports import figures

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])
SHAPE = (60, 80, 12)


def pixels(picture):
    return np.asarray(picture.convert("RGBA")).astype(int)


def tilted(affine, degrees=15):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.fixture(params=["RAS", "LAS", "LPS", "PSL", "oblique"])
def marked(request):
    """A volume with a bright block in its right anterior superior corner, in RAS order again."""
    data = np.zeros(SHAPE, np.float32)
    data[45:58, 60:78, 9:12] = 100
    affine = tilted(AFFINE) if request.param == "oblique" else AFFINE
    image = nib.Nifti1Image(data, affine)
    if request.param != "oblique":
        target = nib.orientations.axcodes2ornt(request.param)
        change = nib.orientations.ornt_transform(nib.io_orientation(affine), target)
        image = image.as_reoriented(change)
    ras = spaces.reorient(spaces.Image(np.asarray(image.dataobj), image.affine))
    return ras.data, ras.affine


@pytest.mark.parametrize(
    ("axis", "index", "corner"),
    [(2, 10, "right anterior"), (1, 70, "right superior"), (0, 50, "anterior superior")],
)
def test_a_marked_corner_is_at_the_upper_left(marked, axis, index, corner):
    """Right (or anterior) on the left of the picture, anterior (or superior) on its top."""
    data, affine = marked
    layout = figures.mosaic([(axis, [index])], data >= 0, affine, columns=1, width=300)
    tile = layout.tiles[0].sample(data)
    rows, columns = np.nonzero(tile > 50)
    assert rows.mean() < tile.shape[0] / 2, corner
    assert columns.mean() < tile.shape[1] / 2, corner
    across, down = figures.PLANES[axis]
    assert figures.HIGH_LETTER[across] == {"r": "R", "a": "A"}[corner[0]]
    assert figures.HIGH_LETTER[down] in ("A", "S")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxels_keep_their_aspect(axis):
    """A cube in mm is square on every plane whatever the voxel."""
    affine = np.diag([0.5, 2.0, 4.0, 1.0])
    data = np.zeros((160, 40, 20), np.float32)
    data[40:120, 10:30, 5:15] = 1  # 40 mm each way
    layout = figures.mosaic([(axis, [data.shape[axis] // 2])], data >= 0, affine, columns=1)
    rows, columns = np.nonzero(layout.tiles[0].sample(data) > 0.5)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height / width == pytest.approx(1, abs=0.03)


def test_superior_slices_come_first_and_tiles_do_not_overlap():
    data = np.broadcast_to(np.arange(12.0), SHAPE)
    layout = figures.mosaic([(2, [3, 9, 5]), (0, [10, 50])], data >= 0, AFFINE, columns=2)
    assert [tile.index for tile in layout.tiles] == [9, 5, 3, 50, 10]
    covered = np.zeros((layout.height, layout.width), int)
    for tile in layout.tiles:
        covered[tile.place] += 1
    assert covered.max() == 1
    assert not covered[-figures.FOOTER :].any()
    assert layout.assemble(data)[layout.tiles[0].place].mean() == pytest.approx(9)


def test_tiles_are_cropped_to_the_region_and_a_margin():
    region = np.zeros(SHAPE, bool)
    region[20:40, 30:50, 4:8] = True
    layout = figures.mosaic([(2, [5])], region, AFFINE, columns=1)
    tile = layout.tiles[0]
    margin = figures.MARGIN_MM
    assert tile.columns.max() == pytest.approx(39.5 + margin, abs=0.2)
    assert tile.columns.min() == pytest.approx(19.5 - margin, abs=0.2)
    assert tile.rows.max() == pytest.approx(49.5 + margin, abs=0.2)


def test_outline_runs_along_the_border_of_the_mask():
    mask = np.zeros(SHAPE, bool)
    mask[20:40, 30:50, 4:8] = True
    layout = figures.mosaic([(2, [5])], mask >= 0, AFFINE, columns=1, width=600)
    drawn = pixels(figures.draw_outline(layout, mask, "#ff0000"))
    assert drawn.shape == (layout.height, layout.width, 4)
    rows, columns = np.nonzero(drawn[..., 3] > 100)
    tile = layout.tiles[0]
    x, y = tile.columns[columns - tile.left], tile.rows[rows - tile.top]
    distance = np.maximum(np.abs(x - 29.5) - 10, np.abs(y - 39.5) - 10)
    assert np.abs(distance).max() < 1
    assert (drawn[..., 0][drawn[..., 3] > 200] > 200).all()


def test_outline_of_an_empty_mask_is_invisible_and_of_a_full_one_closed():
    layout = figures.mosaic([(2, [5])], np.ones(SHAPE, bool), AFFINE, columns=1, width=300)
    assert not pixels(figures.draw_outline(layout, np.zeros(SHAPE), "red"))[..., 3].any()
    tile = layout.tiles[0]
    frame = pixels(figures.draw_outline(layout, np.ones(SHAPE), "red"))[tile.place][..., 3] > 0
    assert frame[0].all()
    assert frame[-1].all()
    assert frame[:, 0].all()


def test_probability_is_shown_from_its_lowest_value_on():
    probability = np.zeros(SHAPE, np.float32)
    probability[10:20, 10:30] = 0.9
    probability[40:50, 10:30] = 0.05
    layout = figures.mosaic([(2, [5])], np.ones(SHAPE, bool), AFFINE, columns=1, width=400)
    tile = layout.tiles[0]
    alpha = pixels(figures.draw_heat(layout, probability))[tile.place][..., 3]
    assert alpha[np.ix_(abs(tile.rows - 20) < 5, abs(tile.columns - 15) < 3)].min() > 100
    assert alpha[np.ix_(abs(tile.rows - 20) < 5, abs(tile.columns - 45) < 3)].max() == 0


def test_slices_are_grey_with_letters_and_a_note():
    data = np.full(SHAPE, 5.0)
    layout = figures.mosaic([(2, [5])], data > 0, AFFINE, columns=1, width=500)
    drawn = pixels(figures.draw_slices(layout, data, (0.0, 10.0)))
    assert (drawn[..., 0] == drawn[..., 2]).all()
    tile = layout.tiles[0]
    middle = slice(tile.top + len(tile.rows) // 2 - 8, tile.top + len(tile.rows) // 2 + 8)
    assert drawn[middle, tile.left : tile.left + 15, 0].max() > 200  # R
    assert drawn[-figures.FOOTER :, :, 0].max() > 200


def test_layers_are_stacked_in_order():
    layout = figures.mosaic([(2, [5])], np.ones(SHAPE, bool), AFFINE, columns=1, width=300)
    base = figures.draw_slices(layout, np.zeros(SHAPE), (0.0, 1.0))
    mask = np.zeros(SHAPE, bool)
    mask[20:40, 30:50] = True
    both = pixels(figures.stack(base, figures.draw_outline(layout, mask, "#ff0000")))
    assert ((both[..., 0] > 200) & (both[..., 1] < 50)).any()
    assert (pixels(figures.stack(base, base)) == pixels(base)).all()


def test_pictures_are_the_same_twice():
    layout = figures.mosaic([(2, [5])], np.ones(SHAPE, bool), AFFINE, columns=1, width=300)
    data = np.random.default_rng(0).random(SHAPE)
    first, second = (
        figures.png_bytes(figures.draw_slices(layout, data, (0, 1))) for _ in range(2)
    )
    assert first == second
    assert Image.open(io.BytesIO(first)).mode == "L"


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 5), 2), ((6, 0.9, 0.9), 0), ((1, 4, 1), 1), ((1, 1, 1.2), 2)]
)
def test_slices_are_shown_as_they_were_scanned(spacing, axis):
    assert figures.scan_axis(np.diag([*spacing, 1.0])) == axis


@pytest.mark.parametrize(
    ("spacing", "planes"),
    [((1, 1, 1.2), ["axial", "coronal", "sagittal"]), ((0.6, 0.6, 3), ["axial"])]
    + [((6, 0.9, 0.9), ["sagittal"]), ((1, 4, 1), ["coronal"])],
)
def test_other_planes_are_shown_where_the_resolution_allows(spacing, planes):
    shown = figures.planes_shown(np.diag([*spacing, 1.0]))
    assert [figures.PLANE_NAMES[axis] for axis in shown] == planes


def test_choice_of_slices():
    mask = np.zeros((10, 10, 40), bool)
    mask[5, 5, [3, 9, 30]] = True
    mask[2:8, 2:8, 10] = True
    assert figures.busiest_slices(mask, 2, 10) == [3, 9, 10, 30]
    assert figures.busiest_slices(mask, 2, 2) == [3, 10]
    assert figures.busiest_slices(np.zeros_like(mask), 2, 2) == []
    spread = figures.spread_slices(mask, 2, 4)
    assert len(spread) == 4
    assert min(spread) > 3
    assert max(spread) < 30
    assert figures.spread_slices(np.zeros_like(mask), 0, 100) == list(range(10))


def test_key_slices_are_those_with_most_of_a_mask_and_apart():
    mask = np.zeros((10, 10, 40), bool)
    mask[:9, :9, 20] = True
    mask[:8, :8, 21] = True  # shows the same again
    mask[:3, :3, 3] = mask[:4, :4, 9] = True
    mask[:2, :2, 35] = True
    assert figures.key_slices(mask, 2, 2.0) == [9, 20, 35]
    assert figures.key_slices(mask, 2, 20.0) == [9, 20, 21]
    assert figures.key_slices(mask[..., :21], 2, 2.0) == [9, 20]
    assert figures.key_slices(np.zeros_like(mask), 2, 2.0) == []
    assert figures.key_slices(np.moveaxis(mask, 2, 0), 0, 2.0) == [9, 20, 35]


@pytest.mark.parametrize("indices", [(6,), (2, 6), (2, 6, 9)])
def test_the_chief_slice_is_twice_as_large(indices):
    region = np.zeros(SHAPE, bool)
    region[10:50, 10:70, 2:10] = True
    layout = figures.spotlight((2, indices, 6), region, AFFINE, width=740, height=480)
    assert [tile.index for tile in layout.tiles] == sorted(indices, reverse=True)
    assert layout.width == 740
    assert layout.height <= 480
    size = {tile.index: (len(tile.columns), len(tile.rows)) for tile in layout.tiles}
    for index in set(indices) - {6}:
        assert np.allclose(np.array(size[6]) / size[index], 2, rtol=0.02)
    taken = np.zeros((layout.height, layout.width), int)
    for tile in layout.tiles:
        assert tile.left >= 0
        taken[tile.place] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(columns * rows for columns, rows in size.values())


@pytest.mark.parametrize(("count", "columns"), [(1, 3), (5, 5), (8, 4), (12, 6), (13, 5), (24, 6)])
def test_rows_are_filled(count, columns):
    assert figures.balanced_columns(count) == columns


def test_display_window_spans_the_brain_and_is_never_empty():
    data = np.zeros(SHAPE)
    data[10:50] = np.linspace(100, 200, 40)[:, None, None]
    data[50:] = 5000  # scalp
    low, high = figures.display_window(data, (data > 50) & (data < 300))
    assert 50 < low < 105
    assert 195 < high < 250
    low, high = figures.display_window(np.zeros(SHAPE), np.zeros(SHAPE))
    assert high > low


@pytest.mark.parametrize("sizes", [[4.0], [3.0, 3.0, 50.0, 12000.0]])
def test_histogram_is_drawn(sizes):
    assert pixels(figures.draw_size_histogram(sizes, 3.0)).shape[2] == 4
