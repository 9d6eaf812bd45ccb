"""Values that lie apart from the others of their kind."""

from collections.abc import Sequence

import numpy as np

# Interquartile ranges beyond the quartiles. With 1.5 a quarter of normal samples of twenty show
# an outlier; 2.2 was proposed instead (Hoaglin 1987, doi:10.1080/01621459.1987.10478551).
FENCE = 2.2
# Fewer values than this say too little about what is usual.
FEWEST_VALUES = 10
# Volumes and counts are skewed to the right and may be zero; their cube roots are not.
SKEWED_UNITS = ("mm^3", "ml", "voxels", "lesions")


def straightened(values: Sequence[float] | np.ndarray, unit: str) -> np.ndarray:
    """Values on the scale on which they are compared: cube roots of volumes and counts.

    Parameters
    ----------
    values : sequence of float
    unit : str
        As in the sidecar of the table.
    """
    array = np.asarray(values, dtype=float)
    return np.cbrt(array) if unit in SKEWED_UNITS else array


def usual_range(values: Sequence[float] | np.ndarray, unit: str) -> tuple[float, float] | None:
    """Range outside which a value is an outlier, on the scale of `straightened`.

    Parameters
    ----------
    values : sequence of float
        Finite; not straightened yet.
    unit : str
        As in the sidecar of the table.

    Returns
    -------
    (low, high) or None
        The quartiles, widened by `FENCE` times their distance; None for fewer values than
        `FEWEST_VALUES`.
    """
    if len(values) < FEWEST_VALUES:
        return None
    low, high = np.percentile(straightened(values, unit), [25, 75])
    # What is equal but for rounding is not apart.
    room = max(FENCE * (high - low), 1e-6 * max(abs(low), abs(high)))
    return float(low - room), float(high + room)


def outlying(values: Sequence[float] | np.ndarray, unit: str) -> np.ndarray:
    """Which values lie outside their `usual_range`, (n,) bool."""
    limits = usual_range(values, unit)
    if limits is None:
        return np.zeros(len(values), dtype=bool)
    scaled = straightened(values, unit)
    return (scaled < limits[0]) | (scaled > limits[1])
