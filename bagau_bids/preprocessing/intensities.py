"""Numbers in an image that nobody measured: wrapped round, clipped, or put there as a sign.

A scanner's image is continuous: next to the brightest voxels lie bright ones, and no voxel lies
far beyond all others. What breaks this came into the file later, and every figure that is taken
from the lowest or the highest value goes wrong with it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bagau_bids.errors import InputImageError

ORDINARY_PERCENTILES = (0.1, 99.9)
# Beyond the ordinary values by more than so many times their range; scalp and vessels are bright.
FAR_BELOW = 1.0
FAR_ABOVE = 3.0
FILL_SHARE = 0.05  # of the voxels with one exact value: it may be a fill, and says nothing
# Steps between neighbours from the brightest to the darkest eighth of all values, where lowest
# and highest lie about as far from zero: where a number went past the limit of its type.
STEP = 0.75  # of the range
LEAST_STEPS = 20
STEPS_PER_DARK_VOXEL = 0.02
SYMMETRY = (0.5, 1.3)  # of the lowest over the highest value
# Negative numbers read as unsigned are the highest of all. Between them and the others lies a part
# of the range that has no value. Some neighbours across it differ by all of the range: taken as
# negative they would be next to each other, by so much of what there is of the range.
GAP = 0.15  # of the range
BINS = 256
CONTINUOUS = 0.1
SOME_PERCENTILE = 95
NEAR = 0.8  # of the largest number of the type: that negative ones reach, which became the highest
LOWEST_VALUES = 100


class Repaired(NamedTuple):
    """An image without numbers that nobody measured.

    Attributes
    ----------
    volume : (X, Y, Z) array
    notes : tuple of str
        What was changed.
    """

    volume: NDArray[np.float32]
    notes: tuple[str, ...]


def refuse_wrapped(volume: NDArray[np.float32]) -> None:
    """Refuse an image whose brightest voxels became its lowest ones, or the other way round.

    Integers past the largest number of their type go on at its smallest, and negative ones that
    are read as unsigned at its largest. In the image this is a step over the whole range from one
    voxel to the next, within what was bright, or about zero.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Finite, not constant.

    Raises
    ------
    InputImageError
        If there are such steps.
    """
    low, high = float(volume.min()), float(volume.max())
    if low < 0 and SYMMETRY[0] * high <= -low <= SYMMETRY[1] * high:
        dark = int((volume < low + (1 - STEP) * (high - low)).sum())
        steps = sum(
            int((np.abs(one - other) > STEP * (high - low)).sum())
            for one, other in _neighbours(volume)
        )
        if steps >= max(LEAST_STEPS, STEPS_PER_DARK_VOXEL * dark):
            raise InputImageError(_wrapped(steps, high, low, "unsigned read as signed"))
    if low >= 0 and (steps := _steps_below_zero(volume)) >= LEAST_STEPS:
        raise InputImageError(_wrapped(steps, low, high, "signed read as unsigned"))


def _wrapped(steps: int, start: float, end: float, how: str) -> str:
    return (
        f"intensities wrapped round: at {steps} places the image jumps between neighbours from "
        f"about {start:.5g} to about {end:.5g}, expected a continuous image. Numbers past the "
        f"limit of their type went on at its other end (most likely {how}): convert the image "
        "again from its source"
    )


def _neighbours(volume: NDArray[np.float32]) -> Iterator[tuple[NDArray, NDArray]]:
    """Voxels and those next to them, along each axis."""
    for axis in range(3):
        along = np.moveaxis(volume, axis, 0)
        yield along[:-1], along[1:]


def _steps_below_zero(volume: NDArray[np.float32]) -> int:
    """Count the neighbours on both sides of zero, where what lies below it became the highest.

    None where the highest values are no such: a single one is a fill, those without a gap below
    them are bright, and others lie beside some that are not lowest.
    """
    low, high = float(volume.min()), float(volume.max())
    bins = ((volume - low) * ((BINS - 1) / (high - low))).astype(np.uint8)
    there = np.flatnonzero(np.bincount(bins.ravel(), minlength=BINS))
    widest = int(np.argmax(np.diff(there)))
    start, end = low + there[widest : widest + 2] / (BINS - 1) * (high - low)
    limit = (start + end) / 2
    if end - start < GAP * (high - low) or volume[volume > limit].min() == high:
        return 0
    jumps = np.concatenate(
        [
            np.abs(one - other)[(one > limit) != (other > limit)]
            for one, other in _neighbours(volume)
        ]
    )
    next_to_each_other = high - low - float(np.percentile(jumps, SOME_PERCENTILE))
    continuous = next_to_each_other <= CONTINUOUS * (high - low - (end - start))
    return jumps.size if continuous and _ends_with_its_type(volume) else 0


def _ends_with_its_type(volume: NDArray[np.float32]) -> bool:
    """Tell whether the highest value is about that of an unsigned type, whatever the scale.

    The step from one whole number to the next is seen among the lowest.
    """
    values = np.unique(volume)
    highest = values[-1] / np.diff(values[:LOWEST_VALUES]).min()
    return any(NEAR * limit <= highest <= limit + 1 for limit in (2**8 - 1, 2**16 - 1))


def repair_extremes(volume: NDArray[np.float32]) -> Repaired:
    """Replace numbers far beyond all others, and a fill value far below them.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Finite, not constant.

    Returns
    -------
    Repaired
        Single voxels have the median of their ordinary neighbours, a fill the lowest ordinary
        value; `volume` itself where there is nothing to repair.
    """
    fill, share = commonest_value(volume)
    filled = volume == fill if share >= FILL_SHARE else np.zeros(volume.shape, bool)
    some = volume[~filled]
    if not some.size:
        return Repaired(volume, ())
    low, high = np.percentile(some, ORDINARY_PERCENTILES)
    least, most = low - FAR_BELOW * (high - low), high + FAR_ABOVE * (high - low)
    if high <= low or (volume.min() >= least and volume.max() <= most):
        return Repaired(volume, ())
    strange = ((volume < least) | (volume > most)) & ~filled
    ordinary = some[(some >= least) & (some <= most)]
    repaired, notes = volume.copy(), []
    # Zero is what a background is, also that of a stripped brain of little contrast.
    if filled.any() and fill != 0 and not least <= fill <= most:
        repaired[filled] = ordinary.min()
        notes.append(
            f"{filled.sum()} voxels of {fill:.6g}, far outside all others, are a fill: they were "
            f"set to the lowest other value, {ordinary.min():.6g}."
        )
    if strange.any():
        values = volume[strange]
        repaired[strange] = _surroundings(repaired, strange)
        notes.append(
            f"{values.size} voxel(s) of {_span(values)} lie far outside all others "
            f"({ordinary.min():.6g} to {ordinary.max():.6g}) and cannot be measured ones: they "
            "were replaced by the median of their neighbours."
        )
    return Repaired(repaired, tuple(notes))


def _surroundings(volume: NDArray[np.float32], strange: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median of the ordinary neighbours of each strange voxel, (N,) array."""
    known = ~strange
    overall = np.median(volume[known])
    found = []
    for place in np.argwhere(strange):
        box = tuple(slice(max(index - 1, 0), index + 2) for index in place)
        near = volume[box][known[box]]
        found.append(np.median(near) if near.size else overall)
    return np.asarray(found, dtype=np.float32)


def _span(values: NDArray[np.float32]) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def commonest_value(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Value that most voxels have, and the share of voxels that have it."""
    some = volume.ravel()[:: max(1, volume.size // 100_000)]
    values, counts = np.unique(some, return_counts=True)
    commonest = float(values[np.argmax(counts)])
    return commonest, float((volume == commonest).mean())


def clipped_share(flair: NDArray, brain_mask: NDArray[np.bool_]) -> float:
    """Share of the brain that has exactly the image's highest value.

    Parameters
    ----------
    flair : (X, Y, Z) array
        As it was stored, uncorrected.
    brain_mask : (X, Y, Z) bool array
        Not empty.

    Returns
    -------
    float
        0 to 1. A scanner's image has its highest value once or a few times; where it was clipped,
        lesions may be as bright as all the rest beyond the limit.
    """
    return float((flair[brain_mask] == flair.max()).mean())
