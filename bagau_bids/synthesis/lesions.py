"""White matter hyperintensities with a known mask.

Four kinds, mixed at random: real shapes brought into the head, bands and caps grown from the
lateral ventricles, punctate and confluent deep lesions, and the lesions that the label map
itself names. A head may have none.

What is labelled: a rim at the ventricle's edge thinner than about 2 mm is normal in most
FLAIRs and left unlabelled by raters of abnormal lesions; it is painted with the confounders
and stays out of the mask. A band or cap is wider than that and labelled as a whole, down to
the ventricle's wall. Dirty white matter around lesions is never labelled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bagau_bids.synthesis.fields import Draw, Range, blur, wide_blur
from bagau_bids.synthesis.labels import CLASS_NAMES, CLASS_OF

_WHITE = ("white_matter", "labelled_lesion")
_STEM = ("brain_stem", "ventral_diencephalon", "cerebellar_white_matter")
_GREY = ("thalamus", "caudate", "putamen", "pallidum")
# Where the centres of lesions of a place lie, and what they may fill.
_HOSTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deep": (_WHITE, _WHITE),
    "infratentorial": (_STEM, _STEM),
    "grey": (_GREY, (*_GREY, *_WHITE)),
    "juxtacortical": (("cortex",), ("cortex", *_WHITE)),
}
_PLACES = tuple(_HOSTS)
_SMALL_WEIGHTS = (0.55, 0.17, 0.08, 0.2)


@dataclass(frozen=True)
class LesionSettings:
    """Ranges and probabilities of the lesions."""

    none_probability: float = 0.18
    small_probability: float = 0.35  # of heads with lesions: a few small ones alone
    small_count: tuple[int, int] = (1, 7)
    small_radius_mm: Range = (1.5, 4.0)
    heavy_probability: float = 0.2  # of heads with lesions: thick rims, merging with deep ones
    heavy_band_mm: Range = (5.0, 12.0)
    heavy_reach_mm: Range = (8.0, 20.0)
    infratentorial_probability: float = 0.25
    grey_probability: float = 0.12
    juxtacortical_probability: float = 0.25
    elsewhere_count: tuple[int, int] = (1, 5)
    elsewhere_radius_mm: Range = (1.3, 4.5)
    real_probability: float = 0.6
    periventricular_probability: float = 0.5
    deep_probability: float = 0.6
    labelled_probability: float = 0.3
    keep_component: Range = (0.2, 1.0)
    shift_sd_mm: float = 3.0
    band_width_mm: Range = (1.0, 5.0)
    punctate_count: tuple[int, int] = (1, 25)
    radius_mm: Range = (0.9, 5.0)
    confluent_probability: float = 0.35
    contrast: Range = (0.12, 0.9)
    softness_mm: Range = (0.3, 1.2)
    falloff_probability: float = 0.5
    falloff: Range = (0.2, 0.6)
    dirty_probability: float = 0.5
    dirty: Range = (0.05, 0.35)


@dataclass(frozen=True)
class LesionShapes:
    """Real lesion masks in the space of one head, stored sparsely.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z) of the head's grid.
    spacing_mm : (3,) array
        Voxel size of the head's grid.
    voxels : tuple of (N,) int32 arrays
        For each mask, flat indices of its voxels.
    components : tuple of (N,) int16 arrays
        For each mask, the lesion number of each of those voxels, from 0.
    """

    shape: tuple[int, int, int]
    spacing_mm: np.ndarray
    voxels: tuple[np.ndarray, ...]
    components: tuple[np.ndarray, ...]

    @classmethod
    def from_masks(cls, masks: list[np.ndarray], spacing_mm: np.ndarray) -> "LesionShapes":
        """Pack (X, Y, Z) bool masks that lie on the head's grid; 26-connected lesions."""
        voxels, components = [], []
        for mask in masks:
            numbered, _ = ndimage.label(mask, np.ones((3, 3, 3)))
            flat = np.flatnonzero(numbered)
            voxels.append(flat.astype(np.int32))
            components.append((numbered.ravel()[flat] - 1).astype(np.int16))
        return cls(masks[0].shape, spacing_mm, tuple(voxels), tuple(components))

    def to_runs(self) -> dict[str, np.ndarray]:
        """Pack as runs of voxels that follow each other in one lesion, for storage.

        Returns
        -------
        dict of str to array
            ``counts`` of runs of each mask; for each run ``starts``, as the distance from the
            start of the run before in its mask, ``lengths`` and ``components``.
        """
        counts, starts, lengths, components = [], [], [], []
        for voxels, numbers in zip(self.voxels, self.components, strict=True):
            begins = np.ones(len(voxels), bool)
            begins[1:] = (np.diff(voxels) != 1) | (np.diff(numbers) != 0)
            first = np.flatnonzero(begins)
            counts.append(len(first))
            starts.append(np.diff(voxels[first], prepend=np.int32(0)))
            lengths.append(np.diff(first, append=len(voxels)))
            components.append(numbers[first])
        return {
            "counts": np.array(counts, np.int32),
            "starts": np.concatenate(starts).astype(np.int32),
            "lengths": np.concatenate(lengths).astype(np.int16),
            "components": np.concatenate(components).astype(np.int16),
        }

    @classmethod
    def from_runs(
        cls, shape: tuple[int, ...], spacing_mm: np.ndarray, runs: dict[str, np.ndarray]
    ) -> "LesionShapes":
        """Unpack what :meth:`to_runs` packed, on a grid of this shape and voxel size."""
        ends = np.cumsum(runs["counts"])[:-1]
        voxels, components = [], []
        for starts, lengths, numbers in zip(
            *(np.split(runs[name], ends) for name in ("starts", "lengths", "components")),
            strict=True,
        ):
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            flat = np.repeat(np.cumsum(starts), lengths) + within
            voxels.append(flat.astype(np.int32))
            components.append(np.repeat(numbers, lengths))
        x, y, z = shape
        return cls((x, y, z), spacing_mm, tuple(voxels), tuple(components))

    def draw_voxels(
        self, draw: Draw, keep: Range, shift_sd_mm: float, which: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a subset of the lesions of one mask, shifted; what leaves the grid is dropped.

        Parameters
        ----------
        draw : Draw
        keep : tuple of float
            Range of the part of the lesions that stays.
        shift_sd_mm : float
        which : int, optional
            Number of the mask; drawn without it.

        Returns
        -------
        voxels : (N,) int64 array
            Flat indices in the head's grid.
        components : (N,) int array
            The lesion number of each of them.
        """
        which = draw.integer(0, len(self.voxels)) if which is None else which
        voxels, components = self.voxels[which], self.components[which]
        if len(voxels) == 0:
            return voxels.astype(np.int64), components
        kept = draw.uniforms(int(components.max()) + 1) < draw.uniform(keep)
        shift = [round(draw.normal(shift_sd_mm) / mm) for mm in self.spacing_mm]
        stays = kept.numpy()[components]
        voxels, components = voxels[stays], components[stays]
        moved = np.stack(np.unravel_index(voxels, self.shape), axis=1) + shift
        inside = ((moved >= 0) & (moved < self.shape)).all(axis=1)
        return np.ravel_multi_index(tuple(moved[inside].T), self.shape), components[inside]

    def draw_mask(self, draw: Draw, settings: LesionSettings) -> torch.Tensor:
        """Flat uint8 tensor of the head's grid: a random subset of one mask, shifted.

        What leaves the grid is dropped.
        """
        flat, _ = self.draw_voxels(draw, settings.keep_component, settings.shift_sd_mm)
        dense = torch.zeros(int(np.prod(self.shape)), dtype=torch.uint8)
        dense[torch.from_numpy(flat)] = 1
        return dense


@dataclass(frozen=True)
class HeadMaps:
    """What lesions need to know of the head, all (X, Y, Z) on the working grid.

    ``index`` are flat indices of head voxels, ``ventricle_distance_mm`` distances to the
    lateral ventricles.
    """

    classes: torch.Tensor
    index: torch.Tensor
    ventricle_distance_mm: torch.Tensor
    spacing_mm: tuple[float, float, float]


def draw_lesions(
    around: HeadMaps, shapes: LesionShapes | None, draw: Draw, settings: LesionSettings
) -> torch.Tensor:
    """Random lesion mask.

    Returns
    -------
    (X, Y, Z) bool tensor, all False in some heads.
    """
    lesions = torch.zeros_like(around.classes, dtype=torch.bool)
    if draw.chance(settings.none_probability):
        return lesions
    small, heavy = settings.small_probability, settings.heavy_probability
    load = draw.choice((small, heavy, max(0.0, 1.0 - small - heavy)))
    if load == 0:
        for _ in range(draw.integer(*settings.small_count)):
            place = _PLACES[draw.choice(_SMALL_WEIGHTS)]
            _add_at(lesions, around, place, 1, settings.small_radius_mm, draw)
        return lesions
    hosts = around.classes == CLASS_OF["white_matter"]
    hosts |= around.classes == CLASS_OF["labelled_lesion"]
    if load == 1:
        lesions |= hosts & _confluent(around, draw, settings)
    _add_mixture(lesions, hosts, around, shapes, draw, settings)
    for place, probability in (
        ("infratentorial", settings.infratentorial_probability),
        ("grey", settings.grey_probability),
        ("juxtacortical", settings.juxtacortical_probability),
    ):
        if draw.chance(probability):
            count = draw.integer(*settings.elsewhere_count)
            _add_at(lesions, around, place, count, settings.elsewhere_radius_mm, draw)
    return lesions


def _add_mixture(
    lesions: torch.Tensor,
    hosts: torch.Tensor,
    around: HeadMaps,
    shapes: LesionShapes | None,
    draw: Draw,
    settings: LesionSettings,
) -> None:
    """Add any of the four kinds, in place."""
    classes = around.classes
    if draw.chance(settings.labelled_probability):
        lesions |= classes == CLASS_OF["labelled_lesion"]
    if shapes is not None and draw.chance(settings.real_probability):
        dense = shapes.draw_mask(draw, settings).to(classes.device)
        real = dense[around.index] > 0
        stem = (classes == CLASS_OF["brain_stem"]) | (
            classes == CLASS_OF["cerebellar_white_matter"]
        )
        lesions |= real & (hosts | stem)
    if draw.chance(settings.periventricular_probability):
        lesions |= hosts & _band(around, draw, settings)
    if draw.chance(settings.deep_probability):
        deep = torch.zeros_like(lesions)
        _add_deep(deep, hosts, around.spacing_mm, draw, settings)
        lesions |= deep & hosts


def _confluent(around: HeadMaps, draw: Draw, settings: LesionSettings) -> torch.Tensor:
    """Thick irregular rims and caps, and patches that merge with them."""
    shape, distance = tuple(around.classes.shape), around.ventricle_distance_mm
    width = draw.smooth_field(shape, around.spacing_mm, draw.uniform((14.0, 28.0)))
    width.mul_(draw.uniform((0.25, 0.5)))
    width.add_(draw.smooth_field(shape, around.spacing_mm, 4.5), alpha=0.2)
    width.add_(0.3).mul_(draw.uniform(settings.heavy_band_mm))
    patches = draw.smooth_field(shape, around.spacing_mm, draw.uniform((6.0, 12.0)))
    patches.sub_(distance / draw.uniform(settings.heavy_reach_mm)).add_(0.3)
    return (distance <= width.clamp_(min=1.0)) | (
        (patches > draw.uniform((0.9, 1.6))) & (distance < 25.0)
    )


def _add_at(
    lesions: torch.Tensor,
    around: HeadMaps,
    place: str,
    count: int,
    radius_mm: Range,
    draw: Draw,
) -> None:
    """Add ellipsoids at a place of the brain, in place."""
    centres, hosts = _HOSTS[place]
    device = around.classes.device
    inside = torch.zeros_like(lesions)
    candidates = torch.nonzero(_table(centres, device)[around.classes].flatten())[:, 0]
    if len(candidates) == 0:
        return
    spacing = np.asarray(around.spacing_mm)
    for _ in range(count):
        flat = int(candidates[draw.integer(0, len(candidates))])
        centre = np.array(np.unravel_index(flat, tuple(lesions.shape)), float) * spacing
        low, high = radius_mm
        radius = low * (high / low) ** draw.uniform((0.0, 1.0))
        _add_ellipsoid(inside, centre, radius, spacing, draw)
    lesions |= inside & _table(hosts, device)[around.classes]


def _table(names: tuple[str, ...], device: torch.device) -> torch.Tensor:
    """(classes,) bool tensor: whether a tissue class is one of these."""
    return torch.tensor([name in names for name in CLASS_NAMES], device=device)


def _band(around: HeadMaps, draw: Draw, settings: LesionSettings) -> torch.Tensor:
    """Voxels nearer to the ventricles than an irregular width."""
    shape = tuple(around.classes.shape)
    mean_width = draw.uniform(settings.band_width_mm)
    width = draw.smooth_field(shape, around.spacing_mm, draw.uniform((15.0, 30.0)))
    width.mul_(draw.uniform((0.5, 1.2)))
    width.add_(draw.smooth_field(shape, around.spacing_mm, 4.0), alpha=0.3)
    width.add_(draw.uniform((-0.6, 0.6)) + 0.5).mul_(mean_width)
    # Thinner than 2 mm is a normal rim and not labelled.
    return (around.ventricle_distance_mm <= width) & (width > 2.0)


def _add_deep(
    lesions: torch.Tensor,
    hosts: torch.Tensor,
    spacing_mm: tuple[float, ...],
    draw: Draw,
    settings: LesionSettings,
) -> None:
    """Add punctate ellipsoids with irregular edges, some in confluent groups, in place."""
    candidates = torch.nonzero(hosts.flatten())[:, 0]
    if len(candidates) == 0:
        return
    spacing = np.asarray(spacing_mm)
    for _ in range(draw.integer(*settings.punctate_count)):
        flat = int(candidates[draw.integer(0, len(candidates))])
        centre = np.array(np.unravel_index(flat, tuple(hosts.shape)), float) * spacing
        low, high = settings.radius_mm
        radius = low * (high / low) ** draw.uniform((0.0, 1.0)) ** 1.5
        members = draw.integer(3, 10) if draw.chance(settings.confluent_probability) else 1
        for member in range(members):
            if member:
                step = np.array([draw.normal(), draw.normal(), draw.normal()])
                centre = centre + step * radius * 0.9
            _add_ellipsoid(lesions, centre, radius, spacing, draw)


def _add_ellipsoid(
    lesions: torch.Tensor, centre_mm: np.ndarray, radius_mm: float, spacing: np.ndarray, draw: Draw
) -> None:
    """Add one ellipsoid with a wavy surface, in place."""
    radii = radius_mm * np.array([draw.uniform((0.7, 1.5)) for _ in range(3)])
    low = np.maximum(np.floor((centre_mm - 1.4 * radii) / spacing).astype(int), 0)
    high = np.minimum(np.ceil((centre_mm + 1.4 * radii) / spacing).astype(int) + 1, lesions.shape)
    if (high <= low).any():
        return
    axes = [
        (torch.arange(a, b, dtype=torch.float32, device=lesions.device) * float(s) - float(c))
        / float(r)
        for a, b, s, c, r in zip(low, high, spacing, centre_mm, radii, strict=True)
    ]
    squared = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2] ** 2
    waves = draw.smooth_field(tuple(squared.shape), tuple(spacing), max(1.5, radius_mm * 0.8))
    box = lesions[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    box |= squared <= 1.0 + 0.4 * waves


def paint_lesions(
    image: torch.Tensor,
    lesions: torch.Tensor,
    white_matter: torch.Tensor,
    draw: Draw,
    spacing_mm: tuple[float, ...],
    settings: LesionSettings,
) -> None:
    """Brighten lesions, unevenly and with soft edges, and dirty white matter, in place.

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        Changed in place.
    lesions : (X, Y, Z) bool tensor
        The true mask.
    white_matter : (X, Y, Z) bool tensor
        Where dirty white matter may lie.
    draw : Draw
        Source of random numbers.
    spacing_mm : tuple of float
        Voxel size.
    settings : LesionSettings
        Ranges.
    """
    if not bool(lesions.any()):
        return
    shape = tuple(image.shape)
    level = image[white_matter].mean()
    contrast = draw.uniform(settings.contrast)
    softness = draw.uniform(settings.softness_mm)
    soft = blur(lesions.float(), tuple(softness / mm for mm in spacing_mm))
    if draw.chance(settings.falloff_probability):  # from the centre to the edge
        inner = wide_blur(lesions.float(), tuple(2.5 / mm for mm in spacing_mm))
        depth = draw.uniform(settings.falloff)
        soft = soft * inner.mul_(1.6).clamp_(max=1.0).mul_(depth).add_(1.0 - depth)
    uneven = draw.smooth_field(shape, spacing_mm, draw.uniform((6.0, 18.0)))
    uneven.mul_(draw.uniform((0.05, 0.4))).add_(1.0).clamp_(0.3, 2.0)
    image.addcmul_(soft * uneven, level, value=contrast)
    if draw.chance(settings.dirty_probability):
        reach = draw.uniform((2.0, 6.0))
        halo = wide_blur(lesions.float(), tuple(reach / mm for mm in spacing_mm))
        halo.clamp_(max=0.5).mul_(2.0 * white_matter * ~lesions)
        patchy = draw.smooth_field(shape, spacing_mm, 8.0).mul_(0.4).add_(1.0).clamp_(min=0.0)
        image.addcmul_(halo * patchy, level, value=contrast * draw.uniform(settings.dirty))
