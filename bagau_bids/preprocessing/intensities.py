"""Numbers in an image that nobody measured: wrapped round, clipped, or put there as a sign.

A scanner's image is continuous: next to the brightest voxels lie bright ones, and no voxel lies
far beyond all others. What breaks this came into the file later, and every figure that is taken
from the lowest or the highest value goes wrong with it.
"""

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

    Integers past the largest number of their type go on at its smallest. In the image this is a
    step over the whole range from one voxel to the next, within what was bright.

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
        steps = _steps(volume, STEP * (high - low))
        if steps >= max(LEAST_STEPS, STEPS_PER_DARK_VOXEL * dark):
            raise InputImageError(
                f"intensities wrapped round: at {steps} places the image jumps between "
                f"neighbours from about {high:.5g} to about {low:.5g}, expected a continuous "
                "image. Numbers past the limit of their type went on at its other end (unsigned "
                "read as signed, or the other way round): convert the image again from its source"
            )


def _steps(volume: NDArray[np.float32], least: float) -> int:
    """Count the pairs of neighbours along an axis that differ by more than so much."""
    return sum(int((np.abs(np.diff(volume, axis=axis)) > least).sum()) for axis in range(3))


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
