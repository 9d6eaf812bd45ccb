"""Axial slices of stroke patients as a source of training: real vascular WMH, and infarcts.

The slices come without lesion masks, only with the outline of the acute infarct. What is WMH in
them is said by networks, at first by those that ship and later by the one under training; what
they are unsure of is not judged. An infarct is no WMH, whatever a network says. Only a small one
deep in the white matter that looks like a WMH is not judged as such: nobody could tell it in one
slice.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.files import read_arrays
from bagau_bids.network.slices import (
    BRAIN_MARGIN_MM,
    PLANE_SIZE,
    Z_SCORE_LIMITS,
    Z_SCORE_PERCENTILES,
)
from bagau_bids.spaces import Image
from bagau_bids.training.pack import encode_atlas, encode_flair

SLICES_FILE = "slices.npz"
FIRST_MM = (-78, -112)  # template coordinates of the first pixel along x and y
LEVELS_MM = (12, 14, 16, 18, 20, 22)  # about the level of the slices
HELD_OUT_EVERY = 5  # a fifth of the patients is left for validation
# A slice of another level, or not in the template's space, agrees less with the median slice.
LEAST_OVERLAP = 0.9
LEAST_CORRELATION = 0.35


def held_out_patients(ids: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which patients are left for validation: every fifth in the order of their numbers.

    Parameters
    ----------
    ids : sequence of str
        All patients.

    Returns
    -------
    (N,) bool array
    """
    order = np.argsort([int(one) for one in ids])
    held = np.zeros(len(ids), bool)
    held[order[::HELD_OUT_EVERY]] = True
    return held


def stroke_arrays(folder: Path, wm_map: Image) -> dict[str, NDArray]:
    """Bring the slices to the network's plane, with their atlas and infarct.

    Parameters
    ----------
    folder : Path
        Holds ``slices.npz``: ``flair`` (N, X, Y) uint8, ``infarct`` (N, X, Y) bool, ``ids``; 1 mm
        pixels in the template's space.
    wm_map : Image
        White-matter probability of the template, on voxels of 1 mm.

    Returns
    -------
    dict of str to array
        ``flair`` (N, 200, 200) uint8 codes; ``infarct`` packed bits of (N, 200, 200); ``atlas``
        (levels, 200, 200) uint8, of 255; ``held_out`` (N,) bool; ``ids`` (N,). Slices that do not
        show the usual level are left out.

    Raises
    ------
    UsageError
        If the folder does not hold the slices.
    """
    path = folder / SLICES_FILE
    hint = "expected arrays flair, infarct and ids of axial slices; give their folder"
    stored = read_arrays(path, ("flair", "infarct", "ids"), hint)
    flair, infarct, ids = stored["flair"], stored["infarct"], stored["ids"].astype(str)
    brains = np.stack([_brain(image) for image in flair])
    kept = np.flatnonzero(_usual(flair, brains))
    z_scored = np.stack([_z_scored(flair[n], brains[n]) for n in kept])
    levels = np.stack([_level(wm_map, flair.shape[1:], mm) for mm in LEVELS_MM])
    return {
        "flair": encode_flair(z_scored),
        "infarct": np.packbits(np.stack([_on_plane(infarct[n]) for n in kept])),
        "atlas": encode_atlas(levels),
        "held_out": held_out_patients(ids.tolist())[kept],
        "ids": ids[kept],
    }


def unpack_infarcts(arrays: dict[str, NDArray]) -> NDArray[np.bool_]:
    """Outlines of the infarcts out of :func:`stroke_arrays`, (N, 200, 200) bool array."""
    shape = arrays["flair"].shape
    bits = np.unpackbits(arrays["infarct"])[: int(np.prod(shape))]
    unpacked: NDArray[np.bool_] = bits.reshape(shape).astype(bool)
    return unpacked


def _brain(image: NDArray) -> NDArray[np.bool_]:
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(ndimage.binary_opening(image > 0))
    return filled


def _usual(flair: NDArray, brains: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether slices show the level and the place that most of them show."""
    median = np.median(flair, axis=0)
    common = (flair > 0).mean(axis=0) > 0.5
    usual = []
    for image, brain in zip(flair, brains, strict=True):
        both = brain & common
        overlap = 2 * both.sum() / (brain.sum() + common.sum())
        likeness = np.corrcoef(image[both], median[both])[0, 1] if both.any() else 0.0
        usual.append(overlap >= LEAST_OVERLAP and likeness >= LEAST_CORRELATION)
    return np.array(usual)


def _z_scored(image: NDArray, brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Slice on the network's plane, as network_input makes it of a whole scan."""
    inside = image[brain].astype(np.float64)
    low, high = np.percentile(inside, Z_SCORE_PERCENTILES)
    middle = inside[(inside >= low) & (inside <= high)]
    scores = np.clip((image - middle.mean()) / middle.std(), *Z_SCORE_LIMITS)
    near = ndimage.binary_dilation(brain, iterations=round(BRAIN_MARGIN_MM))
    return _on_plane(np.where(near, scores, 0.0).astype(np.float32))


def _on_plane(image: NDArray) -> NDArray:
    """Image in the middle of the network's plane; both have pixels of 1 mm."""
    first = [(PLANE_SIZE - size) // 2 for size in image.shape]
    after = [PLANE_SIZE - size - start for size, start in zip(image.shape, first, strict=True)]
    return np.pad(image, list(zip(first, after, strict=True)))


def _level(wm_map: Image, shape: tuple[int, ...], height_mm: float) -> NDArray[np.float32]:
    """White matter of the template where the pixels of a slice lie, on the network's plane."""
    points = np.stack(
        np.meshgrid(
            FIRST_MM[0] + np.arange(shape[0]), FIRST_MM[1] + np.arange(shape[1]), indexing="ij"
        )
    ).astype(np.float64)
    world = np.stack([*points, np.full(shape, height_mm), np.ones(shape)])
    voxels = np.einsum("ij,jxy->ixy", np.linalg.inv(wm_map.affine), world)[:3]
    sampled = ndimage.map_coordinates(np.asarray(wm_map.data, np.float32), voxels, order=1)
    return _on_plane(sampled)
