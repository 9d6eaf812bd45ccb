"""Stacks of slices for a page: each slice of a scan a small picture, the mask as an SVG path.

Orientation is that of `bagau_bids.reports.figures`: slices as they were scanned, radiological.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from contourpy import LineType, contour_generator
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from bagau_bids.reports import figures
from bagau_bids.spaces import voxel_sizes

LARGEST_BYTES = 3_000_000  # of one scan's slices, as text in the page
NOT_AIR = 0.3  # of the display window: what is darker everywhere beyond is left out
SMALLEST_SHARE = 0.005  # of a slice that is brighter than air where the head is
MARGIN_MM = 6.0
HEADROOM = 1.5  # pictures hold this much of the display window, so that bright WMH can be dimmed
FINE_MM = 0.75  # voxels up to this large may be halved
LOWEST_PROBABILITY = 0.1
PROBABILITY_LEVELS = 15  # with "nothing", what four bits a pixel can tell apart


@dataclass(frozen=True)
class Volumes:
    """A scan and what was found in it: (X, Y, Z) arrays in RAS order on one grid.

    Parameters
    ----------
    flair : array
    affine : (4, 4) array
        Voxel to world, mm.
    window : tuple of float
        Values of the FLAIR shown black and white.
    mask : bool array or None
        WMH.
    probability : array or None
        WMH, 0 to 1.
    """

    flair: NDArray
    affine: NDArray
    window: tuple[float, float]
    mask: NDArray | None = None
    probability: NDArray | None = None


@dataclass(frozen=True)
class Coding:
    """How slices are stored.

    Parameters
    ----------
    words : str
        What the reader of the page is told.
    options : dict
        Format, and how to save it.
    all_planes : bool
        All planes of a volume with about cubic voxels, or the scan's own only.
    scale : float
        Pixels a voxel, along both sides of a slice.
    step : int
        From one slice to the next.
    """

    words: str
    options: dict[str, Any]
    all_planes: bool = True
    scale: float = 1.0
    step: int = 1

    @property
    def media_type(self) -> str:
        """Of the pictures, for their addresses."""
        return f"image/{self.options['format'].lower()}"


@dataclass(frozen=True)
class Plane:
    """All slices across one axis, from the lowest position to the highest.

    Parameters
    ----------
    axis : int
    columns, rows : int
        Voxels of a slice, across and down.
    width_mm, height_mm : float
    first, step, total : int
        Number of the first slice shown, counted from 1, how many further the next one lies, and
        slices that the FLAIR has.
    positions_mm : list of float
        World coordinate of each slice along its axis.
    areas_mm2 : list of float
        Of the mask in each slice.
    pictures, probabilities, paths : list of str
        Data of image files in base64, and SVG path data in half voxels; empty where a slice
        has nothing.
    """

    axis: int
    columns: int
    rows: int
    width_mm: float
    height_mm: float
    first: int
    step: int
    total: int
    positions_mm: list[float]
    areas_mm2: list[float]
    pictures: list[str]
    probabilities: list[str]
    paths: list[str]

    @property
    def name(self) -> str:
        """Axial, coronal or sagittal."""
        return figures.PLANE_NAMES[self.axis]

    @property
    def axes(self) -> tuple[int, int]:
        """Axes across and down."""
        return figures.PLANES[self.axis]

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """What lies on the left, on the right, at the top and at the bottom."""
        across, down = self.axes
        high, low = figures.HIGH_LETTER, figures.LOW_LETTER
        return high[across], low[across], high[down], low[down]

    @property
    def opening(self) -> int:
        """Slice shown first: that with the largest area of the mask, else the middle one."""
        areas = np.asarray(self.areas_mm2)
        return int(np.argmax(areas)) if areas.any() else len(areas) // 2

    @property
    def bars(self) -> str:
        """SVG path of one bar a slice, as high as its area of the mask; 10 is the highest."""
        highest = max(self.areas_mm2)
        return "".join(
            f"M{number + 0.1:.1f} 10v-{max(10 * area / highest, 1.5):.1f}h.8V10z"
            for number, area in enumerate(self.areas_mm2)
            if area
        )

    @property
    def size_bytes(self) -> int:
        """Of all slices, as text in the page."""
        return sum(map(len, (*self.pictures, *self.probabilities, *self.paths)))


_JPEG = {"format": "JPEG", "quality": 88, "optimize": True}
_SMALL_JPEG = {**_JPEG, "quality": 80}
ONE_PLANE = Coding("slightly compressed (JPEG), in one plane to save room", _JPEG, False)
# From the best to the smallest; the first that fits is taken.
CODINGS = (
    Coding("stored without loss", {"format": "PNG"}),
    Coding("slightly compressed (JPEG)", _JPEG),
    Coding("at half resolution (JPEG) to save room", _JPEG, True, 0.5, 2),
    ONE_PLANE,
    Coding("at half resolution (JPEG) to save room", _SMALL_JPEG, False, 0.5),
)


def scan_planes(
    volumes: Volumes, largest_bytes: int = LARGEST_BYTES
) -> tuple[tuple[Plane, ...], Coding]:
    """Turn a scan into slices that fit into a page.

    The three planes of a volume with about cubic voxels, axial first; else only the slices as
    they were scanned. Air around the head is left out, but never a whole slice as scanned.

    Parameters
    ----------
    volumes : Volumes
    largest_bytes : int
        Room for the slices, as text. The best of `CODINGS` that fits is taken, the smallest
        whatever its size.

    Returns
    -------
    planes : tuple of Plane
        The scan's own first.
    coding : Coding
        How they are stored.
    """
    own, *others = figures.planes_shown(volumes.affine)
    isotropic = bool(others)
    box = _box(volumes, whole_axis=None if isotropic else own)
    fine = isotropic and voxel_sizes(volumes.affine).max() <= FINE_MM
    codings = [
        coding
        for coding in CODINGS
        if (coding.step == 1 or fine) and (isotropic or coding != ONE_PLANE)
    ]
    for coding in codings:
        axes = [own, *others] if coding.all_planes else [own]
        room = np.inf if coding == codings[-1] else largest_bytes
        if planes := _planes(volumes, axes, box, coding, room):
            break
    return planes, coding


def _planes(
    volumes: Volumes,
    axes: list[int],
    box: tuple[slice, slice, slice],
    coding: Coding,
    room: float,
) -> tuple[Plane, ...]:
    """Planes across axes; none as soon as they need more than `room` bytes."""
    planes = []
    for axis in axes:
        planes.append(_plane(volumes, axis, box, coding))
        room -= planes[-1].size_bytes
        if room < 0:
            return ()
    return tuple(planes)


def _box(volumes: Volumes, whole_axis: int | None) -> tuple[slice, slice, slice]:
    """Voxels to be shown: the head, the mask and a margin; all of `whole_axis`."""
    low, high = volumes.window
    bright = volumes.flair > low + NOT_AIR * (high - low)
    sizes = voxel_sizes(volumes.affine)
    pieces = []
    for axis, length in enumerate(bright.shape):
        others = tuple(other for other in range(3) if other != axis)
        # Specks of noise do not make a head.
        touched = bright.mean(axis=others) > SMALLEST_SHARE
        if volumes.mask is not None:
            touched |= volumes.mask.any(axis=others)
        shown = np.flatnonzero(touched)
        if axis == whole_axis or not shown.size:
            pieces.append(slice(0, length))
            continue
        margin = int(np.ceil(MARGIN_MM / sizes[axis]))
        first, last = int(shown[0]), int(shown[-1])
        pieces.append(slice(max(first - margin, 0), min(last + 1 + margin, length)))
    return pieces[0], pieces[1], pieces[2]


def _plane(volumes: Volumes, axis: int, box: tuple[slice, slice, slice], coding: Coding) -> Plane:
    across, down = figures.PLANES[axis]
    sizes = voxel_sizes(volumes.affine)
    columns, rows = (box[other].stop - box[other].start for other in (across, down))
    middle = tuple((box[other].start + box[other].stop - 1) / 2 for other in (across, down))
    low, high = volumes.window
    indices = range(box[axis].start, box[axis].stop, coding.step)

    def slices(data: NDArray | None) -> Iterator[NDArray[Any]]:
        """Slices as (rows, columns): right or front on the left, front or top on top."""
        if data is not None:
            whole = np.moveaxis(data, axis, 0)
            for index in indices:
                yield whole[index][box[across], box[down]].T[::-1, ::-1]

    counts = [int(np.count_nonzero(mask)) for mask in slices(volumes.mask)]
    positions = [
        figures.slice_position_mm(volumes.affine, axis, index, middle) for index in indices
    ]
    return Plane(
        axis=axis,
        columns=columns,
        rows=rows,
        width_mm=float(columns * sizes[across]),
        height_mm=float(rows * sizes[down]),
        first=box[axis].start + 1,
        step=coding.step,
        total=volumes.flair.shape[axis],
        positions_mm=[round(position, 1) for position in positions],
        areas_mm2=[
            round(float(count * sizes[across] * sizes[down]), 1)
            for count in counts or [0] * len(indices)
        ],
        pictures=[
            _grey(np.clip((values - low) / (HEADROOM * (high - low)), 0, 1), coding)
            for values in slices(volumes.flair)
        ],
        probabilities=[_heat(values) for values in slices(volumes.probability)],
        paths=[outline_path(mask) for mask in slices(volumes.mask)],
    )


def _grey(values: NDArray[Any], coding: Coding) -> str:
    picture = Image.fromarray(np.round(255 * values).astype(np.uint8))
    if coding.scale < 1:
        size = [max(round(length * coding.scale), 1) for length in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BOX)
    return _encoded(picture, **coding.options)


def _heat(probability: NDArray[Any]) -> str:
    """Picture of the probability in colours, transparent below the lowest that is shown."""
    levels = np.ceil(np.clip(probability, 0, 1) * PROBABILITY_LEVELS).astype(np.uint8)
    levels[probability < LOWEST_PROBABILITY] = 0
    if not levels.any():
        return ""
    steps = np.arange(PROBABILITY_LEVELS + 1) / PROBABILITY_LEVELS
    picture = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    picture.putpalette(colormaps["plasma"](steps, bytes=True)[:, :3].tobytes())
    opacity = np.where(steps > 0, 0.35 + 0.5 * steps, 0)
    transparency = np.round(255 * opacity).astype(np.uint8).tobytes()
    return _encoded(picture, format="PNG", bits=4, transparency=transparency)


def _encoded(picture: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def outline_path(mask: NDArray[Any]) -> str:
    """Outline of a mask as SVG path data, in half pixels from the upper left corner.

    The outline runs along the edges of pixels and cuts their corners, as it crosses a half
    between neighbouring pixels. Every piece is closed; holes are pieces of their own, so that
    the path can be filled by the even-odd rule.

    Parameters
    ----------
    mask : (rows, columns) bool array

    Returns
    -------
    str
        Empty where the mask is.
    """
    if not mask.any():
        return ""
    # A frame of zeros closes pieces that reach the edge. The centre of the first pixel, now at
    # (1, 1), lies one half pixel from the corner.
    contours = contour_generator(z=np.pad(mask, 1).astype(np.float32), line_type=LineType.Separate)
    pieces = cast(list[NDArray[np.float64]], contours.lines(0.5))
    return "".join(_closed_path(np.round(2 * points - 1).astype(int)) for points in pieces)


def _closed_path(points: NDArray[np.int_]) -> str:
    """Write a closed line, its points on a grid, without those in the middle of a straight."""
    points = points[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    steps = np.diff(corners, axis=0)
    start = f"M{corners[0, 0]} {corners[0, 1]}l"
    return start + " ".join(f"{x} {y}" for x, y in steps) + "z"
