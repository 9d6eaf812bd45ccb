"""Rigid alignment of two sessions of one participant.

The transforms to the template say roughly how the sessions lie to each other: a rigid transform
is fitted to points carried from one FLAIR through the template to the other. It is the start,
and not the result, because each registration to the template errs by itself, by more than a
lesion grows. elastix then aligns the two brain-masked FLAIRs by mutual information, so that
sessions on different scanners can be compared too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.elastix import Elastix
from bagau_bids.preprocessing.registration import brain_image
from bagau_bids.preprocessing.t1w import rigid_parameters
from bagau_bids.preprocessing.transforms import TemplateTransform, from_elastix
from bagau_bids.spaces import Image, field_of_view, isotropic_grid, resample

Array = npt.NDArray[np.floating[Any]]
FIT_SPACING_MM = 12.0  # of the points of the brain to which the start is fitted
# The start is a few mm off, so the coarsest level and half of the steps are not needed: from
# starts 0.5, 5 and 9 mm off the result moved by 0.04 mm, as much as with another seed.
SESSION_SEARCH: dict[str, tuple[str, ...]] = {
    "NumberOfResolutions": ("2",),
    "ImagePyramidSchedule": ("2", "2", "2", "1", "1", "1"),
    "MaximumNumberOfIterations": ("128",),
}
OVERLAP_SPACING_MM = 2.0  # of the grid on which brain masks are compared
LOWEST_OVERLAP = 0.85  # Dice of the brain masks below which sessions are not aligned


def align_sessions(
    before: tuple[Image, npt.NDArray[np.bool_], TemplateTransform],
    after: tuple[Image, npt.NDArray[np.bool_], TemplateTransform],
    *,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float64], float]:
    """Find the rigid transform from the earlier to the later session.

    Parameters
    ----------
    before, after
        FLAIR with its grid, brain mask (X, Y, Z) on that grid, and transform from FLAIR to
        template points.
    threads
        Number of threads of elastix.

    Returns
    -------
    matrix
        (4, 4), points of the earlier FLAIR to points of the later one, mm, RAS+; a rotation and
        a shift.
    overlap
        Dice of the brain masks where both scans have a field of view.

    Raises
    ------
    ProcessingError
        If a brain mask is empty, elastix fails, or the brains do not overlap afterwards.
    """
    for image, mask, _ in (before, after):
        if mask.shape != image.data.shape or not mask.any():
            raise ProcessingError(
                f"a brain mask of shape {mask.shape} with {np.count_nonzero(mask)} voxels does "
                f"not fit its FLAIR of shape {image.data.shape}; process the scan again"
            )
    with Elastix(threads) as elastix:
        start = start_from_template(before, after)
        fixed, fixed_mask = brain_image(before[0], before[1])
        moving, _ = brain_image(after[0], after[1])
        stages = [rigid_parameters() | SESSION_SEARCH]
        maps = elastix.register(fixed, moving, fixed_mask, stages, start)
    matrix = np.asarray(from_elastix(start, maps).affine, dtype=np.float64)
    overlap = brain_overlap(
        Image(before[1], before[0].affine),
        Image(after[1], np.linalg.inv(matrix) @ after[0].affine),
    )
    if overlap < LOWEST_OVERLAP:
        raise ProcessingError(
            f"the sessions could not be aligned: their brain masks overlap by {overlap:.2f} "
            f"(Dice), expected at least {LOWEST_OVERLAP}; look at the brain masks of both"
        )
    return matrix, overlap


def start_from_template(
    before: tuple[Image, npt.NDArray[np.bool_], TemplateTransform],
    after: tuple[Image, npt.NDArray[np.bool_], TemplateTransform],
) -> npt.NDArray[np.float64]:
    """Fit a rigid transform to brain points carried through the template; arguments as above."""
    image, mask, transform = before
    low, high = (ends(np.nonzero(mask), axis=1) for ends in (np.min, np.max))
    steps = np.maximum(np.rint(FIT_SPACING_MM / np.linalg.norm(image.affine[:3, :3], axis=0)), 1)
    axes = [np.arange(a, b + 1, step) for a, b, step in zip(low, high, steps, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    index = index[:, mask[tuple(index.astype(int))]]
    points = image.affine[:3, :3] @ index + image.affine[:3, 3:]
    return fit_rigid(points, after[2].unmap_points(transform.map_points(points)))


def fit_rigid(source: Array, target: Array) -> npt.NDArray[np.float64]:
    """Fit a rotation and a shift to pairs of points, least squares.

    Kabsch 1976, doi:10.1107/S0567739476001873.

    Parameters
    ----------
    source, target
        (3, N) mm, at least three points that do not lie on one line.

    Returns
    -------
    (4, 4), source to target points; never a reflection.
    """
    centres = source.mean(axis=1, keepdims=True), target.mean(axis=1, keepdims=True)
    left, _, right = np.linalg.svd((target - centres[1]) @ (source - centres[0]).T)
    turn = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
    result = np.eye(4)
    result[:3, :3] = left @ turn @ right
    result[:3, 3] = (centres[1] - result[:3, :3] @ centres[0])[:, 0]
    return result


def brain_overlap(first: Image, second: Image) -> float:
    """Return the Dice coefficient of two masks where both have a field of view.

    They lie in one world, and are compared on voxels of 2 mm over the first's field of view.
    """
    grid = isotropic_grid(first, OVERLAP_SPACING_MM)
    view = field_of_view(second, grid)
    mask, other = (resample(one, grid) > 0.5 for one in (first, second))
    both = np.count_nonzero(mask & other & view)
    total = np.count_nonzero(mask & view) + np.count_nonzero(other & view)
    return 2 * both / total if total else 0.0


def half_way(matrix: Array) -> npt.NDArray[np.float64]:
    """Return the rigid transform that makes up the given one if applied twice.

    Both sessions are resampled once, into the space between them, so that neither is blurred
    more than the other (Reuter and Fischl 2011, doi:10.1016/j.neuroimage.2011.02.076).
    """
    from scipy.linalg import sqrtm

    return np.real(sqrtm(np.asarray(matrix, dtype=float)))


def movement(matrix: Array, centre: Array) -> tuple[float, float]:
    """Return the angle (degrees) of a rigid transform and how far it moves a point (mm)."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    moved = matrix[:3, :3] @ centre + matrix[:3, 3]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(
        np.linalg.norm(moved - centre)
    )
