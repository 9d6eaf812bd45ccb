"""Intensity non-uniformity of the receive coil, estimated by N4 on a coarse grid.

N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908) takes minutes on a clinical FLAIR, and shrinking
20 thick slices by its usual factor of four leaves five of them. The field is smooth, so it is
estimated on a coarse isotropic grid and read off on the fine one.

Lesions must not be taken for field: the brightest voxels are clipped before N4 sees them and the
control points stay about 40 mm apart. The contrast of manually outlined lesions to their
surroundings fell by at most 1.5 % in eleven scans (``benchmarks/bias_field.py``).
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.quick_ants import load_ants
from bagau_bids.spaces import Image, crop, isotropic_grid, resample, voxel_sizes

GRID_MM = 4.0
ITERATIONS = (30, 30, 20)  # one number a level; the control points are doubled between levels
TOLERANCE = 1e-3  # a level ends when its field changes by less
MIN_MASK_ML = 50.0
DARK = 0.1  # of the median: darker voxels are fluid or air and say nothing about the field
BRIGHT_PERCENTILE = 97.0  # lesions above it are clipped, or they would be taken for field


def correct_bias_field(
    flair: Image,
    mask: NDArray[np.bool_],
    *,
    grid_mm: float = GRID_MM,
    iterations: tuple[int, ...] = ITERATIONS,
) -> Image:
    """Estimate the bias field of an image and divide by it.

    Parameters
    ----------
    flair : Image
        Intensities. Where some in the mask are negative (the image was normalised by other
        software), the lowest of them counts as zero intensity and is subtracted.
    mask : (X, Y, Z) array of bool
        Brain.
    grid_mm, iterations
        As for `estimate_bias_field`.

    Returns
    -------
    Image
        Corrected, float32, in the units of `flair`.

    Raises
    ------
    ProcessingError
        As `estimate_bias_field`.
    """
    field = estimate_bias_field(flair, mask, grid_mm=grid_mm, iterations=iterations)
    corrected = (flair.data - intensity_zero(flair.data, mask)) / field
    return Image(corrected.astype(np.float32), flair.affine)


def estimate_bias_field(
    flair: Image,
    mask: NDArray[np.bool_],
    *,
    grid_mm: float = GRID_MM,
    iterations: tuple[int, ...] = ITERATIONS,
) -> NDArray[np.float32]:
    """Estimate the smooth factor by which each voxel is too bright.

    The same image and number of threads give the same field; other numbers differ by rounding
    (about 1e-6). ITK takes the number from the variable ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS when
    it first computes in a process.

    Parameters
    ----------
    flair : Image
        Intensities.
    mask : (X, Y, Z) array of bool
        Brain.
    grid_mm : float
        Voxel size of the grid on which N4 works.
    iterations : tuple of int
        Largest number of iterations of each fitting level. The first level has one cubic B-spline
        element across the brain in each direction, each further level twice as many.

    Returns
    -------
    (X, Y, Z) array, float32
        Positive, mean 1 in the mask. Outside of the mask the value of the nearest brain goes on,
        ever smoother with the distance.

    Raises
    ------
    ProcessingError
        If the mask is smaller than 50 ml or holds no signal.
    """
    volume_ml = mask.sum() * voxel_sizes(flair.affine).prod() / 1000
    if volume_ml < MIN_MASK_ML:
        raise ProcessingError(
            f"the brain mask holds {volume_ml:.1f} ml, expected more than {MIN_MASK_ML:g}: the "
            "brain was not found; look at the image, or give a brain mask with --derivatives"
        )
    coarse, coarse_mask = _coarse_brain(flair, mask, grid_mm)
    inner = _reliable(coarse.data, coarse_mask)
    log_field = _extend(np.log(_n4(coarse.data, inner, grid_mm, iterations)), inner)
    field = np.exp(resample(Image(log_field, coarse.affine), flair, cval=None))
    return (field / field[mask].mean()).astype(np.float32)


def intensity_zero(flair: NDArray, mask: NDArray[np.bool_]) -> float:
    """Intensity that counts as no signal: 0, or the lowest value in the mask if negative."""
    return min(0.0, float(flair[mask].min()))


def _coarse_brain(
    flair: Image, mask: NDArray[np.bool_], grid_mm: float
) -> tuple[Image, NDArray[np.bool_]]:
    """Mean brain intensity in cubic voxels over the box around the mask, and the mask there."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    brain = crop(Image(mask.astype(np.float32), flair.affine), box)
    grid = isotropic_grid(brain, grid_mm)
    width = np.maximum(np.rint(grid_mm / voxel_sizes(flair.affine)), 1).astype(int)

    def coarsen(image: NDArray) -> NDArray[np.float32]:
        averaged = ndimage.uniform_filter(image, width, mode="constant")
        return resample(Image(averaged, brain.affine), grid)

    share = coarsen(brain.data)
    signal = flair.data[box] - intensity_zero(flair.data, mask)
    total = coarsen(signal.astype(np.float32) * brain.data)
    mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0.01)
    return Image(mean, grid.affine), share > 0.5


def _reliable(coarse: NDArray, coarse_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that N4 may look at: brain without its rim, as far as that leaves enough."""
    if not (coarse[coarse_mask] > 0).any():
        raise ProcessingError(
            "the image has no signal in the brain mask: they do not belong together"
        )
    bright_enough = coarse > DARK * np.median(coarse[coarse_mask])
    eroded = ndimage.binary_erosion(coarse_mask)
    inner = (eroded if 2 * eroded.sum() > coarse_mask.sum() else coarse_mask) & bright_enough
    return inner


def _n4(
    coarse: NDArray, inner: NDArray[np.bool_], grid_mm: float, iterations: tuple[int, ...]
) -> NDArray[np.float32]:
    """Field by ANTs' N4 on the coarse grid, defined in `inner` only."""
    ants = load_ants()
    scaled = coarse / np.median(coarse[inner]) * 1000
    scaled = np.clip(scaled, 1, np.percentile(scaled[inner], BRIGHT_PERCENTILE))
    spacing = (grid_mm,) * 3
    field = ants.n4_bias_field_correction(
        ants.from_numpy(scaled.astype(np.float32), spacing=spacing),
        mask=ants.from_numpy(inner.astype(np.float32), spacing=spacing),
        shrink_factor=1,
        convergence={"iters": list(iterations), "tol": TOLERANCE},
        spline_param=[1, 1, 1],
        return_bias_field=True,
    )
    return field.numpy()


def _extend(log_field: NDArray, inner: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Go on smoothly where the field was not estimated, within its range."""
    distance, nearest = ndimage.distance_transform_edt(~inner, return_indices=True)
    filled = log_field[tuple(nearest)]
    smooth = ndimage.gaussian_filter(filled, sigma=3, mode="nearest")
    weight = np.clip(distance / 6, 0, 1)
    return ((1 - weight) * filled + weight * smooth).astype(np.float32)
