"""Measures of a mask of WMH, whether the network's or one drawn by hand."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bagau_bids.measures.fazekas import fazekas_table
from bagau_bids.measures.lesions import Anatomy, label_lesions, lesion_table, volume_table
from bagau_bids.measures.quality import normal_white_matter, white_matter_level
from bagau_bids.measures.regions import distance_mm, infratentorial, ventricles_seen
from bagau_bids.spaces import Image


@dataclass(frozen=True)
class Head:
    """What lies around a mask, all (X, Y, Z) on one grid in RAS order.

    Parameters
    ----------
    flair : Image
        Bias corrected.
    brain_mask, ventricles : bool arrays
    healthy : array
        Probability of normal white matter.
    probability : array
        Of WMH by the network.
    regions : uint8 array
        As by `measures.regions.partition`.
    others : mapping to bool arrays or None
        ``infarct`` and ``known_lesion``, where there are such masks.
    template_points : Image
        As in `measures.lesions.Anatomy`.
    """

    flair: Image
    brain_mask: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    healthy: NDArray
    probability: NDArray
    regions: NDArray[np.uint8]
    others: Mapping[str, NDArray[np.bool_] | None]
    template_points: Image


@dataclass(frozen=True)
class WmhMeasures:
    """What is measured of a mask.

    Parameters
    ----------
    lesions : (X, Y, Z) int array
        Lesions, numbered from 1.
    regions : (X, Y, Z) uint8 array
        Region of each voxel of the mask where it can be told, else 0.
    tables : dict of DataFrame
        ``volumes_table``, ``lesions_table`` and ``fazekas_table``.
    ventricles_seen : bool
        Whether there are lateral ventricles to measure distances from.
    """

    lesions: NDArray
    regions: NDArray[np.uint8]
    tables: dict[str, pd.DataFrame]
    ventricles_seen: bool


def measure_wmh(mask: NDArray[np.bool_], head: Head, rule: str) -> WmhMeasures:
    """Measure a mask, (X, Y, Z) bool; `rule` is that by which the regions were told apart."""
    labels, wmh = label_lesions(mask), Image(mask, head.flair.affine)
    distance = distance_mm(head.ventricles, head.flair.affine)
    seen = ventricles_seen(distance)
    anatomy = Anatomy(
        regions=head.regions,
        ventricle_distance_mm=distance,
        template_points=head.template_points,
        white_matter=white_matter_level(
            head.flair.data, normal_white_matter(head.brain_mask, head.healthy, mask)
        ),
    )
    tables = {
        "volumes_table": volume_table(
            wmh, head.brain_mask, head.regions, rule, ventricles=seen, others=head.others
        ),
        "lesions_table": lesion_table(
            Image(labels, wmh.affine), head.probability, head.flair.data, head.brain_mask, anatomy
        ),
        "fazekas_table": fazekas_table(wmh, distance, head.regions),
    }
    told = mask & (infratentorial(head.regions) | seen)
    regions = np.where(told, head.regions, 0).astype(np.uint8)
    return WmhMeasures(labels, regions, tables, seen)
