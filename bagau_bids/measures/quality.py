"""Quality figures of one FLAIR, its brain mask, registration and segmentation.

All figures are plain numbers; ``None`` where a figure does not exist (no white matter, no
lesion). They are described in ``data/tables/quality.json``; `measures.flags` judges them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.spaces import Image, voxel_sizes

# White matter that counts as surely white matter in the registered, probabilistic map.
_SURE_WHITE_MATTER = 0.9
# Fewer voxels than this give no figure.
_FEWEST_VOXELS = 30
# Standard deviation of a normal distribution in units of its median absolute deviation.
_SD_PER_MAD = 1.4826
# White matter darker than this share of its median is no white matter.
_DARK = 0.5
# Layer outside the brain mask where no tissue is expected, and what counts as tissue, in units of
# white matter. Only between these shares of the brain's height: below lies the face, above the
# skull is cut at a slant. The distance beyond skull and scalp where there is air.
_SHELL_MM = (0.5, 2.5)
_TISSUE = (0.7, 1.4)
_SHELL_HEIGHT = (0.45, 0.8)
_AIR_MM = 24.0
_AIR_HEIGHT = (0.5, np.inf)
_FEWEST_AIR_VOXELS = 500
# A voxel of at least this probability is part of what the network hesitates about.
_POSSIBLE = 0.1


@dataclass(frozen=True)
class Figures:
    """All figures of one scan, each described in ``data/tables/quality.json``; None: unknown.

    Those from ``largest_bright_ml`` on are of `measures.suspects`, `measures.plausibility` and
    the steps before.
    """

    slice_thickness_mm: float | None = None
    in_plane_mm: float | None = None
    brain_volume_ml: float | None = None
    tissue_outside_mask: float | None = None
    fov_coverage: float | None = None
    registration_overlap: float | None = None
    registration_information: float | None = None
    wm_misfit: float | None = None
    wm_snr: float | None = None
    noise_snr: float | None = None
    stripe_ratio: float | None = None
    slice_jump: float | None = None
    ghost_to_wm: float | None = None
    csf_to_wm: float | None = None
    wmh_wm_contrast: float | None = None
    wmh_soft_ml: float | None = None
    wmh_soft_to_hard: float | None = None
    wmh_entropy: float | None = None
    cut_superior_cm2: float | None = None
    cut_inferior_cm2: float | None = None
    cut_sides_cm2: float | None = None
    largest_bright_ml: float | None = None
    largest_dark_ml: float | None = None
    grey_to_white: float | None = None
    t1w_correlation: float | None = None
    no_flair_signs: float | None = None
    clipped_share: float | None = None
    head_turn: float | None = None
    slice_tilt_degrees: float | None = None
    mirrored_dice: float | None = None


@dataclass(frozen=True)
class Registered:
    """What the registration says of itself.

    Parameters
    ----------
    overlap : float
        Dice of the brain mask and the template's.
    mutual_information : float
        Of the FLAIR and the template's T1w, nats.
    coverage : float or None
        Share of the template's brain that lies in the field of view.
    csf : float or None
        Brightness of CSF in the template's ventricles.
    """

    overlap: float
    mutual_information: float
    coverage: float | None
    csf: float | None


def scan_quality(
    flair: Image,
    brain_mask: np.ndarray,
    wm_probseg: np.ndarray,
    wmh_mask: np.ndarray,
    probability: np.ndarray | None = None,
    registered: Registered | None = None,
) -> Figures:
    """Figures of one scan from its images.

    Parameters
    ----------
    flair : Image
        Bias-corrected FLAIR in RAS order: axes run to the right, anterior, superior.
    brain_mask, wmh_mask : (X, Y, Z) arrays
        Non-zero is inside; on the grid of the FLAIR.
    wm_probseg : (X, Y, Z) array
        Probability of white matter from the registered template, 0 to 1, same grid.
    probability : (X, Y, Z) array or None
        Probability of WMH.
    registered : Registered or None
        Figures of the registration; None leaves them out.

    Returns
    -------
    Figures
        Up to ``cut_sides_cm2``.
    """
    spacing = voxel_sizes(flair.affine)
    voxel_ml = voxel_volume_mm3(flair.affine) / 1000
    brain = np.asarray(brain_mask) != 0
    white_matter = normal_white_matter(brain, wm_probseg, wmh_mask)
    level = white_matter_level(flair.data, white_matter)
    outside = ndimage.distance_transform_edt(~brain, sampling=spacing)
    return Figures(
        slice_thickness_mm=float(spacing.max()),
        in_plane_mm=float(np.median(spacing)),
        brain_volume_ml=np.count_nonzero(brain) * voxel_ml,
        tissue_outside_mask=tissue_outside(
            flair.data, level, outside, _slices_at(brain, _SHELL_HEIGHT)
        ),
        fov_coverage=registered.coverage if registered else None,
        registration_overlap=registered.overlap if registered else None,
        registration_information=registered.mutual_information if registered else None,
        wm_misfit=white_matter_misfit(flair.data, level, brain, wm_probseg),
        wm_snr=signal_to_noise(flair.data, white_matter),
        **noise_figures(flair.data, spacing, white_matter, level),
        slice_jump=slice_jump(flair.data, spacing, white_matter, level),
        ghost_to_wm=ghost_level(
            flair.data, level, (outside > _AIR_MM) & _slices_at(brain, _AIR_HEIGHT)
        ),
        csf_to_wm=_ratio(registered.csf if registered else None, level),
        wmh_wm_contrast=median_ratio(flair.data, np.asarray(wmh_mask) != 0, white_matter),
        **uncertainty(probability, wmh_mask, voxel_ml),
        **cut_areas_cm2(Image(brain, flair.affine)),
    )


def _ratio(value: float | None, level: float | None) -> float | None:
    return None if value is None or level is None else value / level


def _slices_at(brain_mask: np.ndarray, heights: tuple[float, float]) -> np.ndarray:
    """Slices between two shares of the brain mask's height, (1, 1, Z) bool; RAS order."""
    found = np.flatnonzero(brain_mask.any(axis=(0, 1)))
    if not found.size:
        return np.zeros((1, 1, brain_mask.shape[2]), bool)
    height = (np.arange(brain_mask.shape[2]) - found[0]) / max(found[-1] - found[0], 1)
    return ((height > heights[0]) & (height < heights[1]))[None, None]


def tissue_outside(
    flair: np.ndarray, level: float | None, outside_mm: np.ndarray, slices: np.ndarray
) -> float | None:
    """Share of the layer just outside the brain mask that is as bright as tissue.

    That layer is CSF or skull, and dark, where the mask follows the brain. `outside_mm` is the
    distance to the mask, `level` the brightness of white matter, `slices` where to look.
    """
    shell = (outside_mm > _SHELL_MM[0]) & (outside_mm <= _SHELL_MM[1]) & slices
    if level is None or np.count_nonzero(shell) < _FEWEST_VOXELS:
        return None
    brightness = np.asarray(flair)[shell] / level
    return float(((brightness > _TISSUE[0]) & (brightness < _TISSUE[1])).mean())


def white_matter_misfit(
    flair: np.ndarray, level: float | None, brain_mask: np.ndarray, wm_probseg: np.ndarray
) -> float | None:
    """Share of the registered, sure white matter that is dark as CSF or outside the brain."""
    sure = np.asarray(wm_probseg) >= _SURE_WHITE_MATTER
    if level is None or np.count_nonzero(sure) < _FEWEST_VOXELS:
        return None
    wrong = ~np.asarray(brain_mask, bool) | (np.asarray(flair) < _DARK * level)
    return float(wrong[sure].mean())


def noise_figures(
    flair: np.ndarray, spacing_mm: np.ndarray, white_matter: np.ndarray, level: float | None
) -> dict[str, float | None]:
    """Noise from differences of neighbours in the slice, which true variation hardly touches.

    Second differences along a line cancel what changes evenly (Immerkaer 1996,
    doi:10.1006/cviu.1996.0060, in one dimension). ``noise_snr`` is the brightness of white matter
    over the noise, ``stripe_ratio`` the noise along one in-plane axis over that along the other,
    the larger over the smaller: movement disturbs the phase axis alone.
    """
    missing: dict[str, float | None] = {"noise_snr": None, "stripe_ratio": None}
    if level is None:
        return missing
    axes = np.sort(np.argsort(spacing_mm, kind="stable")[:2])
    noise = [_noise_along(flair, white_matter, int(axis)) for axis in axes]
    if any(value is None or value <= 0 for value in noise):
        return missing
    first, second = (float(value) for value in noise if value is not None)
    return {
        "noise_snr": level / float(np.hypot(first, second) / np.sqrt(2)),
        "stripe_ratio": max(first, second) / min(first, second),
    }


def _noise_along(flair: np.ndarray, region: np.ndarray, axis: int) -> float | None:
    """Return the noise (standard deviation) along an axis within a region."""
    values = np.moveaxis(np.asarray(flair, dtype=float), axis, 0)
    inside = np.moveaxis(region, axis, 0)
    whole = inside[:-2] & inside[1:-1] & inside[2:]
    if np.count_nonzero(whole) < _FEWEST_VOXELS:
        return None
    differences = (values[:-2] - 2 * values[1:-1] + values[2:])[whole]
    centred = np.abs(differences - np.median(differences))
    return float(_SD_PER_MAD * np.median(centred) / np.sqrt(6))


def slice_jump(
    flair: np.ndarray, spacing_mm: np.ndarray, white_matter: np.ndarray, level: float | None
) -> float | None:
    """Largest step of white matter from a slice to the mean of its neighbours, over its level.

    Slices run along the axis of the largest spacing, from bottom to top where all are equal.
    """
    axis = 2 - int(np.argmax(np.asarray(spacing_mm)[::-1]))
    others = tuple(other for other in range(3) if other != axis)
    full = np.count_nonzero(white_matter, axis=others) >= _FEWEST_VOXELS
    whole = full[:-2] & full[1:-1] & full[2:]
    if level is None or not whole.any():
        return None
    slices, inside = (
        np.ascontiguousarray(np.moveaxis(one, axis, 0)) for one in (flair, white_matter)
    )
    medians = np.array(
        [
            np.median(values[mask]) if enough else 0.0
            for values, mask, enough in zip(slices, inside, full, strict=True)
        ]
    )
    steps = np.abs(medians[1:-1] - (medians[:-2] + medians[2:]) / 2)
    return float(steps[whole].max() / level)


def ghost_level(flair: np.ndarray, level: float | None, air: np.ndarray) -> float | None:
    """How much structure the air beside the head shows, over the brightness of white matter.

    The air is blurred within its slices, so that noise averages out and copies of the head stay;
    the figure is the 98th percentile above the 10th. None without enough air, or where the
    scanner or a tool set the air to one value.
    """
    if level is None or np.count_nonzero(air) < _FEWEST_AIR_VOXELS:
        return None
    values = np.where(air, np.asarray(flair, dtype=np.float32), 0)
    if np.ptp(values[air]) <= 0 or np.mean(values[air] == values[air].min()) > 0.5:
        return None
    weight = ndimage.uniform_filter(air.astype(np.float32), (5, 5, 1))
    blurred = ndimage.uniform_filter(values, (5, 5, 1))[air] / weight[air]
    low, high = np.percentile(blurred, (10, 98))
    return float((high - low) / level)


def uncertainty(
    probability: np.ndarray | None, wmh_mask: np.ndarray, voxel_ml: float
) -> dict[str, float | None]:
    """How sure the network is: volume weighted by probability, and entropy.

    Parameters
    ----------
    probability : (X, Y, Z) array or None
        Probability of WMH.
    wmh_mask : (X, Y, Z) array
        Non-zero is inside.
    voxel_ml : float
        Volume of one voxel.

    Returns
    -------
    dict
        ``wmh_soft_ml``; ``wmh_soft_to_hard``, that volume over the mask's, None without a
        lesion; ``wmh_entropy``, mean entropy in bits of voxels of a probability of at least 0.1,
        None where there are none.
    """
    if probability is None:
        return {"wmh_soft_ml": None, "wmh_soft_to_hard": None, "wmh_entropy": None}
    soft = float(np.sum(probability, dtype=np.float64))
    hard = int(np.count_nonzero(wmh_mask))
    p = np.asarray(probability, dtype=np.float64)
    p = np.clip(p[p >= _POSSIBLE], 0, 1 - 1e-12)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return {
        "wmh_soft_ml": soft * voxel_ml,
        "wmh_soft_to_hard": soft / hard if hard else None,
        "wmh_entropy": float(entropy.mean()) if p.size else None,
    }


def normal_white_matter(
    brain_mask: np.ndarray, wm_probseg: np.ndarray, wmh_mask: np.ndarray
) -> np.ndarray:
    """Voxels of surely white matter without lesions, (X, Y, Z) bool.

    Inside the brain mask, probability of at least 0.9, and not a lesion nor a voxel that
    touches one in its slice or beyond.
    """
    near_lesion = ndimage.binary_dilation(np.asarray(wmh_mask) != 0, np.ones((3, 3, 3)))
    sure = np.asarray(wm_probseg) >= _SURE_WHITE_MATTER
    return sure & (np.asarray(brain_mask) != 0) & ~near_lesion


def white_matter_level(flair: np.ndarray, region: np.ndarray) -> float | None:
    """Median brightness of a region; None below 30 voxels or where it is not above 0."""
    if np.count_nonzero(region) < _FEWEST_VOXELS:
        return None
    level = float(np.median(np.asarray(flair)[region]))
    return level if level > 0 else None


def signal_to_noise(flair: np.ndarray, region: np.ndarray) -> float | None:
    """Median of a region over its standard deviation, from the median absolute deviation.

    The deviation holds true variation of the tissue besides noise, so the figure serves to
    compare scans of one protocol. None below 30 voxels or without any deviation.
    """
    values = np.asarray(flair, dtype=float)[region]
    if values.size < _FEWEST_VOXELS:
        return None
    median = np.median(values)
    deviation = _SD_PER_MAD * np.median(np.abs(values - median))
    return float(median / deviation) if deviation > 0 else None


def median_ratio(flair: np.ndarray, region: np.ndarray, background: np.ndarray) -> float | None:
    """Median of a region over that of another; None where either is empty or dark."""
    denominator = white_matter_level(flair, background)
    if not region.any() or denominator is None:
        return None
    return float(np.median(np.asarray(flair)[region])) / denominator


def cut_areas_cm2(brain_mask: Image) -> dict[str, float]:
    """Area of the brain mask on the faces of the image: brain that was probably not scanned.

    Parameters
    ----------
    brain_mask : Image
        Bool, in RAS order. The brain stem may well leave through the inferior face.
    """
    linear = brain_mask.affine[:3, :3]
    face_cm2 = [
        float(np.linalg.norm(np.cross(linear[:, (axis + 1) % 3], linear[:, (axis + 2) % 3]))) / 100
        for axis in range(3)
    ]

    def area(axis: int, index: int) -> float:
        return np.count_nonzero(np.take(brain_mask.data, index, axis=axis)) * face_cm2[axis]

    return {
        "cut_superior_cm2": area(2, -1),
        "cut_inferior_cm2": area(2, 0),
        "cut_sides_cm2": sum(area(axis, index) for axis in (0, 1) for index in (0, -1)),
    }
