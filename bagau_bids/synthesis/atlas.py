"""The white-matter atlas of a synthetic scan, wrong as registrations and templates can be."""

from dataclasses import dataclass

import numpy as np
import torch

from bagau_bids.synthesis.acquisition import Grid, average_slabs
from bagau_bids.synthesis.deformation import (
    add_elastic,
    nearest_index,
    rotation_matrix,
    sample_linear,
)
from bagau_bids.synthesis.fields import Draw, Range, blur
from bagau_bids.synthesis.labels import CLASS_NAMES, Head

_LOWER_PARTS = (
    ("brain_stem",),
    ("ventral_diencephalon",),
    ("cerebellar_white_matter", "cerebellar_cortex"),
)


@dataclass(frozen=True)
class AtlasSettings:
    """Errors of the atlas channel, each of a whole scan; lengths in mm."""

    smooth_error_mm: Range = (0.0, 2.0)
    error_scale_mm: float = 25.0
    gross_probability: float = 0.1
    gross_error_mm: Range = (4.0, 14.0)  # along each axis
    gross_rotation_deg: Range = (0.0, 15.0)
    local_probability: float = 0.15
    local_error_mm: Range = (3.0, 6.0)
    blurred_probability: float = 0.1
    blurred_mm: Range = (1.5, 5.0)
    sharpened_probability: float = 0.1
    sharpened: Range = (2.0, 8.0)
    lower_probability: float = 0.15  # parts below the cerebrum are missing
    absent_probability: float = 0.1  # zero everywhere


def carry_atlas(
    draw: Draw, settings: AtlasSettings, head: Head, coordinates: list[torch.Tensor], grid: Grid
) -> torch.Tensor | None:
    """Sample the head's atlas at the centres of the scan's voxels, with errors.

    Parameters
    ----------
    draw : Draw
    settings : AtlasSettings
    head : Head
    coordinates : list of three (X, Y, Z) tensors
        Head voxel coordinates of the working grid.
    grid : Grid

    Returns
    -------
    (X, Y, Z) float32 tensor on the scan's grid, or None if the head has no atlas.
    """
    if head.wm_atlas is None:
        return None
    if draw.chance(settings.absent_probability):
        return torch.zeros(grid.shape, device=draw.device)
    centres = [average_slabs(coordinate, grid) for coordinate in coordinates]
    _displace(centres, draw, settings, head, grid)
    stored = torch.as_tensor(head.wm_atlas, device=draw.device)
    scale = 1 / 255 if stored.dtype == torch.uint8 else 1.0
    atlas = sample_linear(stored.float(), centres) * scale
    if draw.chance(settings.blurred_probability):
        width = draw.uniform(settings.blurred_mm)
        atlas = blur(atlas, tuple(width / mm for mm in grid.spacing_mm))
    if draw.chance(settings.sharpened_probability):
        atlas = ((atlas - 0.5) * draw.uniform(settings.sharpened) + 0.5).clamp_(0.0, 1.0)
    if draw.chance(settings.lower_probability):
        atlas = atlas * _without_lower_parts(draw, head, centres, grid)
    return atlas


def _displace(
    centres: list[torch.Tensor], draw: Draw, settings: AtlasSettings, head: Head, grid: Grid
) -> None:
    """Move where the atlas is sampled, smoothly, locally and grossly, in place."""
    errors = [(draw.uniform(settings.smooth_error_mm), settings.error_scale_mm)]
    if draw.chance(settings.local_probability):
        errors.append((draw.uniform(settings.local_error_mm), draw.uniform((25.0, 45.0))))
    for error, scale in errors:
        amplitude = tuple(error / 2 / head.spacing_mm)
        add_elastic(centres, draw, grid.spacing_mm, amplitude, scale)
    if draw.chance(settings.gross_probability):
        signs = [1.0 if draw.chance(0.5) else -1.0 for _ in range(3)]
        _turn(centres, draw, draw.uniform(settings.gross_rotation_deg), head)
        for axis, mm in enumerate(head.spacing_mm):
            centres[axis].add_(signs[axis] * draw.uniform(settings.gross_error_mm) / float(mm))


def _turn(centres: list[torch.Tensor], draw: Draw, degrees: float, head: Head) -> None:
    """Turn head voxel coordinates about the brain's centre, in place."""
    about = np.array([draw.normal() for _ in range(3)])
    ax, ay, az = about / np.linalg.norm(about) * degrees
    to_world = head.affine[:3, :3]
    matrix = np.linalg.inv(to_world) @ rotation_matrix((ax, ay, az)) @ to_world
    middle = np.linalg.inv(to_world) @ (head.brain_points.mean(axis=0) - head.affine[:3, 3])
    offset = middle - matrix @ middle
    x, y, z = (centre.clone() for centre in centres)
    for axis, (row, shift) in enumerate(zip(matrix, offset, strict=True)):
        a, b, c = (float(weight) for weight in row)
        centres[axis].copy_(a * x + b * y + c * z + float(shift))


def _without_lower_parts(
    draw: Draw, head: Head, centres: list[torch.Tensor], grid: Grid
) -> torch.Tensor:
    """(X, Y, Z) factors: 0 in some parts of brain stem, peduncles and cerebellum, softly."""
    missing = [part for part in _LOWER_PARTS if draw.chance(0.7)] or list(_LOWER_PARTS)
    names = {name for part in missing for name in part}
    index, inside = nearest_index(centres, tuple(head.labels.shape))
    table = torch.tensor([name in names for name in CLASS_NAMES], device=draw.device)
    classes = head.classes.to(draw.device).flatten()[index].int()
    lost = (table[classes] & inside).float()
    return (1.0 - 1.3 * blur(lost, tuple(1.5 / mm for mm in grid.spacing_mm))).clamp_(0.0, 1.0)
