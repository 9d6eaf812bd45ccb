"""Measures of a mask that was drawn or edited by hand, on a scan that has been processed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.measures.regions import (
    SIDES,
    VENTRICLES_NUMBER,
    region_number,
    regions_of_rule,
)
from bagau_bids.measures.wmh import Head, WmhMeasures, measure_wmh
from bagau_bids.spaces import Image


@dataclass(frozen=True)
class Processed:
    """What the results of a scan hold of its voxels, all (X, Y, Z) on one grid in RAS order.

    Parameters
    ----------
    flair : Image
        Bias corrected.
    brain_mask, ventricles : bool arrays
    probability, wm_probseg : arrays
        Of WMH by the network, and of the template's white matter.
    brain_regions : uint8 array
        As by `measures.regions.brain_map`.
    others : dict of bool arrays
        ``infarct`` and ``known_lesion``, where there are such masks.
    template_points : Image
        As in `measures.lesions.Anatomy`.
    """

    flair: Image
    brain_mask: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    probability: NDArray
    wm_probseg: NDArray
    brain_regions: NDArray[np.uint8]
    others: dict[str, NDArray[np.bool_]]
    template_points: Image


def measure_edited(mask: NDArray[np.bool_], scan: Processed, rule: str) -> WmhMeasures:
    """Measure a mask as `measures.scan.measure_scan` measures that of the network.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
        WMH on the grid of the scan.
    scan : Processed
    rule : str
        By which `brain_regions` were told apart.

    Notes
    -----
    The map of the brain's regions has the ventricles where the regions went on; a voxel of the
    mask in them belongs to the region around them, on the side of the nearest other voxel.
    """
    head = Head(
        flair=scan.flair,
        brain_mask=scan.brain_mask,
        ventricles=scan.ventricles,
        healthy=np.where(np.any([*scan.others.values()], axis=0), 0, scan.wm_probseg),
        probability=scan.probability,
        regions=_without_ventricles(scan.brain_regions, rule),
        others=scan.others,
        template_points=scan.template_points,
    )
    return measure_wmh(mask, head, rule)


def _without_ventricles(brain_regions: NDArray[np.uint8], rule: str) -> NDArray[np.uint8]:
    """Give the voxels of the ventricles the region around these, as their distance of 0 does."""
    inside = brain_regions == VENTRICLES_NUMBER
    regions = (brain_regions != 0) & ~inside
    if not inside.any() or not regions.any():
        return np.where(inside, 0, brain_regions).astype(np.uint8)
    around = regions_of_rule(rule)[0]
    nearest = ndimage.distance_transform_edt(~regions, return_distances=False, return_indices=True)
    left = (brain_regions[tuple(nearest)] - region_number(around, "left")) % len(SIDES) == 0
    numbers = [region_number(around, side) for side in SIDES]
    return np.where(inside, np.where(left, *numbers), brain_regions).astype(np.uint8)
