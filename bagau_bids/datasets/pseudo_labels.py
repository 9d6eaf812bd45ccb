"""Labels for FLAIRs that nobody outlined, from what a network found in them.

A network's own results, taken for labels, let it learn from a scanner that it has no masks of.
What it is unsure of is left out of the loss. Bright bands along the ventricles are added: some
raters outline them and others do not, and a network that learned from the latter never finds
them elsewhere.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids import __version__
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.description import BIDS_VERSION
from bagau_bids.bids.masks import LesionMask, find_lesion_masks
from bagau_bids.errors import InputImageError
from bagau_bids.files import write_bytes, write_json
from bagau_bids.measures.lesions import label_lesions
from bagau_bids.spaces import Image, reorient, same_grid, voxel_sizes
from bagau_bids.synthesis.pool import BACKGROUND, NOT_JUDGED, WMH

MAPS = ("wmh_probseg", "preproc_flair", "brain_mask", "wm_atlas", "ventricle_mask")
MAD_TO_SD = 1.4826  # of a normal distribution
SMOOTHING_MM = 0.5  # of the FLAIR before bands are sought
THIN_MM = 1.5  # slices below this are smoothed across as well


@dataclass(frozen=True)
class PseudoLabelSettings:
    """What becomes a label.

    Parameters
    ----------
    wmh : float
        Probability from which a voxel is WMH.
    doubtful : float
        Probability from which a voxel is not judged.
    smallest_ml : float
        Volume below which a lesion is not judged, and a band is none.
    band_contrast : float
        How far a band's voxels are above the median of white matter without lesions, in its
        standard deviations (by the median absolute deviation).
    band_reach_mm : float
        How far a band may lie from the lateral ventricles of the registered template.
    band_wm : float
        Probability of white matter that it has at least.
    band_radius_mm : float
        Radius of a disc in the axial plane that fits into a band.
    narrow_radius_mm : float
        Radius of one that fits into a band that is not judged.
    bands_from_ml : float
        Load from which bands are labelled; below it they are not judged, for thin bright caps
        are normal.
    """

    wmh: float = 0.4
    doubtful: float = 0.25
    smallest_ml: float = 0.03
    band_contrast: float = 2.5
    band_reach_mm: float = 6.0
    band_wm: float = 0.3
    band_radius_mm: float = 1.0
    narrow_radius_mm: float = 0.6
    bands_from_ml: float = 1.8


def pseudo_labels(
    probability: NDArray[np.float32],
    flair: Image,
    brain_mask: NDArray[np.bool_],
    wm_probseg: NDArray[np.float32],
    ventricles: NDArray[np.bool_],
    settings: PseudoLabelSettings = PseudoLabelSettings(),
) -> NDArray[np.uint8]:
    """Label a scan by a network's probability and by the bright bands along its ventricles.

    Parameters
    ----------
    probability : (X, Y, Z) float array
        That a voxel is WMH.
    flair : Image
        Corrected for the bias field, voxels in RAS order.
    brain_mask : (X, Y, Z) bool array
    wm_probseg : (X, Y, Z) float array
        White-matter probability of the registered template.
    ventricles : (X, Y, Z) bool array
        Lateral ventricles of the registered template.
    settings : PseudoLabelSettings

    Returns
    -------
    labels : (X, Y, Z) uint8 array
        0 background, 1 WMH, 2 not to be judged.
    """
    voxel_ml = float(np.prod(voxel_sizes(flair.affine))) / 1000
    found = probability >= settings.wmh
    labels = np.full(found.shape, BACKGROUND, np.uint8)
    labels[probability >= settings.doubtful] = NOT_JUDGED
    labels[_of_size(found, settings.smallest_ml / voxel_ml)] = WMH
    certain = labels == WMH
    bright = _bright_at_ventricles(
        probability, flair, brain_mask, wm_probseg, ventricles, settings
    )
    narrow, wide = (
        _opened(Image(bright, flair.affine), radius_mm)
        for radius_mm in (settings.narrow_radius_mm, settings.band_radius_mm)
    )
    labels[(narrow | wide) & ~certain] = NOT_JUDGED
    if certain.sum() * voxel_ml >= settings.bands_from_ml:
        labels[wide & _of_size(wide | certain, settings.smallest_ml / voxel_ml)] = WMH
    return labels


def write_pseudo_labels(
    derivatives: Path,
    output_dir: Path,
    settings: PseudoLabelSettings = PseudoLabelSettings(),
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Write a derivative data set of labels for all scans that ``bagau-bids`` has processed.

    Parameters
    ----------
    derivatives : Path
        What ``bagau-bids`` wrote.
    output_dir : Path
        New folder; the masks get the names of those in `derivatives`.
    settings : PseudoLabelSettings
    tell : callable
        Gets a line for each scan.

    Returns
    -------
    int
        How many scans.

    Raises
    ------
    InputImageError
        If there is no mask, or a scan lacks one of the maps or has it on another grid.
    """
    masks = [mask for mask in find_lesion_masks(derivatives) if mask.space == "orig"]
    if not masks:
        raise InputImageError(
            f"{derivatives}: no *_space-orig_label-WMH_mask.nii.gz found; expected what "
            "bagau-bids wrote"
        )
    for mask in masks:
        maps = _read_maps(derivatives, mask)
        flair = maps["preproc_flair"]
        labels = pseudo_labels(
            maps["wmh_probseg"].data,
            flair,
            maps["brain_mask"].data > 0,
            maps["wm_atlas"].data,
            maps["ventricle_mask"].data > 0,
            settings,
        )
        _write_labels(output_dir / mask.path.relative_to(derivatives), labels, mask.path)
        voxels = np.bincount(labels.ravel(), minlength=3)
        volumes_ml = voxels * np.prod(voxel_sizes(flair.affine)) / 1000
        tell(f"{mask.scan}: {volumes_ml[WMH]:.2f} ml WMH, {volumes_ml[NOT_JUDGED]:.2f} not judged")
    description = {
        "Name": "Lesion labels by a network, for training",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "bagau-bids", "Version": __version__}],
    }
    write_json(output_dir / "dataset_description.json", description)
    return len(masks)


def _bright_at_ventricles(
    probability: NDArray,
    flair: Image,
    brain_mask: NDArray,
    wm_probseg: NDArray,
    ventricles: NDArray,
    settings: PseudoLabelSettings,
) -> NDArray[np.bool_]:
    normal = flair.data[brain_mask & (wm_probseg > 0.9) & (probability < 0.1)]
    if not normal.size or not ventricles.any():
        return np.zeros(flair.shape, bool)
    median = np.median(normal)
    spread = MAD_TO_SD * np.median(np.abs(normal - median))
    spacing = voxel_sizes(flair.affine)
    sigma = [
        SMOOTHING_MM / mm if axis < 2 or mm < THIN_MM else 0.0 for axis, mm in enumerate(spacing)
    ]
    smooth = ndimage.gaussian_filter(flair.data.astype(np.float32), sigma)
    distance_mm = ndimage.distance_transform_edt(~ventricles, sampling=spacing)
    bright: NDArray[np.bool_] = (
        brain_mask
        & (smooth > median + settings.band_contrast * spread)
        & (distance_mm <= settings.band_reach_mm)
        & (wm_probseg > settings.band_wm)
    )
    return bright


def _opened(mask: Image, radius_mm: float) -> NDArray[np.bool_]:
    """Keep what a disc in the axial plane fits into."""
    spacing = voxel_sizes(mask.affine)[:2]
    reach = [int(radius_mm / mm + 1e-6) for mm in spacing]
    x, y = (np.arange(-n, n + 1) * mm for n, mm in zip(reach, spacing, strict=True))
    disc = x[:, None] ** 2 + y[None, :] ** 2 <= radius_mm**2 + 1e-6
    opened: NDArray[np.bool_] = ndimage.binary_opening(mask.data, disc[:, :, None])
    return opened


def _of_size(mask: NDArray, voxels: float) -> NDArray[np.bool_]:
    """Keep the components that have at least so many voxels."""
    lesions = label_lesions(mask)
    sizes = np.bincount(lesions.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= voxels)[lesions] & mask
    return kept


def _read_maps(derivatives: Path, mask: LesionMask) -> dict[str, Image]:
    """Read what belongs to a scan, voxels in RAS order, float32."""
    from bagau_bids.preprocessing.conform import read_volume

    maps = {}
    first = None
    for name in MAPS:
        path = _map_path(derivatives, mask, name)
        volume = read_volume(path)
        if first is None:
            first = volume
        elif not same_grid(volume, first):
            raise InputImageError(
                f"{path}: does not lie on the grid of {first.path.name}; expected results of one "
                "run, process the scan again"
            )
        maps[name] = reorient(Image(volume.data.astype(np.float32), volume.affine))
    return maps


def _map_path(derivatives: Path, mask: LesionMask, name: str) -> Path:
    """Where a map lies, whichever template its name holds."""
    pattern = derivative_path(derivatives, mask.entities, name, template="*")
    found = sorted(pattern.parent.glob(pattern.name))
    if len(found) != 1:
        raise InputImageError(
            f"{pattern}: {len(found)} such files, expected one; process the scan again"
        )
    return found[0]


def _write_labels(path: Path, labels: NDArray[np.uint8], like: Path) -> None:
    from bagau_bids.preprocessing.conform import to_source

    image = to_source(labels, nib.load(like), np.uint8)
    write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))
