"""Lesions of a binary mask: connected components, their sizes, and the tables made of them.

A lesion is a three-dimensional connected component with 26 neighbours, as in the WMH
Segmentation Challenge. All sizes are in mm3 of the grid the mask lies on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from bagau_bids.measures.regions import BY_DISTANCE, REGIONS, SIDES, region_number, regions_of_rule
from bagau_bids.spaces import Image

# A lesion of exactly the minimum size stays although |det(affine)| carries rounding errors.
RELATIVE_TOLERANCE = 1e-6
OTHERS = ("infarct", "known_lesion")  # what is no WMH and has columns of its own


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


def remove_small_lesions(mask: Image, min_size_mm3: float) -> np.ndarray:
    """Drop lesions smaller than a volume.

    Parameters
    ----------
    mask : Image
        Non-zero inside lesions.
    min_size_mm3 : float
        Lesions below this volume go, those of exactly this volume stay; 0 keeps all.

    Returns
    -------
    kept : (X, Y, Z) bool array
    """
    if min_size_mm3 <= 0:
        return mask.data != 0
    labels = label_lesions(mask.data)
    sizes_mm3 = np.bincount(labels.ravel()) * voxel_volume_mm3(mask.affine)
    keep = sizes_mm3 >= min_size_mm3 * (1 - RELATIVE_TOLERANCE)
    keep[0] = False
    return keep[labels]


def volume_table(
    mask: Image,
    brain_mask: np.ndarray,
    regions: np.ndarray | None = None,
    rule: str = "10mm",
    *,
    ventricles: bool = True,
    others: Mapping[str, np.ndarray | None] | None = None,
) -> pd.DataFrame:
    """Volumes and lesion counts, one row a region.

    Parameters
    ----------
    mask : Image
        WMH; non-zero is inside.
    brain_mask : (X, Y, Z) array
        On the grid of `mask`, as all that follow; non-zero is inside.
    regions : (X, Y, Z) int array or None
        Region of every voxel of the brain, as by `measures.regions.partition`.
    rule : str
        The rule by which `regions` were told apart.
    ventricles : bool
        Whether the scan has lateral ventricles. Without them everything is missing of the regions
        that follow from the distance to them.
    others : mapping of str to (X, Y, Z) array or None
        Masks of what is no WMH, by the names of :data:`OTHERS`; the volume of one that is None
        is missing. In row ``all`` such a mask counts wherever it lies, outside the brain too.

    Returns
    -------
    table : DataFrame
        Row ``all`` comes first and is the only one without `regions`. Then each region, each
        side, and each region of each side, named as ``left-deep``. Volumes are those of the
        voxels; a lesion counts where most of it lies, with its whole size. The columns are
        described in ``data/tables/volumes.json``. Without a lesion the volume and the count are
        0 and the lesion sizes are missing (``pandas.NA``, ``n/a`` on disk); without a brain the
        fraction of the brain is missing, without a lesion that of the WMH.
    """
    _check_same_shape(mask.data, brain_mask)
    labels = label_lesions(mask.data)
    voxels = np.bincount(labels.ravel())[1:]
    tally = np.zeros((len(voxels), 1 + len(REGIONS) * len(SIDES)), int)
    if regions is not None:
        _check_same_shape(mask.data, regions)
        tally = region_tally(labels, regions)
    home, side = lesion_homes(tally)
    size = Sizes(
        voxel_mm3=voxel_volume_mm3(mask.affine),
        brain_voxels=int(np.count_nonzero(brain_mask)),
        wmh_voxels=int(voxels.sum()),
    )
    given = {name: (others or {}).get(name) for name in OTHERS}
    counts = {name: _count_by_region(other, regions) for name, other in given.items()}
    rows = [size.row("all", int(voxels.sum()), voxels)]
    rows[0] |= _others_of_row(rows[0], range(tally.shape[1]), counts, size.voxel_mm3)
    for name, region, where in _row_names(rule) if regions is not None else ():
        numbers = [
            region_number(some, half)
            for some in ((region,) if region else REGIONS)
            for half in ((where,) if where else SIDES)
        ]
        own = np.full(len(voxels), True)
        if region:
            own &= home == REGIONS.index(region)
        if where:
            own &= side == SIDES.index(where)
        told = ventricles or region not in BY_DISTANCE
        row = (
            size.row(name, int(tally[:, numbers].sum()), voxels[own])
            if told
            else size.unknown_row(name)
        )
        rows.append(row | _others_of_row(row, numbers, counts, size.voxel_mm3))
    integers = {"volume_voxels": "Int64", "n_lesions": "Int64"}
    return pd.DataFrame(rows).astype(
        {name: integers.get(name, "Float64") for name in rows[0] if name != "region"}
    )


def _others_of_row(
    row: Mapping[str, Any],
    numbers: Sequence[int],
    counts: Mapping[str, np.ndarray | None],
    voxel_mm3: float,
) -> dict[str, Any]:
    """Volume of what is no WMH in a row of so many regions; missing where it is not known."""
    known = row["volume_voxels"] is not pd.NA
    return {
        f"{name}_mm3": pd.NA if one is None or not known else int(one[numbers].sum()) * voxel_mm3
        for name, one in counts.items()
    }


def _count_by_region(mask: np.ndarray | None, regions: np.ndarray | None) -> np.ndarray | None:
    """Voxels of a mask by the number of their region, 0 for those in none."""
    if mask is None:
        return None
    inside = np.asarray(mask) != 0
    numbers = np.zeros(inside.shape, int) if regions is None else np.asarray(regions)
    return np.bincount(numbers[inside].astype(int), minlength=1 + len(REGIONS) * len(SIDES))


@dataclass(frozen=True)
class Sizes:
    """What the rows of one scan's volume table share: voxel volume, brain and WMH in voxels."""

    voxel_mm3: float
    brain_voxels: int
    wmh_voxels: int

    def row(self, name: str, volume_voxels: int, lesions: np.ndarray) -> dict[str, Any]:
        """Row of a region with so many voxels of WMH; `lesions` are the voxels of each lesion."""
        sizes = lesions * self.voxel_mm3
        brain, wmh = self.brain_voxels, self.wmh_voxels
        return {
            "region": name,
            "volume_mm3": volume_voxels * self.voxel_mm3,
            "volume_voxels": volume_voxels,
            "n_lesions": len(sizes),
            "mean_lesion_mm3": float(sizes.mean()) if sizes.size else pd.NA,
            "median_lesion_mm3": float(np.median(sizes)) if sizes.size else pd.NA,
            "max_lesion_mm3": float(sizes.max()) if sizes.size else pd.NA,
            "voxel_mm3": self.voxel_mm3,
            "brain_mm3": brain * self.voxel_mm3,
            "fraction_of_brain": volume_voxels / brain if brain else pd.NA,
            "fraction_of_wmh": volume_voxels / wmh if wmh else pd.NA,
        }

    def unknown_row(self, name: str) -> dict[str, Any]:
        """Row of a region that could not be told: what is of the region is missing."""
        kept = ("region", "voxel_mm3", "brain_mm3")
        row = self.row(name, 0, np.zeros(0, int))
        return {column: value if column in kept else pd.NA for column, value in row.items()}


def _row_names(rule: str) -> Iterator[tuple[str, str, str]]:
    """Name, region and side of each row below ``all``; an empty one stands for all of them."""
    regions = regions_of_rule(rule)
    yield from ((region, region, "") for region in regions)
    for side in SIDES:
        yield side, "", side
        yield from ((f"{side}-{region}", region, side) for region in regions)


def region_tally(labels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Count the voxels of each lesion in each region of each side.

    Parameters
    ----------
    labels : (X, Y, Z) int array
        Lesions numbered from 1 without gaps.
    regions : (X, Y, Z) int array
        As by `measures.regions.partition`; 0 is outside the brain.

    Returns
    -------
    (lesions, 1 + regions x sides) int array
        Column n is for `measures.regions.region_number` n.
    """
    inside = np.nonzero(labels)
    label, columns = np.asarray(labels)[inside], 1 + len(REGIONS) * len(SIDES)
    count = int(label.max()) if label.size else 0
    pairs = (label - 1) * columns + np.asarray(regions)[inside]
    return np.bincount(pairs, minlength=count * columns).reshape(count, columns)


def lesion_homes(tally: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Region and side in which most of each lesion lies, as indices of REGIONS and SIDES.

    Parameters
    ----------
    tally : (lesions, 1 + regions x sides) int array
        As by `region_tally`. Of regions with equally many voxels the first one counts.
    """
    each = tally[:, 1:].reshape(len(tally), len(REGIONS), len(SIDES))
    return each.sum(axis=2).argmax(axis=1), each.sum(axis=1).argmax(axis=1)


@dataclass(frozen=True)
class Anatomy:
    """What tells where in the brain a lesion lies, and what it is brighter than.

    Parameters
    ----------
    regions : (X, Y, Z) int array
        As by `measures.regions.partition`.
    ventricle_distance_mm : (X, Y, Z) array
        Distance to the lateral ventricles; infinite where there are none.
    template_points : Image
        Place in the template's world (mm, RAS+) of the nodes of a lattice over the scan:
        (3, I, J, K), and node index to the scan's world.
    white_matter : float or None
        Brightness of normal white matter on the bias-corrected FLAIR.
    """

    regions: np.ndarray
    ventricle_distance_mm: np.ndarray
    template_points: Image
    white_matter: float | None


def lesion_table(
    labels: Image,
    probability: np.ndarray,
    flair: np.ndarray,
    brain_mask: np.ndarray,
    anatomy: Anatomy | None = None,
) -> pd.DataFrame:
    """One row a lesion: size, place, and how sure and how bright it is.

    Parameters
    ----------
    labels : Image
        Lesions numbered from 1 without gaps, as by `label_lesions`.
    probability, flair, brain_mask : (X, Y, Z) arrays
        WMH probability, bias-corrected FLAIR and brain mask on the grid of `labels`.
    anatomy : Anatomy or None
        None leaves the columns missing that need it.

    Returns
    -------
    table : DataFrame
        One row a label, in order; no row without a lesion. The columns are described in
        ``data/tables/lesions.json``; what is not known is missing (``n/a`` on disk).
    """
    for other in (probability, flair, brain_mask):
        _check_same_shape(labels.data, other)
    inside = np.nonzero(labels.data)
    label = labels.data[inside]
    count = int(label.max()) if label.size else 0
    voxels = np.bincount(label, minlength=count + 1)[1:]
    mean_brain, sd_brain = _brain_intensity(flair, brain_mask)

    def mean_over_lesion(values: np.ndarray) -> np.ndarray:
        return np.bincount(label, weights=values, minlength=count + 1)[1:] / voxels

    centroid = np.column_stack([mean_over_lesion(axis) for axis in inside])
    world = centroid @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    brightness = mean_over_lesion(np.asarray(flair, dtype=float)[inside])
    place = _places(labels.data, world, anatomy)
    white_matter = anatomy.white_matter if anatomy else None
    table = pd.DataFrame(
        {
            "index": np.arange(1, count + 1),
            "name": [f"lesion-{number}" for number in range(1, count + 1)],
            "region": place["region"],
            "side": place["side"],
            "volume_mm3": voxels * voxel_volume_mm3(labels.affine),
            "volume_voxels": voxels,
            "centroid_x_mm": world[:, 0],
            "centroid_y_mm": world[:, 1],
            "centroid_z_mm": world[:, 2],
            "template_x_mm": place["template_x_mm"],
            "template_y_mm": place["template_y_mm"],
            "template_z_mm": place["template_z_mm"],
            "ventricle_distance_mm": place["ventricle_distance_mm"],
            "mean_probability": mean_over_lesion(np.asarray(probability, dtype=float)[inside]),
            "mean_flair_z": (brightness - mean_brain) / sd_brain,
            "flair_to_wm": brightness / white_matter if white_matter else np.nan,
        }
    )
    return table.replace(np.inf, np.nan)  # written as n/a


def _places(labels: np.ndarray, centroids: np.ndarray, anatomy: Anatomy | None) -> dict[str, Any]:
    """Columns that say where each lesion lies; `centroids` (lesions, 3) in mm, RAS+."""
    names = ("region", "side", "ventricle_distance_mm")
    axes = [f"template_{axis}_mm" for axis in "xyz"]
    if anatomy is None or not len(centroids):
        return dict.fromkeys((*names, *axes), np.nan)
    home, side = lesion_homes(region_tally(labels, anatomy.regions))
    template = _template_places(anatomy, centroids)
    nearest = ndimage.minimum(
        anatomy.ventricle_distance_mm, labels, np.arange(1, len(centroids) + 1)
    )
    # Without ventricles in the scan only what does not follow from the distance to them is told.
    told = np.isfinite(nearest) | ~np.isin([REGIONS[index] for index in home], BY_DISTANCE)
    return {
        "region": [REGIONS[i] if known else np.nan for i, known in zip(home, told, strict=True)],
        "side": [SIDES[index] for index in side],
        "ventricle_distance_mm": np.asarray(nearest, dtype=float),
        **dict(zip(axes, template, strict=True)),
    }


def _template_places(anatomy: Anatomy, world: np.ndarray) -> np.ndarray:
    """Template points (3, N) of points (N, 3) of the scan, both mm, RAS+."""
    to_node = np.linalg.inv(anatomy.template_points.affine)
    nodes = to_node[:3, :3] @ world.T + to_node[:3, 3:]
    return np.stack(
        [
            ndimage.map_coordinates(axis, nodes, order=1, mode="nearest", output=np.float64)
            for axis in anatomy.template_points.data
        ]
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
