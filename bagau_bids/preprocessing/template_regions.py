"""Where the ventricles, the cortex and the infratentorial brain lie in template space.

The map is part of the package (``data/regions``, its card beside it): the average of label maps
that were registered to the ICBM152 2009a symmetric template, one number a voxel. The 2009a and
2009c symmetric templates share one space, so it serves both.
"""

from importlib.resources import as_file, files

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.preprocessing.transforms import jacobian_determinant, sample
from bagau_bids.processes import side_by_side
from bagau_bids.spaces import Image, OnGrid, resample

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


def load_template_regions() -> Image:
    """Read the map that the package carries: numbers of `GROUPS`, uint8.

    x = 0 of its world is the plane between the hemispheres.
    """
    with as_file(files("bagau_bids.data") / "regions" / FILE_NAME) as path:
        image = nib.Nifti1Image.from_filename(path)
        return Image(np.asarray(image.dataobj, dtype=np.uint8), image.affine)


def carry_regions(
    regions: Image, points: Image, flair: OnGrid, threads: int = 1
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Carry the map onto a FLAIR's grid.

    Parameters
    ----------
    regions
        The map.
    points
        (3, I, J, K), as by `bagau_bids.preprocessing.transforms.lattice_field`.
    flair
        Its grid.
    threads
        That share the work.

    Returns
    -------
    groups
        (X, Y, Z) uint8, numbers of `GROUPS`, nearest neighbour.
    right
        (X, Y, Z) bool, right of the template's midplane.
    """
    axes = [Image(axis, points.affine) for axis in points.data]
    dense = np.stack(side_by_side(lambda axis: resample(axis, flair, cval=None), axes, threads))
    groups = sample(regions, dense, order=0)
    return groups.astype(np.uint8), dense[0] > 0


def covered_fraction(regions: Image, points: Image, groups: Image) -> float:
    """Return the share of the template's brain, by volume, that lies in a FLAIR's field of view.

    Parameters
    ----------
    regions, points
        As for `carry_regions`.
    groups
        What it returned.
    """
    volume = Image(jacobian_determinant(points), points.affine)
    voxels = resample(volume, groups, cval=None)[groups.data > 0]
    seen = float(voxels.sum(dtype=np.float64)) * voxel_volume_mm3(groups.affine)
    whole = np.count_nonzero(regions.data) * voxel_volume_mm3(regions.affine)
    return float(min(seen / whole, 1.0))
