"""Scans with lesion masks, brought to the network's input exactly as inference does it."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bagau_bids.bids.masks import find_lesion_masks
from bagau_bids.bids.scans import Scan, find_t1w
from bagau_bids.errors import InputImageError, ProcessingError, UsageError
from bagau_bids.files import read_arrays, replacing
from bagau_bids.network.cards import DEFAULT_INPUTS, T1, find_weights, read_card
from bagau_bids.network.slices import (
    NetworkInput,
    SlicePlane,
    add_t1,
    network_input,
    require_white_matter,
)
from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION

if TYPE_CHECKING:
    from bagau_bids.preprocessing.template import Template

KEPT = (
    *("flair", "atlas", "brain", "notes", "brain_mask", "reference", "affine"),
    *(f"plane_{field.name}" for field in fields(SlicePlane)),
)
DAMAGED_HINT = "expected what an earlier run prepared; remove the file, it is then made anew"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledScan:
    """A FLAIR on disk and its lesion mask.

    Parameters
    ----------
    scan : Scan
    mask_path : Path
    dataset : int
        Number of the data set it comes from; subjects of different sets are different people.
    """

    scan: Scan
    mask_path: Path
    dataset: int = 0


@dataclass(frozen=True)
class TrainingScan:
    """A preprocessed scan with its labels.

    Parameters
    ----------
    name : str
        Name of the FLAIR's file without suffix.
    subject : str
        Label without ``sub-``.
    dataset : int
    inputs : NetworkInput
    brain_mask : (X, Y, Z) bool array
        On the FLAIR's grid in RAS order.
    reference : (X, Y, Z) uint8 array
        Labels on that grid: 0 background, 1 WMH, 2 not to be judged.
    affine : (4, 4) array
        Voxel to world of that grid, mm.
    key : str
        Its name and a digest of everything that went into it; empty where it is not from
        :func:`prepare_scan`.
    """

    name: str
    subject: str
    dataset: int
    inputs: NetworkInput
    brain_mask: NDArray[np.bool_]
    reference: NDArray[np.uint8]
    affine: NDArray[np.float64]
    key: str = ""


@dataclass(frozen=True)
class Split:
    """Scans for training, for choosing the checkpoint, and left alone."""

    training: tuple[LabelledScan, ...]
    validation: tuple[LabelledScan, ...]
    test: tuple[LabelledScan, ...]


def pair_masks(
    scans: Sequence[Scan], derivative: Path, dataset: int = 0
) -> tuple[list[LabelledScan], list[str]]:
    """Find the lesion mask of each scan in a derivative data set.

    A mask belongs to a scan when its name holds the scan's entities, ``label-WMH`` and at
    most ``space``, ``desc`` and ``res`` besides.

    Parameters
    ----------
    scans : sequence of Scan
    derivative : Path
    dataset : int

    Returns
    -------
    labelled : list of LabelledScan
    notes : list of str
        Which scans have no mask.

    Raises
    ------
    UsageError
        If no scan has a mask, or one has several.
    """
    masks = find_lesion_masks(derivative)
    labelled, notes = [], []
    for scan in scans:
        found = [mask.path for mask in masks if mask.entities == scan.entities]
        if len(found) > 1:
            raise UsageError(
                f"{derivative}: {len(found)} lesion masks for {scan.path.name} "
                f"({', '.join(path.name for path in found)}); expected one, give a derivative "
                "data set with one rater or consensus"
            )
        if found:
            labelled.append(LabelledScan(scan, found[0], dataset))
        else:
            notes.append(f"{scan.path}: no lesion mask in {derivative}, left out")
    if not labelled:
        raise UsageError(
            f"{derivative}: no mask for any of {len(scans)} FLAIRs among {len(masks)} lesion "
            "masks; expected names such as sub-01_space-orig_label-WMH_mask.nii.gz"
        )
    return labelled, notes


def split_by_subject(
    scans: Sequence[LabelledScan],
    *,
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    seed: int = 0,
) -> Split:
    """Divide scans so that no subject is in two parts.

    Parameters
    ----------
    scans : sequence of LabelledScan
    validation, test : sequence of str
        Subject labels; with either given the rest is for training. With none, subjects are
        drawn 8:1:1, at least one for validation.
    seed : int

    Raises
    ------
    UsageError
        If a label names no subject, or is in both lists, or nobody is left to train on.
    """
    people = sorted({(scan.dataset, scan.scan.subject) for scan in scans})
    labels = {label for _, label in people}
    unknown = sorted({*validation, *test} - labels)
    if unknown or set(validation) & set(test):
        raise UsageError(
            f"--validation/--test: {', '.join(unknown) or 'a subject in both'}; expected "
            f"different subjects out of {', '.join(sorted(labels))}"
        )
    if validation or test:
        held = {person for person in people if person[1] in validation}
        tested = {person for person in people if person[1] in test}
    else:
        order = np.random.default_rng(seed).permutation(len(people))
        tenth = max(1, round(len(people) / 10))
        held = {people[i] for i in order[:tenth]}
        tested = {people[i] for i in order[tenth : 2 * tenth]} if len(people) >= 10 else set()

    def among(group: set[tuple[int, str]]) -> tuple[LabelledScan, ...]:
        return tuple(s for s in scans if (s.dataset, s.scan.subject) in group)

    split = Split(among(set(people) - held - tested), among(held), among(tested))
    if not split.training or not split.validation:
        raise UsageError(
            f"{len(people)} subject(s) with masks leave {len(split.training)} scans to train on "
            f"and {len(split.validation)} to validate on; expected at least one of each"
        )
    return split


def prepare_scan(
    labelled: LabelledScan,
    template: "Template",
    registration: str,
    cache_dir: Path,
    *,
    inputs: Collection[str] = DEFAULT_INPUTS,
) -> TrainingScan:
    """Preprocess a scan as ``bagau-bids`` does, or read what an earlier run made of it.

    Parameters
    ----------
    labelled : LabelledScan
    template : Template
    registration : {'robust', 'paper'}
    cache_dir : Path
        Holds one file a scan, and one more for its T1w, named by the digest of everything that
        goes into it.
    inputs : collection of str
        Channels that are wanted; ``t1`` takes the T1w beside the FLAIR.

    Returns
    -------
    TrainingScan

    Raises
    ------
    InputImageError
        If the FLAIR cannot be processed, the mask does not lie on its grid, or there is no
        T1w and one is wanted.
    UsageError
        If what an earlier run made of it is damaged.
    """
    name = labelled.scan.path.name.split(".")[0]
    outliner = read_card(find_weights("brain")).sha256
    ingredients = [PREPROCESSING_VERSION, template.name, registration, outliner]
    for path in (labelled.scan.path, labelled.mask_path):
        ingredients += [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
    digest = hashlib.sha256("|".join(ingredients).encode()).hexdigest()
    cached = cache_dir / f"{name}_{digest[:16]}.npz"
    t1w = find_t1w(labelled.scan)[0] if T1 in inputs else None
    if not cached.is_file():
        with threadpool_limits(1, user_api="blas"):  # as in the workflow: the same bits
            arrays = _preprocess(labelled, template, registration)
        _save_arrays(cached, arrays)
    scan = _scan_from(labelled, name, read_arrays(cached, KEPT, DAMAGED_HINT))
    scan = replace(scan, key=cached.stem)
    return scan if t1w is None else _with_t1(scan, labelled, t1w, cached)


def prepare_scans(
    labelled: Sequence[LabelledScan],
    template: "Template",
    registration: str,
    cache_dir: Path,
    *,
    inputs: Collection[str] = DEFAULT_INPUTS,
) -> tuple[dict[LabelledScan, TrainingScan], dict[LabelledScan, str]]:
    """Preprocess scans; those that cannot be are named in the log and left out.

    Parameters
    ----------
    labelled : sequence of LabelledScan
    template, registration, cache_dir, inputs
        As for `prepare_scan`.

    Returns
    -------
    prepared : dict
    left_out : dict
        The reason by scan.
    """
    prepared, left_out = {}, {}
    for number, one in enumerate(labelled, start=1):
        log.info("preparing %s (%d of %d)", one.scan.stem, number, len(labelled))
        try:
            prepared[one] = prepare_scan(one, template, registration, cache_dir, inputs=inputs)
        except (InputImageError, ProcessingError) as error:
            log.warning("%s is left out: %s", one.scan.stem, error)
            left_out[one] = str(error)
    return prepared, left_out


def _with_t1(scan: TrainingScan, labelled: LabelledScan, t1w: Path, cached: Path) -> TrainingScan:
    """Add the T1w to a scan, from the cache where it is there."""
    from bagau_bids.preprocessing.conform import conform
    from bagau_bids.preprocessing.t1w import t1w_on_flair

    ingredients = [cached.name, t1w.name, hashlib.sha256(_content(t1w)).hexdigest()]
    digest = hashlib.sha256("|".join(ingredients).encode()).hexdigest()
    of_t1 = cached.with_name(f"{scan.name}_t1_{digest[:16]}.npz")
    if not of_t1.is_file():
        flair = conform(labelled.scan.path)
        t1 = t1w_on_flair(t1w, flair, scan.brain_mask)
        with threadpool_limits(1, user_api="blas"):
            inputs = add_t1(scan.inputs, t1, scan.brain_mask)
        _save_arrays(
            of_t1, {"t1": inputs.channels["t1"], "notes": np.array(t1.notes, dtype=np.str_)}
        )
    stored = read_arrays(of_t1, ("t1", "notes"), DAMAGED_HINT)
    notes = (*scan.inputs.notes, *stored["notes"].tolist())
    inputs = replace(scan.inputs.with_channels(t1=stored["t1"]), notes=notes)
    return replace(scan, inputs=inputs, key=of_t1.stem)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputImageError(
            f"{path}: cannot be read ({error.strerror}); fetch it or check its permissions"
        ) from error


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _preprocess(labelled: LabelledScan, template: "Template", registration: str) -> dict[str, Any]:
    """Everything that is kept of a scan, as arrays."""
    from bagau_bids.preprocessing.conform import conform
    from bagau_bids.preprocessing.recipe import preprocess

    scan = conform(labelled.scan.path)
    reference = read_reference(labelled.mask_path, labelled.scan.path)
    made = preprocess(scan, template, method=registration)
    mask, wm_probseg = made.brain.mask, made.registration.wm_probseg
    inputs = network_input(made.corrected, mask, wm_probseg)
    require_white_matter(wm_probseg, mask)
    plane = asdict(inputs.plane)
    return {
        **inputs.channels,
        "brain": inputs.brain,
        "notes": np.array(inputs.notes, dtype=np.str_),
        "brain_mask": mask,
        "reference": reference,
        "affine": scan.affine,
        **{f"plane_{key}": np.array(value) for key, value in plane.items()},
    }


def plane_of(arrays: Mapping[str, NDArray]) -> SlicePlane:
    """Take the plane of a stored scan out of its arrays, whose names begin with ``plane_``."""
    return SlicePlane(
        shape=tuple(arrays["plane_shape"].tolist()),
        spacing_mm=tuple(arrays["plane_spacing_mm"].tolist()),
        centre=tuple(arrays["plane_centre"].tolist()),
        size=int(arrays["plane_size"]),
    )


def _scan_from(labelled: LabelledScan, name: str, arrays: dict[str, Any]) -> TrainingScan:
    plane = plane_of(arrays)
    inputs = NetworkInput(
        {name: arrays[name] for name in ("flair", "atlas")},
        arrays["brain"],
        plane,
        tuple(arrays["notes"].tolist()),
    )
    return TrainingScan(
        name=name,
        subject=labelled.scan.subject,
        dataset=labelled.dataset,
        inputs=inputs,
        brain_mask=arrays["brain_mask"],
        reference=arrays["reference"],
        affine=arrays["affine"],
    )


def read_reference(mask_path: Path, flair_path: Path) -> NDArray[np.uint8]:
    """Read a lesion mask in the voxel order of its conformed FLAIR.

    Parameters
    ----------
    mask_path, flair_path : Path

    Returns
    -------
    reference : (X, Y, Z) uint8 array
        RAS order: 0 background, 1 WMH, 2 not to be judged.

    Raises
    ------
    InputImageError
        If either cannot be read, or the mask does not lie on the FLAIR's grid or holds other
        values than 0, 1 and 2.
    """
    from bagau_bids.evaluation.scoring import check_grid, read_reference_mask
    from bagau_bids.preprocessing.conform import read_volume

    reference = read_reference_mask(mask_path)
    check_grid(reference.stored, read_volume(flair_path))
    return reference.data
