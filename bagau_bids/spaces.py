"""Images on their grids, voxel orders and resampling.

An affine is a (4, 4) matrix that takes voxel indices to world coordinates in mm, RAS+ (x to the
subject's right, y to the front, z up), as nibabel gives it. Voxel (0, 0, 0) means the centre of
the first voxel, so a field of view reaches from index -0.5 to n - 0.5.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bagau_bids.errors import InputImageError

SAME_GRID_MM = 0.01  # affines that place every corner this close are one grid


class OnGrid(Protocol):
    """What has voxels somewhere: an `Image`, a `Grid`, an image of nibabel."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel to world, mm, RAS+."""


@dataclass(frozen=True)
class Grid:
    """Voxels without values: shape (X, Y, Z), affine (4, 4) voxel to world, mm, RAS+."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Image:
    """An image on its grid: data (X, Y, Z), affine (4, 4) voxel to world, mm, RAS+."""

    data: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the data."""
        return self.data.shape


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


def same_grid(one: OnGrid, other: OnGrid) -> bool:
    """Tell whether two grids have the same voxels in the same places, within 0.01 mm."""
    same_shape = tuple(one.shape) == tuple(other.shape)
    return same_shape and grid_distance_mm(one, other.affine) <= SAME_GRID_MM


def resample(
    image: Image, target: OnGrid, order: int = 1, cval: float | None = 0.0
) -> NDArray[np.float32]:
    """Read an image off at the voxel centres of another grid.

    Nothing is smoothed beforehand: going to much larger voxels aliases unless the caller averages
    first. Up to half a voxel beyond the outermost voxel centres the border value is repeated, so
    that the outer half of a thick slice is not lost.

    Parameters
    ----------
    image : Image
        Of any real or boolean type.
    target : OnGrid
        Where it is read off.
    order : int
        Spline order, 0 (nearest neighbour) to 5.
    cval : float or None
        Value outside the field of view of `image`; None repeats the border value everywhere.

    Returns
    -------
    array of the target's shape, float32
    """
    from scipy.ndimage import affine_transform

    target_to_source = np.linalg.inv(image.affine) @ target.affine
    resampled = affine_transform(
        np.asarray(image.data, dtype=np.float32),
        target_to_source[:3, :3],
        target_to_source[:3, 3],
        output_shape=tuple(target.shape),
        output=np.float32,
        order=order,
        mode="nearest",
    )
    if cval is not None:
        resampled[~field_of_view(image, target)] = cval
    return resampled


def field_of_view(grid: OnGrid, target: OnGrid) -> NDArray[np.bool_]:
    """Voxels of a target whose centre lies in a grid's field of view, index -0.5 to n - 0.5."""
    target_to_source = np.linalg.inv(grid.affine) @ target.affine
    indices = np.ogrid[tuple(slice(n) for n in target.shape)]
    inside = np.ones(target.shape, dtype=bool)
    tolerance = 1e-4  # voxels; a grid must count as inside itself whatever the rounding
    for length, row in zip(grid.shape[:3], target_to_source[:3], strict=True):
        position = sum(row[axis] * indices[axis] for axis in range(3)) + row[3]
        inside &= (position >= -0.5 - tolerance) & (position <= length - 0.5 + tolerance)
    return inside


def isotropic_grid(source: OnGrid, spacing_mm: float) -> Grid:
    """Grid of cubic voxels over the same field of view, with the same axes and centre.

    It has enough voxels to cover the source from voxel corner to voxel corner.
    """
    size, affine = np.array(source.shape[:3]), source.affine
    sizes = voxel_sizes(affine)
    count = np.maximum(np.ceil(sizes * size / spacing_mm - 1e-6), 1).astype(int)
    target = np.eye(4)
    target[:3, :3] = affine[:3, :3] / sizes * spacing_mm
    centre = affine[:3, :3] @ ((size - 1) / 2) + affine[:3, 3]
    target[:3, 3] = centre - target[:3, :3] @ ((count - 1) / 2)
    return Grid(tuple(count.tolist()), target)


def grid_distance_mm(grid: OnGrid, other: ArrayLike) -> float:
    """How far another affine, (4, 4), moves a grid: the largest distance between corners, mm.

    Corners are the centres of the outermost voxels.
    """
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in grid.shape[:3]]), -1).reshape(-1, 3)
    change = grid.affine - np.asarray(other, dtype=float)
    shift = corners @ change[:3, :3].T + change[:3, 3]
    return float(np.linalg.norm(shift, axis=1).max())


def crop(image: Image, box: tuple[slice, ...]) -> Image:
    """Cut a box out of an image; it stays where it is in the world."""
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Image(image.data[box], affine)


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


def reorient(image: Image) -> Image:
    """Put the voxel axes in the order and direction closest to RAS+, without interpolation.

    The voxels are the same, with axes swapped and flipped (a view where possible), and keep their
    places in the world. There may be further axes after the first three.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(image.affine)
    to_source = inv_ornt_aff(orientation, image.shape[:3])
    return Image(apply_orientation(image.data, orientation), image.affine @ to_source)


def restore_orientation(data_ras: NDArray, source: OnGrid) -> NDArray:
    """Undo `reorient`: bring an array in RAS+ order back to the source's voxel order.

    Parameters
    ----------
    data_ras : (X, Y, Z, ...) array
        Array on the grid that `reorient` returned for the source.
    source : OnGrid
        In its own voxel order.

    Returns
    -------
    array
        First three axes as in the source.

    Raises
    ------
    ValueError
        If `data_ras` does not have the voxels of the source.
    """
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    to_source = ornt_transform(canonical, io_orientation(source.affine))
    restored = apply_orientation(data_ras, to_source)
    if restored.shape[:3] != tuple(source.shape[:3]):
        raise ValueError(
            f"array of shape {data_ras.shape[:3]} in RAS+ order does not lie on a source grid "
            f"of shape {tuple(source.shape[:3])}"
        )
    return restored
