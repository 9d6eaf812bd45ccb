"""What the scanner does: field of view, slices, bias field, noise, artefacts."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from bagau_bids.synthesis.fields import Draw, Range, blur


@dataclass(frozen=True)
class AcquisitionSettings:
    """Ranges of the acquisition; lengths in mm."""

    in_plane_mm: Range = (0.4, 1.2)
    interpolated_below_mm: float = 0.6  # finer pixels are interpolated from twice their size
    slice_spacing_mm: Range = (1.0, 8.5)
    isotropic_probability: float = 0.2
    isotropic_mm: Range = (0.8, 1.3)
    sharp_probability: float = 0.35  # of the isotropic: hardly blurred
    sharp_blur_mm: Range = (0.0, 0.25)
    gap_fraction: Range = (0.0, 0.3)
    slice_axis_weights: tuple[float, float, float] = (0.0, 0.0, 1.0)
    working_mm: float = 1.0
    blur_mm: Range = (0.3, 0.9)
    bias_amplitude: Range = (0.0, 0.35)
    noise: Range = (0.0, 0.05)
    gamma_log_sd: float = 0.15
    ringing_probability: float = 0.08
    motion_probability: float = 0.08
    slice_gain_probability: float = 0.1
    slice_gain_sd: Range = (0.02, 0.15)
    stripped_probability: float = 0.1
    smoothed_probability: float = 0.12
    smoothed_mm: Range = (0.5, 1.5)
    histogram_probability: float = 0.12
    clipped_probability: float = 0.08
    clipped: Range = (0.7, 1.0)  # of the brightest but few voxels
    jpeg_probability: float = 0.1
    jpeg_quality: Range = (25.0, 90.0)
    quantised_probability: float = 0.2  # to 8 bit


@dataclass(frozen=True)
class Grid:
    """The grid of a scan and the finer one that it is averaged from.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z) of the scan.
    spacing_mm : tuple of float
        Voxel size of the scan.
    factors : tuple of int
        How many working voxels make one scan voxel along each axis.
    used : tuple of int
        How many of these are averaged: fewer than the factor where slices have gaps.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    factors: tuple[int, int, int]
    used: tuple[int, int, int]

    @property
    def working_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the working grid."""
        x, y, z = (size * factor for size, factor in zip(self.shape, self.factors, strict=True))
        return x, y, z

    @property
    def working_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of the working grid."""
        x, y, z = (mm / factor for mm, factor in zip(self.spacing_mm, self.factors, strict=True))
        return x, y, z

    def working_to_scan(self) -> np.ndarray:
        """(4, 4) array from working voxel indices to scan voxel indices."""
        matrix = np.diag([*(1.0 / np.array(self.factors)), 1.0])
        # Scan voxel 0 is the mean of working voxels 0 .. used - 1.
        matrix[:3, 3] = -(np.array(self.used) - 1) / 2 / np.array(self.factors)
        return matrix


def draw_grid(draw: Draw, settings: AcquisitionSettings, extent_mm: np.ndarray) -> Grid:
    """Random voxel size and slices for a field of view.

    Parameters
    ----------
    draw : Draw
        Source of random numbers.
    settings : AcquisitionSettings
        Ranges.
    extent_mm : (3,) array
        Size of the field of view.
    """
    slice_axis = draw.choice(settings.slice_axis_weights)
    if draw.chance(settings.isotropic_probability):
        spacing = [draw.uniform(settings.isotropic_mm)] * 3
    else:
        spacing = [draw.uniform(settings.in_plane_mm)] * 3
        low, high = settings.slice_spacing_mm
        spacing[slice_axis] = draw.uniform((max(low, spacing[0]), high))
    factors = [max(1, round(mm / settings.working_mm)) for mm in spacing]
    used = list(factors)
    covered = 1.0 - draw.uniform(settings.gap_fraction)
    used[slice_axis] = max(1, round(covered * factors[slice_axis]))
    shape = [max(5, math.ceil(size / mm)) for size, mm in zip(extent_mm, spacing, strict=True)]
    return Grid(
        (shape[0], shape[1], shape[2]),
        (spacing[0], spacing[1], spacing[2]),
        (factors[0], factors[1], factors[2]),
        (used[0], used[1], used[2]),
    )


def average_slabs(fine: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Average the working grid to the scan's grid: partial volume and slice gaps.

    Parameters
    ----------
    fine : (X, Y, Z) tensor
        On ``grid.working_shape``.
    grid : Grid
        Says how many voxels make one.

    Returns
    -------
    (X, Y, Z) float32 tensor on ``grid.shape``
    """
    for axis in (2, 1, 0):
        factor, used = grid.factors[axis], grid.used[axis]
        if factor == 1:
            continue
        size = fine.shape[axis] // factor
        blocks = fine.unflatten(axis, (size, factor)).narrow(axis + 1, 0, used)
        fine = blocks.float().mean(dim=axis + 1) if used > 1 else blocks.squeeze(axis + 1)
    return fine.float()


def point_spread(
    fine: torch.Tensor, draw: Draw, grid: Grid, settings: AcquisitionSettings
) -> torch.Tensor:
    """Blur of the receiver, on the working grid."""
    sigma = draw.uniform(settings.blur_mm)
    cubic = max(grid.spacing_mm) == min(grid.spacing_mm)
    if cubic and draw.chance(settings.sharp_probability):
        sigma = draw.uniform(settings.sharp_blur_mm)
    return blur(fine, tuple(sigma / mm for mm in grid.working_spacing_mm))


def degrade(
    image: torch.Tensor, draw: Draw, grid: Grid, settings: AcquisitionSettings
) -> torch.Tensor:
    """Bias field, motion, ringing, Rician noise and gamma, on the scan's grid.

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        Clean image, about [0, 2].

    Returns
    -------
    (X, Y, Z) float32 tensor, not negative.
    """
    field = draw.smooth_field(tuple(image.shape), grid.spacing_mm, draw.uniform((50.0, 120.0)))
    image = image * torch.exp(field.mul_(draw.uniform(settings.bias_amplitude)))
    if draw.chance(settings.slice_gain_probability):
        gains = 1.0 + draw.normals(image.shape[2]) * draw.uniform(settings.slice_gain_sd)
        image = image * gains.clamp(min=0.4).to(image.device)
    if draw.chance(settings.motion_probability):
        image = _ghost(image, draw, axis=draw.integer(0, 2))
    if draw.chance(settings.ringing_probability):
        image = _truncate_spectrum(image, draw.uniform((0.55, 0.85)))
    noise = draw.uniform(settings.noise)
    real = image + draw.noise(tuple(image.shape)) * noise
    image = torch.hypot(real, draw.noise(tuple(image.shape)) * noise)
    top = torch.quantile(image.flatten()[:: max(1, image.numel() // 100_000)], 0.995)
    gamma = math.exp(draw.normal(settings.gamma_log_sd))
    return (image / top.clamp(min=1e-6)).pow(gamma)


def _ghost(image: torch.Tensor, draw: Draw, axis: int) -> torch.Tensor:
    """Motion: faint shifted copies along the phase axis."""
    strength = draw.uniform((0.03, 0.15))
    shift = draw.integer(max(2, image.shape[axis] // 12), max(3, image.shape[axis] // 3))
    copies = torch.roll(image, shift, axis) + torch.roll(image, -shift, axis)
    return (1.0 - strength) * image + 0.5 * strength * copies


def _truncate_spectrum(image: torch.Tensor, kept: float) -> torch.Tensor:
    """Gibbs ringing: drop the highest in-plane frequencies of both axes."""
    spectrum = torch.fft.rfft2(image, dim=(0, 1))
    for axis, limit in ((0, kept * 0.5), (1, kept * 0.5)):
        size = image.shape[axis]
        frequency = torch.fft.fftfreq(size) if axis == 0 else torch.fft.rfftfreq(size)
        keep = (frequency.abs() <= limit).to(image.device)
        spectrum = spectrum * keep.view([-1 if a == axis else 1 for a in range(3)])
    return torch.fft.irfft2(spectrum, s=tuple(image.shape[:2]), dim=(0, 1)).clamp(min=0)
