"""Random changes of training slices, a whole batch at a time on its own device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bagau_bids.network.slices import Z_SCORE_LIMITS
from bagau_bids.synthesis.pool import (
    BACKGROUND,
    HIDDEN_INFARCT,
    INFARCT,
    NOT_JUDGED,
    WMH,
)

# Of two labels that fill half of a pixel each, the later one stays.
_LABELS = (NOT_JUDGED, WMH, HIDDEN_INFARCT, INFARCT)
_BLUR_PIXELS = 5  # of the strong blur


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
    blur_probability: float = 0.0  # of a strong blur, as of smoothed scans
    coarse_probability: float = 0.0  # of few grey levels, as of 8-bit scans with a wide range
    coarse_step: tuple[float, float] = (0.06, 0.3)  # between two grey levels then, in z-scores
    atlas_shift_probability: float = 0.08  # of a registration that failed
    atlas_shift_mm: float = 25.0  # how far it is off then, along each axis, plus or minus
    atlas_blank_probability: float = 0.05  # of no atlas at all
    atlas_contrast_probability: float = 0.0  # of a sharper or a flatter map
    atlas_contrast: tuple[float, float] = (0.5, 4.0)  # slope at a probability of 0.5 then


STREAM_AUGMENTATION = AugmentationSettings(
    gain=0.12,
    offset=0.15,
    log_gamma=0.3,
    noise=0.3,
    blur_probability=0.12,
    coarse_probability=0.1,
    atlas_shift_probability=0.12,
    atlas_blank_probability=0.12,
    atlas_contrast_probability=0.2,
)


@dataclass(frozen=True)
class TransplantSettings:
    """How lesions of synthetic slices are painted into real ones."""

    probability: float = 0.35  # of a slice
    anywhere: float = 0.3  # of those, in which the white-matter map does not matter
    host_white_matter: float = 0.4  # probability of white matter that a host has in the others
    host_limits: tuple[float, float] = (-1.2, 2.0)  # z-scores of a pixel that is painted on
    contrast: tuple[float, float] = (1.0, 4.0)  # z-scores that are added
    unevenness: float = 0.4  # largest standard deviation of the contrast within a slice


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
        Labels 0 to 4.
    crop : (2,) tuple of int
        Pixels of the result, around the centre of the slices.
    generator : torch.Generator
        Of the CPU, so that every device draws the same, or of the device of the batch, so that
        nothing is waited for.
    settings : AugmentationSettings

    Returns
    -------
    flair, atlas : (N, 1, crop) and (N, C, crop) float tensors
    target : (N, 1, crop) uint8 tensor
    """
    labels = [(target == label).to(flair.dtype) for label in _LABELS]
    stack = torch.cat((flair, atlas, *labels), dim=1)  # (N, 1 + C + labels, H, W)
    matrices = random_matrices(len(flair), generator, settings).to(flair.device)
    grid = _sampling_grid(matrices, (flair.shape[2], flair.shape[3]), crop)
    stack = functional.grid_sample(stack, grid, mode="bilinear", align_corners=False)
    flair, atlas, *shares = stack.split((1, atlas.shape[1], *(1 for _ in _LABELS)), dim=1)
    target = torch.full_like(shares[0], BACKGROUND, dtype=torch.uint8)
    for label, share in zip(_LABELS, shares, strict=True):
        target[share >= 0.5] = label
    flair = vary_intensity(flair, generator, settings)
    spoilt = spoil_atlas(atlas[:, :1], generator, settings)
    return flair, torch.cat((spoilt, atlas[:, 1:]), dim=1), target


def random_matrices(
    count: int, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Draw linear maps from a result's pixel offsets to a source's, (count, 2, 2) tensor.

    Offsets are (row, column) from the centre, in pixels; mirroring flips the rows, which run
    from left to right.
    """
    angle, shear, zoom, mirror = _uniform((4, count), generator)
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
        Clipped to the limits of :func:`bagau_bids.network.slices.z_score`.
    """
    low, high = Z_SCORE_LIMITS
    draws = 2 * _uniform((3, len(flair), 1, 1, 1), generator) - 1
    noise_sd = settings.noise * _uniform((len(flair), 1, 1, 1), generator)
    noise = _normal(tuple(flair.shape), generator) * noise_sd
    gain, offset, gamma = draws.to(flair.device)
    gamma = (gamma * settings.log_gamma).exp()
    texture = _vary_texture(flair, generator, settings)
    zero = -low / (high - low)  # where a z-score of 0 lies in the clipped range
    relative = ((texture - low) / (high - low)).clamp(0, 1)
    slope = gamma * zero ** (gamma - 1)
    curved = (relative**gamma - zero**gamma) / slope * (high - low)  # keeps 0 and its slope
    varied = curved * (1 + gain * settings.gain) + offset * settings.offset
    varied = _coarsen(varied + noise.to(flair.device), generator, settings).clamp(low, high)
    return torch.where(flair == 0, flair, varied)


def _coarsen(flair: Tensor, generator: torch.Generator, settings: AugmentationSettings) -> Tensor:
    """Give some slices few grey levels."""
    if not settings.coarse_probability:
        return flair
    low, high = settings.coarse_step
    chance, draw = _uniform((2, len(flair), 1, 1, 1), generator).to(flair.device)
    step = low + draw * (high - low)
    coarse = (flair / step).round() * step
    return torch.where(chance < settings.coarse_probability, coarse, flair)


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
    chance, row, column = _uniform((3, len(atlas)), generator).to(atlas.device)
    reach = settings.atlas_shift_mm
    moved = chance < settings.atlas_shift_probability
    rows, columns = (
        torch.where(moved, ((2 * draw - 1) * reach).round().long(), 0) for draw in (row, column)
    )
    spoilt = _shifted(_vary_contrast(atlas, generator, settings), rows, columns)
    blank = chance > 1 - settings.atlas_blank_probability
    return spoilt.masked_fill(blank[:, None, None, None], 0)


def _vary_contrast(
    atlas: Tensor, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Make the map of some slices sharper or flatter about a probability of one half."""
    if not settings.atlas_contrast_probability:
        return atlas
    low, high = settings.atlas_contrast
    chance, draw = _uniform((2, len(atlas), 1, 1, 1), generator).to(atlas.device)
    slope = low * (high / low) ** draw
    varied = ((atlas - 0.5) * slope + 0.5).clamp(0, 1) * (atlas > 0)
    return torch.where(chance < settings.atlas_contrast_probability, varied, atlas)


def _shifted(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images moved by whole pixels, each by its own, zero where nothing came from."""
    for axis, steps in ((2, rows), (3, columns)):
        size = images.shape[axis]
        source = torch.arange(size, device=images.device) - steps[:, None]  # (N, size)
        inside = (source >= 0) & (source < size)
        shape = (len(images), 1, size, 1) if axis == 2 else (len(images), 1, 1, size)
        index = source.clamp(0, size - 1).view(shape).expand_as(images)
        images = images.gather(axis, index) * inside.view(shape)
    return images


def transplant(
    flair: Tensor,
    target: Tensor,
    donor: Tensor,
    atlas: Tensor,
    generator: torch.Generator,
    settings: TransplantSettings,
) -> tuple[Tensor, Tensor]:
    """Paint lesions and infarcts of synthetic slices into real ones, where none is.

    Real scans show how brains and scanners look, synthetic ones lesions of every size and place;
    what is painted keeps the noise and texture of the slice that it is painted into.

    Parameters
    ----------
    flair : (N, 1, H, W) float tensor
        Z-scored.
    target : (N, 1, H, W) uint8 tensor
        Labels 0 to 4.
    donor : (N, 1, H, W) uint8 tensor
        Labels of as many synthetic slices.
    atlas : (N, 1, H, W) float tensor
        White-matter probability.
    generator : torch.Generator
    settings : TransplantSettings

    Returns
    -------
    flair, target : tensors
        As those given; slices that nothing is painted into are unchanged.
    """
    count, device = len(flair), flair.device
    chance, anywhere, contrast, unevenness = _uniform((4, count, 1, 1, 1), generator).to(device)
    free = functional.max_pool2d((target > 0).float(), 9, 1, 4) == 0
    low, high = settings.host_limits
    host = free & (flair > low) & (flair < high) & (flair != 0)
    host &= (atlas > settings.host_white_matter) | (anywhere < settings.anywhere)
    painted = (chance < settings.probability) & host
    lesion = painted & (donor == WMH)
    infarct = painted & ((donor == INFARCT) | (donor == HIDDEN_INFARCT))
    mask = (lesion | infarct).float()
    blurred = functional.avg_pool2d(functional.avg_pool2d(mask, 3, 1, 1), 3, 1, 1)
    knots = _normal((count, 1, 12, 12), generator).to(device)
    field = functional.interpolate(knots, flair.shape[-2:], mode="bicubic", align_corners=True)
    uneven = (1 + settings.unevenness * unevenness * field).clamp(0.4, 1.8)
    low, high = settings.contrast
    added = (blurred + mask) / 2 * uneven * (low + contrast * (high - low))
    changed = torch.where(flair == 0, flair, (flair + added).clamp(*Z_SCORE_LIMITS))
    label = torch.where(lesion, WMH, donor)
    return changed, torch.where(lesion | infarct, label, target).to(torch.uint8)


def _vary_texture(
    flair: Tensor, generator: torch.Generator, settings: AugmentationSettings
) -> Tensor:
    """Blur or sharpen each slice, and add a smooth field, as of a coil, to it."""
    low, high = settings.sharpness
    draws = _uniform((2, len(flair), 1, 1, 1), generator).to(flair.device)
    knots = _normal((len(flair), 1, 4, 4), generator).to(flair.device)
    mean = functional.avg_pool2d(flair, 3, stride=1, padding=1, count_include_pad=False)
    field = functional.interpolate(knots, flair.shape[-2:], mode="bicubic", align_corners=True)
    blurred = flair + (low + draws[0] * (high - low)) * (mean - flair)
    if settings.blur_probability:
        chance, share = _uniform((2, len(flair), 1, 1, 1), generator).to(flair.device)
        mean = functional.avg_pool2d(
            flair, _BLUR_PIXELS, 1, _BLUR_PIXELS // 2, count_include_pad=False
        )
        strong = flair + share * (mean - flair)
        blurred = torch.where(chance < settings.blur_probability, strong, blurred)
    return blurred + field * draws[1] * settings.shading


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw numbers in [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def _sampling_grid(matrices: Tensor, size: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Positions to sample, in grid_sample's (column, row) order and units, (N, crop, 2)."""
    rows, columns = (
        torch.arange(n, device=matrices.device, dtype=matrices.dtype) - (n - 1) / 2 for n in crop
    )
    offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (crop, 2)
    source = torch.einsum("nij,hwj->nhwi", matrices, offsets)
    half = torch.tensor(size, device=matrices.device, dtype=matrices.dtype) / 2
    return (source / half).flip(-1)
