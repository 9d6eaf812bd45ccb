"""What the numbers of a whole-head label map mean, and a head made ready for synthesis.

Numbers below 100 are FreeSurfer's; those from 500 on are the tissues outside the brain of the
label maps distributed with SynthSeg (https://github.com/BBillot/SynthSeg, Apache-2.0).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bagau_bids.errors import InputImageError
from bagau_bids.spaces import voxel_sizes

# One tissue class a row: name, label numbers, whether inside the brain mask.
_CLASS_TABLE: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("air", (0,), False),
    ("white_matter", (2, 41), True),
    ("labelled_lesion", (25, 57, 77), True),
    ("cortex", (3, 42), True),
    ("csf", (24,), True),
    ("ventricle", (4, 5, 43, 44, 72), True),
    ("midline_ventricle", (14, 15), True),
    ("septum", (), True),
    ("choroid_plexus", (31, 63, 136, 137, 163, 164), True),
    ("cerebellar_white_matter", (7, 46), True),
    ("cerebellar_cortex", (8, 47), True),
    ("thalamus", (10, 49), True),
    ("caudate", (11, 50), True),
    ("putamen", (12, 51), True),
    ("pallidum", (13, 52), True),
    ("accumbens", (26, 58), True),
    ("hippocampus", (17, 53), True),
    ("amygdala", (18, 54), True),
    ("brain_stem", (16,), True),
    ("ventral_diencephalon", (28, 60), True),
    ("vessel", (30, 62), True),
    ("chiasm", (85,), True),
    ("spinal_csf", (), False),
    ("artery", (502,), False),
    ("eye", (506,), False),
    ("soft_tissue", (507,), False),
    ("eye_muscle", (508,), False),
    ("mucosa", (509,), False),
    ("skin", (511,), False),
    ("spinal_cord", (512,), False),
    ("vein", (514,), False),
    ("skull", (515,), False),
    ("marrow", (516,), False),
    ("optic_nerve", (530,), False),
)
CLASS_NAMES = tuple(name for name, _, _ in _CLASS_TABLE)
CLASS_OF = {name: index for index, name in enumerate(CLASS_NAMES)}
CLASS_IN_BRAIN = tuple(inside for _, _, inside in _CLASS_TABLE)
_OTHER_BRAIN_LABELS_BELOW = 500  # unnamed numbers below this are brain, above soft tissue

WHITE_MATTER_CLASSES = ("white_matter", "labelled_lesion", "cerebellar_white_matter")
_DISTANCE_STEP_MM = 0.1
_CLOSING_MM = 6.0
_CALLOSUM_MM, _CALLOSUM_REACH_MM = 4.0, 5.0
# What may lie between parts of the brain: sinuses, arteries, dura.
_BETWEEN = tuple(CLASS_OF[name] for name in ("vein", "artery", "soft_tissue", "air"))


@dataclass(frozen=True)
class Head:
    """A whole-head label map with its grid.

    Parameters
    ----------
    labels : (X, Y, Z) int array
        Label numbers as in the module's table, axes in RAS+ order.
    affine : (4, 4) array
        Voxel index to world, mm, RAS+.
    wm_atlas : (X, Y, Z) array or None
        White-matter probability of the template, already registered to this head, in [0, 1],
        or the same as uint8 in [0, 255].
    """

    labels: np.ndarray
    affine: np.ndarray
    wm_atlas: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        if self.labels.ndim != 3:
            raise InputImageError(
                f"label map: found {self.labels.ndim} dimensions, expected 3; "
                "give one whole-head label map"
            )
        if self.wm_atlas is not None and self.wm_atlas.shape != self.labels.shape:
            raise InputImageError(
                f"white-matter atlas: found shape {self.wm_atlas.shape}, expected that of the "
                f"label map {self.labels.shape}; resample it to the label map's grid"
            )

    @cached_property
    def classes(self) -> torch.Tensor:
        """(X, Y, Z) uint8 tensor: the tissue class of each voxel, index into CLASS_NAMES."""
        labels = np.asarray(self.labels, np.int64)
        table = np.full(max(int(labels.max()) + 1, 600), CLASS_OF["soft_tissue"], np.uint8)
        table[:_OTHER_BRAIN_LABELS_BELOW] = CLASS_OF["hippocampus"]
        for index, (_, numbers, _) in enumerate(_CLASS_TABLE):
            table[list(numbers)] = index
        classes = table[labels]
        self._mark_septum(classes)
        self._mark_spinal_csf(classes)
        self._drop_stray_brain(classes)
        return torch.from_numpy(classes)

    @cached_property
    def ventricle_distance(self) -> torch.Tensor:
        """(X, Y, Z) uint8 tensor: tenths of mm to the lateral ventricles, at most 255.

        In the corpus callosum 4 mm more, since rims of WMH about the ventricles spare it.
        """
        inside = np.isin(self.classes.numpy(), (CLASS_OF["ventricle"], CLASS_OF["choroid_plexus"]))
        distance = np.full(inside.shape, 255, np.uint8)
        if inside.any():
            box = _padded_box(inside, 26)
            mm = ndimage.distance_transform_edt(~inside[box], sampling=self.spacing_mm)
            mm[self._callosum()[box]] += _CALLOSUM_MM
            distance[box] = np.minimum(mm / _DISTANCE_STEP_MM, 255)
        return torch.from_numpy(distance)

    @cached_property
    def brain(self) -> torch.Tensor:
        """(X, Y, Z) bool tensor: the inside of the skull.

        Brain and CSF, closed over the sinuses and folds of dura between them.
        """
        classes = self.classes.numpy()
        inside = np.asarray(CLASS_IN_BRAIN)[classes]
        box = _padded_box(inside, 8)
        core = inside[box]
        outward = ndimage.distance_transform_edt(~core, sampling=self.spacing_mm)
        grown = outward <= _CLOSING_MM
        inward = ndimage.distance_transform_edt(grown, sampling=self.spacing_mm)
        closed = core | ((inward > _CLOSING_MM) & np.isin(classes[box], _BETWEEN))
        inside[box] = ndimage.binary_fill_holes(closed)
        return torch.from_numpy(inside)

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) array: voxel size."""
        return voxel_sizes(self.affine)

    @cached_property
    def brain_points(self) -> np.ndarray:
        """(N, 3) array: world positions of about 4,000 brain voxels."""
        return self._sample_positions(self.brain.numpy())

    @cached_property
    def head_points(self) -> np.ndarray:
        """(N, 3) array: world positions of about 4,000 voxels of the head."""
        return self._sample_positions(self.classes.numpy() != CLASS_OF["air"])

    def _sample_positions(self, inside: np.ndarray) -> np.ndarray:
        flat = np.flatnonzero(inside)
        flat = flat[:: max(1, len(flat) // 4000)]
        voxels = np.stack(np.unravel_index(flat, inside.shape), axis=1)
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    def _callosum(self) -> np.ndarray:
        """(X, Y, Z) bool array: white matter within 5 mm of that of the other side."""
        left, right = self.labels == 2, self.labels == 41
        found = np.zeros(left.shape, bool)
        columns = [np.flatnonzero(side.any(axis=(1, 2))) for side in (left, right)]
        if all(len(some) for some in columns):
            ends = max(some[0] for some in columns), min(some[-1] for some in columns)
            reach = int(np.ceil(_CALLOSUM_REACH_MM / self.spacing_mm[0]))
            box = slice(max(0, min(ends) - reach), max(ends) + reach + 1)
            for side, other in ((left, right), (right, left)):
                mm = ndimage.distance_transform_edt(~other[box], sampling=self.spacing_mm)
                found[box] |= side[box] & (mm <= _CALLOSUM_REACH_MM)
        return found

    def _mark_septum(self, classes: np.ndarray) -> None:
        """Tissue squeezed between the two lateral ventricles is the septum pellucidum."""
        left, right = np.isin(self.labels, (4, 5)), np.isin(self.labels, (43, 44))
        if not (left.any() and right.any()):
            return
        box = _padded_box(left | right, 4)
        near = np.ones(left[box].shape, bool)
        for side in (left, right):
            distance = ndimage.distance_transform_edt(~side[box], sampling=self.spacing_mm)
            near &= distance <= 3.0
        tissue = np.isin(classes[box], (CLASS_OF["white_matter"], CLASS_OF["csf"]))
        classes[box][near & tissue] = CLASS_OF["septum"]

    def _mark_spinal_csf(self, classes: np.ndarray) -> None:
        """CSF below the brain stem and cerebellum is not part of the brain mask."""
        stem = np.isin(classes, (CLASS_OF["brain_stem"], CLASS_OF["cerebellar_cortex"]))
        if stem.any():
            bottom = int(np.argmax(stem.any(axis=(0, 1))))
            low = classes[:, :, :bottom]
            low[low == CLASS_OF["csf"]] = CLASS_OF["spinal_csf"]

    def _drop_stray_brain(self, classes: np.ndarray) -> None:
        """Brain labels away from the brain are specks of noise."""
        inside = np.asarray(CLASS_IN_BRAIN)[classes]
        numbered, count = ndimage.label(inside)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(numbered.ravel())[1:]))
            classes[inside & (numbered != largest)] = CLASS_OF["air"]


def load_head(path: Path) -> Head:
    """Read a label map, reoriented to the closest RAS+ axes.

    Parameters
    ----------
    path : Path
        NIfTI file of whole-head labels.

    Raises
    ------
    InputImageError
        If it is no readable NIfTI image or has no white-matter label.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).astype(np.int16)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputImageError(
            f"{path}: found no readable NIfTI image ({error}), expected a whole-head label map; "
            "download it again"
        ) from error
    if not np.isin(labels, (2, 41)).any():
        raise InputImageError(
            f"{path}: found no white-matter label (2 or 41), expected a whole-head label map "
            "with FreeSurfer numbers; check that this is no intensity image"
        )
    return Head(np.ascontiguousarray(labels), image.affine)


def _padded_box(mask: np.ndarray, margin: int) -> tuple[slice, slice, slice]:
    """Bounding box of a mask, widened by a number of voxels."""
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    starts = [max(0, axis.start - margin) for axis in found]
    stops = [min(size, axis.stop + margin) for axis, size in zip(found, mask.shape, strict=True)]
    return (
        slice(starts[0], stops[0]),
        slice(starts[1], stops[1]),
        slice(starts[2], stops[2]),
    )
