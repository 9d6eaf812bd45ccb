"""One synthetic FLAIR from one whole-head label map."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION
from bagau_bids.synthesis.acquisition import (
    AcquisitionSettings,
    Grid,
    average_slabs,
    degrade,
    draw_grid,
    point_spread,
)
from bagau_bids.synthesis.atlas import AtlasSettings, carry_atlas
from bagau_bids.synthesis.deformation import (
    PoseSettings,
    add_elastic,
    draw_pose,
    draw_slice_directions,
    head_coordinates,
    nearest_index,
)
from bagau_bids.synthesis.fields import Draw, Range, blur
from bagau_bids.synthesis.infarcts import (
    InfarctSettings,
    draw_pathology,
    paint_pathology,
    place_pathology,
)
from bagau_bids.synthesis.intensities import (
    IntensitySettings,
    add_confounders,
    draw_class_means,
    paint,
)
from bagau_bids.synthesis.labels import (
    CLASS_NAMES,
    CLASS_OF,
    WHITE_MATTER_CLASSES,
    Head,
)
from bagau_bids.synthesis.lesions import (
    HeadMaps,
    LesionSettings,
    LesionShapes,
    draw_lesions,
    paint_lesions,
)
from bagau_bids.synthesis.storage import double_pixels, interpolated, store

# The first number is raised with every change of what the engine draws.
ENGINE_VERSION = f"1.{PREPROCESSING_VERSION}"


@dataclass(frozen=True)
class FieldOfViewSettings:
    """How the field of view lies about the head; lengths in mm, negative margins cut."""

    about: str = "brain"  # or "head"
    in_plane_margin_mm: Range = (6.0, 14.0)
    top_margin_mm: Range = (-2.0, 10.0)
    bottom_margin_mm: Range = (-8.0, 8.0)
    cut_probability: float = 0.15
    cut_mm: Range = (5.0, 30.0)


@dataclass(frozen=True)
class SynthesisSettings:
    """All ranges from which a synthetic scan is drawn."""

    pose: PoseSettings = PoseSettings()
    view: FieldOfViewSettings = FieldOfViewSettings()
    intensities: IntensitySettings = IntensitySettings()
    lesions: LesionSettings = LesionSettings()
    infarcts: InfarctSettings = InfarctSettings()
    acquisition: AcquisitionSettings = AcquisitionSettings()
    atlas: AtlasSettings = AtlasSettings()
    label_fraction: float = 0.4  # of a voxel that must be lesion to be labelled


@dataclass(frozen=True)
class SyntheticScan:
    """A synthetic FLAIR and what is true about it.

    Parameters
    ----------
    flair : (X, Y, Z) float32 array
        Not negative; axes are the closest to RAS+.
    affine : (4, 4) array
        Voxel index to world, mm, RAS+; oblique for tilted slices.
    wmh_mask : (X, Y, Z) bool array
        Labelled lesions.
    infarct_mask : (X, Y, Z) bool array
        Infarcts; none of them is WMH.
    hidden_mask : (X, Y, Z) bool array
        The infarcts among them that nobody could tell from WMH: small and deep in white matter.
    not_judged_mask : (X, Y, Z) bool array
        Wide rims of lacunes and cavities, which are neither WMH nor not.
    brain_mask : (X, Y, Z) bool array
        Everything inside the skull: brain, ventricles, CSF.
    wm_true : (X, Y, Z) float32 array
        Fraction of each voxel that is white matter, lesions included.
    wm_atlas : (X, Y, Z) float32 array or None
        The head's atlas carried along, with registration errors; None if the head has none.
    """

    flair: np.ndarray
    affine: np.ndarray
    wmh_mask: np.ndarray
    infarct_mask: np.ndarray
    hidden_mask: np.ndarray
    not_judged_mask: np.ndarray
    brain_mask: np.ndarray
    wm_true: np.ndarray
    wm_atlas: np.ndarray | None


def brain_mask_settings() -> SynthesisSettings:
    """Return settings for training the brain-mask network: whole heads, low resolution."""
    base = SynthesisSettings()
    return replace(
        base,
        pose=replace(
            base.pose, rotation_sd_deg=(12.0, 5.0, 6.0), scale_sd=0.08, tilt_sd_deg=(6.0, 2.0, 3.0)
        ),
        view=FieldOfViewSettings(
            about="head",
            in_plane_margin_mm=(-4.0, 25.0),
            top_margin_mm=(-25.0, 20.0),
            bottom_margin_mm=(-15.0, 45.0),
            cut_probability=0.2,
            cut_mm=(5.0, 45.0),
        ),
        intensities=replace(base.intensities, random_contrast_probability=0.15),
        acquisition=AcquisitionSettings(
            in_plane_mm=(2.6, 3.4),
            slice_spacing_mm=(2.6, 8.5),
            isotropic_mm=(2.6, 3.4),
            slice_axis_weights=(0.08, 0.07, 0.85),
            working_mm=1.6,
            bias_amplitude=(0.0, 0.5),
            noise=(0.0, 0.06),
            gamma_log_sd=0.25,
        ),
    )


def synthesise(
    head: Head,
    seed: int,
    settings: SynthesisSettings | None = None,
    lesions: LesionShapes | None = None,
    device: str | torch.device = "cpu",
    infarcts: LesionShapes | None = None,
) -> SyntheticScan:
    """Draw one synthetic FLAIR.

    Parameters
    ----------
    head : Head
        Label map.
    seed : int
        The same seed, head and settings give the same scan on the same device.
    settings : SynthesisSettings, optional
        Ranges; the default makes scans for training the segmentation.
    lesions : LesionShapes, optional
        Real lesion masks in the head's space; without it only drawn shapes are used.
    device : str or torch.device
        Where to compute.
    infarcts : LesionShapes, optional
        Infarcts in the head's space; without them no scan has one.

    Returns
    -------
    SyntheticScan
    """
    settings = settings or SynthesisSettings()
    draw = Draw(seed, device)
    # A few dozen scalars decide the geometry; everything after works on tensors.
    pose = draw_pose(draw, settings.pose, head.brain_points.mean(axis=0))
    grid, affine = _draw_view(draw, settings, head, pose)
    measured = interpolated(grid, settings.acquisition)
    if measured is not None:
        grid = measured
        # The first pixel of twice the size has its centre between the first two.
        affine = affine @ np.diag([2.0, 2.0, 1.0, 1.0])
        affine[:3, 3] += (affine[:3, 0] + affine[:3, 1]) / 4
    coordinates = _deformed_coordinates(draw, settings, head, pose, grid, affine)
    index, inside = nearest_index(coordinates, tuple(head.labels.shape))
    classes = head.classes.to(draw.device).flatten()[index].masked_fill_(~inside, 0).int()
    distance = head.ventricle_distance.to(draw.device).flatten()[index].float().mul_(0.1)
    spacing = grid.working_spacing_mm
    around = HeadMaps(classes, index, distance, spacing)
    lesion_mask = draw_lesions(around, lesions, draw, settings.lesions)
    codes = draw_pathology(head, infarcts, draw, settings.infarcts)
    other = None
    if codes is not None:
        other = place_pathology(codes, classes, index, draw, settings.infarcts)
        lesion_mask &= ~other.anything

    means = draw_class_means(draw, settings.intensities)
    fine = paint(classes, means, draw, spacing, settings.intensities)
    add_confounders(fine, classes, distance, draw, spacing, settings.intensities)
    white = _members(classes, WHITE_MATTER_CLASSES)
    paint_lesions(fine, lesion_mask, white, draw, spacing, settings.lesions)
    if other is not None:
        fluid = means[CLASS_OF["csf"]].to(draw.device)
        paint_pathology(fine, other, classes, fluid, draw, spacing, settings.infarcts)
    image = average_slabs(point_spread(fine, draw, grid, settings.acquisition), grid)
    image = degrade(image, draw, grid, settings.acquisition)

    in_brain = head.brain.to(draw.device).flatten()[index] & inside
    parts = {"brain": in_brain, "wmh": lesion_mask, "white": white | lesion_mask}
    if other is not None:
        parts |= {
            "infarct": other.infarct,
            "hidden": other.hidden,
            "not_judged": other.not_judged,
        }
    shares = {name: average_slabs(mask.float(), grid) for name, mask in parts.items()}
    atlas = carry_atlas(draw, settings.atlas, head, coordinates, grid)
    if measured is not None:
        image = double_pixels(image, smooth=True)
        shares = {name: double_pixels(share) for name, share in shares.items()}
        atlas = None if atlas is None else double_pixels(atlas)
        grid, affine = _finer(grid, affine)
    brain = shares["brain"] > 0.5
    if draw.chance(settings.acquisition.stripped_probability):
        image = image * _stripping_mask(brain, draw, grid)
    image = store(image, draw, grid, settings.acquisition)
    none = torch.zeros_like(brain)
    enough = {name: share > settings.label_fraction for name, share in shares.items()}
    infarct = enough.get("infarct", none)
    wmh = enough["wmh"] & ~infarct
    return SyntheticScan(
        flair=image.cpu().numpy(),
        affine=affine,
        wmh_mask=wmh.cpu().numpy(),
        infarct_mask=infarct.cpu().numpy(),
        hidden_mask=(infarct & enough.get("hidden", none)).cpu().numpy(),
        not_judged_mask=(enough.get("not_judged", none) & ~wmh & ~infarct).cpu().numpy(),
        brain_mask=brain.cpu().numpy(),
        wm_true=shares["white"].cpu().numpy(),
        wm_atlas=None if atlas is None else atlas.cpu().numpy(),
    )


def _finer(grid: Grid, affine: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Grid and affine of pixels of half the size, four where one was."""
    x, y, z = grid.shape
    width, height, slice_mm = grid.spacing_mm
    finer = affine @ np.diag([0.5, 0.5, 1.0, 1.0])
    finer[:3, 3] -= (finer[:3, 0] + finer[:3, 1]) / 2
    spacing = (width / 2, height / 2, slice_mm)
    return replace(grid, shape=(2 * x, 2 * y, z), spacing_mm=spacing), finer


def _members(classes: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """Bool tensor of the voxels of some classes."""
    table = torch.tensor([name in names for name in CLASS_NAMES], device=classes.device)
    return table[classes]


def _draw_view(
    draw: Draw, settings: SynthesisSettings, head: Head, pose: np.ndarray
) -> tuple[Grid, np.ndarray]:
    """Field of view and grid, with the affine from scan voxels to the scan's world."""
    view = settings.view
    directions = draw_slice_directions(draw, settings.pose)
    from_head = np.linalg.inv(pose)
    # Coordinates along the scan's own axes: the columns of ``directions``.
    brain, skin = (
        (points @ from_head[:3, :3].T + from_head[:3, 3]) @ directions
        for points in (head.brain_points, head.head_points)
    )
    about = brain if view.about == "brain" else skin
    low, high = about.min(axis=0), about.max(axis=0)
    for axis in (0, 1):
        low[axis] -= draw.uniform(view.in_plane_margin_mm)
        high[axis] += draw.uniform(view.in_plane_margin_mm)
    low[2] = brain[:, 2].min() - draw.uniform(view.bottom_margin_mm)
    high[2] = about[:, 2].max() + draw.uniform(view.top_margin_mm)
    if draw.chance(view.cut_probability):
        side, axis = draw.integer(0, 2), draw.choice((0.2, 0.2, 0.6))
        cut = draw.uniform(view.cut_mm)
        low[axis] += cut * side
        high[axis] -= cut * (1 - side)
    grid = draw_grid(draw, settings.acquisition, high - low)
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(grid.spacing_mm)
    affine[:3, 3] = directions @ (low + np.array(grid.spacing_mm) / 2)
    return grid, affine


def _deformed_coordinates(
    draw: Draw,
    settings: SynthesisSettings,
    head: Head,
    pose: np.ndarray,
    grid: Grid,
    affine: np.ndarray,
) -> list[torch.Tensor]:
    """Head voxel coordinates of every working voxel."""
    to_head = np.linalg.inv(head.affine) @ pose @ affine @ grid.working_to_scan()
    coordinates = head_coordinates(grid.working_shape, to_head, draw.device)
    amplitude = draw.uniform(settings.pose.elastic_amplitude_mm) / 2
    add_elastic(
        coordinates,
        draw,
        grid.working_spacing_mm,
        tuple(amplitude / head.spacing_mm),
        draw.uniform(settings.pose.elastic_scale_mm),
    )
    return coordinates


def _stripping_mask(brain: torch.Tensor, draw: Draw, grid: Grid) -> torch.Tensor:
    """Brain mask as another tool would have made it: a little wider or narrower."""
    width = draw.uniform((1.0, 4.0))
    soft = blur(brain.float(), tuple(width / mm for mm in grid.spacing_mm))
    return (soft > draw.uniform((0.2, 0.7))).float()
