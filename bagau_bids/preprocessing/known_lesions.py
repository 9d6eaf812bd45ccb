"""A mask of known lesions, drawn on the FLAIR or on another image of its session."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.conform import read_volume
from bagau_bids.spaces import Image, OnGrid, reorient, resample, same_grid

LEAST_SHARE = 0.5  # of the mask that must lie in the FLAIR's field of view


@dataclass(frozen=True)
class LesionsOnFlair:
    """Known lesions on the FLAIR's grid.

    Attributes
    ----------
    mask : (X, Y, Z) bool array
        On the conformed grid of the FLAIR; all False where the file holds none.
    resampled : bool
        Whether the file lies on another grid.
    notes : tuple of str
        What to tell a user.
    """

    mask: NDArray[np.bool_]
    resampled: bool
    notes: tuple[str, ...]


def known_lesions_on(path: Path, flair: OnGrid) -> LesionsOnFlair:
    """Read a mask of known lesions and bring it onto the conformed grid of a FLAIR.

    A mask on another grid is taken to lie in the same world, as images of one session do, and
    each voxel of the FLAIR gets the value of the nearest voxel of the mask.

    Parameters
    ----------
    path : Path
        NIfTI file; what is above 0 is lesion.
    flair : OnGrid
        Conformed.

    Returns
    -------
    LesionsOnFlair

    Raises
    ------
    InputImageError
        If the file cannot be read, has no usable geometry, or lies elsewhere than the FLAIR.
    """
    stored = read_volume(path)
    mask = reorient(Image(np.nan_to_num(stored.data) > 0, stored.affine))
    said = tuple(f"Mask of known lesions: {note}" for note in stored.notes)
    if not mask.data.any():
        empty = f"{path}: the mask of known lesions is empty; nothing is excluded."
        return LesionsOnFlair(np.zeros(flair.shape, bool), False, (*said, empty))
    if same_grid(mask, flair):
        return LesionsOnFlair(mask.data, False, said)
    share = _share_within(mask, flair)
    if share < LEAST_SHARE:
        raise InputImageError(
            f"{path}: the mask of known lesions lies elsewhere than the FLAIR: "
            f"{100 * share:.0f} % of it are in the FLAIR's field of view, expected at least "
            f"{100 * LEAST_SHARE:.0f} %; draw it on the FLAIR, or on an image of the same session "
            "in the same world coordinates, or leave it out with --ignore-lesion-roi"
        )
    carried = resample(mask, flair, order=0) > 0.5
    note = (
        f"{path}: the mask of known lesions lies on another grid than the FLAIR and was carried "
        "over by its world coordinates; look whether its outline is where the lesion is."
    )
    if not carried.any():
        note += " No voxel of the FLAIR is nearest to it: nothing is excluded."
    return LesionsOnFlair(carried, True, (*said, note))


def _share_within(mask: Image, grid: OnGrid) -> float:
    """Share of a mask's voxels whose centres lie in the field of view of another grid."""
    to_other = np.linalg.inv(grid.affine) @ mask.affine
    voxels = to_other[:3, :3] @ np.array(np.nonzero(mask.data)) + to_other[:3, 3:]
    last = np.reshape(grid.shape, (3, 1)) - 0.5
    return float(((voxels >= -0.5) & (voxels <= last)).all(axis=0).mean())
