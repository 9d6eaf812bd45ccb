"""Label maps made ready for training the segmentation: atlas and lesion shapes in their space.

For each label map the template is registered once to a clean FLAIR-like image of it, exactly as
it would be to a FLAIR; the white-matter map and real lesion masks are brought along. The result
is stored, since it is needed for every scan drawn from the head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.errors import UsageError
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing.registration import register_template
from bagau_bids.preprocessing.template import Template
from bagau_bids.preprocessing.transforms import forward_field, sample
from bagau_bids.training.pool import Shard, training_shard
from bagau_bids.training.synthesis.engine import (
    SynthesisSettings,
    SyntheticScan,
    synthesise,
)
from bagau_bids.training.synthesis.labels import CLASS_IN_BRAIN, CLASS_NAMES, Head, load_head
from bagau_bids.training.synthesis.lesions import LesionShapes

# Tissue contrast of an ordinary FLAIR, for the registration only; brain tissue not named: 1.2.
_PLAIN_CONTRAST = {
    "white_matter": 1.0,
    "labelled_lesion": 1.1,
    "cerebellar_white_matter": 1.0,
    "brain_stem": 1.0,
    "csf": 0.2,
    "ventricle": 0.15,
    "midline_ventricle": 0.15,
    "spinal_csf": 0.2,
}
_MAX_SLICES = 32  # of one scan that go into a pool
_AIR_MARGIN = 2


@dataclass(frozen=True)
class TrainingHead:
    """A label map with the atlas on it, and lesion masks in its space (or None)."""

    head: Head
    lesions: LesionShapes | None


def prepare_head(
    label_map: Path, template: Template, lesion_masks: Sequence[Path], *, threads: int = 1
) -> TrainingHead:
    """Register the template to a label map and bring its maps along.

    Parameters
    ----------
    label_map : Path
        Whole-head label map.
    template : Template
        Files of the template.
    lesion_masks : sequence of Path
        Binary masks in the template's space; may be empty.
    threads : int
        For the registration.

    Returns
    -------
    TrainingHead
        Cropped to the head.
    """
    head = _crop_to_head(load_head(label_map))
    brain = head.brain.numpy()
    contrast = np.array(
        [
            _PLAIN_CONTRAST.get(name, 1.2 if inside else 0.0)
            for name, inside in zip(CLASS_NAMES, CLASS_IN_BRAIN, strict=True)
        ],
        np.float32,
    )
    plain = ndimage.gaussian_filter(contrast[head.classes.numpy()], 0.7)
    registration = register_template(plain, head.affine, brain, template, threads=threads)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    box_affine = head.affine.copy()
    box_affine[:3, 3] += head.affine[:3, :3] @ [axis.start for axis in box]
    points = forward_field(registration.transform, brain[box].shape, box_affine)
    masks = []
    for path in lesion_masks:
        image = nib.nifti1.load(path)
        warped = sample(np.asarray(image.dataobj), image.affine, points, 0)
        mask = np.zeros(brain.shape, bool)
        mask[box] = warped > 0.5
        masks.append(mask)
    atlas = np.rint(registration.wm_probseg * 255).astype(np.uint8)
    return TrainingHead(
        replace(head, wm_atlas=atlas), LesionShapes.from_masks(masks) if masks else None
    )


def save_training_head(path: Path, prepared: TrainingHead) -> None:
    """Store a prepared head as one compressed ``.npz``, by an atomic rename."""
    head, lesions = prepared.head, prepared.lesions
    if head.wm_atlas is None:
        raise ValueError("the head has no atlas; prepare it with prepare_head first")
    arrays: dict[str, Any] = {
        "labels": head.labels,
        "affine": head.affine,
        "wm_atlas": head.wm_atlas,
    }
    if lesions is not None:
        arrays["lesion_voxels"] = np.concatenate(lesions.voxels)
        arrays["lesion_components"] = np.concatenate(lesions.components)
        arrays["lesion_counts"] = np.array([len(voxels) for voxels in lesions.voxels])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    temporary.replace(path)


def load_training_head(path: Path) -> TrainingHead:
    """Read what :func:`save_training_head` wrote."""
    with np.load(path) as stored:
        head = Head(stored["labels"], stored["affine"], stored["wm_atlas"])
        lesions = None
        if "lesion_counts" in stored:
            ends = np.cumsum(stored["lesion_counts"])[:-1]
            lesions = LesionShapes(
                head.labels.shape,
                tuple(np.split(stored["lesion_voxels"], ends)),
                tuple(np.split(stored["lesion_components"], ends)),
            )
    return TrainingHead(head, lesions)


def load_training_heads(folder: Path) -> list[TrainingHead]:
    """Read every prepared head of a folder, in the order of their names.

    Raises
    ------
    UsageError
        If there is none.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise UsageError(
            f"{folder}: found no prepared head (*.npz), expected at least one; prepare them from "
            "label maps first"
        )
    return [load_training_head(path) for path in paths]


def pool_settings() -> SynthesisSettings:
    """Return settings for training slices: a bias field as small as correction leaves it."""
    base = SynthesisSettings()
    return replace(base, acquisition=replace(base.acquisition, bias_amplitude=(0.0, 0.12)))


def synthetic_shards(
    heads: Sequence[TrainingHead], numbers: range, seed: int, device: str = "cpu"
) -> Iterator[Shard]:
    """Slices of synthetic scans, exactly as inference would see them.

    Parameters
    ----------
    heads : sequence of TrainingHead
        Drawn from at random.
    numbers : range
        Which scans of the stream: scan ``n`` depends on the seed and ``n`` alone.
    seed : int
        Seed of the stream.
    device : str
        Where scans are synthesised.

    Yields
    ------
    Shard
        At most 32 slices with brain of one scan; slices with lesions are kept first.
    """
    settings = pool_settings()
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        prepared = heads[int(rng.integers(len(heads)))]
        scan = synthesise(
            prepared.head, int(rng.integers(2**31)), settings, prepared.lesions, device
        )
        yield scan_shard(scan, rng)


def scan_shard(scan: SyntheticScan, rng: np.random.Generator) -> Shard:
    """Training slices of one synthetic scan that carries an atlas.

    The brain mask given to the network's input is the true one, a little wider or narrower, as
    that of a network would be.
    """
    if scan.wm_atlas is None:
        raise ValueError("the scan has no atlas; give the head a wm_atlas before synthesis")
    mask = _imperfect_mask(scan.brain_mask, scan.affine, rng)
    inputs = network_input(scan.flair, scan.affine, mask, scan.wm_atlas)
    shard = training_shard(inputs, scan.wmh_mask.astype(np.uint8))
    order = rng.permutation(len(shard.flair))
    lesions = shard.target[order].any(axis=(1, 2))
    order = np.concatenate([order[lesions], order[~lesions]])
    bare = max(_MAX_SLICES // 4, _MAX_SLICES - int(lesions.sum()))
    kept = np.sort(np.concatenate([order[: _MAX_SLICES - bare], order[lesions.sum() :][:bare]]))
    return Shard(shard.flair[kept], shard.atlas[kept], shard.target[kept])


def _imperfect_mask(mask: NDArray, affine: NDArray, rng: np.random.Generator) -> NDArray:
    """Brain mask with its contour moved by up to about 2 mm, smoothly."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2.0 / spacing, truncate=2.0)
    return soft > rng.uniform(0.25, 0.7)


def _crop_to_head(head: Head) -> Head:
    """Cut away the air around the head, keeping a margin."""
    boxes = ndimage.find_objects((head.labels > 0).astype(np.uint8))[0]
    box = tuple(
        slice(max(0, axis.start - _AIR_MARGIN), min(size, axis.stop + _AIR_MARGIN))
        for axis, size in zip(boxes, head.labels.shape, strict=True)
    )
    affine = head.affine.copy()
    affine[:3, 3] += head.affine[:3, :3] @ [axis.start for axis in box]
    return Head(np.ascontiguousarray(head.labels[box]), affine)
