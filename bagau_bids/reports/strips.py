"""Strip plots for pages: every value a point that links to its participant, over a box.

They are laid out here and drawn by the template as SVG, so that points can be clicked without a
script and thousands of them stay small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from bagau_bids.bids.tables import COUNTED
from bagau_bids.measures.outliers import SKEWED_UNITS, outlying, straightened

WIDTH, HEIGHT = 560, 62  # of a strip, in pixels
SIDE = 14  # pixels left and right of the outermost values
POINTS = (6, 36)  # rows over which the points are spread
TICK_ROOM = 40  # pixels that the words of a tick take
GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Value:
    """A value with the scan and the link it belongs to."""

    number: float
    label: str
    link: str


@dataclass(frozen=True)
class Point:
    """A value on its strip: place in pixels, words, link, and whether it is an outlier."""

    x: float
    y: float
    text: str
    link: str
    outlying: bool


@dataclass(frozen=True)
class Strip:
    """A strip plot: points, quartiles and ticks, each at its pixel.

    Parameters
    ----------
    points : tuple of Point
    quartiles : tuple of float
        Lower quartile, median, upper quartile.
    ticks : tuple of (float, str)
    """

    points: tuple[Point, ...]
    quartiles: tuple[float, float, float]
    ticks: tuple[tuple[float, str], ...]


def strip(values: Sequence[Value], unit: str) -> Strip:
    """Lay a strip plot out.

    Parameters
    ----------
    values : sequence of Value
        At least one.
    unit : str
        As in the sidecar of the table; volumes and counts get an axis of cube roots.
    """
    numbers = np.array([value.number for value in values])
    scaled = straightened(numbers, unit)
    low, high = float(scaled.min()), float(scaled.max())
    room = (WIDTH - 2 * SIDE) / ((high - low) or 1.0)

    def pixels(places: np.ndarray) -> np.ndarray:
        return np.round(SIDE + (places - low) * room, 1)

    # Neighbours in value get rows far apart, the same ones every time.
    rows = np.empty(len(numbers))
    rows[np.argsort(scaled, kind="stable")] = np.arange(1, len(numbers) + 1) * GOLDEN % 1
    heights = np.round(POINTS[0] + rows * (POINTS[1] - POINTS[0]), 1)
    points = tuple(
        Point(x, y, f"{value.label}: {short(value.number)}", value.link, bool(apart))
        for x, y, value, apart in zip(
            pixels(scaled).tolist(), heights.tolist(), values, outlying(numbers, unit), strict=True
        )
    )
    quartiles = pixels(np.percentile(scaled, [25, 50, 75])).tolist()
    return Strip(points, tuple(quartiles), _ticks(numbers, unit, pixels))


def short(value: float) -> str:
    """Write a number for a person: four significant digits, thousands apart by a narrow space."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}"


def _ticks(
    numbers: np.ndarray, unit: str, pixels: Callable[[np.ndarray], np.ndarray]
) -> tuple[tuple[float, str], ...]:
    """Round values along the axis; those too close to the one before are left out."""
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        candidates = np.array([low])
    elif unit in SKEWED_UNITS and high > 10 * max(low, 0):
        decades = 10.0 ** np.arange(np.floor(np.log10(high)) - 3, np.ceil(np.log10(high)) + 1)
        candidates = np.concatenate([[0.0], np.outer(decades, [1, 2, 5]).ravel()])
    else:
        locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
        candidates = np.asarray(locator.tick_values(low, high))
    if unit in COUNTED:
        candidates = candidates[candidates == np.round(candidates)]
    inside = candidates[(candidates >= low) & (candidates <= high)]
    ticks: list[tuple[float, str]] = []
    for number, place in zip(inside, pixels(straightened(inside, unit)).tolist(), strict=True):
        if not ticks or place - ticks[-1][0] > TICK_ROOM:
            ticks.append((place, short(float(number))))
    return tuple(ticks)
