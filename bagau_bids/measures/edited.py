"""Measures of a mask that was drawn or edited by hand, on a scan that has been processed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.measures.fazekas import fazekas_table
from bagau_bids.measures.lesions import Anatomy, label_lesions, lesion_table, volume_table
from bagau_bids.measures.quality import normal_white_matter, white_matter_level
from bagau_bids.measures.regions import (
    SIDES,
    VENTRICLES_NUMBER,
    distance_mm,
    infratentorial,
    region_number,
    regions_of_rule,
    ventricles_seen,
)
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


@dataclass(frozen=True)
class EditedMeasures:
    """What is measured of an edited mask: labelled images, and tables by their keys."""

    lesions: NDArray
    wmh_regions: NDArray[np.uint8]
    tables: dict[str, pd.DataFrame]


def measure_edited(mask: NDArray[np.bool_], scan: Processed, rule: str) -> EditedMeasures:
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
    distance = distance_mm(scan.ventricles, scan.flair.affine)
    seen = ventricles_seen(distance)
    regions = _without_ventricles(scan.brain_regions, rule)
    labels, wmh = label_lesions(mask), Image(mask, scan.flair.affine)
    healthy = np.where(np.any([*scan.others.values()], axis=0), 0, scan.wm_probseg)
    anatomy = Anatomy(
        regions=regions,
        ventricle_distance_mm=distance,
        template_points=scan.template_points,
        white_matter=white_matter_level(
            scan.flair.data, normal_white_matter(scan.brain_mask, healthy, mask)
        ),
    )
    tables = {
        "volumes_table": volume_table(
            wmh, scan.brain_mask, regions, rule, ventricles=seen, others=scan.others
        ),
        "lesions_table": lesion_table(
            Image(labels, wmh.affine), scan.probability, scan.flair.data, scan.brain_mask, anatomy
        ),
        "fazekas_table": fazekas_table(wmh, distance, regions),
    }
    told = mask & (infratentorial(regions) | seen)
    return EditedMeasures(labels, np.where(told, regions, 0).astype(np.uint8), tables)


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
