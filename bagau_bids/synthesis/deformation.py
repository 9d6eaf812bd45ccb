"""The map from the voxels of a synthetic scan to the voxels of its label map."""

from dataclasses import dataclass

import numpy as np
import torch

from bagau_bids.synthesis.fields import Draw, Range


@dataclass(frozen=True)
class PoseSettings:
    """Ranges of the head's pose and shape; angles in degrees, lengths in mm."""

    rotation_sd_deg: tuple[float, float, float] = (8.0, 3.0, 4.0)
    scale_sd: float = 0.06
    shear_sd: float = 0.02
    translation_sd_mm: float = 10.0
    mirror_probability: float = 0.5
    elastic_amplitude_mm: Range = (0.0, 4.0)
    elastic_scale_mm: Range = (25.0, 50.0)
    tilt_sd_deg: tuple[float, float, float] = (8.0, 2.0, 3.0)
    tilt_probability: float = 0.6


def rotation_matrix(angles_deg: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) rotation about the x, then y, then z axis."""
    ax, ay, az = np.deg2rad(angles_deg)
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def draw_pose(draw: Draw, settings: PoseSettings, centre: np.ndarray) -> np.ndarray:
    """Random affine of the head in the scanner.

    Parameters
    ----------
    draw : Draw
        Source of random numbers.
    settings : PoseSettings
        Ranges.
    centre : (3,) array
        World position in the label map about which the head turns.

    Returns
    -------
    (4, 4) array
        From the world of the scan to the world of the label map, mm.
    """
    angles = tuple(draw.normal(sd) for sd in settings.rotation_sd_deg)
    linear = rotation_matrix((angles[0], angles[1], angles[2]))
    common = draw.normal(settings.scale_sd)
    scales = [np.exp(common + draw.normal(settings.scale_sd / 2)) for _ in range(3)]
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = [draw.normal(settings.shear_sd) for _ in range(3)]
    linear = linear @ shear @ np.diag(scales)
    if draw.chance(settings.mirror_probability):
        linear = linear @ np.diag([-1.0, 1.0, 1.0])
    shift = np.array([draw.normal(settings.translation_sd_mm) for _ in range(3)])
    pose = np.eye(4)
    pose[:3, :3] = linear
    pose[:3, 3] = centre - linear @ shift
    return pose


def draw_slice_directions(draw: Draw, settings: PoseSettings) -> np.ndarray:
    """(3, 3) array: directions of the scan's axes in its world, as columns."""
    if not draw.chance(settings.tilt_probability):
        return np.eye(3)
    angles = tuple(draw.normal(sd) for sd in settings.tilt_sd_deg)
    return rotation_matrix((angles[0], angles[1], angles[2]))


def head_coordinates(
    shape: tuple[int, int, int], to_head: np.ndarray, device: torch.device
) -> list[torch.Tensor]:
    """Head voxel coordinates of every voxel of a grid under an affine.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z) of the grid.
    to_head : (4, 4) array
        From voxel indices of the grid to voxel indices of the head.
    device : torch.device
        Where the coordinates are wanted.

    Returns
    -------
    list of three (X, Y, Z) float32 tensors
    """
    ramps = [torch.arange(size, dtype=torch.float32, device=device) for size in shape]
    return [
        (
            (float(row[0]) * ramps[0])[:, None, None]
            + (float(row[1]) * ramps[1])[None, :, None]
            + (float(row[2]) * ramps[2] + float(row[3]))[None, None, :]
        )
        for row in to_head[:3]
    ]


def add_elastic(
    coordinates: list[torch.Tensor],
    draw: Draw,
    spacing_mm: tuple[float, ...],
    amplitude_voxels: tuple[float, ...],
    scale_mm: float,
) -> None:
    """Add a smooth random displacement to head coordinates, in place.

    Parameters
    ----------
    coordinates : list of three (X, Y, Z) tensors
        Head voxel coordinates.
    draw : Draw
        Source of random numbers.
    spacing_mm : tuple of float
        Voxel size of the grid.
    amplitude_voxels : tuple of float
        Standard deviation along each head axis, in head voxels.
    scale_mm : float
        Distance of the spline's knots.
    """
    shape = tuple(coordinates[0].shape)
    for axis, amplitude in enumerate(amplitude_voxels):
        if amplitude > 0:
            field = draw.smooth_field(shape, spacing_mm, scale_mm)
            coordinates[axis].add_(field, alpha=amplitude)


def nearest_index(
    coordinates: list[torch.Tensor], head_shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat index of the head voxel nearest to each coordinate.

    Returns
    -------
    index : (X, Y, Z) int64 tensor
        Into the flattened head; 0 where the coordinate lies outside.
    inside : (X, Y, Z) bool tensor
        Whether the coordinate lies in the head's grid.
    """
    index = torch.zeros(coordinates[0].shape, dtype=torch.int64, device=coordinates[0].device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for size, coordinate in zip(head_shape, coordinates, strict=True):
        rounded = torch.round(coordinate).to(torch.int64)
        inside &= (rounded >= 0) & (rounded < size)
        index.mul_(size).add_(rounded)
    return index.masked_fill_(~inside, 0), inside


def sample_linear(volume: torch.Tensor, coordinates: list[torch.Tensor]) -> torch.Tensor:
    """Trilinear sample of a (X, Y, Z) float volume at voxel coordinates, 0 outside."""
    sizes = volume.shape
    axes = [
        coordinate * (2.0 / max(size - 1, 1)) - 1.0
        for size, coordinate in zip(sizes, coordinates, strict=True)
    ]
    grid = torch.stack(axes[::-1], dim=-1)  # grid_sample wants the fastest axis first
    sampled = torch.nn.functional.grid_sample(
        volume[None, None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return sampled[0, 0]
