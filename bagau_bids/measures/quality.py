"""Simple quality figures of one FLAIR and its brain mask: which scan deserves a look.

All figures are plain numbers; ``None`` where a figure does not exist (no white matter, no
lesion). The columns are described in ``data/tables/quality.json``.
"""

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

# White matter that counts as surely white matter in the registered, probabilistic map.
_SURE_WHITE_MATTER = 0.9
# Fewer voxels than this give no figure.
_FEWEST_VOXELS = 30
# Standard deviation of a normal distribution in units of its median absolute deviation.
_SD_PER_MAD = 1.4826


def scan_quality(
    flair: np.ndarray,
    affine: np.ndarray,
    brain_mask: np.ndarray,
    wm_probseg: np.ndarray,
    wmh_mask: np.ndarray,
) -> dict[str, float | None]:
    """All figures of one scan.

    Parameters
    ----------
    flair : (X, Y, Z) array
        Bias-corrected FLAIR in RAS order: axes run to the right, anterior, superior.
    affine : (4, 4) array
        Voxel to world (mm).
    brain_mask, wmh_mask : (X, Y, Z) arrays
        Non-zero is inside; on the grid of the FLAIR.
    wm_probseg : (X, Y, Z) array
        Probability of white matter from the registered template, 0 to 1, same grid.

    Returns
    -------
    figures : dict
        ``slice_thickness_mm``, ``in_plane_mm``, ``brain_volume_ml``, ``wm_snr``,
        ``wmh_wm_contrast``, and the area of the brain mask on the outermost voxels of the
        image, in cm2: ``cut_superior_cm2``, ``cut_inferior_cm2``, ``cut_sides_cm2``.
    """
    spacing = voxel_sizes(np.asarray(affine, dtype=float))
    voxel_ml = float(abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))) / 1000
    brain = np.asarray(brain_mask) != 0
    white_matter = normal_white_matter(brain, wm_probseg, wmh_mask)
    return {
        "slice_thickness_mm": float(spacing.max()),
        "in_plane_mm": float(np.median(spacing)),
        "brain_volume_ml": np.count_nonzero(brain) * voxel_ml,
        "wm_snr": signal_to_noise(flair, white_matter),
        "wmh_wm_contrast": median_ratio(flair, np.asarray(wmh_mask) != 0, white_matter),
        **cut_areas_cm2(brain, affine),
    }


def normal_white_matter(
    brain_mask: np.ndarray, wm_probseg: np.ndarray, wmh_mask: np.ndarray
) -> np.ndarray:
    """Voxels of surely white matter without lesions, (X, Y, Z) bool.

    Inside the brain mask, probability of at least 0.9, and not a lesion nor a voxel that
    touches one in its slice or beyond.
    """
    near_lesion = ndimage.binary_dilation(np.asarray(wmh_mask) != 0, np.ones((3, 3, 3)))
    sure = np.asarray(wm_probseg) >= _SURE_WHITE_MATTER
    return sure & (np.asarray(brain_mask) != 0) & ~near_lesion


def signal_to_noise(flair: np.ndarray, region: np.ndarray) -> float | None:
    """Median of a region over its standard deviation, from the median absolute deviation.

    The deviation holds true variation of the tissue besides noise, so the figure serves to
    compare scans of one protocol. None below 30 voxels or without any deviation.
    """
    values = np.asarray(flair, dtype=float)[region]
    if values.size < _FEWEST_VOXELS:
        return None
    median = np.median(values)
    deviation = _SD_PER_MAD * np.median(np.abs(values - median))
    return float(median / deviation) if deviation > 0 else None


def median_ratio(flair: np.ndarray, region: np.ndarray, background: np.ndarray) -> float | None:
    """Median of a region over that of another; None where either is empty or dark."""
    if not region.any() or np.count_nonzero(background) < _FEWEST_VOXELS:
        return None
    denominator = float(np.median(np.asarray(flair)[background]))
    return float(np.median(np.asarray(flair)[region])) / denominator if denominator > 0 else None


def cut_areas_cm2(brain_mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Area of the brain mask on the faces of the image: brain that was probably not scanned.

    Parameters
    ----------
    brain_mask : (X, Y, Z) bool array
        In RAS order. The brain stem may well leave through the inferior face.
    affine : (4, 4) array
        Voxel to world (mm).
    """
    linear = np.asarray(affine, dtype=float)[:3, :3]
    face_cm2 = [
        float(np.linalg.norm(np.cross(linear[:, (axis + 1) % 3], linear[:, (axis + 2) % 3]))) / 100
        for axis in range(3)
    ]

    def area(axis: int, index: int) -> float:
        return np.count_nonzero(np.take(brain_mask, index, axis=axis)) * face_cm2[axis]

    return {
        "cut_superior_cm2": area(2, -1),
        "cut_inferior_cm2": area(2, 0),
        "cut_sides_cm2": sum(area(axis, index) for axis in (0, 1) for index in (0, -1)),
    }
