"""Which voxels are white matter hyperintensity, which infarct, and which neither."""

from dataclasses import dataclass

import numpy as np

from bagau_bids.config import INFARCT_THRESHOLD
from bagau_bids.measures.lesions import remove_small_lesions, voxel_volume_mm3
from bagau_bids.spaces import Image


def tell_apart(
    wmh: np.ndarray, infarct: np.ndarray | None, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Decide for each voxel by both probabilities; none is both.

    Parameters
    ----------
    wmh : (X, Y, Z) array
        Probability of white matter hyperintensity.
    infarct : (X, Y, Z) array or None
        Probability of infarct; None where no network tells infarcts.
    threshold : float
        A voxel may be WMH from this probability on, infarct from
        :data:`bagau_bids.config.INFARCT_THRESHOLD` on.

    Returns
    -------
    wmh_mask, infarct_mask : (X, Y, Z) bool arrays
        Where a voxel may be either, the larger probability decides, and infarct where both are
        equal.
    """
    may_be_wmh = np.asarray(wmh) >= threshold
    if infarct is None:
        return may_be_wmh, np.zeros_like(may_be_wmh)
    may_be_infarct = np.asarray(infarct) >= INFARCT_THRESHOLD
    is_infarct = may_be_infarct & (~may_be_wmh | (infarct >= wmh))
    return may_be_wmh & ~is_infarct, is_infarct


@dataclass(frozen=True)
class Found:
    """What a scan was found to have.

    Parameters
    ----------
    wmh : (X, Y, Z) bool array
        WMH, small lesions dropped.
    infarct : (X, Y, Z) bool array
        What the network calls infarct, pieces of any size; all False where no network tells it.
    told : bool
        Whether a network tells infarcts.
    reported : (X, Y, Z) bool array or None
        Infarcts as a result, small ones dropped; None where they are not wanted or not told.
    """

    wmh: np.ndarray
    infarct: np.ndarray
    told: bool
    reported: np.ndarray | None

    def infarct_ml(self, affine: np.ndarray) -> float | None:
        """Volume of what the network calls infarct; None where no network tells it."""
        if not self.told:
            return None
        return round(float(self.infarct.sum()) * voxel_volume_mm3(affine) / 1000, 3)


def find(
    wmh: Image,
    infarct: np.ndarray | None,
    *,
    threshold: float,
    min_size_mm3: float = 0.0,
    wanted: bool = False,
) -> Found:
    """Turn probabilities into masks, by `tell_apart` and by size.

    Parameters
    ----------
    wmh : Image
    infarct, threshold
        As for `tell_apart`.
    min_size_mm3 : float
        Smaller lesions, and smaller infarcts, are neither in the end.
    wanted : bool
        Whether infarcts are wanted as a result.
    """
    is_wmh, is_infarct = tell_apart(wmh.data, infarct, threshold)
    told = infarct is not None

    def large(mask: np.ndarray) -> np.ndarray:
        return remove_small_lesions(Image(mask, wmh.affine), min_size_mm3)

    return Found(large(is_wmh), is_infarct, told, large(is_infarct) if told and wanted else None)
