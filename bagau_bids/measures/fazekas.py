"""An estimate of the Fazekas grades from a mask, by lengths that raters measure.

Fazekas 1987 (doi:10.2214/ajr.149.2.351) grades by eye. The lengths are those of the scale of
the Clinical Research Center for Dementia of South Korea, which made the grades measurable
(Noh 2014, doi:10.1016/j.jstrokecerebrovasdis.2013.06.002): thickness of caps and bands about the
ventricles, and the longest diameter in the deep white matter. It is an estimate from a
segmentation, not a rating, and was not compared with raters.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.measures.lesions import label_lesions
from bagau_bids.measures.regions import infratentorial, ventricles_seen
from bagau_bids.spaces import Image, voxel_sizes

TOUCHING_MM = 3.0  # a lesion that comes this near to the ventricles is a cap or a band
DEEP_MM = 10.0  # beyond this distance from the ventricles white matter is deep
SMALLEST_FOCUS_MM = 3.0  # smaller foci do not count
THICKNESS_PERCENTILE = 95.0
# Lengths from which on the grades 2 and 3 are given.
PERIVENTRICULAR_MM = (5.0, 10.0)
DEEP_DIAMETER_MM = (10.0, 25.0)
_DIRECTIONS = 36


def fazekas_table(mask: Image, ventricle_distance_mm: NDArray, regions: NDArray) -> pd.DataFrame:
    """Estimate both grades.

    Parameters
    ----------
    mask : Image
        WMH, non-zero inside; RAS order.
    ventricle_distance_mm : (X, Y, Z) array
        Distance to the lateral ventricles on the grid of `mask`; infinite where there are none.
    regions : (X, Y, Z) int array
        As by `measures.regions.partition`, of any rule: tells what is infratentorial.

    Returns
    -------
    DataFrame
        Rows ``periventricular`` and ``deep``; the columns are described in
        ``data/tables/fazekas.json``. Grades and lengths are missing where the scan has no lateral
        ventricles, which both are measured from.
    """
    scales = ["periventricular", "deep"]
    if not ventricles_seen(ventricle_distance_mm):
        return pd.DataFrame(
            {"scale": scales, "fazekas_estimate": pd.NA, "measured_mm": pd.NA},
        )
    above = (mask.data != 0) & ~infratentorial(regions)
    thickness = band_thickness_mm(above, ventricle_distance_mm)
    deep = above & (ventricle_distance_mm > DEEP_MM)
    diameter = longest_axial_diameter_mm(Image(deep, mask.affine))
    if diameter < SMALLEST_FOCUS_MM:
        diameter = 0.0
    return pd.DataFrame(
        {
            "scale": scales,
            "fazekas_estimate": [
                grade(thickness, PERIVENTRICULAR_MM),
                grade(diameter, DEEP_DIAMETER_MM),
            ],
            "measured_mm": [thickness, diameter],
        }
    )


def grade(length_mm: float, limits_mm: tuple[float, float]) -> int:
    """Grade of a length: 0 for none, 1 below the first limit, 2 below the second, else 3."""
    return int(length_mm > 0) + sum(length_mm >= limit for limit in limits_mm)


def band_thickness_mm(mask: NDArray, ventricle_distance_mm: NDArray) -> float:
    """How far lesions that touch the ventricles reach away from them, mm; 0 without any.

    Of each such lesion the 95th percentile of its voxels' distances counts, of all lesions
    the largest.
    """
    labels = label_lesions(mask)
    numbers = np.unique(labels[(ventricle_distance_mm <= TOUCHING_MM) & mask])
    reach = (
        float(np.percentile(ventricle_distance_mm[labels == number], THICKNESS_PERCENTILE))
        for number in numbers
    )
    return max(reach, default=0.0)


def longest_axial_diameter_mm(mask: Image) -> float:
    """Largest extent of a lesion within one axial slice, mm; 0 without any.

    Parameters
    ----------
    mask : Image
        Bool, in RAS order, so that the last axis runs from slice to slice. A voxel counts with its
        mean width in the slice.
    """
    structure = np.zeros((3, 3, 3), bool)
    structure[:, :, 1] = True  # neighbours in the slice only
    labels, _ = ndimage.label(mask.data, structure)
    inside = np.nonzero(labels)
    if not inside[0].size:
        return 0.0
    label = labels[inside] - 1
    across, along = mask.affine[:3, 0], mask.affine[:3, 1]
    first = across / np.linalg.norm(across)
    second = along - (along @ first) * first
    second /= np.linalg.norm(second)
    points = np.outer(inside[0], across) + np.outer(inside[1], along)
    widest = np.zeros(label.max() + 1)
    for angle in np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS:
        position = points @ (np.cos(angle) * first + np.sin(angle) * second)
        high = ndimage.maximum(position, label, np.arange(len(widest)))
        low = ndimage.minimum(position, label, np.arange(len(widest)))
        widest = np.maximum(widest, np.asarray(high) - np.asarray(low))
    return float(widest.max() + voxel_sizes(mask.affine)[:2].mean())
