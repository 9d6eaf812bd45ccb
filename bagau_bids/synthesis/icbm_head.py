"""A whole-head label map from the ICBM maps that nilearn carries, for phantoms.

The maps (ICBM152 2009a symmetric: skull-stripped T1w, grey and white matter) end at the brain.
Ventricles, deep grey matter, brain stem and cerebellum are told apart by where they lie in MNI
space, sulci are opened where grey matter is far from white matter, and skull, fat, skin, face,
neck and eyes are laid around the brain. It is an anatomy good enough to test software with, not
one to measure.
"""

import numpy as np
from numpy.typing import NDArray

from bagau_bids.spaces import Image, OnGrid, isotropic_grid, resample
from bagau_bids.synthesis.labels import Head

# The ICBM brain with its outer CSF, 1.9 litres, is made as large as most brains are.
SIZE = 0.9

# FreeSurfer's labels, (left, right) where there are two; outside the brain those of SynthSeg.
_WHITE, _CORTEX = (2, 41), (3, 42)
_VENTRICLE, _THIRD_VENTRICLE, _FOURTH_VENTRICLE, _CSF = (4, 43), 14, 15, 24
_CEREBELLAR_WHITE, _CEREBELLAR_CORTEX, _BRAIN_STEM = (7, 46), (8, 47), 16
_EYE, _SOFT_TISSUE, _SKIN, _SKULL, _MARROW = 506, 507, 511, 515, 516

# Ellipsoids |x|, y, z: centre and half axes in mm of MNI space; later ones win.
_DEEP_GREY = (
    ((10, 49), (13, -19, 8), (10, 14, 9)),  # thalamus
    ((11, 50), (13, 13, 8), (6, 13, 12)),  # head of the caudate
    ((12, 51), (27, 3, 0), (7, 18, 10)),  # putamen
    ((13, 52), (20, -4, -1), (5, 9, 7)),  # pallidum
    ((17, 53), (27, -22, -15), (8, 18, 7)),  # hippocampus
    ((18, 54), (23, -4, -19), (8, 8, 8)),  # amygdala
)


def icbm_head(spacing_mm: float = 1.0) -> Head:
    """Build the head on an isotropic grid, its white-matter atlas being the map it is made of.

    Parameters
    ----------
    spacing_mm : float
        Edge length of a voxel of the maps' own space, before the shrinking by `SIZE`. 1 is the
        resolution of the maps; 2 is quick.

    Returns
    -------
    Head
        Its world is MNI space shrunk by `SIZE`.
    """
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_wm_template,
    )

    maps = [
        load(resolution=1)
        for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    ]
    grid = isotropic_grid(maps[0], spacing_mm)
    grey, white, brain = (
        resample(Image(np.asarray(one.dataobj, np.float32), one.affine), grid) for one in maps
    )
    labels = _brain_labels(grey, white, Image(brain > 0.5, grid.affine), spacing_mm)
    _add_head(labels, spacing_mm)
    return Head(labels.data, np.diag([SIZE, SIZE, SIZE, 1.0]) @ grid.affine, white)


def _coordinates(grid: OnGrid) -> list[NDArray[np.float64]]:
    """World coordinates of the voxels of an axis-aligned grid, as open (broadcastable) arrays."""
    indices, affine = np.ogrid[tuple(slice(n) for n in grid.shape)], grid.affine
    return [index * affine[axis, axis] + affine[axis, 3] for axis, index in enumerate(indices)]


def _ellipsoid(
    coordinates: list[NDArray], centre: tuple[float, ...], half_axes: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Voxels within an ellipsoid that is aligned with the axes."""
    x, y, z = (((c - m) / r) ** 2 for c, m, r in zip(coordinates, centre, half_axes, strict=True))
    return x + y + z < 1


def _brain_labels(grey: NDArray, white: NDArray, inside: Image, spacing_mm: float) -> Image:
    """Labels of the structures within the skull, int16."""
    from scipy.ndimage import binary_dilation

    x, y, z = _coordinates(inside)
    brain = inside.data
    across = np.abs(x)
    is_right = np.broadcast_to(x > 0, brain.shape)
    csf = brain & (grey + white < 0.5)
    white_matter = brain & ~csf & (white > 0.4)
    grey_matter = brain & ~csf & ~white_matter
    cerebellum = (y < -34) & (z < -8 - 0.25 * across - 0.1 * np.maximum(0, -60 - y))
    stem = (across < 17) & (y > -44) & (y < -10) & (z < -9)
    labels = np.where(brain, _CSF, 0).astype(np.int16)

    def paint(where: NDArray, values: int | tuple[int, int]) -> None:
        left, right = (values, values) if isinstance(values, int) else values
        labels[where & ~is_right] = left
        labels[where & is_right] = right

    near_white = binary_dilation(white_matter, iterations=max(1, round(4 / spacing_mm)))
    paint(grey_matter & near_white, _CORTEX)
    paint(white_matter, _WHITE)
    for values, centre, half_axes in _DEEP_GREY:
        paint(~csf & brain & _ellipsoid([across, y, z], centre, half_axes), values)
    paint(white_matter & cerebellum, _CEREBELLAR_WHITE)
    paint(grey_matter & cerebellum, _CEREBELLAR_CORTEX)
    paint(brain & ~csf & stem, _BRAIN_STEM)

    body = (across < 26) & (y > -30) & (y < 34) & (z > 2) & (z < 32)
    horns = (across > 8) & (across < 40) & (y <= -20) & (y > -62) & (z > -6) & (z < 28)
    paint(csf & (body | horns), _VENTRICLE)
    paint(csf & (across < 4) & (y > -30) & (y < 8) & (z > -12) & (z < 8), _THIRD_VENTRICLE)
    paint(csf & (across < 10) & (y < -36) & (y > -54) & (z > -46) & (z < -16), _FOURTH_VENTRICLE)
    return Image(labels, inside.affine)


def _add_head(head: Image, spacing_mm: float) -> None:
    """Lay skull, fat, skin, face, neck and eyes around the brain, in place."""
    labels = head.data
    distance = _distance_outside(Image(labels > 0, head.affine), spacing_mm)
    coordinates = _coordinates(head)
    x, y, z = coordinates
    face = _ellipsoid(coordinates, (0, 48, -52), (56, 48, 48))
    neck = ((x / 60) ** 2 + ((y + 28) / 66) ** 2 < 1) & (z < -30)
    outside = labels == 0
    inner = outside & ((distance < 13) | face | neck)
    labels[inner] = _SOFT_TISSUE
    skull = outside & (distance < 9) & (z > -62)
    labels[skull & (distance >= 2)] = _SKULL
    labels[skull & (distance >= 4) & (distance < 7) & (z > -20)] = _MARROW
    labels[outside & (distance < 2)] = _CSF
    for side in (-1, 1):
        eye = _ellipsoid(coordinates, (side * 32, 66, -38), (12, 12, 12))
        labels[eye & outside] = _EYE
    skin = _distance_outside(Image(labels > 0, head.affine), spacing_mm)
    labels[(labels == 0) & (skin < 2.5)] = _SKIN


def _distance_outside(mask: Image, spacing_mm: float) -> NDArray[np.float32]:
    """Distance of each voxel to the mask in mm, 0 within; computed on a 2 mm grid for speed."""
    from scipy.ndimage import distance_transform_edt

    if spacing_mm >= 2:
        return distance_transform_edt(~mask.data, sampling=spacing_mm).astype(np.float32)
    coarse = isotropic_grid(mask, 2.0)
    coarse_mask = resample(mask, coarse) > 0.5
    # The edge of the mask lies half a voxel before the first voxel outside.
    inside = distance_transform_edt(coarse_mask, sampling=2.0)
    outside = distance_transform_edt(~coarse_mask, sampling=2.0)
    signed = np.where(coarse_mask, 1.0 - inside, outside - 1.0)
    fine = resample(Image(signed, coarse.affine), mask, cval=None)
    return np.where(mask.data, 0, np.maximum(fine, 0.01)).astype(np.float32)
