"""Whether a scan is what its name and header say: a FLAIR, of a head that lies as they say.

The figures are plain numbers, ``None`` where one does not exist; `measures.flags` judges them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bagau_bids.measures.quality import white_matter_level
from bagau_bids.spaces import voxel_sizes

SURE_WHITE_MATTER = 0.9
LITTLE_WHITE_MATTER = 0.1
# Of the template's T1w, in units of its white matter: cortex and nuclei, and all tissue.
GREY = (0.55, 0.8)
TISSUE = 0.5
FEWEST_VOXELS = 1000
BRIGHTEST = 2.0  # in units of white matter; lesions, vessels and fat beyond it say nothing
# Signs of another contrast; how real FLAIRs and T1ws lie about them stands in docs/quality.md.
DARK_GREY = 0.92
LIKE_T1W = 0.3
BRIGHT_CSF = 1.0
HESITANT = 0.7
# A voxel this many times longer than wide, and this long in mm, is one of a thick slice.
THICK_RATIO, THICK_MM = 1.5, 2.5


@dataclass(frozen=True)
class Evidence:
    """What else is known of a scan's contrast.

    Parameters
    ----------
    csf_to_wm : float or None
        Brightness of CSF over that of white matter.
    entropy : float or None
        Of the network's probability, bits.
    sidecar_signs : sequence of str
        What its metadata say against a FLAIR.
    """

    csf_to_wm: float | None
    entropy: float | None
    sidecar_signs: Sequence[str] = ()


def contrast_figures(
    flair: np.ndarray,
    brain_mask: np.ndarray,
    wm_probseg: np.ndarray,
    template_t1w: np.ndarray,
    evidence: Evidence,
) -> dict[str, float | None]:
    """Tell a FLAIR from other contrasts by several signs.

    In a T1w white matter is brighter than cortex, and the whole image goes with the template's
    T1w; in a T2w, and a diffusion image without weighting, CSF is brighter than white matter. In
    a FLAIR cortex is about as bright as white matter or brighter, and CSF dark.

    Parameters
    ----------
    flair : (X, Y, Z) array
        Bias corrected.
    brain_mask : (X, Y, Z) bool array
    wm_probseg, template_t1w : (X, Y, Z) arrays
        White matter, 0 to 1, and T1w of the registered template, on the same grid.
    evidence : Evidence

    Returns
    -------
    dict
        ``grey_to_white``, ``t1w_correlation`` and ``no_flair_signs``: the number of signs; two
        count double, since no FLAIR has them: bright CSF, and two signs or more in the metadata.
    """
    grey_to_white, correlation = _tissue_contrast(flair, brain_mask, wm_probseg, template_t1w)
    signs = 0
    signs += grey_to_white is not None and grey_to_white < DARK_GREY
    signs += correlation is not None and correlation > LIKE_T1W
    signs += evidence.entropy is not None and evidence.entropy > HESITANT
    signs += 2 * (evidence.csf_to_wm is not None and evidence.csf_to_wm > BRIGHT_CSF)
    signs += min(len(evidence.sidecar_signs), 2)
    return {
        "grey_to_white": grey_to_white,
        "t1w_correlation": correlation,
        "no_flair_signs": float(signs),
    }


def _tissue_contrast(
    flair: np.ndarray, brain_mask: np.ndarray, wm_probseg: np.ndarray, template_t1w: np.ndarray
) -> tuple[float | None, float | None]:
    """Grey over white matter, and how far the tissue goes with the template's T1w."""
    brain = np.asarray(brain_mask) != 0
    white = brain & (np.asarray(wm_probseg) >= SURE_WHITE_MATTER)
    level, template_level = (white_matter_level(it, white) for it in (flair, template_t1w))
    if level is None or template_level is None:
        return None, None
    relative = np.asarray(template_t1w) / template_level
    little = np.asarray(wm_probseg) < LITTLE_WHITE_MATTER
    grey = brain & little & (relative > GREY[0]) & (relative < GREY[1])
    if np.count_nonzero(grey) < FEWEST_VOXELS:
        return None, None
    tissue = brain & (relative > TISSUE)
    seen = np.clip(np.asarray(flair)[tissue] / level, 0, BRIGHTEST)
    if np.ptp(seen) == 0:
        return None, None
    correlation = float(np.corrcoef(seen, relative[tissue])[0, 1])
    return float(np.median(np.asarray(flair)[grey])) / level, correlation


def slice_tilt_degrees(affine: np.ndarray) -> float | None:
    """Angle between the direction across thick slices and up: near 90 where they are not axial.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel to world (mm).

    Returns
    -------
    float or None
        0 to 90; None where no axis has clearly longer voxels than the others.
    """
    sizes = voxel_sizes(affine)
    longest = int(np.argmax(sizes))
    if sizes[longest] < max(THICK_MM, THICK_RATIO * float(np.median(sizes))):
        return None
    upward = abs(float(np.asarray(affine)[2, longest])) / sizes[longest]
    return float(np.rad2deg(np.arccos(min(upward, 1.0))))
