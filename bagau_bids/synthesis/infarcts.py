"""Infarcts, old lacunes and cavities: what lies beside WMH in the brains of stroke patients.

All of it is laid out in the head's own grid by numbers, and comes into a scan with the tissues.
None of it is WMH. Infarcts are bright, in cortex and white matter, and swell over the sulci inside
them. Lacunes and cavities are dark, with a bright rim: where that is wider than 1 mm it is not
judged, since a rater may well call it WMH.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bagau_bids.synthesis.fields import Draw, Range, blur, wide_blur
from bagau_bids.synthesis.labels import CLASS_IN_BRAIN, CLASS_NAMES, CLASS_OF, Head
from bagau_bids.synthesis.lesions import LesionShapes

VISIBLE, HIDDEN, CORE, THIN_RIM, WIDE_RIM = 1, 2, 3, 4, 5
_FLUID = ("csf", "ventricle", "midline_ventricle")
_NEVER_INFARCT = (*_FLUID, "choroid_plexus", "vessel", "chiasm", "septum")
_TISSUE = np.array(
    [
        inside and name not in _NEVER_INFARCT
        for name, inside in zip(CLASS_NAMES, CLASS_IN_BRAIN, strict=True)
    ]
)
_WHITE = np.array([name in ("white_matter", "labelled_lesion") for name in CLASS_NAMES])
_LACUNE_HOSTS = np.array(
    [
        name in ("white_matter", "thalamus", "caudate", "putamen", "pallidum", "brain_stem")
        for name in CLASS_NAMES
    ]
)
_NOT_JUDGED_RIM_MM = 1.0


@dataclass(frozen=True)
class InfarctSettings:
    """Ranges and probabilities of infarcts, lacunes and cavities; gains are of white matter."""

    infarct_probability: float = 0.25
    second_probability: float = 0.2
    shift_sd_mm: float = 3.0
    gain: Range = (0.15, 1.3)
    opacity: Range = (0.6, 0.95)
    softness_mm: Range = (0.3, 2.5)
    uneven: Range = (0.05, 0.4)
    swelling_probability: float = 0.6
    hidden_ml: float = 1.5  # smaller ones, deep in white matter, are hidden
    hidden_white: float = 0.8  # part of them that is white matter
    lacune_probability: float = 0.25
    lacune_count: tuple[int, int] = (1, 6)
    lacune_radius_mm: Range = (1.5, 6.0)
    cavity_probability: float = 0.08
    cavity_ml: Range = (1.0, 80.0)
    rim_probability: float = 0.7
    rim_width_mm: Range = (0.6, 3.5)
    rim_gain: Range = (0.15, 0.7)
    core: Range = (0.8, 1.6)  # of CSF


def draw_pathology(
    head: Head, shapes: LesionShapes | None, draw: Draw, settings: InfarctSettings
) -> np.ndarray | None:
    """Draw infarcts, lacunes and cavities in the grid of a head.

    Parameters
    ----------
    head : Head
    shapes : LesionShapes or None
        Infarcts in the head's space; without them there are lacunes alone.
    draw : Draw
    settings : InfarctSettings

    Returns
    -------
    (X * Y * Z,) uint8 array or None
        0, or the number of what lies there as named in this module; None if there is nothing.
    """
    classes = head.classes.numpy().ravel()
    codes = np.zeros(classes.size, np.uint8)
    if shapes is not None and draw.chance(settings.infarct_probability):
        for _ in range(1 + draw.chance(settings.second_probability)):
            _add_infarct(codes, classes, shapes, draw, settings)
    if shapes is not None and draw.chance(settings.cavity_probability):
        _add_cavity(codes, shapes, draw, settings)
    if draw.chance(settings.lacune_probability):
        for _ in range(draw.integer(*settings.lacune_count)):
            _add_lacune(codes, classes, head, draw, settings)
    return codes if codes.any() else None


def _add_infarct(
    codes: np.ndarray,
    classes: np.ndarray,
    shapes: LesionShapes,
    draw: Draw,
    settings: InfarctSettings,
) -> None:
    """Add one infarct, each of its parts hidden or not, in place."""
    voxels, parts = shapes.draw_voxels(draw, (2.0, 2.0), settings.shift_sd_mm)
    if len(voxels) == 0:
        return
    kind = classes[voxels]
    size = np.bincount(parts)
    white = np.bincount(parts, _WHITE[kind]) / np.maximum(size, 1)
    cortex = np.bincount(parts, kind == CLASS_OF["cortex"])
    volume_ml = size * float(np.prod(shapes.spacing_mm)) / 1000
    hidden = (volume_ml < settings.hidden_ml) & (white >= settings.hidden_white) & (cortex == 0)
    codes[voxels] = np.where(hidden[parts], HIDDEN, VISIBLE)


def _add_cavity(
    codes: np.ndarray, shapes: LesionShapes, draw: Draw, settings: InfarctSettings
) -> None:
    """Add an old infarct: its core is fluid, its rim bright, in place."""
    volume = float(np.prod(shapes.spacing_mm)) / 1000
    low, high = settings.cavity_ml
    fitting = [n for n, v in enumerate(shapes.voxels) if low <= len(v) * volume <= high]
    if not fitting:
        return
    which = fitting[draw.integer(0, len(fitting))]
    voxels, _ = shapes.draw_voxels(draw, (2.0, 2.0), settings.shift_sd_mm, which)
    if len(voxels) == 0:
        return
    low, high = settings.rim_width_mm
    width = draw.uniform((max(1.5, low), max(1.5, high)))
    places = np.stack(np.unravel_index(voxels, shapes.shape))
    corner = places.min(axis=1, keepdims=True) - 1
    mask = np.zeros(places.max(axis=1) - corner[:, 0] + 2, bool)
    mask[tuple(places - corner)] = True
    # Of a voxel's centre below the surface, which lies half a voxel outside the last one.
    depth = ndimage.distance_transform_edt(mask, sampling=shapes.spacing_mm)
    depth -= float(shapes.spacing_mm.min()) / 2
    codes[voxels] = np.where(depth[tuple(places - corner)] > width, CORE, WIDE_RIM)


def _add_lacune(
    codes: np.ndarray, classes: np.ndarray, head: Head, draw: Draw, settings: InfarctSettings
) -> None:
    """Add a small hole with or without a rim, in place."""
    tried = (draw.uniforms(400).numpy() * classes.size).astype(np.int64)
    hosts = tried[_LACUNE_HOSTS[classes[tried]]]
    low, high = settings.lacune_radius_mm
    radius = low + (high - low) * draw.uniform((0.0, 1.0)) ** 2
    stretch = np.array([draw.uniform((0.7, 1.4)) for _ in range(3)])
    with_rim = draw.chance(settings.rim_probability)
    rim = draw.uniform(settings.rim_width_mm) if with_rim else 0.0
    if len(hosts) == 0:
        return
    shape, spacing = head.labels.shape, head.spacing_mm
    centre = np.array(np.unravel_index(hosts[0], shape))
    reach = np.ceil((1.4 * radius + rim) / spacing).astype(int)
    start, stop = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, shape)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    axes = np.ogrid[box]
    mm = [(a - c) * s for a, c, s in zip(axes, centre, spacing, strict=True)]
    inner = sum((d / (radius * t)) ** 2 for d, t in zip(mm, stretch, strict=True)) <= 1
    outer = sum((d / (radius * t + rim)) ** 2 for d, t in zip(mm, stretch, strict=True)) <= 1
    part = codes.reshape(shape)[box]
    tissue = _TISSUE[classes.reshape(shape)[box]]
    part[outer & tissue & (part == 0)] = WIDE_RIM if rim > _NOT_JUDGED_RIM_MM else THIN_RIM
    part[inner & tissue] = CORE


@dataclass(frozen=True)
class Pathology:
    """What is drawn into one scan: (X, Y, Z) bool tensors on the working grid."""

    infarct: torch.Tensor
    hidden: torch.Tensor
    core: torch.Tensor
    rim: torch.Tensor
    not_judged: torch.Tensor
    swollen: torch.Tensor

    @property
    def anything(self) -> torch.Tensor:
        """Where no WMH can be."""
        return self.infarct | self.core | self.rim


def place_pathology(
    codes: np.ndarray,
    classes: torch.Tensor,
    index: torch.Tensor,
    draw: Draw,
    settings: InfarctSettings,
) -> Pathology:
    """Bring what :func:`draw_pathology` laid out into a scan.

    Parameters
    ----------
    codes : (X * Y * Z,) uint8 array
        In the head's grid.
    classes : (X, Y, Z) int tensor
        Tissue class of each voxel of the working grid.
    index : (X, Y, Z) int64 tensor
        Flat index of the head voxel of each voxel of the working grid.
    draw : Draw
    settings : InfarctSettings
    """
    found = torch.from_numpy(codes).to(classes.device)[index]
    tissue = torch.from_numpy(_TISSUE).to(classes.device)[classes]
    fluid = classes == CLASS_OF["csf"]
    acute = (found == VISIBLE) | (found == HIDDEN)
    swelling = draw.chance(settings.swelling_probability)
    swollen = acute & fluid if swelling else torch.zeros_like(fluid)
    infarct = (acute & tissue) | swollen
    rim = ((found == THIN_RIM) | (found == WIDE_RIM)) & tissue
    return Pathology(
        infarct=infarct,
        hidden=infarct & (found == HIDDEN),
        core=(found == CORE) & (tissue | fluid),
        rim=rim,
        not_judged=rim & (found == WIDE_RIM),
        swollen=swollen,
    )


def paint_pathology(
    image: torch.Tensor,
    pathology: Pathology,
    classes: torch.Tensor,
    fluid_level: torch.Tensor,
    draw: Draw,
    spacing_mm: tuple[float, ...],
    settings: InfarctSettings,
) -> None:
    """Paint infarcts, cores and rims, in place.

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        Changed in place.
    pathology : Pathology
    classes : (X, Y, Z) int tensor
        Tissue class of each voxel.
    fluid_level : () tensor
        Intensity of CSF, on the device.
    draw : Draw
    spacing_mm : tuple of float
        Voxel size.
    settings : InfarctSettings
    """
    shape = tuple(image.shape)
    white = classes == CLASS_OF["white_matter"]
    level = (image * white).sum() / white.sum().clamp(min=1)
    softness = draw.uniform(settings.softness_mm)
    sigma = tuple(softness / mm for mm in spacing_mm)
    spread = wide_blur if min(sigma) >= 1.2 else blur
    soft = spread(pathology.infarct.float(), sigma)
    tissue = torch.from_numpy(_TISSUE).to(classes.device)[classes]
    soft.mul_(tissue | pathology.swollen).mul_(draw.uniform(settings.opacity))
    uneven = draw.smooth_field(shape, spacing_mm, draw.uniform((5.0, 16.0)))
    uneven.mul_(draw.uniform(settings.uneven)).add_(1.0 + draw.uniform(settings.gain))
    uneven.clamp_(min=0.9)
    image.lerp_(uneven.mul_(level), soft)
    edge = pathology.rim.float().mul_(draw.uniform(settings.rim_gain))
    image.addcmul_(edge, level)
    dark = fluid_level * draw.uniform(settings.core)
    image.copy_(torch.where(pathology.core, dark, image))
