"""Where in the brain a voxel lies: ventricles of the FLAIR itself, and regions about them.

Periventricular and deep white matter are told apart by the distance to the lateral ventricles,
by one of two published rules (see `RULES` and ``docs/regions.md``). Juxtacortical and
infratentorial follow the registered template. All images lie on one grid, in RAS order.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.spaces import Image, voxel_sizes

# Numbers of the groups of the template map (`preprocessing.template_regions`).
LATERAL_VENTRICLE, OTHER_CSF, INFRATENTORIAL, CORTEX, WHITE_MATTER, DEEP_GREY = range(1, 7)

REGIONS = ("juxtaventricular", "periventricular", "deep", "juxtacortical", "infratentorial")
BY_DISTANCE = REGIONS[:-1]  # cannot be told without lateral ventricles in the scan
SIDES = ("left", "right")
ABBREVIATIONS = dict(zip(REGIONS, ("JV", "PV", "D", "JC", "IT"), strict=True))
# The left side darker than the right. Apart for the colour-blind too (Wong 2011,
# doi:10.1038/nmeth.1618).
COLOURS = {
    "juxtaventricular": ("#6a51a3", "#9e9ac8"),
    "periventricular": ("#2171b5", "#6baed6"),
    "deep": ("#d55e00", "#f0a060"),
    "juxtacortical": ("#009e73", "#66cdb0"),
    "infratentorial": ("#cc79a7", "#e6bcd3"),
}
VENTRICLES_NUMBER = 1 + len(REGIONS) * len(SIDES)  # in the map of the whole brain
VENTRICLES_COLOUR = "#08306b"
# Distances to the lateral ventricles, mm, up to which a voxel is of the region.
RULES: dict[str, dict[str, float]] = {
    "10mm": {"periventricular": 10.0},
    "3mm": {"juxtaventricular": 3.0, "periventricular": 13.0},
}
JUXTACORTICAL_MM = 4.0  # to the cortex (Kim 2008)

# CSF may be this far from the template's ventricles and still belong to them: in old age
# they are wider than the registration can follow.
REACH_MM = 20.0
SURE_WHITE_MATTER = 0.9
CSF_PERCENTILE = 20.0  # of the FLAIR within the template's ventricles
DARKEST_TISSUE = 0.75  # CSF brighter than this share of white matter is not told from tissue
FEWEST_VOXELS = 30
CLOSING_MM = 2.0  # choroid plexus narrower than twice this is ventricle


@dataclass(frozen=True)
class Ventricles:
    """Lateral ventricles of one FLAIR.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    source : str
        ``flair``, or ``template`` where CSF could not be told from tissue on the FLAIR.
    csf : float or None
        Brightness of CSF in the template's ventricles on the bias-corrected FLAIR; None where
        they lie outside the scan.
    csf_threshold : float or None
        Darker voxels were taken as CSF.
    notes : tuple of str
        What a user should know.
    """

    mask: NDArray[np.bool_]
    source: Literal["flair", "template"]
    csf: float | None
    csf_threshold: float | None
    notes: tuple[str, ...]


def find_ventricles(
    flair: Image, brain_mask: NDArray, wm_probseg: NDArray, groups: NDArray
) -> Ventricles:
    """Outline the lateral ventricles: dark CSF of the FLAIR that touches those of the template.

    A voxel counts as dark below the middle between white matter and the CSF within the
    template's ventricles. Dark voxels nearer to the template's lateral ventricles than to its
    other CSF are taken where they touch those ventricles, so that wide ventricles are followed
    beyond the template's outline and sulci, cisterns and the third ventricle are left out.

    Parameters
    ----------
    flair : Image
        Bias-corrected FLAIR.
    brain_mask : (X, Y, Z) array
        Non-zero is inside; on the grid of the FLAIR, as all that follow.
    wm_probseg : (X, Y, Z) array
        Probability of white matter from the registered template.
    groups : (X, Y, Z) int array
        Groups of the registered template map.

    Returns
    -------
    Ventricles
    """
    brain = np.asarray(brain_mask) != 0
    prior = (groups == LATERAL_VENTRICLE) & brain
    csf = _csf_level(flair.data, prior)
    white = brain & (np.asarray(wm_probseg) >= SURE_WHITE_MATTER)
    threshold = _csf_threshold(csf, flair.data, white)
    if threshold is None:
        why = (
            "they lie outside the scan"
            if csf is None
            else "CSF is not darker than white matter there"
        )
        note = f"Ventricles are those of the registered template: {why}."
        return Ventricles(prior, "template", csf, None, (note,))
    mask = np.zeros(brain.shape, bool)
    box = _box(brain, flair.affine, CLOSING_MM)
    dark = Image(flair.data[box] < threshold, flair.affine)
    mask[box] = _grow(dark, brain[box], prior[box], groups[box] == OTHER_CSF)
    if np.count_nonzero(mask) < FEWEST_VOXELS:
        note = (
            "Ventricles are those of the registered template: no dark CSF was found where it "
            "has them."
        )
        return Ventricles(prior, "template", csf, threshold, (note,))
    return Ventricles(mask, "flair", csf, threshold, ())


def _csf_level(flair: NDArray, prior: NDArray) -> float | None:
    """Brightness of CSF within the template's ventricles, which may hold tissue too."""
    if np.count_nonzero(prior) < FEWEST_VOXELS:
        return None
    return float(np.percentile(flair[prior], CSF_PERCENTILE))


def _csf_threshold(csf: float | None, flair: NDArray, white: NDArray) -> float | None:
    """Middle between CSF and white matter; None where the two cannot be told apart."""
    if csf is None or np.count_nonzero(white) < FEWEST_VOXELS:
        return None
    tissue = float(np.median(flair[white]))
    return (csf + tissue) / 2 if csf < DARKEST_TISSUE * tissue else None


def _grow(dark: Image, brain: NDArray, prior: NDArray, other_csf: NDArray) -> NDArray[np.bool_]:
    """Dark components that touch the template's ventricles, their small holes closed."""
    to_prior = distance_mm(prior, dark.affine)
    allowed = brain & (to_prior <= REACH_MM) & (to_prior < distance_mm(other_csf, dark.affine))
    labels, _ = ndimage.label(dark.data & allowed)
    touching = np.unique(labels[prior])
    found = np.isin(labels, touching[touching > 0])
    grown = distance_mm(found, dark.affine) <= CLOSING_MM
    closed = found | (distance_mm(~grown, dark.affine) > CLOSING_MM)
    return closed & brain


def distance_mm(mask: NDArray, affine: NDArray) -> NDArray[np.float32]:
    """Distance of each voxel's centre to that of the nearest voxel of a mask, mm.

    Zero within; infinite where the mask is empty. Axes are taken as at right angles.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    spacing = voxel_sizes(affine)
    return ndimage.distance_transform_edt(~mask, sampling=spacing).astype(np.float32)


def ventricles_seen(ventricle_distance_mm: NDArray) -> bool:
    """Tell from distances to the lateral ventricles, as by `distance_mm`, whether there are any.

    Where there are none the regions of `BY_DISTANCE` cannot be told: the ventricles may lie just
    outside the scan.
    """
    return bool(np.isfinite(ventricle_distance_mm).any())


def region_number(region: str, side: str) -> int:
    """Value of a region of one side in a labelled image."""
    return 1 + 2 * REGIONS.index(region) + SIDES.index(side)


def infratentorial(regions: NDArray) -> NDArray[np.bool_]:
    """Voxels of a labelled image that are infratentorial, of either side."""
    return np.isin(regions, [region_number("infratentorial", side) for side in SIDES])


def regions_of_rule(rule: str) -> tuple[str, ...]:
    """Names of the regions that a rule tells apart."""
    return tuple(name for name in REGIONS if name != "juxtaventricular" or name in RULES[rule])


def lookup_table(rule: str) -> pd.DataFrame:
    """Table of what the values of a labelled image of regions mean, as BIDS wants it.

    ``mapping`` is 7, the number BIDS reserves for lesions: only voxels of the WMH mask carry a
    region's number there.
    """
    rows = [
        (
            region_number(region, side),
            f"{side}-{region}",
            f"{side[0].upper()}-{ABBREVIATIONS[region]}",
            COLOURS[region][SIDES.index(side)],
            7,
        )
        for region in regions_of_rule(rule)
        for side in SIDES
    ]
    return pd.DataFrame(rows, columns=["index", "name", "abbreviation", "color", "mapping"])


def brain_lookup_table(rule: str) -> pd.DataFrame:
    """Table of what the values of `brain_map` mean; those of regions as in `lookup_table`."""
    regions = lookup_table(rule).drop(columns="mapping")
    last = (VENTRICLES_NUMBER, "lateral-ventricles", "LV", VENTRICLES_COLOUR)
    ventricles = pd.DataFrame([last], columns=regions.columns)
    return pd.concat([regions, ventricles], ignore_index=True)


def brain_map(
    regions: NDArray, ventricles: NDArray, ventricle_distance_mm: NDArray
) -> NDArray[np.uint8]:
    """Region of every voxel of the brain, as it is put out.

    Parameters
    ----------
    regions : (X, Y, Z) int array
        `region_number` within the brain, 0 outside, as by `partition`.
    ventricles : (X, Y, Z) bool array
        Lateral ventricles.
    ventricle_distance_mm : (X, Y, Z) array
        Distance to them, mm.

    Returns
    -------
    (X, Y, Z) uint8 array
        `region_number`, `VENTRICLES_NUMBER` in the ventricles, 0 outside the brain. Without
        ventricles in the scan only what is infratentorial can be told; the rest is 0.
    """
    told = infratentorial(regions) | ventricles_seen(ventricle_distance_mm)
    return np.where(ventricles, VENTRICLES_NUMBER, np.where(told, regions, 0)).astype(np.uint8)


def without_ventricles(brain_regions: NDArray[np.uint8], rule: str) -> NDArray[np.uint8]:
    """Undo what `brain_map` does to the regions, as far as they could be told.

    Parameters
    ----------
    brain_regions : (X, Y, Z) uint8 array
        As `brain_map` returns it.
    rule : str
        By which the regions were told apart.

    Returns
    -------
    (X, Y, Z) uint8 array
        Voxels of the ventricles have the region around these, as their distance of 0 gives it,
        on the side of the nearest other voxel.
    """
    inside = brain_regions == VENTRICLES_NUMBER
    regions = (brain_regions != 0) & ~inside
    if not inside.any() or not regions.any():
        return np.where(inside, 0, brain_regions).astype(np.uint8)
    around = regions_of_rule(rule)[0]
    nearest = ndimage.distance_transform_edt(~regions, return_distances=False, return_indices=True)
    left = (brain_regions[tuple(nearest)] - region_number(around, "left")) % len(SIDES) == 0
    numbers = [region_number(around, side) for side in SIDES]
    return np.where(inside, np.where(left, *numbers), brain_regions).astype(np.uint8)


def partition(
    groups: Image,
    right: NDArray,
    brain_mask: NDArray,
    ventricle_distance_mm: NDArray,
    rule: str,
) -> NDArray[np.uint8]:
    """Give every voxel of the brain a region and a side.

    Infratentorial comes first: nearest to the template's brain stem or cerebellum. Then the
    distance to the ventricles decides, then that to the template's cortex; the rest is deep.

    Parameters
    ----------
    groups : Image
        Groups of the registered template map.
    right : (X, Y, Z) bool array
        Right of the template's midplane; on the grid of `groups`, as all that follow.
    brain_mask : (X, Y, Z) array
        Non-zero is inside.
    ventricle_distance_mm : (X, Y, Z) array
        Distance to the lateral ventricles.
    rule : str
        One of `RULES`.

    Returns
    -------
    (X, Y, Z) uint8 array
        `region_number` within the brain, 0 outside.
    """
    brain = np.asarray(brain_mask) != 0
    numbers = np.zeros(brain.shape, np.uint8)
    if not brain.any():
        return numbers
    box = _box(brain, groups.affine, 0.0)
    near, inside = Image(groups.data[box], groups.affine), brain[box]
    to_ventricle = ventricle_distance_mm[box]
    index = np.full(inside.shape, REGIONS.index("deep"), np.uint8)
    to_cortex = distance_mm(near.data == CORTEX, near.affine)
    index[to_cortex <= JUXTACORTICAL_MM] = REGIONS.index("juxtacortical")
    for name in ("periventricular", "juxtaventricular"):
        if name in RULES[rule]:
            index[to_ventricle <= RULES[rule][name]] = REGIONS.index(name)
    index[_infratentorial(near)] = REGIONS.index("infratentorial")
    numbers[box] = np.where(inside, 1 + 2 * index + right[box], 0)
    return numbers


def _infratentorial(groups: Image) -> NDArray[np.bool_]:
    """Voxels nearer to the template's brain stem and cerebellum than to any tissue above."""
    below, above = groups.data == INFRATENTORIAL, groups.data >= CORTEX
    return distance_mm(below, groups.affine) < distance_mm(above, groups.affine)


def _box(mask: NDArray, affine: NDArray, margin_mm: float) -> tuple[slice, ...]:
    """Slices around a mask that is not empty; distances cost time on every voxel."""
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(
        slice(max(0, axis.start - margin), axis.stop + margin)
        for axis, margin in zip(
            found, np.ceil(margin_mm / voxel_sizes(affine)).astype(int) + 1, strict=True
        )
    )
