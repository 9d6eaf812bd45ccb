"""Where the ventricles, the cortex and the infratentorial brain lie in template space.

The map is part of the package (``data/regions``, its card beside it): the average of label maps
that were registered to the ICBM152 2009a symmetric template, one number a voxel. The 2009a and
2009c symmetric templates share one space, so it serves both.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.preprocessing.transforms import jacobian_determinant, sample
from bagau_bids.spaces import resample

FILE_NAME = "tpl-ICBM152NLin2009aSym_res-1_seg-regions_dseg.nii.gz"
# The number of a group is its place in this list, from 1; 0 is outside the brain.
GROUPS = (
    "lateral_ventricle",
    "other_csf",
    "infratentorial",
    "cortex",
    "white_matter",
    "deep_grey",
)


@dataclass(frozen=True)
class TemplateRegions:
    """Brain regions in template space.

    Attributes
    ----------
    labels
        (X, Y, Z) uint8, numbers of `GROUPS`.
    affine
        (4, 4), voxel to world, mm, RAS+; x = 0 is the plane between the hemispheres.
    """

    labels: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]


def load_template_regions() -> TemplateRegions:
    """Read the map that the package carries."""
    with as_file(files("bagau_bids.data") / "regions" / FILE_NAME) as path:
        image = nib.Nifti1Image.from_filename(path)
        return TemplateRegions(np.asarray(image.dataobj, dtype=np.uint8), image.affine)


def carry_regions(
    regions: TemplateRegions,
    points: npt.NDArray[np.floating],
    points_affine: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Carry the map onto a FLAIR's grid.

    Parameters
    ----------
    regions
        The map.
    points, points_affine
        (3, I, J, K) and (4, 4), as by `bagau_bids.preprocessing.transforms.lattice_field`.
    shape, affine
        The FLAIR's grid.

    Returns
    -------
    groups
        (X, Y, Z) uint8, numbers of `GROUPS`, nearest neighbour.
    right
        (X, Y, Z) bool, right of the template's midplane.
    """
    dense = np.stack([resample(axis, points_affine, shape, affine, cval=None) for axis in points])
    groups = sample(regions.labels, regions.affine, dense, order=0)
    return groups.astype(np.uint8), dense[0] > 0


def covered_fraction(
    regions: TemplateRegions,
    points: npt.NDArray[np.floating],
    points_affine: npt.NDArray[np.float64],
    groups: npt.NDArray[np.uint8],
    affine: npt.NDArray[np.float64],
) -> float:
    """Return the share of the template's brain, by volume, that lies in a FLAIR's field of view.

    Parameters
    ----------
    regions, points, points_affine, affine
        As for `carry_regions`.
    groups
        What it returned.
    """
    volume = jacobian_determinant(points, points_affine)
    voxels = resample(volume, points_affine, groups.shape, affine, cval=None)[groups > 0]
    seen = float(voxels.sum(dtype=np.float64)) * voxel_volume_mm3(affine)
    whole = np.count_nonzero(regions.labels) * voxel_volume_mm3(regions.affine)
    return float(min(seen / whole, 1.0))
