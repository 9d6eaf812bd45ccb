"""Grids, voxel orders and resampling: functions of an array and its affine.

An affine is a (4, 4) matrix that takes voxel indices to world coordinates in mm, RAS+ (x to the
subject's right, y to the front, z up), as nibabel gives it. Voxel (0, 0, 0) means the centre of
the first voxel, so a field of view reaches from index -0.5 to n - 0.5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bagau_bids.errors import InputImageError

SAME_GRID_MM = 0.01  # affines that place every corner this close are one grid


@dataclass(frozen=True)
class Image:
    """An image on its grid: data (X, Y, Z), affine (4, 4) voxel to world, mm, RAS+."""

    data: NDArray[Any]
    affine: NDArray[np.float64]


def voxel_sizes(affine: ArrayLike) -> NDArray[np.float64]:
    """Edge lengths of a voxel.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world, mm.

    Returns
    -------
    (3,) array
        mm along each voxel axis.
    """
    matrix = np.asarray(affine, dtype=float)
    return np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))


def same_grid(
    shape: tuple[int, ...],
    affine: ArrayLike,
    other_shape: tuple[int, ...],
    other_affine: ArrayLike,
) -> bool:
    """Tell whether two grids have the same voxels in the same places, within 0.01 mm."""
    if tuple(shape) != tuple(other_shape):
        return False
    return grid_distance_mm(shape, affine, other_affine) <= SAME_GRID_MM


def resample(
    data: NDArray,
    affine: ArrayLike,
    target_shape: tuple[int, int, int],
    target_affine: ArrayLike,
    order: int = 1,
    cval: float | None = 0.0,
) -> NDArray[np.float32]:
    """Read an image off at the voxel centres of another grid.

    Nothing is smoothed beforehand: going to much larger voxels aliases unless the caller averages
    first. Up to half a voxel beyond the outermost voxel centres the border value is repeated, so
    that the outer half of a thick slice is not lost.

    Parameters
    ----------
    data : (X, Y, Z) array
        Image, any real or boolean type.
    affine : (4, 4) array
        Voxel to world of `data`, mm.
    target_shape : tuple of three int
        Shape of the result.
    target_affine : (4, 4) array
        Voxel to world of the result, mm.
    order : int
        Spline order, 0 (nearest neighbour) to 5.
    cval : float or None
        Value outside the field of view of `data`; None repeats the border value everywhere.

    Returns
    -------
    array of `target_shape`, float32
    """
    from scipy.ndimage import affine_transform

    target_to_source = np.linalg.inv(np.asarray(affine, float)) @ np.asarray(target_affine, float)
    resampled = affine_transform(
        np.asarray(data, dtype=np.float32),
        target_to_source[:3, :3],
        target_to_source[:3, 3],
        output_shape=tuple(target_shape),
        output=np.float32,
        order=order,
        mode="nearest",
    )
    if cval is not None:
        resampled[~field_of_view(data.shape, affine, target_shape, target_affine)] = cval
    return resampled


def field_of_view(
    shape: tuple[int, ...],
    affine: ArrayLike,
    target_shape: tuple[int, int, int],
    target_affine: ArrayLike,
) -> NDArray[np.bool_]:
    """Voxels of a grid whose centre lies in the field of view of another one.

    Parameters
    ----------
    shape, affine
        The other grid: voxels from index -0.5 to n - 0.5; (4, 4) voxel to world, mm.
    target_shape, target_affine
        The grid that is asked about.

    Returns
    -------
    bool array of `target_shape`
    """
    target_to_source = np.linalg.inv(np.asarray(affine, float)) @ np.asarray(target_affine, float)
    indices = np.ogrid[tuple(slice(n) for n in target_shape)]
    inside = np.ones(target_shape, dtype=bool)
    tolerance = 1e-4  # voxels; a grid must count as inside itself whatever the rounding
    for length, row in zip(shape[:3], target_to_source[:3], strict=True):
        position = sum(row[axis] * indices[axis] for axis in range(3)) + row[3]
        inside &= (position >= -0.5 - tolerance) & (position <= length - 0.5 + tolerance)
    return inside


def isotropic_grid(
    shape: tuple[int, ...], affine: ArrayLike, spacing_mm: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Grid of cubic voxels over the same field of view, with the same axes and centre.

    Parameters
    ----------
    shape : tuple of int
        Shape of the source, the first three count.
    affine : (4, 4) array
        Voxel to world of the source, mm.
    spacing_mm : float
        Edge length of the new voxels.

    Returns
    -------
    shape : tuple of three int
        Enough voxels to cover the source from voxel corner to voxel corner.
    affine : (4, 4) array
        Voxel to world of the new grid, mm.
    """
    source = np.asarray(affine, dtype=float)
    sizes = voxel_sizes(source)
    extent_mm = sizes * shape[:3]
    count = np.maximum(np.ceil(extent_mm / spacing_mm - 1e-6), 1).astype(int)
    target = np.eye(4)
    target[:3, :3] = source[:3, :3] / sizes * spacing_mm
    centre = source[:3, :3] @ ((np.asarray(shape[:3]) - 1) / 2) + source[:3, 3]
    target[:3, 3] = centre - target[:3, :3] @ ((count - 1) / 2)
    return (int(count[0]), int(count[1]), int(count[2])), target


def grid_distance_mm(shape: tuple[int, ...], first: ArrayLike, second: ArrayLike) -> float:
    """How far apart two placements of one grid are: the largest distance between their corners.

    Parameters
    ----------
    shape : tuple of int
        Shape of the grid, the first three count.
    first, second : (4, 4) arrays
        Voxel to world of each placement, mm.

    Returns
    -------
    float
        mm between the centres of the same corner voxel.
    """
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape[:3]]), -1).reshape(-1, 3)
    change = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    shift = corners @ change[:3, :3].T + change[:3, 3]
    return float(np.linalg.norm(shift, axis=1).max())


def shear_degrees(affine: ArrayLike) -> float:
    """How far the voxel axes are from right angles to each other.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world, mm.

    Returns
    -------
    float
        Largest difference from 90 degrees between any two axes.
    """
    directions = np.asarray(affine, dtype=float)[:3, :3] / voxel_sizes(affine)
    cosines = np.abs((directions.T @ directions)[np.triu_indices(3, 1)])
    return float(np.rad2deg(np.arcsin(np.clip(cosines.max(), 0, 1))))


def orthonormal_affine(affine: ArrayLike, tolerance: float = 5.0) -> NDArray[np.float64]:
    """Nearest affine whose axes are at right angles, for software that accepts no other (ITK).

    The directions become the orthogonal factor of their polar decomposition, which is the nearest
    orthogonal matrix in the Frobenius norm (Higham 1986, doi:10.1137/0907079). Voxel sizes,
    handedness and the world position of voxel (0, 0, 0) stay.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world, mm.
    tolerance : float
        Largest departure from right angles that is repaired, degrees.

    Returns
    -------
    (4, 4) array

    Raises
    ------
    InputImageError
        If two axes are further than `tolerance` from a right angle.
    """
    shear = shear_degrees(affine)
    if shear > tolerance:
        raise InputImageError(
            f"voxel axes are {shear:.1f} degrees away from right angles, at most {tolerance:g} "
            "can be repaired: resample the image to a grid without shear"
        )
    repaired = np.array(affine, dtype=float)
    sizes = voxel_sizes(repaired)
    left, _, right = np.linalg.svd(repaired[:3, :3] / sizes)
    repaired[:3, :3] = (left @ right) * sizes
    return repaired


def reorient(data: NDArray, affine: ArrayLike) -> tuple[NDArray, NDArray[np.float64]]:
    """Put the voxel axes in the order and direction closest to RAS+, without interpolation.

    Parameters
    ----------
    data : (X, Y, Z, ...) array
        Image in its own voxel order.
    affine : (4, 4) array
        Voxel to world, mm.

    Returns
    -------
    data : array
        The same voxels with axes swapped and flipped (a view where possible).
    affine : (4, 4) array
        Voxel to world of the result, mm; every voxel keeps its place in the world.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(np.asarray(affine, dtype=float))
    to_source = inv_ornt_aff(orientation, data.shape[:3])
    return apply_orientation(data, orientation), np.asarray(affine, dtype=float) @ to_source


def restore_orientation(
    data_ras: NDArray, source_shape: tuple[int, ...], source_affine: ArrayLike
) -> NDArray:
    """Undo `reorient`: bring an array in RAS+ order back to the source's voxel order.

    Parameters
    ----------
    data_ras : (X, Y, Z, ...) array
        Array on the grid that `reorient` returned for the source.
    source_shape : tuple of int
        Shape of the source, the first three count.
    source_affine : (4, 4) array
        Voxel to world of the source, mm.

    Returns
    -------
    array
        First three axes as in `source_shape`.

    Raises
    ------
    ValueError
        If `data_ras` does not have the voxels of the source.
    """
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    to_ras = io_orientation(np.asarray(source_affine, dtype=float))
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    restored = apply_orientation(data_ras, ornt_transform(canonical, to_ras))
    if restored.shape[:3] != tuple(source_shape[:3]):
        raise ValueError(
            f"array of shape {data_ras.shape[:3]} in RAS+ order does not lie on a source grid "
            f"of shape {tuple(source_shape[:3])}"
        )
    return restored
