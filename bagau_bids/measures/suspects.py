"""Large bright or dark areas that reach the cortex: probable infarcts, tumours or cavities.

What is meant for a look, not for measuring: the brightness of the FLAIR, smoothed, is held against
that of normal white matter and against the same place of the other side. White matter
hyperintensities, coil shading and what is bright in every brain lie on both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.measures.regions import (
    CORTEX,
    DEEP_GREY,
    FEWEST_VOXELS,
    INFRATENTORIAL,
    LATERAL_VENTRICLE,
    OTHER_CSF,
    SIDES,
    SURE_WHITE_MATTER,
    WHITE_MATTER,
)
from bagau_bids.spaces import Image, resample, voxel_sizes

WORK_MM = 2.0  # finer axes are thinned to about this spacing
SMOOTHING_MM = 1.5  # standard deviation
# In units of white matter, and of the brightest (darkest) of the other side within REACH_MM.
BRIGHT, BRIGHTER = 1.2, 1.1
DARK, DARKER = 0.6, 0.75
REACH_MM = 4.0
CORE_MM = {"bright": 3.0, "dark": 4.0}  # what is nowhere wider than twice this is left out
RIM_MM = 2.0  # up to this distance from the template's cortex counts as cortex
CORTEX_SHARE = 0.2
SMALLEST_ML = 1.0
TISSUES = {
    CORTEX: "cortex",
    WHITE_MATTER: "white matter",
    DEEP_GREY: "deep grey matter",
    INFRATENTORIAL: "brain stem or cerebellum",
}
Kind = Literal["bright", "dark"]
FIGURES: dict[Kind, str] = {"bright": "largest_bright_ml", "dark": "largest_dark_ml"}


@dataclass(frozen=True)
class Anatomy:
    """Where things are in a FLAIR, all on its grid.

    Parameters
    ----------
    brain_mask, ventricles : (X, Y, Z) bool arrays
    groups : (X, Y, Z) int array
        Groups of the registered template map.
    right : (X, Y, Z) bool array
        Right of the template's midplane.
    to_template : (4, 4) array
        World of the FLAIR to that of the template, mm, as by `fit_template`.
    white_matter : float or None
        Brightness of normal white matter on the FLAIR; None where there is none.
    """

    brain_mask: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    groups: NDArray
    right: NDArray[np.bool_]
    to_template: NDArray[np.float64]
    white_matter: float | None

    @property
    def mirror(self) -> NDArray[np.float64]:
        """World to world, mm: the same place of the other side, (4, 4), its own inverse."""
        swapped = np.diag([-1.0, 1, 1, 1])
        return np.linalg.inv(self.to_template) @ swapped @ self.to_template


@dataclass(frozen=True)
class Suspect:
    """One area that asks for a look.

    Parameters
    ----------
    kind : str
        ``bright`` or ``dark``.
    volume_ml : float
    centre_mm : tuple of float
        Centroid in the world of the FLAIR, RAS.
    template_mm : tuple of float
        The same in the world of the template.
    place : str
        Side and tissues of the template, in words.
    box : tuple of (int, int)
        First voxel and the one after the last, along each axis of the FLAIR in RAS order.
    """

    kind: Kind
    volume_ml: float
    centre_mm: tuple[float, ...]
    template_mm: tuple[float, ...]
    place: str
    box: tuple[tuple[int, int], ...]


def fit_template(points: Image) -> NDArray[np.float64]:
    """Fit the affine map from a FLAIR to the template.

    Parameters
    ----------
    points : Image
        Place in the template, mm, of each point of a lattice over the FLAIR: (3, I, J, K), and
        index of the lattice to the world of the FLAIR.

    Returns
    -------
    (4, 4) array
        World of the FLAIR to that of the template, mm: least squares over the points.
    """
    index = np.indices(points.data.shape[1:]).reshape(3, -1)
    ones = np.ones((1, index.shape[1]))
    world = points.affine @ np.vstack([index, ones])
    fitted, *_ = np.linalg.lstsq(world.T, points.data.reshape(3, -1).T, rcond=None)
    return np.vstack([fitted.T, [0, 0, 0, 1]])


def white_matter_level(flair: NDArray, brain_mask: NDArray, wm_probseg: NDArray) -> float | None:
    """Median brightness of the template's sure white matter in the brain; None without any."""
    sure = (np.asarray(wm_probseg) >= SURE_WHITE_MATTER) & (np.asarray(brain_mask) != 0)
    level = float(np.median(flair[sure])) if np.count_nonzero(sure) >= FEWEST_VOXELS else 0.0
    return level if level > 0 else None


def find_suspects(flair: Image, anatomy: Anatomy) -> tuple[Suspect, ...]:
    """Find large areas, brighter or darker than the other side, that reach the cortex.

    Parameters
    ----------
    flair : Image
        Bias corrected, axes in RAS order.
    anatomy : Anatomy

    Returns
    -------
    tuple of Suspect
        The largest first; empty where the level of white matter is not known.
    """
    if anatomy.white_matter is None:
        return ()
    steps = np.maximum(1, np.floor(WORK_MM / voxel_sizes(flair.affine) + 0.1)).astype(int)
    thin = tuple(slice(None, None, int(step)) for step in steps)
    grid = flair.affine @ np.diag([*steps, 1.0])
    smooth = _smooth(flair, anatomy.brain_mask)[thin]
    level = Image(smooth / anatomy.white_matter, grid)
    brain, groups = anatomy.brain_mask[thin], anatomy.groups[thin]
    spacing = voxel_sizes(grid)
    cortex = _near(np.isin(groups, (CORTEX, INFRATENTORIAL)), spacing, RIM_MM) & brain
    found = []
    for kind, candidate in _candidates(level, brain, anatomy, thin).items():
        core = _opened(candidate, spacing, CORE_MM[kind])
        labels, _ = ndimage.label(core, np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[box] == number
            volume = np.count_nonzero(inside) * voxel_volume_mm3(grid) / 1000
            if volume < SMALLEST_ML or (cortex[box] & inside).sum() < CORTEX_SHARE * inside.sum():
                continue
            whole = np.zeros(labels.shape, bool)
            whole[box] = inside
            found.append(_describe(kind, volume, whole, anatomy, grid, steps))
    return tuple(sorted(found, key=lambda one: -one.volume_ml))


def _candidates(
    level: Image, brain: NDArray, anatomy: Anatomy, thin: tuple[slice, ...]
) -> dict[Kind, NDArray[np.bool_]]:
    """Voxels that are bright or dark, and not so on the other side."""
    seen = level.data
    ball = _ball(voxel_sizes(level.affine), REACH_MM)

    def other_side(values: NDArray) -> NDArray:
        return resample(Image(values, anatomy.mirror @ level.affine), level)

    brightest = other_side(ndimage.maximum_filter(seen, footprint=ball))
    darkest = other_side(ndimage.minimum_filter(np.where(brain, seen, 9.0), footprint=ball))
    there = other_side(brain.astype(np.float32)) > 0.5
    csf = np.isin(anatomy.groups[thin], (LATERAL_VENTRICLE, OTHER_CSF)) | anatomy.ventricles[thin]
    return {
        "bright": brain & there & (seen > BRIGHT) & (seen > BRIGHTER * brightest),
        "dark": brain & there & ~csf & (seen < DARK) & (darkest > DARKER),
    }


def _describe(
    kind: Kind, volume_ml: float, inside: NDArray, anatomy: Anatomy, grid: NDArray, steps: NDArray
) -> Suspect:
    index = np.argwhere(inside)
    centre = grid @ [*index.mean(axis=0), 1.0]
    thin = tuple(slice(None, None, int(step)) for step in steps)
    right = float(anatomy.right[thin][inside].mean())
    groups = anatomy.groups[thin][inside]
    shares = {word: float((groups == number).mean()) for number, word in TISSUES.items()}
    words = [word for word, share in shares.items() if share >= CORTEX_SHARE]
    side = SIDES[int(right > 0.5)]
    low = index.min(axis=0) * steps
    high = np.minimum((index.max(axis=0) + 1) * steps, anatomy.brain_mask.shape)
    return Suspect(
        kind=kind,
        volume_ml=round(float(volume_ml), 2),
        centre_mm=_rounded(centre),
        template_mm=_rounded(anatomy.to_template @ centre),
        place=f"{side}, {' and '.join(words)}" if words else side,
        box=tuple((int(a), int(b)) for a, b in zip(low, high, strict=True)),
    )


def _rounded(point: NDArray) -> tuple[float, ...]:
    return tuple(round(float(value), 1) for value in point[:3])


def suspect_figures(suspects: Iterable[Suspect]) -> dict[str, float]:
    """Quality figures: volume of the largest bright and of the largest dark area, ml.

    Parameters
    ----------
    suspects : iterable of Suspect
        The largest of each kind first.
    """
    figures = dict.fromkeys(FIGURES.values(), 0.0)
    for one in suspects:
        name = FIGURES[one.kind]
        figures[name] = max(figures[name], one.volume_ml)
    return figures


def places_in_words(suspects: Iterable[Suspect]) -> dict[str, str]:
    """Where the largest area of each kind lies, by its figure; as `suspect_figures`."""
    places: dict[str, str] = {}
    for one in suspects:
        x, y, z = (f"{value:.0f}" for value in one.template_mm)
        words = f"{one.place}, its centre at {x}, {y}, {z} mm in the template"
        places.setdefault(FIGURES[one.kind], words)
    return places


def _smooth(flair: Image, brain: NDArray) -> NDArray[np.float32]:
    """Gaussian mean of the brain's voxels alone, 0 outside; axes too coarse for it are left."""
    width = SMOOTHING_MM / voxel_sizes(flair.affine)
    width = np.where(width > 0.3, width, 0.0)
    weight = ndimage.gaussian_filter(brain.astype(np.float32), width, truncate=2.5)
    values = ndimage.gaussian_filter(
        np.where(brain, flair.data, 0).astype(np.float32), width, truncate=2.5
    )
    return np.where(brain, values / np.maximum(weight, 1e-3), 0).astype(np.float32)


def _ball(spacing_mm: NDArray, radius_mm: float) -> NDArray[np.bool_]:
    reach = np.floor(radius_mm / spacing_mm).astype(int)
    axes = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    squares = sum((axis * step) ** 2 for axis, step in zip(axes, spacing_mm, strict=True))
    return np.asarray(squares <= radius_mm**2)


def _near(mask: NDArray, spacing_mm: NDArray, distance_mm: float) -> NDArray[np.bool_]:
    return ndimage.binary_dilation(mask, _ball(spacing_mm, distance_mm))


def _opened(mask: NDArray, spacing_mm: NDArray, radius_mm: float) -> NDArray[np.bool_]:
    return ndimage.binary_opening(mask, _ball(spacing_mm, radius_mm))
