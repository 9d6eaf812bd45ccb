"""Pictures of a scan: mosaics of slices with outlines or a colour overlay, and a histogram.

Volumes come in RAS order (`bagau_bids.spaces.reorient`): axis 0 runs to the participant's
right, axis 1 to the front, axis 2 up. Slices are shown as they were scanned, never resampled
across slices of an oblique grid, with the true aspect of their voxels. All pictures follow
the radiological convention: the participant's right is on the left of the picture; letters
on every slice say so.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from contourpy import LineType, contour_generator
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from bagau_bids.spaces import voxel_sizes

DPI = 100
# Of 9: a third of the time of 6, which is the default, and smaller files of these pictures.
PNG_LEVEL = 3
GAP = 4  # pixels between slices
FOOTER = 34  # pixels below the slices, for the line that names the convention
APART_MM = 10.0  # between slices that are to show different things
MARGIN_MM = 6.0
# In-plane axes of the slices across each axis: (picture columns, picture rows). A column axis
# is shown reversed so that right lies on the left and the front on the left; rows run from
# the front, or from the top, downwards.
PLANES = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
PLANE_NAMES = {0: "sagittal", 1: "coronal", 2: "axial"}
LOW_LETTER = {0: "L", 1: "P", 2: "I"}
HIGH_LETTER = {0: "R", 1: "A", 2: "S"}


@dataclass(frozen=True)
class Tile:
    """One slice of a mosaic.

    Parameters
    ----------
    axis, index : int
        The slice: number ``index`` across ``axis`` of a volume in RAS order.
    columns, rows : (n,) arrays
        Voxel position, along the plane's axes, of every picture column and row.
    left, top : int
        Pixel of the tile's corner in the mosaic.
    """

    axis: int
    index: int
    columns: np.ndarray
    rows: np.ndarray
    left: int
    top: int

    def sample(self, data: np.ndarray) -> np.ndarray:
        """Read a volume off at the tile's pixels, (rows, columns) float array, linearly."""
        plane = np.moveaxis(data, self.axis, 0)[self.index].astype(np.float32)  # (across, down)
        return _between(_between(plane, self.columns).T, self.rows)

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the mosaic that the tile covers."""
        return (
            slice(self.top, self.top + len(self.rows)),
            slice(self.left, self.left + len(self.columns)),
        )


@dataclass(frozen=True)
class Mosaic:
    """Where slices lie on a picture of ``height`` x ``width`` pixels, footer included."""

    tiles: tuple[Tile, ...]
    height: int
    width: int
    affine: np.ndarray

    def assemble(self, data: np.ndarray, background: float = 0.0) -> np.ndarray:
        """Lay out the slices of a volume, (height, width) float array, linear interpolation.

        `background` fills what lies between the slices.
        """
        canvas = np.full((self.height, self.width), background, dtype=np.float32)
        for tile in self.tiles:
            canvas[tile.place] = tile.sample(data)
        return canvas


def planes_shown(affine: np.ndarray) -> tuple[int, ...]:
    """Axes across which slices are worth showing, that of the scan's own slices first.

    A volume with spacings within 1.5 of each other counts as three-dimensional and has all:
    axial, coronal, sagittal. Of any other only the slices that were scanned are worth showing.
    """
    spacing = voxel_sizes(affine)
    axis = int(np.argmax(spacing))
    return (axis,) if spacing[axis] > 1.5 * np.median(spacing) else (2, 1, 0)


def scan_axis(affine: np.ndarray) -> int:
    """Axis across the slices that were scanned; axis 2 of a three-dimensional scan."""
    return planes_shown(affine)[0]


def spread_slices(mask: np.ndarray, axis: int, count: int) -> list[int]:
    """At most `count` slices spread evenly over the extent of a mask, in order.

    Over the whole axis where the mask is empty.
    """
    low, high = _extent(mask, axis)
    length = high - low + 1
    count = min(count, length)
    return [low + int((number + 0.5) * length / count) for number in range(count)]


def busiest_slices(mask: np.ndarray, axis: int, count: int) -> list[int]:
    """At most `count` slices through a mask, in order; all that it touches if they fit.

    Otherwise the touched slices are cut into `count` runs of neighbours and the slice with
    the largest area of each run is taken.
    """
    others = tuple(other for other in range(3) if other != axis)
    area = np.count_nonzero(mask, axis=others)
    touched = np.flatnonzero(area)
    if len(touched) <= count:
        return touched.tolist()
    return [int(run[np.argmax(area[run])]) for run in np.array_split(touched, count)]


def key_slices(mask: np.ndarray, axis: int, spacing_mm: float) -> list[int]:
    """Slice with the largest area of a mask, and those with the largest above and below it.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    axis : int
        Across which the slices lie.
    spacing_mm : float
        From slice to slice; what is nearer than `APART_MM` shows the same again.

    Returns
    -------
    list of int
        One to three slices, in order; none of an empty mask.
    """
    area = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
    if not area.any():
        return []
    most, apart = int(np.argmax(area)), max(int(np.ceil(APART_MM / spacing_mm)), 1)
    below, above = area[: max(most - apart + 1, 0)], area[most + apart :]
    return [
        *([int(np.argmax(below))] if below.any() else []),
        most,
        *([most + apart + int(np.argmax(above))] if above.any() else []),
    ]


def balanced_columns(count: int) -> int:
    """Slices a row, 3 to 6, that leave the fewest places of the last row empty."""
    if count <= 5:
        return max(count, 3)
    return max((4, 5, 6), key=lambda columns: (-(-count % columns), columns))


def mosaic(
    strips: Sequence[tuple[int, Sequence[int]]],
    region: np.ndarray,
    affine: np.ndarray,
    *,
    columns: int,
    width: int = 1400,
) -> Mosaic:
    """Arrange slices in rows, all cropped to the bounding box of a region and a margin.

    Parameters
    ----------
    strips : sequence of (axis, indices)
        Slices across one axis each; every strip starts on a new row. Superior, anterior and
        right slices come first.
    region : (X, Y, Z) bool array
        In RAS order; everything is shown where it is empty.
    affine : (4, 4) array
        Voxel to world (mm) of the RAS-ordered grid.
    columns : int
        Slices a row.
    width : int
        Width of the picture in pixels.
    """
    spacing = voxel_sizes(affine)
    bounds = [_crop(region, axis, spacing[axis]) for axis in range(3)]
    room = (width - GAP * (columns + 1)) / columns
    tiles: list[Tile] = []
    top = GAP
    for axis, indices in strips:
        across, down = PLANES[axis]
        size_mm = [(high - low) * spacing[a] for a, (low, high) in enumerate(bounds)]
        pixel_mm = max(size_mm[across] / room, size_mm[down] / (1.3 * room))
        column_positions = _positions(bounds[across], spacing[across], pixel_mm)
        row_positions = _positions(bounds[down], spacing[down], pixel_mm)
        for number, index in enumerate(sorted(indices, reverse=True)):
            row, column = divmod(number, columns)
            left = GAP + int(column * (room + GAP) + (room - len(column_positions)) / 2)
            tile_top = top + row * (len(row_positions) + GAP)
            tiles.append(Tile(axis, int(index), column_positions, row_positions, left, tile_top))
        top = tiles[-1].top + len(row_positions) + GAP if indices else top
    return Mosaic(tuple(tiles), top + FOOTER, width, np.asarray(affine, dtype=float))


def spotlight(
    slices: tuple[int, Sequence[int], int],
    region: np.ndarray,
    affine: np.ndarray,
    *,
    width: int,
    height: int,
) -> Mosaic:
    """Arrange a few slices in a row, one of them at twice the scale of the others.

    Parameters
    ----------
    slices : tuple
        The axis across which they lie, their indices, and which of these is the large one.
        Superior, anterior and right slices come first.
    region, affine
        As for `mosaic`.
    width, height : int
        Of the picture, which is less high where the slices are.
    """
    axis, indices, largest = slices
    spacing = voxel_sizes(affine)
    bounds = [_crop(region, other, spacing[other]) for other in range(3)]
    across, down = PLANES[axis]
    size_mm = [(high - low) * spacing[other] for other, (low, high) in enumerate(bounds)]
    shares = {index: 2 if index == largest else 1 for index in sorted(indices, reverse=True)}
    room = (width - GAP * (len(shares) + 1)) / sum(shares.values())
    pixel_mm = max(size_mm[across] / room, 2 * size_mm[down] / (height - FOOTER - 2 * GAP))
    placed = [
        (
            index,
            _positions(bounds[across], spacing[across], pixel_mm / share),
            _positions(bounds[down], spacing[down], pixel_mm / share),
        )
        for index, share in shares.items()
    ]
    tallest = max(len(rows) for _, _, rows in placed)
    left = (width - sum(len(columns) + GAP for _, columns, _ in placed) + GAP) // 2
    tiles = list[Tile]()
    for index, columns, rows in placed:
        tiles.append(Tile(axis, index, columns, rows, left, GAP + (tallest - len(rows)) // 2))
        left += len(columns) + GAP
    return Mosaic(tuple(tiles), tallest + 2 * GAP + FOOTER, width, np.asarray(affine, float))


def draw_slices(layout: Mosaic, data: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """Grey picture of the slices with letters and positions.

    Parameters
    ----------
    layout : Mosaic
    data : (X, Y, Z) array
        In RAS order.
    window : tuple of float
        Values shown black and white.
    """
    figure, axes = _empty_figure(layout)
    low, high = window
    slices = colormaps["gray"](Normalize(low, high)(layout.assemble(data, low)), bytes=True)
    _annotate(axes, layout)
    return figure_image(figure, slices).convert("L")


def draw_outline(layout: Mosaic, mask: np.ndarray, colour: str, level: float = 0.5) -> Image.Image:
    """Contour of a mask or probability on a transparent picture.

    The contour is where the linearly interpolated volume crosses `level`.
    """
    figure, axes = _empty_figure(layout)
    paths = []
    for tile in layout.tiles:
        values = tile.sample(mask)
        if values.max() <= level:
            continue
        rows, columns = (np.arange(piece.start, piece.stop) for piece in tile.place)
        # A frame of zeros closes contours that run out of the picture.
        contours = contour_generator(
            x=np.r_[columns[0], columns, columns[-1]],
            y=np.r_[rows[0], rows, rows[-1]],
            z=np.pad(values, 1),
            line_type=LineType.ChunkCombinedCode,
        )
        points, codes = cast(tuple[list[NDArray], list[NDArray]], contours.lines(level))
        paths.append(Path(points[0], codes[0]))
    axes.add_collection(
        PathCollection(paths, facecolors="none", edgecolors=colour, linewidths=1.1),
        autolim=False,
    )
    return figure_image(figure)


def draw_heat(
    layout: Mosaic,
    probability: np.ndarray,
    colour_map: str = "plasma",
    lowest: float = 0.1,
    highest: float = 1.0,
    title: str = "probability",
) -> Image.Image:
    """Probability in colours on a transparent picture with its colour bar.

    Values below `lowest` stay invisible; opacity grows with the probability up to `highest`.
    """
    figure, _ = _empty_figure(layout)
    values = np.clip(layout.assemble(probability), 0, highest)
    opacity = np.where(values < lowest, 0, 0.35 + 0.5 * values / highest)
    drawn = colormaps[colour_map](Normalize(0, highest)(values), alpha=opacity, bytes=True)
    bar_axes = figure.add_axes(
        (1 - 260 / layout.width, 20 / layout.height, 240 / layout.width, 8 / layout.height)
    )
    bar_axes.imshow(
        np.linspace(lowest, highest, 256)[None],
        cmap=colour_map,
        vmin=0,
        vmax=highest,
        aspect="auto",
    )
    bar_axes.set_yticks([])
    bar_axes.set_xticks([0, 255], labels=[f"{lowest:.2g}", f"{highest:.2g}"])
    bar_axes.tick_params(colors="white", labelsize=8, length=0, pad=2)
    bar_axes.set_title(title, color="white", fontsize=8, loc="center", y=-2.6)
    return figure_image(figure, drawn)


def draw_regions(
    layout: Mosaic, regions: Sequence[tuple[np.ndarray, str]], opacity: float
) -> Image.Image:
    """Masks filled with colours on a transparent picture, the later over the earlier.

    Parameters
    ----------
    layout : Mosaic
    regions : sequence of (mask, colour)
        (X, Y, Z) arrays in RAS order. As in `draw_outline`, a region ends where the linearly
        interpolated mask falls below a half.
    opacity : float
        0 to 1.
    """
    canvas = np.zeros((layout.height, layout.width, 4), dtype=np.uint8)
    for mask, colour in regions:
        inside = layout.assemble(np.asarray(mask, dtype=np.float32)) >= 0.5
        canvas[inside] = np.round(255 * np.array(to_rgba(colour, opacity))).astype(np.uint8)
    return Image.fromarray(canvas)


def stack(*layers: Image.Image) -> Image.Image:
    """One picture of several of one size, the later over the earlier."""
    return stack_transparent(*layers).convert("RGB")


def stack_transparent(*layers: Image.Image) -> Image.Image:
    """As `stack`, and what no layer covers stays transparent."""
    result = layers[0].convert("RGBA")
    for layer in layers[1:]:
        result.alpha_composite(layer.convert("RGBA"))
    return result


def png_bytes(picture: Image.Image) -> bytes:
    """Content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def draw_size_histogram(sizes_mm3: Sequence[float], voxel_mm3: float) -> Image.Image:
    """Histogram of lesion volumes on a logarithmic axis.

    Parameters
    ----------
    sizes_mm3 : sequence of float
        Volume of each lesion; at least one.
    voxel_mm3 : float
        Volume of one voxel: the first bar starts there.
    """
    figure = Figure(figsize=(7, 2.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    top = max(float(max(sizes_mm3)), voxel_mm3 * 10)
    steps = max(int(np.ceil(np.log2(top / voxel_mm3))) + 1, 2)
    edges = [voxel_mm3 * 2.0 ** (step - 0.5) for step in range(steps + 1)]
    axes.hist(sizes_mm3, bins=edges, color="#3a6ea5", edgecolor="white")
    axes.set_xscale("log")
    axes.set_xlabel("lesion volume (mm³)")
    axes.set_ylabel("lesions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure_image(figure)


def display_window(data: np.ndarray, brain_mask: np.ndarray) -> tuple[float, float]:
    """Values to show black and white: 1st and 99.7th percentile in the brain, and some room.

    The room below keeps fluid apart from the background. Over the whole image where the mask
    is empty; never of no width.
    """
    inside = np.asarray(data)[np.asarray(brain_mask) != 0]
    values = inside if inside.size else np.asarray(data).ravel()
    low, high = (float(value) for value in np.percentile(values, [1, 99.7]))
    low = max(low - 0.15 * (high - low), float(np.min(data)))
    return (low, high) if high > low else (low, low + 1.0)


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last slice that a mask touches, the whole axis where it is empty."""
    others = tuple(other for other in range(3) if other != axis)
    touched = np.flatnonzero(np.any(mask, axis=others))
    return (int(touched[0]), int(touched[-1])) if touched.size else (0, mask.shape[axis] - 1)


def _crop(region: np.ndarray, axis: int, spacing_mm: float) -> tuple[float, float]:
    """Voxel edges of a region's bounding box with a margin, inside the image."""
    low, high = _extent(region, axis)
    margin = MARGIN_MM / spacing_mm
    return max(low - 0.5 - margin, -0.5), min(high + 0.5 + margin, region.shape[axis] - 0.5)


def _positions(bounds: tuple[float, float], spacing_mm: float, pixel_mm: float) -> np.ndarray:
    """Voxel positions of the centres of picture pixels, from high to low."""
    low, high = bounds
    count = max(int((high - low) * spacing_mm / pixel_mm), 1)
    return high - (np.arange(count) + 0.5) * (high - low) / count


def _between(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values between the rows of an array, (len(places), ...), linearly; the edge beyond it."""
    places = np.clip(places, 0, len(rows) - 1)
    before = np.minimum(places.astype(int), max(len(rows) - 2, 0))
    after = np.minimum(before + 1, len(rows) - 1)
    share = (places - before).astype(np.float32)[:, None]
    return rows[before] * (1 - share) + rows[after] * share


def _empty_figure(layout: Mosaic) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(layout.width / DPI, layout.height / DPI), dpi=DPI)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.5, layout.width - 0.5)
    axes.set_ylim(layout.height - 0.5, -0.5)
    return figure, axes


def _annotate(axes: Axes, layout: Mosaic) -> None:
    """Write letters of direction, positions in mm, and the line that names the convention."""
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 8,
        "family": "DejaVu Sans",
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    for tile in layout.tiles:
        across, _ = PLANES[tile.axis]
        right = tile.left + len(tile.columns) - 1
        middle = tile.top + len(tile.rows) / 2
        axes.text(tile.left + 2, middle, HIGH_LETTER[across], ha="left", va="center", **style)
        axes.text(right - 2, middle, LOW_LETTER[across], ha="right", va="center", **style)
        middle_voxel = tile.columns.mean(), tile.rows.mean()
        position = slice_position_mm(layout.affine, tile.axis, tile.index, middle_voxel)
        label = f"{'xyz'[tile.axis]} = {position:.0f} mm"
        axes.text(tile.left + 3, tile.top + 3, label, ha="left", va="top", **style)
    note = "Radiological view: R, the participant's right, is on the left of the picture."
    axes.text(GAP + 4, layout.height - FOOTER / 2, note, va="center", **{**style, "fontsize": 9})


def slice_position_mm(
    affine: np.ndarray, axis: int, index: float, middle: tuple[float, float]
) -> float:
    """World coordinate, along a slice's axis, of the middle of what is shown of it.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world (mm) of the RAS-ordered grid.
    axis, index
        The slice: number `index` across `axis`.
    middle : tuple of float
        Voxel position of the middle along the plane's axes (`PLANES`).
    """
    across, down = PLANES[axis]
    voxel = np.ones(4)
    voxel[axis], voxel[across], voxel[down] = index, *middle
    return float((affine @ voxel)[axis])


def figure_image(figure: Figure, picture: NDArray[np.uint8] | None = None) -> Image.Image:
    """Draw a figure, RGBA.

    Parameters
    ----------
    figure : Figure
    picture : (height, width, 4) uint8 array, optional
        What to draw it over, pixel by pixel of the figure; much quicker than as its image.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    pixels = np.asarray(renderer.buffer_rgba())
    if picture is not None:
        pixels[:] = picture
    figure.draw(renderer)
    return Image.fromarray(pixels.copy())
