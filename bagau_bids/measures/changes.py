"""Lesions of two sessions on one grid: which are new, gone, growing, shrinking or stable."""

import numpy as np
import pandas as pd
from scipy import ndimage

from bagau_bids.measures.lesions import label_lesions, voxel_volume_mm3
from bagau_bids.spaces import Image

NEW, GONE, GROWING, SHRINKING, STABLE, SMALL = (
    "new",
    "gone",
    "growing",
    "shrinking",
    "stable",
    "small",
)
STATES = (NEW, GROWING, STABLE, SHRINKING, GONE, SMALL)
# A sphere of 3 mm, some five voxels of a usual scan: whether smaller ones are found is chance.
SMALLEST_MM3 = np.pi / 6 * 3.0**3
# Growth of the diameter that readers see in lesions of any size is 15 % (PMID 12490477), so the
# volume must grow, or shrink, by this factor.
FACTOR = 1.15**3


def lesion_changes(before: Image, after: np.ndarray) -> pd.DataFrame:
    """Compare the lesions of two sessions.

    Lesions of both sessions that overlap or touch (26 neighbours) belong together, however many
    they are in each, so a lesion that splits or lesions that merge are one row.

    Parameters
    ----------
    before : Image
        Mask of the earlier session on a grid of about cubic voxels, non-zero inside; only what
        both scans cover.
    after : (X, Y, Z) array
        The same of the later session, on the same grid.

    Returns
    -------
    table : DataFrame
        One row a lesion, the largest first; described in ``data/tables/lesion_changes.json``.
    """
    first, second = before.data != 0, np.asarray(after) != 0
    if first.shape != second.shape:
        raise ValueError(f"masks of one grid expected: {first.shape}, {second.shape}")
    labels = label_lesions(first | second)
    count = int(labels.max())
    voxel_mm3 = voxel_volume_mm3(before.affine)

    def volumes(mask: np.ndarray) -> np.ndarray:
        return np.bincount(labels[mask], minlength=count + 1)[1:] * voxel_mm3

    old, new = volumes(first), volumes(second)
    centres = ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)) if count else []
    world = np.reshape(centres, (-1, 3)) @ before.affine[:3, :3].T + before.affine[:3, 3]
    return pd.DataFrame(
        {
            "index": np.arange(1, count + 1),
            "change": [change_of(a, b) for a, b in zip(old, new, strict=True)],
            "volume_before_mm3": old,
            "volume_after_mm3": new,
            "gained_mm3": volumes(second & ~first),
            "lost_mm3": volumes(first & ~second),
            "centroid_x_mm": world[:, 0],
            "centroid_y_mm": world[:, 1],
            "centroid_z_mm": world[:, 2],
        }
    )


def change_of(before_mm3: float, after_mm3: float) -> str:
    """Name the change of a lesion with these volumes, one of `STATES`."""
    if max(before_mm3, after_mm3) < SMALLEST_MM3:
        return SMALL
    if before_mm3 == 0:
        return NEW
    if after_mm3 == 0:
        return GONE
    if after_mm3 >= FACTOR * before_mm3:
        return GROWING
    return SHRINKING if before_mm3 >= FACTOR * after_mm3 else STABLE


def count_changes(table: pd.DataFrame) -> dict[str, float]:
    """Sum up the lesions of one pair of sessions.

    Parameters
    ----------
    table : DataFrame
        As `lesion_changes` returns.

    Returns
    -------
    dict
        ``n_<state>`` for each of `STATES`, then the volumes of both sessions and what was gained
        and lost, mm3.
    """
    counts = table["change"].value_counts()
    sums = {
        name: float(table[name].sum())
        for name in ("volume_before_mm3", "volume_after_mm3", "gained_mm3", "lost_mm3")
    }
    return {**{f"n_{state}": int(counts.get(state, 0)) for state in STATES}, **sums}
