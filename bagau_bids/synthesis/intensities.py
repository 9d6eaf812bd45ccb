"""FLAIR-like intensities of the tissues, and bright structures that are no lesions."""

from dataclasses import dataclass

import torch

from bagau_bids.synthesis.fields import Draw, Range
from bagau_bids.synthesis.labels import CLASS_NAMES, CLASS_OF

# Ranges relative to white matter of 1. Real FLAIRs: cortex a little above white matter, deep
# grey between, iron-rich pallidum at or below white matter, CSF suppressed.
_BRAIN_RANGES: dict[str, Range] = {
    "white_matter": (1.0, 1.0),
    "labelled_lesion": (1.0, 1.08),
    "cortex": (1.05, 1.4),
    "csf": (0.05, 0.4),
    "ventricle": (0.03, 0.3),
    "midline_ventricle": (0.03, 0.4),
    "septum": (1.0, 1.45),
    "choroid_plexus": (0.3, 1.5),
    "cerebellar_white_matter": (0.9, 1.1),
    "cerebellar_cortex": (1.0, 1.3),
    "thalamus": (1.0, 1.2),
    "caudate": (1.05, 1.35),
    "putamen": (1.0, 1.3),
    "pallidum": (0.8, 1.1),
    "accumbens": (1.05, 1.35),
    "hippocampus": (1.1, 1.5),
    "amygdala": (1.1, 1.5),
    "brain_stem": (0.9, 1.2),
    "ventral_diencephalon": (0.95, 1.2),
    "vessel": (0.05, 0.6),
    "chiasm": (0.9, 1.2),
}
_FAT = ("soft_tissue", "skin", "marrow")
_OUTSIDE_RANGES: dict[str, Range] = {
    "air": (0.0, 0.02),
    "spinal_csf": (0.05, 0.5),
    "artery": (0.0, 1.0),
    "eye": (0.03, 0.6),
    "eye_muscle": (0.4, 1.3),
    "mucosa": (0.6, 2.6),
    "spinal_cord": (0.8, 1.3),
    "vein": (0.1, 1.2),
    "skull": (0.0, 0.25),
    "optic_nerve": (0.5, 1.3),
}
# Fat suppressed, ordinary, or much brighter than the brain.
_FAT_RANGES: tuple[Range, ...] = ((0.05, 0.5), (0.5, 1.2), (1.2, 3.0))


@dataclass(frozen=True)
class IntensitySettings:
    """Ranges of the intensities; white matter is drawn first, the rest is relative to it."""

    white_matter: Range = (0.4, 0.65)
    fat_weights: tuple[float, float, float] = (0.45, 0.25, 0.3)
    random_contrast_probability: float = 0.0
    texture: Range = (0.0, 0.04)
    regional_variation: Range = (0.0, 0.06)
    bright_cortex_probability: float = 0.5
    bright_cortex: Range = (0.1, 0.5)
    flow_probability: float = 0.5
    flow: Range = (0.3, 1.2)
    choroid_probability: float = 0.5
    rim_probability: float = 0.6
    rim: Range = (0.1, 0.6)
    rim_width_mm: Range = (0.5, 2.0)


def draw_class_means(draw: Draw, settings: IntensitySettings) -> torch.Tensor:
    """(classes,) mean intensity of each tissue class, on the CPU.

    With ``random_contrast_probability`` every class is drawn on its own from [0, 1], so that a
    network trained on it cannot rely on FLAIR contrast at all.
    """
    white = draw.uniform(settings.white_matter)
    if draw.chance(settings.random_contrast_probability):
        means = draw.uniforms(len(CLASS_NAMES))
        means[CLASS_OF["air"]] *= 0.1
        return means
    means = torch.zeros(len(CLASS_NAMES))
    fat_range = _FAT_RANGES[draw.choice(settings.fat_weights)]
    for index, name in enumerate(CLASS_NAMES):
        if name in _FAT:
            limits = fat_range
        elif name in _BRAIN_RANGES:
            limits = _BRAIN_RANGES[name]
        else:
            limits = _OUTSIDE_RANGES[name]
        means[index] = white * draw.uniform(limits)
    return means


def paint(
    classes: torch.Tensor,
    means: torch.Tensor,
    draw: Draw,
    spacing_mm: tuple[float, ...],
    settings: IntensitySettings,
) -> torch.Tensor:
    """Image of the tissues without lesions.

    Parameters
    ----------
    classes : (X, Y, Z) int tensor
        Tissue class of each voxel.
    means : (classes,) tensor
        From :func:`draw_class_means`.
    draw : Draw
        Source of random numbers.
    spacing_mm : tuple of float
        Voxel size.
    settings : IntensitySettings
        Ranges.

    Returns
    -------
    (X, Y, Z) float32 tensor
    """
    shape = tuple(classes.shape)
    image = means.to(classes.device)[classes]
    regional = draw.smooth_field(shape, spacing_mm, draw.uniform((15.0, 40.0)))
    gain = regional.mul_(draw.uniform(settings.regional_variation)).add_(1.0)
    texture = draw.uniform(settings.texture)
    if texture > 0:
        gain.add_(draw.noise(shape), alpha=texture)
    return image.mul_(gain)


def add_confounders(
    image: torch.Tensor,
    classes: torch.Tensor,
    ventricle_distance_mm: torch.Tensor,
    draw: Draw,
    spacing_mm: tuple[float, ...],
    settings: IntensitySettings,
) -> None:
    """Brighten structures that a network must not take for lesions, in place, unlabelled.

    CSF flow artefacts, bright cortex and insula, choroid plexus, and the thin ependymal rim
    that most healthy ventricles show (never wider than ``rim_width_mm``).

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        Changed in place.
    classes : (X, Y, Z) int tensor
        Tissue class of each voxel.
    ventricle_distance_mm : (X, Y, Z) float tensor
        Distance to the lateral ventricles.
    draw : Draw
        Source of random numbers.
    spacing_mm : tuple of float
        Voxel size.
    settings : IntensitySettings
        Ranges and probabilities.
    """
    shape = tuple(image.shape)
    white = classes == CLASS_OF["white_matter"]
    level = image[white].mean() if bool(white.any()) else image.mean()
    if draw.chance(settings.bright_cortex_probability):
        field = draw.smooth_field(shape, spacing_mm, 14.0).sub_(0.6).clamp_(0.0, 1.5)
        cortex = (classes == CLASS_OF["cortex"]) | (classes == CLASS_OF["hippocampus"])
        image.addcmul_(field.mul_(cortex), level, value=draw.uniform(settings.bright_cortex))
    if draw.chance(settings.flow_probability):
        field = draw.smooth_field(shape, spacing_mm, draw.uniform((5.0, 12.0)))
        field = field.sub_(draw.uniform((0.8, 1.8))).clamp_(0.0, 1.0)
        fluid = (classes == CLASS_OF["csf"]) | (classes == CLASS_OF["midline_ventricle"])
        fluid |= classes == CLASS_OF["ventricle"]
        image.addcmul_(field.mul_(fluid), level, value=draw.uniform(settings.flow))
    if draw.chance(settings.choroid_probability):
        field = draw.smooth_field(shape, spacing_mm, 5.0).add_(0.3).clamp_(0.0, 1.0)
        plexus = classes == CLASS_OF["choroid_plexus"]
        image.addcmul_(field.mul_(plexus), level, value=draw.uniform((0.3, 1.0)))
    if draw.chance(settings.rim_probability):
        width = draw.smooth_field(shape, spacing_mm, 12.0).mul_(0.3).add_(1.0)
        width.mul_(draw.uniform(settings.rim_width_mm)).clamp_(max=settings.rim_width_mm[1])
        rim = white & (ventricle_distance_mm <= width)
        image.addcmul_(rim.float(), level, value=draw.uniform(settings.rim))
