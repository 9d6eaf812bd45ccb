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

from bagau_bids.training.synthesis.fields import Draw, Range, blur, wide_blur
from bagau_bids.training.synthesis.labels import CLASS_OF


@dataclass(frozen=True)
class LesionSettings:
    """Ranges and probabilities of the lesions."""

    none_probability: float = 0.12
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
    contrast: Range = (0.2, 0.9)
    softness_mm: Range = (0.3, 1.0)
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

    def draw_mask(self, draw: Draw, settings: LesionSettings) -> torch.Tensor:
        """Flat uint8 tensor of the head's grid: a random subset of one mask, shifted.

        What leaves the grid is dropped.
        """
        which = draw.integer(0, len(self.voxels))
        voxels, components = self.voxels[which], self.components[which]
        dense = torch.zeros(int(np.prod(self.shape)), dtype=torch.uint8)
        if len(voxels) == 0:
            return dense
        keep = draw.uniforms(int(components.max()) + 1) < draw.uniform(settings.keep_component)
        shift = [round(draw.normal(settings.shift_sd_mm) / mm) for mm in self.spacing_mm]
        kept = voxels[keep.numpy()[components]]
        moved = np.stack(np.unravel_index(kept, self.shape), axis=1) + shift
        inside = ((moved >= 0) & (moved < self.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(moved[inside].T), self.shape)
        dense[torch.from_numpy(flat)] = 1
        return dense


@dataclass(frozen=True)
class Surroundings:
    """What lesions need to know of the head, all (X, Y, Z) on the working grid.

    ``index`` are flat indices of head voxels, ``ventricle_distance_mm`` distances to the
    lateral ventricles.
    """

    classes: torch.Tensor
    index: torch.Tensor
    ventricle_distance_mm: torch.Tensor
    spacing_mm: tuple[float, float, float]


def draw_lesions(
    around: Surroundings, shapes: LesionShapes | None, draw: Draw, settings: LesionSettings
) -> torch.Tensor:
    """Random lesion mask.

    Returns
    -------
    (X, Y, Z) bool tensor, all False in some heads.
    """
    classes = around.classes
    lesions = torch.zeros_like(classes, dtype=torch.bool)
    if draw.chance(settings.none_probability):
        return lesions
    hosts = classes == CLASS_OF["white_matter"]
    hosts |= classes == CLASS_OF["labelled_lesion"]
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
    return lesions


def _band(around: Surroundings, draw: Draw, settings: LesionSettings) -> torch.Tensor:
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
    uneven = draw.smooth_field(shape, spacing_mm, draw.uniform((6.0, 18.0)))
    uneven.mul_(draw.uniform((0.05, 0.4))).add_(1.0).clamp_(0.3, 2.0)
    image.addcmul_(soft * uneven, level, value=contrast)
    if draw.chance(settings.dirty_probability):
        reach = draw.uniform((2.0, 6.0))
        halo = wide_blur(lesions.float(), tuple(reach / mm for mm in spacing_mm))
        halo.clamp_(max=0.5).mul_(2.0 * white_matter * ~lesions)
        patchy = draw.smooth_field(shape, spacing_mm, 8.0).mul_(0.4).add_(1.0).clamp_(min=0.0)
        image.addcmul_(halo * patchy, level, value=contrast * draw.uniform(settings.dirty))
