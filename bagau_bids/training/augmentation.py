"""Random changes of training slices, a whole batch at a time on its own device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bagau_bids.network.slices import Z_SCORE_LIMITS
from bagau_bids.training.pool import BACKGROUND, NOT_JUDGED, WMH


@dataclass(frozen=True)
class AugmentationSettings:
    """How far slices are changed; the geometry is the paper's and its code's."""

    mirror: bool = True  # left and right swapped in half of the slices
    rotation_deg: float = 15.0  # uniform within plus or minus this
    shear_rad: float = 0.1  # uniform within plus or minus this
    zoom: tuple[float, float] = (0.9, 1.1)  # uniform between these, the same along both axes
    gain: float = 0.1  # FLAIR multiplied by 1 plus or minus up to this
    offset: float = 0.1  # added to the z-scored FLAIR, plus or minus up to this
    log_gamma: float = 0.2  # exponent exp(plus or minus up to this) over the clipped range
    noise: float = 0.1  # largest standard deviation of the added Gaussian noise
    sharpness: tuple[float, float] = (-0.6, 0.9)  # 1: the mean of 3 x 3 pixels; below 0: sharper
    shading: float = 0.3  # largest standard deviation of an added smooth field
    atlas_shift_probability: float = 0.08  # of a registration that failed
    atlas_shift_mm: float = 25.0  # how far it is off then, along each axis, plus or minus
    atlas_blank_probability: float = 0.05  # of no atlas at all


def augment(
    flair: Tensor,
    atlas: Tensor,
    target: Tensor,
    crop: tuple[int, int],
    generator: torch.Generator,
    settings: AugmentationSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deform, mirror, crop and vary the intensities of a batch.

    FLAIR, atlas and target of a slice are deformed alike and sampled once; only the FLAIR's
    intensities change, and where it is 0 (away from the brain) it stays so. Now and then the
    atlas is moved away or left out, so that a network does not believe it blindly.

    Parameters
    ----------
    flair : (N, 1, H, W) float tensor
    atlas : (N, C, H, W) float tensor
        The white-matter map; further channels are deformed with it and otherwise left alone.
    target : (N, 1, H, W) tensor
        Labels 0, 1, 2.
    crop : (2,) tuple of int
        Pixels of the result, around the centre of the slices.
    generator : torch.Generator
        Of the CPU, so that every device draws the same.
    settings : AugmentationSettings

    Returns
    -------
    flair, atlas : (N, 1, crop) and (N, C, crop) float tensors
    target : (N, 1, crop) uint8 tensor
    """
    labels = [(target == label).to(flair.dtype) for label in (WMH, NOT_JUDGED)]
    stack = torch.cat((flair, atlas, *labels), dim=1)  # (N, 3 + C, H, W)
    matrices = random_matrices(len(flair), generator, settings).to(flair.device)
    grid = _sampling_grid(matrices, (flair.shape[2], flair.shape[3]), crop)
    stack = functional.grid_sample(stack, grid, mode="bilinear", align_corners=False)
    flair, atlas, wmh, not_judged = stack.split((1, atlas.shape[1], 1, 1), dim=1)
    target = torch.where(wmh >= 0.5, WMH, torch.where(not_judged >= 0.5, NOT_JUDGED, BACKGROUND))
    flair = vary_intensity(flair, generator, settings)
    spoilt = spoil_atlas(atlas[:, :1], generator, settings)
    return flair, torch.cat((spoilt, atlas[:, 1:]), dim=1), target.to(torch.uint8)


def random_matrices(
    count: int, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Draw linear maps from a result's pixel offsets to a source's, (count, 2, 2) tensor.

    Offsets are (row, column) from the centre, in pixels; mirroring flips the rows, which run
    from left to right.
    """
    angle, shear, zoom, mirror = torch.rand((4, count), generator=generator)
    angle = (2 * angle - 1) * math.radians(settings.rotation_deg)
    shear = torch.tan((2 * shear - 1) * settings.shear_rad)
    scale = settings.zoom[0] + zoom * (settings.zoom[1] - settings.zoom[0])
    flip = torch.where((mirror < 0.5) & settings.mirror, -1.0, 1.0)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    row = torch.stack((cos * flip, cos * shear - sin), dim=1)
    column = torch.stack((sin * flip, sin * shear + cos), dim=1)
    return torch.stack((row, column), dim=1)


def vary_intensity(
    flair: Tensor, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Change sharpness, shading, gain, offset and gamma of each slice and add noise.

    Zeros stay zero.

    Parameters
    ----------
    flair : (N, 1, H, W) float tensor
        Z-scored.
    generator : torch.Generator
    settings : AugmentationSettings

    Returns
    -------
    flair : (N, 1, H, W) float tensor
        Clipped to the limits of :func:`bagau_bids.network.slices.normalise_flair`.
    """
    low, high = Z_SCORE_LIMITS
    draws = 2 * torch.rand((3, len(flair), 1, 1, 1), generator=generator) - 1
    noise_sd = settings.noise * torch.rand((len(flair), 1, 1, 1), generator=generator)
    noise = torch.randn(flair.shape, generator=generator) * noise_sd
    gain, offset, gamma = draws.to(flair.device)
    gamma = (gamma * settings.log_gamma).exp()
    texture = _vary_texture(flair, generator, settings)
    zero = -low / (high - low)  # where a z-score of 0 lies in the clipped range
    relative = ((texture - low) / (high - low)).clamp(0, 1)
    slope = gamma * zero ** (gamma - 1)
    curved = (relative**gamma - zero**gamma) / slope * (high - low)  # keeps 0 and its slope
    varied = curved * (1 + gain * settings.gain) + offset * settings.offset
    varied = (varied + noise.to(flair.device)).clamp(low, high)
    return torch.where(flair == 0, flair, varied)


def spoil_atlas(
    atlas: Tensor, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Shift the atlas of some slices by whole pixels, or make it zero.

    Parameters
    ----------
    atlas : (N, 1, H, W) float tensor
        On pixels of 1 mm.
    generator : torch.Generator
    settings : AugmentationSettings

    Returns
    -------
    atlas : (N, 1, H, W) float tensor
        Zero where a shift leaves nothing.
    """
    chance, row, column = torch.rand((3, len(atlas)), generator=generator)
    spoilt = atlas.clone()
    for number in torch.nonzero(chance < settings.atlas_shift_probability).flatten().tolist():
        shift = [
            round(float(2 * draw[number] - 1) * settings.atlas_shift_mm) for draw in (row, column)
        ]
        spoilt[number] = _shifted(atlas[number], *shift)
    spoilt[(chance > 1 - settings.atlas_blank_probability).to(atlas.device)] = 0
    return spoilt


def _shifted(image: Tensor, rows: int, columns: int) -> Tensor:
    """Image moved by whole pixels, zero where nothing came from."""
    moved = image.roll((rows, columns), dims=(-2, -1))
    for axis, steps in ((-2, rows), (-1, columns)):
        size = moved.shape[axis]
        emptied = min(abs(steps), size)
        moved.narrow(axis, 0 if steps > 0 else size - emptied, emptied).zero_()
    return moved


def _vary_texture(
    flair: Tensor, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Blur or sharpen each slice, and add a smooth field, as of a coil, to it."""
    low, high = settings.sharpness
    draws = torch.rand((2, len(flair), 1, 1, 1), generator=generator).to(flair.device)
    knots = torch.randn((len(flair), 1, 4, 4), generator=generator).to(flair.device)
    mean = functional.avg_pool2d(flair, 3, stride=1, padding=1, count_include_pad=False)
    field = functional.interpolate(knots, flair.shape[-2:], mode="bicubic", align_corners=True)
    blurred = flair + (low + draws[0] * (high - low)) * (mean - flair)
    return blurred + field * draws[1] * settings.shading


def _sampling_grid(matrices: Tensor, size: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Positions to sample, in grid_sample's (column, row) order and units, (N, crop, 2)."""
    rows, columns = (
        torch.arange(n, device=matrices.device, dtype=matrices.dtype) - (n - 1) / 2 for n in crop
    )
    offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (crop, 2)
    source = torch.einsum("nij,hwj->nhwi", matrices, offsets)
    half = torch.tensor(size, device=matrices.device, dtype=matrices.dtype) / 2
    return (source / half).flip(-1)
