"""Label maps made ready for training the segmentation: atlas and lesion shapes in their space.

For each label map the template is registered once to a clean FLAIR-like image of it, exactly as
it would be to a FLAIR; the white-matter map and real lesion masks are brought along. The result
is stored, since it is needed for every scan drawn from the head.
"""

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.files import read_arrays, replacing, require_arrays
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing.registration import register_template
from bagau_bids.preprocessing.template import Template
from bagau_bids.preprocessing.transforms import forward_field, sample
from bagau_bids.spaces import Image, crop, voxel_sizes
from bagau_bids.synthesis.engine import (
    SynthesisSettings,
    SyntheticScan,
    synthesise,
)
from bagau_bids.synthesis.labels import CLASS_IN_BRAIN, CLASS_NAMES, Head, load_head
from bagau_bids.synthesis.lesions import LesionShapes
from bagau_bids.synthesis.pool import (
    HIDDEN_INFARCT,
    INFARCT,
    NOT_JUDGED,
    WMH,
    Shard,
    has_shard,
    join_shards,
    training_shard,
    write_shard,
)

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
_DERIVED = ("classes", "ventricle_distance", "brain")  # of the labels; kept with the head
_RUNS = ("counts", "starts", "lengths", "components")  # of shapes, as they are stored
_VOXELS = ("counts", "voxels", "components")  # as they were stored before runs were
_HINT = (
    "expected a prepared head, as 'bagau synthetic-pool' writes it; copy it again, or remove it "
    "and prepare it again"
)
SHARD_VOLUMES = 10  # scans in one shard of a pool on disk
HEAD_INFARCTS = 50  # infarcts that one head carries; each head carries others
_ATLAS_STEPS = 51  # of a stored atlas from 0 to 1; divides 255
_LEAST_INFARCT_MM3 = 20.0  # of an infarct that is worth carrying
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingHead:
    """A label map with the atlas on it; lesion and infarct masks in its space (or None)."""

    head: Head
    lesions: LesionShapes | None
    infarcts: LesionShapes | None = None


def lesion_mask_name(path: Path) -> str:
    """Return the name of a lesion mask: ``patient26`` for ``patient26_mask.nii.gz``."""
    return path.name.removesuffix(".nii.gz").removesuffix("_mask")


def without_masks(
    paths: Sequence[Path], excluded: Sequence[str], kind: str = "lesion"
) -> list[Path]:
    """Leave out masks by their names, such as those of subjects to validate on.

    Parameters
    ----------
    paths : sequence of Path
        All masks.
    excluded : sequence of str
        Names as :func:`lesion_mask_name` makes them; ``_mask`` and ``.nii.gz`` may follow.
    kind : str
        What the masks outline, for errors.

    Raises
    ------
    UsageError
        If a name fits no mask, or if no mask is left.
    """
    names = {lesion_mask_name(Path(name)) for name in excluded}
    known = [lesion_mask_name(path) for path in paths]
    unknown = sorted(names - set(known))
    if unknown:
        from bagau_bids.bids.tables import listed  # needs pandas, which drawing does not

        raise UsageError(
            f"{kind} mask to leave out: {listed(unknown)} is not there, expected some of "
            f"{listed(known)}; correct the names"
        )
    kept = [path for path, name in zip(paths, known, strict=True) if name not in names]
    if paths and not kept:
        raise UsageError(
            f"{kind} masks to leave out: all {len(paths)} were named, expected at least one to "
            f"stay; name fewer, or give no {kind} masks"
        )
    return kept


def prepare_heads(
    label_maps: Sequence[Path],
    template: Template,
    lesion_masks: Sequence[Path],
    folder: Path,
    infarct_masks: Sequence[Path] = (),
    *,
    threads: int = 1,
) -> list[TrainingHead]:
    """Prepare each label map, or read it from the folder if that was done before.

    Parameters
    ----------
    label_maps, template, lesion_masks, infarct_masks, threads
        As of :func:`prepare_head`.
    folder : Path
        Gets one ``.npz`` a label map, under its name.

    Returns
    -------
    list of TrainingHead
        In the order of the label maps.
    """
    heads = []
    for number, label_map in enumerate(label_maps, start=1):
        stored = folder / f"{label_map.name.removesuffix('.nii.gz')}.npz"
        if not stored.is_file():
            log.info("preparing %s (%d of %d)", label_map.name, number, len(label_maps))
            prepared = prepare_head(
                label_map, template, lesion_masks, infarct_masks, threads=threads
            )
            save_training_head(stored, prepared)
        heads.append(load_training_head(stored))
    return heads


def prepare_head(
    label_map: Path,
    template: Template,
    lesion_masks: Sequence[Path],
    infarct_masks: Sequence[Path] = (),
    *,
    threads: int = 1,
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
    infarct_masks : sequence of Path
        The same of infarcts. The head gets about 50 of them, drawn by the name of its label map.
    threads : int
        For the registration.

    Returns
    -------
    TrainingHead
        Cropped to the head.

    Raises
    ------
    InputImageError
        If a mask cannot be read, or if no lesion mask or no infarct lies in the brain.
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
    registration = register_template(Image(plain, head.affine), brain, template, threads=threads)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    points = forward_field(registration.transform, crop(Image(brain, head.affine), box))
    masks = []
    for path in lesion_masks:
        warped = sample(_read_mask(path), points, 0)
        mask = np.zeros(brain.shape, bool)
        mask[box] = warped > 0.5
        masks.append(mask)
    if masks and not any(mask.any() for mask in masks):
        raise InputImageError(
            f"{lesion_masks[0].parent}: none of {len(masks)} lesion masks has a lesion in the "
            f"brain of {label_map}, expected masks in the space of {template.name}; warp them "
            "there"
        )
    # In steps of 2 %, which no network needs finer and which halves the file.
    atlas = np.rint(registration.wm_probseg * _ATLAS_STEPS) * (255 // _ATLAS_STEPS)
    lesions = LesionShapes.from_masks(masks, head.spacing_mm) if masks else None
    infarcts = None
    if infarct_masks:
        rng = np.random.default_rng(zlib.crc32(label_map.name.encode()))
        infarcts = _warp_infarcts(infarct_masks, points, box, head, rng)
        if infarcts is None:
            raise InputImageError(
                f"{infarct_masks[0].parent}: none of {len(infarct_masks)} masks has an infarct "
                f"in the brain of {label_map}, expected masks in the space of {template.name}; "
                "warp them there"
            )
    return TrainingHead(replace(head, wm_atlas=atlas.astype(np.uint8)), lesions, infarcts)


def _warp_infarcts(
    paths: Sequence[Path],
    points: NDArray,
    box: tuple[slice, ...],
    head: Head,
    rng: np.random.Generator,
) -> LesionShapes | None:
    """Bring some infarcts into the space of a head, cut to its brain; None if there is none.

    Parameters
    ----------
    paths : sequence of Path
        Masks in the template's space.
    points : (3, x, y, z) array
        Where each voxel of the box lies in the template, mm.
    box : tuple of slice
        Of the brain in the head's grid.
    head : Head
    rng : Generator
        Decides which infarcts.
    """
    brain = head.brain.numpy()
    least = max(1, round(_LEAST_INFARCT_MM3 / float(np.prod(head.spacing_mm))))
    shapes: list[LesionShapes] = []
    for number in rng.permutation(len(paths)):
        if len(shapes) == HEAD_INFARCTS:
            break
        mask = np.zeros(brain.shape, bool)
        mask[box] = sample(_read_mask(paths[number]), points, 0) > 0.5
        mask &= brain
        if mask.sum() >= least:
            shapes.append(LesionShapes.from_masks([mask], head.spacing_mm))
    if not shapes:
        return None
    return LesionShapes(
        brain.shape,
        head.spacing_mm,
        tuple(one.voxels[0] for one in shapes),
        tuple(one.components[0] for one in shapes),
    )


def save_training_head(path: Path, prepared: TrainingHead) -> None:
    """Store a prepared head as one compressed ``.npz``, by an atomic rename."""
    head = prepared.head
    if head.wm_atlas is None:
        raise ValueError("the head has no atlas; prepare it with prepare_head first")
    arrays: dict[str, Any] = {
        "labels": head.labels,
        "affine": head.affine,
        "wm_atlas": head.wm_atlas,
        **{name: getattr(head, name).numpy() for name in _DERIVED},
    }
    for kind, shapes in (("lesion", prepared.lesions), ("infarct", prepared.infarcts)):
        if shapes is not None:
            arrays |= {f"{kind}_{name}": array for name, array in shapes.to_runs().items()}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_training_head(path: Path) -> TrainingHead:
    """Read what :func:`save_training_head` wrote, now or before heads carried infarcts.

    Raises
    ------
    UsageError
        If the file cannot be read, is damaged, or lacks an array.
    """
    stored = read_arrays(path, ("labels", "affine", "wm_atlas"), _HINT)
    head = Head(stored["labels"], stored["affine"], stored["wm_atlas"])
    # Seconds of distance transforms, which else every process would repeat for every head.
    head.__dict__.update(
        {name: torch.from_numpy(stored[name]) for name in _DERIVED if name in stored}
    )
    lesions, infarcts = (_shapes_of(path, stored, kind, head) for kind in ("lesion", "infarct"))
    return TrainingHead(head, lesions, infarcts)


def _shapes_of(
    path: Path, stored: dict[str, NDArray], kind: str, head: Head
) -> LesionShapes | None:
    """Take shapes out of the arrays of a stored head; None where it carries none of the kind."""
    if not any(name.startswith(f"{kind}_") for name in stored):
        return None
    parts = _VOXELS if f"{kind}_voxels" in stored else _RUNS
    require_arrays(path, stored, [f"{kind}_{name}" for name in parts], _HINT)
    found = {name: stored[f"{kind}_{name}"] for name in parts}
    grid = head.labels.shape, head.spacing_mm
    if parts is _RUNS:
        return LesionShapes.from_runs(*grid, found)
    ends = np.cumsum(found["counts"])[:-1]
    return LesionShapes(
        *grid, *(tuple(np.split(found[name], ends)) for name in ("voxels", "components"))
    )


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
        scan = draw_scan(prepared, int(rng.integers(2**31)), settings, device)
        yield scan_shard(scan, rng)


def draw_scan(
    prepared: TrainingHead,
    seed: int,
    settings: SynthesisSettings | None = None,
    device: str = "cpu",
) -> SyntheticScan:
    """Draw one scan of a prepared head, with the lesions and infarcts that it carries.

    Parameters
    ----------
    prepared : TrainingHead
    seed, settings, device
        As of :func:`bagau_bids.synthesis.engine.synthesise`.
    """
    return synthesise(
        prepared.head,
        seed,
        settings or pool_settings(),
        prepared.lesions,
        device,
        prepared.infarcts,
    )


def scan_shard(scan: SyntheticScan, rng: np.random.Generator) -> Shard:
    """Training slices of one synthetic scan that carries an atlas.

    The brain mask given to the network's input is the true one, a little wider or narrower, as
    that of a network would be.
    """
    if scan.wm_atlas is None:
        raise ValueError("the scan has no atlas; give the head a wm_atlas before synthesis")
    mask = _imperfect_mask(scan.brain_mask, scan.affine, rng)
    inputs = network_input(Image(scan.flair, scan.affine), mask, scan.wm_atlas)
    labels = scan.wmh_mask.astype(np.uint8) * WMH
    labels[scan.not_judged_mask] = NOT_JUDGED
    labels[scan.infarct_mask] = INFARCT
    labels[scan.hidden_mask] = HIDDEN_INFARCT
    shard = training_shard(inputs, labels)
    order = rng.permutation(len(shard))
    lesions = shard.target[order].any(axis=(1, 2))
    order = np.concatenate([order[lesions], order[~lesions]])
    bare = max(_MAX_SLICES // 4, _MAX_SLICES - int(lesions.sum()))
    kept = np.sort(np.concatenate([order[: _MAX_SLICES - bare], order[lesions.sum() :][:bare]]))
    return shard.take(kept)


def draw_pool(
    heads: Sequence[TrainingHead], folder: Path, volumes: int, seed: int, device: str = "cpu"
) -> None:
    """Write the slices of synthetic scans where :func:`bagau_bids.synthesis.pool.open_pool` looks.

    A shard holds 10 scans. Shards that are there already are kept, so that a drawing that was
    stopped goes on, to the same end.

    Parameters
    ----------
    heads : sequence of TrainingHead
        Drawn from at random.
    folder : Path
        Made where it is missing.
    volumes : int
        Number of scans, a multiple of 10.
    seed, device
        As of :func:`synthetic_shards`.

    Raises
    ------
    UsageError
        If `volumes` is no multiple of 10.
    """
    if volumes < 1 or volumes % SHARD_VOLUMES:
        raise UsageError(
            f"{volumes} volumes were asked for, expected a multiple of {SHARD_VOLUMES}, which "
            f"is what one shard holds; ask for {SHARD_VOLUMES * (volumes // SHARD_VOLUMES + 1)}"
        )
    from threadpoolctl import threadpool_limits  # not where heads are only drawn from

    # Between short products, waiting BLAS threads spin and take the cores from the rest.
    with threadpool_limits(1, user_api="blas"):
        for first in range(0, volumes, SHARD_VOLUMES):
            name = f"synthetic-{first:05d}"
            if has_shard(folder, name):
                continue
            numbers = range(first, first + SHARD_VOLUMES)
            shard = join_shards(list(synthetic_shards(heads, numbers, seed, device)))
            write_shard(folder, name, shard)
            log.info(
                "%d of %d volumes: %s holds %d slices, %d with lesions",
                numbers.stop,
                volumes,
                name,
                len(shard),
                int(shard.target.any(axis=(1, 2)).sum()),
            )


def _read_mask(path: Path) -> Image:
    """Read a lesion mask."""
    try:
        image = nib.nifti1.load(path)
        return Image(np.asarray(image.dataobj), image.affine)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputImageError(
            f"{path}: found no readable NIfTI image ({error}), expected a binary lesion mask in "
            "the template's space; copy it again or leave it out"
        ) from error


def _imperfect_mask(mask: NDArray, affine: NDArray, rng: np.random.Generator) -> NDArray:
    """Brain mask with its contour moved by up to about 2 mm, smoothly."""
    spacing = voxel_sizes(affine)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2.0 / spacing, truncate=2.0)
    return soft > rng.uniform(0.25, 0.7)


def _crop_to_head(head: Head) -> Head:
    """Cut away the air around the head, keeping a margin."""
    boxes = ndimage.find_objects((head.labels > 0).astype(np.uint8))[0]
    box = tuple(
        slice(max(0, axis.start - _AIR_MARGIN), min(size, axis.stop + _AIR_MARGIN))
        for axis, size in zip(boxes, head.labels.shape, strict=True)
    )
    cropped = crop(Image(head.labels, head.affine), box)
    return Head(np.ascontiguousarray(cropped.data), cropped.affine)
