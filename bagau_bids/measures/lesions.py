"""Lesions of a binary mask: connected components, their sizes, and the tables made of them.

A lesion is a three-dimensional connected component with 26 neighbours, as in the WMH
Segmentation Challenge. All sizes are in mm3 of the grid the mask lies on.
"""

import numpy as np
import pandas as pd
from scipy import ndimage

# A lesion of exactly the minimum size stays although |det(affine)| carries rounding errors.
RELATIVE_TOLERANCE = 1e-6


def voxel_volume_mm3(affine: np.ndarray) -> float:
    """Volume of one voxel in mm3: the absolute determinant of the affine's linear part.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world (mm); directions may be oblique or sheared.
    """
    return float(abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3])))


def label_lesions(mask: np.ndarray) -> np.ndarray:
    """Give each lesion of a mask a number, the largest first.

    Parameters
    ----------
    mask : (X, Y, Z) array
        Non-zero inside lesions.

    Returns
    -------
    labels : (X, Y, Z) int32 array
        0 outside lesions, 1 in the largest lesion, and so on; of two lesions of one size
        the one whose first voxel comes first in C order has the lower number.
    """
    labels, count = ndimage.label(np.asarray(mask) != 0, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rank = np.zeros(count + 1, dtype=np.int32)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1)
    return rank[labels]


def remove_small_lesions(mask: np.ndarray, affine: np.ndarray, min_size_mm3: float) -> np.ndarray:
    """Drop lesions smaller than a volume.

    Parameters
    ----------
    mask : (X, Y, Z) array
        Non-zero inside lesions.
    affine : (4, 4) array
        Voxel to world (mm).
    min_size_mm3 : float
        Lesions below this volume go, those of exactly this volume stay; 0 keeps all.

    Returns
    -------
    kept : (X, Y, Z) bool array
    """
    mask = np.asarray(mask) != 0
    if min_size_mm3 <= 0:
        return mask.copy()
    labels = label_lesions(mask)
    sizes_mm3 = np.bincount(labels.ravel()) * voxel_volume_mm3(affine)
    keep = sizes_mm3 >= min_size_mm3 * (1 - RELATIVE_TOLERANCE)
    keep[0] = False
    return keep[labels]


def volume_table(mask: np.ndarray, affine: np.ndarray, brain_mask: np.ndarray) -> pd.DataFrame:
    """Volumes and lesion counts, one row a region.

    Parameters
    ----------
    mask, brain_mask : (X, Y, Z) arrays
        WMH and brain on the same grid; non-zero is inside.
    affine : (4, 4) array
        Voxel to world (mm).

    Returns
    -------
    table : DataFrame
        One row, region ``all``; the columns are described in ``data/tables/volumes.json``.
        Without a lesion the volume and the count are 0 and the lesion sizes are missing
        (``pandas.NA``, ``n/a`` on disk); without a brain the fraction is missing.
    """
    _check_same_shape(mask, brain_mask)
    voxel_mm3 = voxel_volume_mm3(affine)
    labels = label_lesions(mask)
    sizes_mm3 = np.bincount(labels.ravel())[1:] * voxel_mm3
    volume_voxels = int(np.count_nonzero(labels))
    brain_mm3 = np.count_nonzero(brain_mask) * voxel_mm3
    row = {
        "region": "all",
        "volume_mm3": volume_voxels * voxel_mm3,
        "volume_voxels": volume_voxels,
        "n_lesions": len(sizes_mm3),
        "mean_lesion_mm3": float(sizes_mm3.mean()) if sizes_mm3.size else pd.NA,
        "median_lesion_mm3": float(np.median(sizes_mm3)) if sizes_mm3.size else pd.NA,
        "max_lesion_mm3": float(sizes_mm3.max()) if sizes_mm3.size else pd.NA,
        "voxel_mm3": voxel_mm3,
        "brain_mm3": brain_mm3,
        "fraction_of_brain": volume_voxels * voxel_mm3 / brain_mm3 if brain_mm3 else pd.NA,
    }
    integers = {"volume_voxels": "Int64", "n_lesions": "Int64"}
    return pd.DataFrame([row]).astype(
        {name: integers.get(name, "Float64") for name in row if name != "region"}
    )


def lesion_table(
    labels: np.ndarray,
    affine: np.ndarray,
    probability: np.ndarray,
    flair: np.ndarray,
    brain_mask: np.ndarray,
) -> pd.DataFrame:
    """One row a lesion: size, place, and how sure and how bright it is.

    Parameters
    ----------
    labels : (X, Y, Z) int array
        Lesions numbered from 1 without gaps, as by `label_lesions`.
    affine : (4, 4) array
        Voxel to world (mm, RAS+).
    probability, flair, brain_mask : (X, Y, Z) arrays
        WMH probability, bias-corrected FLAIR and brain mask on the same grid.

    Returns
    -------
    table : DataFrame
        One row a label, in order; no row without a lesion. The columns are described in
        ``data/tables/lesions.json``.
    """
    for other in (probability, flair, brain_mask):
        _check_same_shape(labels, other)
    inside = np.nonzero(labels)
    label = np.asarray(labels)[inside]
    count = int(label.max()) if label.size else 0
    voxels = np.bincount(label, minlength=count + 1)[1:]
    mean_brain, sd_brain = _brain_intensity(flair, brain_mask)

    def mean_over_lesion(values: np.ndarray) -> np.ndarray:
        return np.bincount(label, weights=values, minlength=count + 1)[1:] / voxels

    centroid = np.column_stack([mean_over_lesion(axis) for axis in inside])
    world = centroid @ np.asarray(affine, dtype=float)[:3, :3].T + np.asarray(affine)[:3, 3]
    contrast = mean_over_lesion((np.asarray(flair, dtype=float)[inside] - mean_brain) / sd_brain)
    return pd.DataFrame(
        {
            "index": np.arange(1, count + 1),
            "name": [f"lesion-{number}" for number in range(1, count + 1)],
            "volume_mm3": voxels * voxel_volume_mm3(affine),
            "volume_voxels": voxels,
            "centroid_x_mm": world[:, 0],
            "centroid_y_mm": world[:, 1],
            "centroid_z_mm": world[:, 2],
            "mean_probability": mean_over_lesion(np.asarray(probability, dtype=float)[inside]),
            "mean_flair_z": contrast,
        }
    )


def _brain_intensity(flair: np.ndarray, brain_mask: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in the brain between the 5th and the 95th percentile."""
    values = np.asarray(flair, dtype=float)[np.asarray(brain_mask) != 0]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [5, 95])
    middle = values[(values >= low) & (values <= high)]
    return float(middle.mean()), float(middle.std()) or 1.0


def _check_same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if np.shape(first) != np.shape(second):
        raise ValueError(f"images of one grid expected: {np.shape(first)}, {np.shape(second)}")
