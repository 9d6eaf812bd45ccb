"""What happens to a scan after the scanner: interpolation, smoothing, grey levels, compression."""

import math
from dataclasses import replace

import torch

from bagau_bids.synthesis.acquisition import AcquisitionSettings, Grid
from bagau_bids.synthesis.fields import Draw, blur

# The luminance table of JPEG (ITU-T T.81, table K.1) at quality 50.
_JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def interpolated(grid: Grid, settings: AcquisitionSettings) -> Grid | None:
    """Return the grid of twice the pixels that a scan this fine is measured on; None if it is not.

    Pixels below ``interpolated_below_mm`` are interpolated from twice their size, as scanners do.
    """
    fine, axes = grid.spacing_mm, (0, 1)
    if not all(fine[axis] < settings.interpolated_below_mm for axis in axes):
        return None
    shape = [math.ceil(n / 2) if axis in axes else n for axis, n in enumerate(grid.shape)]
    spacing = [mm * 2 if axis in axes else mm for axis, mm in enumerate(fine)]
    factors = [
        max(1, round(mm / settings.working_mm)) if axis in axes else grid.factors[axis]
        for axis, mm in enumerate(spacing)
    ]
    used = [factors[axis] if axis in axes else grid.used[axis] for axis in range(3)]
    return replace(
        grid,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        factors=(factors[0], factors[1], factors[2]),
        used=(used[0], used[1], used[2]),
    )


def double_pixels(volume: torch.Tensor, *, smooth: bool = False) -> torch.Tensor:
    """Interpolate a (X, Y, Z) volume to (2X, 2Y, Z), each pixel to the four that it covers.

    ``smooth`` takes cubic interpolation, cut off at 0, instead of linear.
    """
    planes = volume.permute(2, 0, 1)[:, None]
    mode = "bicubic" if smooth else "bilinear"
    finer = torch.nn.functional.interpolate(planes, scale_factor=2, mode=mode)
    finer = finer[:, 0].permute(1, 2, 0).contiguous()
    return finer.clamp_(min=0) if smooth else finer


def store(
    image: torch.Tensor, draw: Draw, grid: Grid, settings: AcquisitionSettings
) -> torch.Tensor:
    """Smooth, change the histogram, compress and quantise, each in some scans.

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        Not negative, about [0, 1].
    draw : Draw
    grid : Grid
        Of the image.
    settings : AcquisitionSettings

    Returns
    -------
    (X, Y, Z) float32 tensor, not negative.
    """
    if draw.chance(settings.smoothed_probability):
        width = draw.uniform(settings.smoothed_mm)
        image = blur(image, tuple(width / mm for mm in grid.spacing_mm))
    if draw.chance(settings.histogram_probability):
        image = _bend(image, draw)
    if draw.chance(settings.clipped_probability):
        image = image.clamp(max=float(draw.uniform(settings.clipped)))
    if draw.chance(settings.jpeg_probability):
        image = jpeg(image, draw.uniform(settings.jpeg_quality))
    if draw.chance(settings.quantised_probability):
        top = image.max().clamp(min=1e-6)
        image = torch.round(image / top * 255) / 255
    return image


def _bend(image: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Map grey levels by a random rising curve, as matching to another histogram does."""
    knots = 8
    steps = torch.exp(0.35 * draw.normals(knots))
    curve = torch.cat([torch.zeros(1), torch.cumsum(steps, 0) / steps.sum()])
    curve = curve.to(image.device)
    place = image.clamp(0.0, 1.0) * knots
    low = place.floor().clamp_(max=knots - 1).long()
    bent = curve[low] + (place - low) * (curve[low + 1] - curve[low])
    return bent + (image - 1.0).clamp(min=0.0)


def jpeg(image: torch.Tensor, quality: float) -> torch.Tensor:
    """Lose what JPEG loses in each axial slice: cosine coefficients of 8 x 8 blocks, rounded.

    Parameters
    ----------
    image : (X, Y, Z) float tensor
        About [0, 1], held as 8 bit.
    quality : float
        1 to 100, as of the IJG's library.

    Returns
    -------
    (X, Y, Z) float32 tensor, not negative.
    """
    width, height, _ = image.shape
    pad = (0, 0, 0, -height % 8, 0, -width % 8)
    padded = torch.nn.functional.pad(image[None, None], pad, mode="replicate")[0, 0]
    columns, rows = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = (padded * 255 - 128).reshape(columns, 8, rows, 8, -1)
    cosine = _cosines().to(image.device)
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    table = (torch.tensor(_JPEG_TABLE, dtype=torch.float32) * scale).clamp_(min=1.0)
    table = table.to(image.device)[None, :, None, :, None]
    found = torch.einsum("ua,vb,iajbz->iujvz", cosine, cosine, blocks)
    found = torch.round(found / table) * table
    back = torch.einsum("ua,vb,iujvz->iajbz", cosine, cosine, found)
    back = back.reshape(padded.shape)[:width, :height]
    return ((back + 128) / 255).clamp_(min=0.0)


def _cosines() -> torch.Tensor:
    """(8, 8) orthonormal cosine transform of eight samples."""
    n = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos(math.pi / 8 * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / 8)
    matrix[0] /= math.sqrt(2)
    return matrix
