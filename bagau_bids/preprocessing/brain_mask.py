"""Brain mask of a FLAIR: everything inside the skull, from a small 3-D network.

The network sees the whole head at 3 mm, trained only on synthetic heads (see
:mod:`bagau_bids.training.brain_mask`). Its probability, not its mask, is brought back to the
FLAIR's grid and thresholded there, so that the contour is finer than its voxels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.intensities import commonest_value
from bagau_bids.spaces import Grid, Image, OnGrid, isotropic_grid, resample, voxel_sizes

GRID_MM = 3.0
SIZE_MULTIPLE = 8
# An image is stripped if this much of it has one exact value, and less than this fraction of
# the rest lies farther than this from the brain mask (the scalp of a head is 15 % at least).
_CONSTANT_BACKGROUND_FRACTION = 0.2
_SCALP_DISTANCE_MM = 5.0
_SCALP_FRACTION = 0.08
# Distributions of a brain and of all around it differ at some value by more than this part.
_DIFFERENT = 0.05
_SOME_VOXELS = 20_000
# Around a stripped brain that was normalised the value may lie amid the brain's own, with at
# least so much of the rest below it. Air is darkest, but for ringing (3 % below it at most).
_BELOW_BACKGROUND_FRACTION = 0.2


@dataclass(frozen=True)
class BrainMask:
    """The inside of the skull.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
        On the FLAIR's grid.
    stripped : bool
        Whether the FLAIR came without its skull, so that the mask is its foreground.
    notes : tuple of str
        What a reader of the results should know.
    """

    mask: NDArray[np.bool_]
    stripped: bool
    notes: tuple[str, ...]


def low_resolution(flair: Image) -> Image:
    """Smooth, resample to 3 mm, scale and pad a FLAIR for the network.

    Parameters
    ----------
    flair : Image
        Finite.

    Returns
    -------
    Image
        (D, H, W) float32, scaled to [0, 1], every axis a multiple of 8.
    """
    grid = low_resolution_grid(flair)
    width = np.clip(0.35 * GRID_MM / voxel_sizes(flair.affine), 0, None)
    smooth = ndimage.gaussian_filter(
        np.asarray(flair.data, np.float32), np.where(width > 0.5, width, 0.0), truncate=2.5
    )
    coarse = resample(Image(smooth, flair.affine), grid)
    low, high = np.percentile(coarse, (1.0, 99.5))
    scaled = np.clip((coarse - low) / max(float(high - low), 1e-6), 0.0, 1.0)
    # The square root keeps the brain visible beside a scalp several times brighter.
    return Image(np.sqrt(scaled).astype(np.float32), grid.affine)


def low_resolution_grid(source: OnGrid) -> Grid:
    """Grid of 3 mm over a field of view, padded on both sides to multiples of 8."""
    exact = isotropic_grid(source, GRID_MM)
    padded = [-(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE for size in exact.shape]
    before = np.array([(new - old) // 2 for new, old in zip(padded, exact.shape, strict=True)])
    affine = exact.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return Grid(tuple(padded), affine)


def brain_mask(
    flair: Image,
    predict: Callable[[NDArray], NDArray] | None = None,
) -> BrainMask:
    """Find the inside of the skull.

    Parameters
    ----------
    flair : Image
        Conformed FLAIR with or without its skull, axes in RAS order.
    predict : callable, optional
        From the (D, H, W) low-resolution volume to the probability on it; the network that
        ships with the package by default.

    Returns
    -------
    BrainMask

    Raises
    ------
    ProcessingError
        If nothing is found, or what is found looks like all around it.
    MissingResourceError
        If the network's weights are missing or damaged.
    """
    low = low_resolution(Image(on_dark_background(flair.data), flair.affine))
    probability = (predict or packaged_network())(low.data)
    mask = clean_mask(resample(Image(probability, low.affine), flair) > 0.5)
    if not mask.any():
        raise ProcessingError(
            "brain mask: the network found no brain, expected 1000 to 1900 ml; look at the image, "
            "or give a mask of your own with --derivatives or a stripped image"
        )
    _refuse_noise(flair.data, mask)
    foreground = stripped_foreground(flair, mask)
    if foreground is None:
        return BrainMask(mask, stripped=False, notes=())
    note = "the image came without its skull; its foreground is the brain mask"
    return BrainMask(foreground, stripped=True, notes=(note,))


def _refuse_noise(flair: NDArray, mask: NDArray[np.bool_]) -> None:
    """Refuse an image that is the same within the outline of a brain and around it."""
    inside, around = (
        np.sort(some[:: max(1, some.size // _SOME_VOXELS)]) for some in (flair[mask], flair[~mask])
    )
    if around.size and farthest_apart(inside, around) <= _DIFFERENT:
        raise ProcessingError(
            "brain mask: what was taken for the brain looks like all around it, expected a head: "
            "the image holds noise alone; look at it"
        )


def farthest_apart(first: NDArray, second: NDArray) -> float:
    """Return the statistic of Kolmogorov and Smirnov; SciPy's takes 0.4 s to load.

    Parameters
    ----------
    first, second : 1-D arrays
        Samples, sorted, neither of them empty.
    """
    values = np.concatenate([first, second])
    shares = [np.searchsorted(one, values, side="right") / one.size for one in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def on_dark_background(flair: NDArray) -> NDArray:
    """Set a constant background that lies amid the values of the brain below them.

    A brain without its skull whose intensities were centred on their mean lies on zeros that are
    as bright as it is. To a network that has learned what heads look like it has no outline.

    Parameters
    ----------
    flair : (X, Y, Z) array

    Returns
    -------
    (X, Y, Z) array
        `flair` itself where its background is not constant, or darkest.
    """
    background, fraction = commonest_value(flair)
    if fraction < _CONSTANT_BACKGROUND_FRACTION:
        return flair
    rest = flair[flair != background]
    if not rest.size or (rest < background).mean() < _BELOW_BACKGROUND_FRACTION:
        return flair
    darkest, middle = np.percentile(rest, (0.1, 50))
    return np.where(flair == background, darkest - (middle - darkest) / 2, flair)


def packaged_network() -> Callable[[NDArray], NDArray]:
    """Return the prediction of the network in ``data/weights/brain.safetensors``."""
    import torch

    from bagau_bids.network.cards import find_weights
    from bagau_bids.network.weights import load_weights

    model = load_weights(find_weights("brain")).model

    def predict(volume: NDArray) -> NDArray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.ascontiguousarray(volume))[None, None])
        return torch.sigmoid(logits)[0, 0].numpy()

    return predict


def clean_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest component and fill its holes, in 3-D and in each axial slice."""
    numbered, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = 1 + int(np.argmax(np.bincount(numbered.ravel())[1:]))
    filled = ndimage.binary_fill_holes(numbered == largest)
    for index in range(filled.shape[2]):
        filled[:, :, index] = ndimage.binary_fill_holes(filled[:, :, index])
    return filled


def stripped_foreground(flair: Image, mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Brain of an image whose skull was removed, or None if the skull is there.

    In a stripped image one exact value fills everything around the brain. Scanners, too, write
    exact zeros around a head; but then much of the foreground, the scalp and the face, lies
    away from the brain mask.

    Parameters
    ----------
    flair : Image
    mask : (X, Y, Z) bool array
        The network's brain mask.

    Returns
    -------
    (X, Y, Z) bool array or None
    """
    background, fraction = commonest_value(flair.data)
    if fraction < _CONSTANT_BACKGROUND_FRACTION:
        return None
    present = flair.data != background
    grid = low_resolution_grid(flair)  # fine enough to measure on
    coarse_mask, coarse_present = (
        resample(Image(one, flair.affine), grid, order=0) > 0.5 for one in (mask, present)
    )
    distance = ndimage.distance_transform_edt(~coarse_mask, sampling=GRID_MM)
    away = coarse_present & (distance > _SCALP_DISTANCE_MM)
    if away.sum() >= _SCALP_FRACTION * coarse_present.sum():
        return None
    return clean_mask(present)
