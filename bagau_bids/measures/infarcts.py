"""Which voxels are white matter hyperintensity, which infarct, and which neither."""

import numpy as np

INFARCT_THRESHOLD = 0.5  # of the calibrated probability


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
        A voxel may be WMH from this probability on, infarct from :data:`INFARCT_THRESHOLD` on.

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
