"""A scan as the network sees it: axial slices of 1 mm pixels, and the way back.

The plane of a scan has :data:`PLANE_SIZE` x :data:`PLANE_SIZE` pixels of 1 mm centred on the
brain. Its rows run along the first voxel axis of the RAS-ordered volume (left to right), its
columns along the second (posterior to anterior), and its slices are those of the volume's
third axis, not reordered; slices thinner than :data:`SLAB_MM` are averaged with their neighbours
to that thickness. So a scan of coronal or sagittal slices is seen in axial ones too, interpolated
across its own. Training and inference both get their tensors
from :func:`network_input` and from nowhere else.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.spaces import Image, voxel_sizes

PLANE_SIZE = 200  # pixels of 1 mm
LARGEST_PLANE_SIZE = 256  # a brain mask beyond this is not one of a human brain
SLAB_MM = 3.0  # thickness that thinner slices are averaged to; thicker ones stay as they are
# A voxel this long in the plane, and so many times as long as the other way, is one of a thick
# slice that is not axial.
THICK_MM, THICK_RATIO = 2.5, 1.5
BRAIN_MARGIN_MM = 5.0  # FLAIR kept around the brain mask; everything farther out is 0
Z_SCORE_PERCENTILES = (5.0, 95.0)
Z_SCORE_LIMITS = (-6.0, 10.0)
# Of the brain mask, with a white-matter probability of 0.5 or more: 0.26 to 0.32 in whole heads.
LEAST_WHITE_MATTER = 0.02

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class SlicePlane:
    """Where the network's plane lies in a volume; the same for all of its slices.

    Parameters
    ----------
    shape : (3,) tuple of int
        Voxels of the volume along X, Y, Z (RAS order).
    spacing_mm : (2,) tuple of float
        Voxel size along X and Y.
    centre : (2,) tuple of float
        Voxel coordinate (X, Y) that the plane is centred on.
    size : int
        Pixels of the plane along each side, 1 mm each.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float]
    centre: tuple[float, float]
    size: int = PLANE_SIZE

    def across_slices(self, axis: int) -> bool:
        """Whether `axis` (0 or 1) runs across thick slices, which are not axial then."""
        other = self.spacing_mm[1 - axis]
        return self.spacing_mm[axis] >= max(THICK_MM, THICK_RATIO * other)

    def voxels_of_pixels(self, axis: int) -> NDArray[np.float64]:
        """Voxel coordinates along `axis` (0 or 1) of the plane's pixels, (size,) array."""
        pixels = np.arange(self.size, dtype=np.float64) - (self.size - 1) / 2
        return self.centre[axis] + pixels / self.spacing_mm[axis]

    def pixels_of_voxels(self, axis: int) -> NDArray[np.float64]:
        """Pixel coordinates along `axis` (0 or 1) of the volume's voxels, (shape,) array."""
        voxels = np.arange(self.shape[axis], dtype=np.float64) - self.centre[axis]
        return voxels * self.spacing_mm[axis] + (self.size - 1) / 2


@dataclass(frozen=True)
class NetworkInput:
    """The tensors of one scan and the plane they were sampled on.

    Parameters
    ----------
    channels : dict of str to (Z, size, size) float32 array
        ``flair``: z-scored in the brain, clipped, 0 away from the brain. ``atlas``: white-matter
        probability in [0, 1]. ``t1``: as the FLAIR, of the T1w; only where a network asks for it.
    brain : (Z, size, size) bool array
        The brain mask.
    plane : SlicePlane
    notes : tuple of str
        What was out of the ordinary; empty for most scans.
    """

    channels: dict[str, FloatArray]
    brain: BoolArray
    plane: SlicePlane
    notes: tuple[str, ...] = ()

    def with_channels(self, **channels: FloatArray) -> "NetworkInput":
        """Return the same scan with further channels, or others in place of its own."""
        return replace(self, channels={**self.channels, **channels})


def network_input(
    flair: Image,
    brain_mask: BoolArray,
    wm_probseg: FloatArray,
    excluded: BoolArray | None = None,
) -> NetworkInput:
    """Turn a scan into what the network is trained on and applied to.

    Parameters
    ----------
    flair : Image
        FLAIR corrected for the bias field, voxels in RAS order.
    brain_mask : (X, Y, Z) bool array
    wm_probseg : (X, Y, Z) float array
        White-matter probability map of the template, warped onto the FLAIR's grid.
    excluded : (X, Y, Z) bool array or None
        Known lesions, which do not count for the z-score; the network sees them all the same.

    Returns
    -------
    NetworkInput

    Raises
    ------
    ProcessingError
        If the brain mask is empty, excluded as a whole, or wider than 256 mm, or the FLAIR
        constant inside it.
    """
    for name, other in (("brain mask", brain_mask), ("white-matter map", wm_probseg)):
        if other.shape != flair.data.shape:
            raise ValueError(f"{name} {other.shape} and FLAIR {flair.data.shape} differ in shape")
    mask = np.asarray(brain_mask, dtype=bool)
    plane, notes = place_plane(Image(mask, flair.affine))
    brain = to_slices(mask, plane) >= 0.5
    thickness_mm = float(voxel_sizes(flair.affine)[2])
    counted = mask if excluded is None else mask & ~np.asarray(excluded, dtype=bool)
    averaged = average_thin_slices(flair.data, thickness_mm)
    z_scored = z_score(averaged, _values_seen(averaged, counted, plane), "FLAIR")
    atlas = to_slices(average_thin_slices(wm_probseg, thickness_mm), plane)
    return NetworkInput(
        {
            "flair": _near_brain(to_slices(z_scored, plane), brain),
            "atlas": np.clip(atlas, 0.0, 1.0),
        },
        brain=brain,
        plane=plane,
        notes=notes,
    )


def require_white_matter(wm_probseg: FloatArray, brain_mask: BoolArray) -> None:
    """Refuse a white-matter map that guides to nowhere.

    Networks that are guided by the map find nothing where it is zero, whatever the FLAIR shows,
    and no lesion is a result that would be believed.

    Parameters
    ----------
    wm_probseg : (X, Y, Z) float array
        White-matter probability map of the template, warped onto the FLAIR's grid.
    brain_mask : (X, Y, Z) bool array
        Not empty.

    Raises
    ------
    ProcessingError
        If less than 2 % of the brain mask have a probability of 0.5 or more.
    """
    share = float(np.mean(np.asarray(wm_probseg)[np.asarray(brain_mask, dtype=bool)] >= 0.5))
    if share < LEAST_WHITE_MATTER:
        raise ProcessingError(
            f"the registered white-matter map covers {100 * share:.1f} % of the brain mask, "
            "expected about 30 %: guided by it the network would find no lesion, whatever the "
            "FLAIR shows; check the field of view, the brain mask, and the template's "
            "label-WM_probseg, whose values go from 0 to 1"
        )


def add_t1(inputs: NetworkInput, t1: Image, brain_mask: BoolArray) -> NetworkInput:
    """Give a scan its T1w as a further input, treated as the FLAIR is.

    Parameters
    ----------
    inputs : NetworkInput
    t1 : Image
        T1w on the FLAIR's grid, corrected for the bias field.
    brain_mask : (X, Y, Z) bool array
        The mask that `inputs` was made with, less what does not count for the z-score.

    Returns
    -------
    NetworkInput

    Raises
    ------
    ProcessingError
        If the T1w is constant inside the brain mask.
    """
    mask = np.asarray(brain_mask, dtype=bool)
    averaged = average_thin_slices(t1.data, float(voxel_sizes(t1.affine)[2]))
    z_scored = z_score(averaged, _values_seen(averaged, mask, inputs.plane), "T1w")
    slices = to_slices(z_scored, inputs.plane)
    return inputs.with_channels(t1=_near_brain(slices, inputs.brain))


def _near_brain(slices: FloatArray, brain: BoolArray) -> FloatArray:
    """Slices that are 0 away from the brain."""
    return np.where(_dilate_in_plane(brain, BRAIN_MARGIN_MM), slices, np.float32(0.0))


def average_thin_slices(volume: FloatArray, thickness_mm: float) -> FloatArray:
    """Average each slice with its neighbours to a slab of :data:`SLAB_MM`.

    The networks see one slice at a time and have learned mostly from thick ones; the average
    has a thick slice's noise and sharpness. Intensities are normalised after it: the noise of
    thin slices would widen the spread, and lesions would look fainter than in thick ones. A
    neighbour counts by the part of it that lies within the slab; slabs at both ends consist of
    what there is.

    Parameters
    ----------
    volume : (X, Y, Z) float array
    thickness_mm : float
        Distance from one slice to the next, along Z.

    Returns
    -------
    averaged : (X, Y, Z) float32 array
        `volume` itself where its slices are not thinner than a slab.
    """
    if thickness_mm >= SLAB_MM:
        return volume
    numbers = np.arange(volume.shape[2])
    distance_mm = np.abs(numbers[:, None] - numbers) * thickness_mm
    within_mm = np.clip((SLAB_MM + thickness_mm) / 2 - distance_mm, 0.0, thickness_mm)
    weights = (within_mm / within_mm.sum(axis=1, keepdims=True)).astype(np.float32)
    averaged: FloatArray = np.asarray(volume, dtype=np.float32) @ weights.T
    return averaged


def place_plane(brain_mask: Image) -> tuple[SlicePlane, tuple[str, ...]]:
    """Centre the plane on the bounding box of the brain mask.

    Parameters
    ----------
    brain_mask : Image
        Of bool; of its affine only the voxel sizes are used.

    Returns
    -------
    plane : SlicePlane
        200 x 200 pixels, more where the brain would not fit.
    notes : tuple of str

    Raises
    ------
    ProcessingError
        If the mask is empty, or its bounding box longer than 256 mm.
    """
    if not brain_mask.data.any():
        raise ProcessingError(
            "the brain mask is empty: expected a brain to segment; look at the FLAIR, or give "
            "a brain mask with --derivatives"
        )
    spacing = voxel_sizes(brain_mask.affine)
    centre, extent_mm = [], []
    for axis in (0, 1):
        other_axes = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(brain_mask.data.any(axis=other_axes))
        centre.append((inside[0] + inside[-1]) / 2)
        extent_mm.append((inside[-1] - inside[0] + 1) * spacing[axis])
    needed = max(extent_mm)
    if needed > LARGEST_PLANE_SIZE:
        raise ProcessingError(
            f"the brain mask is {extent_mm[0]:.0f} x {extent_mm[1]:.0f} mm in the axial plane: "
            f"expected at most {LARGEST_PLANE_SIZE} mm; check the mask and the voxel sizes "
            f"({spacing[0]:.3g} x {spacing[1]:.3g} x {spacing[2]:.3g} mm) in the header"
        )
    size = PLANE_SIZE
    notes: tuple[str, ...] = ()
    if needed > PLANE_SIZE:
        size = LARGEST_PLANE_SIZE
        notes = (
            f"the brain mask is {needed:.0f} mm long in the axial plane, more than the usual "
            f"{PLANE_SIZE} mm: segmented on a plane of {size} mm",
        )
    plane = SlicePlane(
        shape=(brain_mask.shape[0], brain_mask.shape[1], brain_mask.shape[2]),
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        centre=(float(centre[0]), float(centre[1])),
        size=size,
    )
    return plane, notes


def _values_seen(image: FloatArray, counted: BoolArray, plane: SlicePlane) -> FloatArray:
    """Values of the voxels that count for the z-score, (N,), as the network sees them.

    Interpolation across thick slices that are not axial narrows the spread, by which lesions would
    look fainter than in axial ones; elsewhere the voxels themselves are taken.
    """
    if plane.across_slices(0) or plane.across_slices(1):
        return to_slices(image, plane)[to_slices(counted, plane) >= 0.5]
    return image[counted]


def z_score(image: FloatArray, inside: FloatArray, name: str) -> FloatArray:
    """Z-score an image by the values of its brain between the 5th and 95th percentile.

    Parameters
    ----------
    image : (X, Y, Z) float array
    inside : (N,) float array
        Values that count: those of the brain.
    name : str
        What the image is, for messages.

    Returns
    -------
    z_scored : (X, Y, Z) float32 array
        Clipped to [-6, 10].

    Raises
    ------
    ProcessingError
        If the image is constant inside the mask, or no voxel counts.
    """
    if not inside.size:
        raise ProcessingError(
            f"no voxel of the brain counts for the z-score of the {name}: the mask of known "
            "lesions covers the whole brain mask; expected lesions within a brain: look at both"
        )
    inside = inside.astype(np.float64)
    low, high = np.percentile(inside, Z_SCORE_PERCENTILES)
    middle = inside[(inside >= low) & (inside <= high)]
    spread = middle.std()
    if not spread > 0:
        raise ProcessingError(
            f"the {name} is constant ({low:g}) in the middle of its brain mask of "
            f"{inside.size} voxels: expected tissue contrast; look at the image and its mask"
        )
    return np.clip((image - middle.mean()) / spread, *Z_SCORE_LIMITS).astype(np.float32)


def to_slices(volume: NDArray, plane: SlicePlane) -> FloatArray:
    """Sample a volume on the network's plane.

    Linear interpolation; where the voxels are smaller than the pixels the kernel is widened
    to the pixel, so that detail finer than a pixel is averaged and not aliased. 0 outside the
    volume.

    Parameters
    ----------
    volume : (X, Y, Z) array
    plane : SlicePlane

    Returns
    -------
    slices : (Z, size, size) float32 array
    """
    if volume.shape != plane.shape:
        raise ValueError(f"volume {volume.shape} is not on the plane's grid {plane.shape}")
    rows = _interpolation_matrix(plane.voxels_of_pixels(0), plane.shape[0])
    columns = _interpolation_matrix(plane.voxels_of_pixels(1), plane.shape[1])
    # Contiguous slices: matrix products of strided ones are many times slower.
    by_slice: FloatArray = np.ascontiguousarray(np.moveaxis(volume, 2, 0), dtype=np.float32)
    return np.matmul(np.matmul(rows, by_slice), columns.T)


def from_slices(slices: FloatArray, plane: SlicePlane) -> FloatArray:
    """Sample slices of the network's plane on the volume's own grid.

    The inverse of :func:`to_slices`, with the same kernel; 0 outside the plane. Along the voxels
    of thick slices that are not axial each has the mean of the pixels in it: the kernel is twice
    as wide as they are, and would spread what lies in one over its neighbours.

    Parameters
    ----------
    slices : (Z, size, size) float array
    plane : SlicePlane

    Returns
    -------
    volume : (X, Y, Z) float32 array
    """
    if slices.shape != (plane.shape[2], plane.size, plane.size):
        raise ValueError(f"slices {slices.shape} are not those of {plane}")
    rows, columns = (
        (_averaging_matrix if plane.across_slices(axis) else _interpolation_matrix)(
            plane.pixels_of_voxels(axis), plane.size
        )
        for axis in (0, 1)
    )
    by_slice = rows @ slices.astype(np.float32) @ columns.T  # (Z, X, Y)
    return np.ascontiguousarray(np.moveaxis(by_slice, 0, 2), dtype=np.float32)


def _interpolation_matrix(positions: NDArray[np.float64], length: int) -> FloatArray:
    """Weights of `length` samples at evenly spaced `positions`, (positions, length) array.

    A triangle of half-width 1 sample, or one step of `positions` where that is longer.
    """
    step = positions[1] - positions[0] if len(positions) > 1 else 1.0
    distance = np.abs(positions[:, None] - np.arange(length)) / max(step, 1.0)
    return _normalised(np.clip(1.0 - distance, 0.0, None), positions)


def _averaging_matrix(positions: NDArray[np.float64], length: int) -> FloatArray:
    """Weights of `length` samples within one step about each position, (positions, length)."""
    step = positions[1] - positions[0] if len(positions) > 1 else 1.0
    distance = np.abs(positions[:, None] - np.arange(length))
    return _normalised(np.clip((step + 1) / 2 - distance, 0.0, 1.0), positions)


def _normalised(weights: NDArray[np.float64], positions: NDArray[np.float64]) -> FloatArray:
    """Weights that are 1 together; 0 for positions beyond the samples."""
    length = weights.shape[1]
    outside = (positions < -0.5) | (positions > length - 0.5)
    weights[outside] = 0.0
    total = weights.sum(axis=1, keepdims=True)
    weights[total[:, 0] > 0] /= total[total[:, 0] > 0]
    return weights.astype(np.float32)


def _dilate_in_plane(slices: BoolArray, radius_mm: float) -> BoolArray:
    """Dilate each slice of 1 mm pixels by a disc; slices do not reach their neighbours."""
    far = 10 * slices.shape[-1]
    return ndimage.distance_transform_edt(~slices, sampling=(far, 1.0, 1.0)) <= radius_mm
