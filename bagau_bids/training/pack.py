"""A pack: everything that a training reads, small and preprocessed, in one folder.

A machine with a GPU often has neither the data sets nor the programs that register and correct
them. What they are needed for is done before, once, and put here::

    pack.json           what was packed, from which data, and how often each scan is drawn
    heads/*.npz         label maps with their atlas and lesion shapes, to draw synthetic scans from
    real/*.npz          slices of labelled scans
    validation/*.npz    whole labelled scans of other subjects
    stroke.npz          slices of stroke patients, with their infarcts

FLAIR slices are stored in 8 bits: 0 stands for exactly 0 (away from the brain), the rest for even
steps of 0.063 between the limits of the z-score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, Struct, UnsetType, structs
from numpy.typing import NDArray

from bagau_bids import __version__
from bagau_bids.datasets.labelled import TrainingScan, plane_of
from bagau_bids.errors import UsageError
from bagau_bids.files import read_arrays, read_json, replacing, write_json
from bagau_bids.network.slices import SLAB_MM, Z_SCORE_LIMITS, NetworkInput, SlicePlane
from bagau_bids.spaces import voxel_sizes
from bagau_bids.synthesis.heads import load_training_head, save_training_head
from bagau_bids.synthesis.pool import CHANNELS, Shard, training_shard
from bagau_bids.training.card import preprocessing_facts

PACK_FILE, STROKE_FILE = "pack.json", "stroke.npz"
HEADS, REAL, VALIDATION = "heads", "real", "validation"
PART_HINT = "expected what 'bagau pack' wrote; make or copy the pack again"
SLICES = (*CHANNELS, "target")
WHOLE = (
    *(*CHANNELS, "brain", "brain_mask", "reference", "affine"),
    *(f"plane_{field.name}" for field in fields(SlicePlane)),
)
STROKE = ("flair", "infarct", "atlas", "held_out", "ids")
GREY_LEVELS = 254  # from the lowest to the highest z-score; one more value stands for 0


class PackedScan(Struct, frozen=True):
    """A scan of a pack; its subject has the number of its data set before it."""

    name: str
    subject: str
    key: str


class Origin(Struct, frozen=True, kw_only=True):
    """What a pack was made from: data sets as they describe themselves, and how."""

    datasets: list[dict[str, Any]]
    template: str
    registration: str
    left_out: dict[str, str] | UnsetType = UNSET


class Pack(Struct, frozen=True, kw_only=True):
    """What a pack holds, as ``pack.json`` says it."""

    format: Literal[1]
    heads: list[str]
    training: list[PackedScan]
    validation: list[PackedScan]
    stroke: bool
    origin: Origin


@dataclass(frozen=True)
class RealSlices:
    """Slices of one labelled scan, as they are stored.

    Parameters
    ----------
    name : str
    subject : str
        Who it is of; scans of one subject have the same.
    slices : Shard
        FLAIR in 8 bits, atlas times 255.
    """

    name: str
    subject: str
    slices: Shard


def encode_flair(flair: NDArray) -> NDArray[np.uint8]:
    """Store z-scores in 8 bits; 0 stays 0.

    Parameters
    ----------
    flair : array
        Within the limits of the z-score.

    Returns
    -------
    codes : uint8 array
        Of the same shape.
    """
    low, high = Z_SCORE_LIMITS
    steps = np.rint((np.asarray(flair, np.float32) - low) / (high - low) * GREY_LEVELS)
    return np.where(flair == 0, 0, 1 + np.clip(steps, 0, GREY_LEVELS)).astype(np.uint8)


def decode_flair(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Undo :func:`encode_flair`, to within half a step."""
    low, high = Z_SCORE_LIMITS
    values = (codes.astype(np.float32) - 1) / GREY_LEVELS * (high - low) + low
    return np.where(codes == 0, np.float32(0), values).astype(np.float32)


def encode_atlas(atlas: NDArray) -> NDArray[np.uint8]:
    """Store probabilities in 8 bits."""
    return np.rint(np.clip(atlas, 0, 1) * 255).astype(np.uint8)


def write_pack(
    folder: Path,
    training: Sequence[TrainingScan],
    validation: Sequence[TrainingScan],
    heads: Path,
    stroke: Mapping[str, NDArray] | None,
    origin: Origin,
) -> None:
    """Write a pack into a new folder; what says that it is whole is written last.

    Parameters
    ----------
    folder : Path
        Must hold no pack.
    training, validation : sequence of TrainingScan
    heads : Path
        Folder of prepared heads, as ``bagau synthetic-pool`` leaves it; they are copied.
    stroke : mapping of str to array, or None
        What :func:`bagau_bids.training.stroke.stroke_arrays` made.
    origin : Origin

    Raises
    ------
    UsageError
        If the folder holds a pack, or there is no prepared head.
    """
    if (folder / PACK_FILE).exists():
        raise UsageError(f"{folder}: holds a pack already, expected a new folder; name another")
    found = sorted(heads.glob("*.npz"))
    if not found:
        raise UsageError(
            f"{heads}: found no prepared head (*.npz), expected those of 'bagau synthetic-pool "
            "LABEL_MAPS OUT', in OUT/heads; prepare them first"
        )
    (folder / HEADS).mkdir(parents=True, exist_ok=True)
    for path in found:  # older ones lack what is derived of the labels
        save_training_head(folder / HEADS / path.name, load_training_head(path))
    for scan in training:
        _save(folder / REAL / f"{scan.name}.npz", _slices_of(scan))
    for scan in validation:
        _save(folder / VALIDATION / f"{scan.name}.npz", _whole(scan))
    if stroke is not None:
        _save(folder / STROKE_FILE, stroke)
    content = Pack(
        format=1,
        heads=[path.stem for path in found],
        training=[_identity(scan) for scan in training],
        validation=[_identity(scan) for scan in validation],
        stroke=stroke is not None,
        origin=origin,
    )
    write_json(folder / PACK_FILE, content)


def read_pack_file(folder: Path) -> Pack:
    """Read what a pack holds.

    Raises
    ------
    UsageError
        If the folder is no pack, or one of another version.
    """
    path = folder / PACK_FILE
    if not path.is_file():
        raise UsageError(
            f"{path}: not there, expected a folder that 'bagau pack' wrote; make it first, or "
            "make it again where it was cut short"
        )
    hint = "expected a pack of format 1, as 'bagau pack' writes it; make it again"
    return read_json(path, Pack, hint)


def describe_pack(folder: Path, licence: str) -> dict[str, Any]:
    """Say in the card of weights what their training read.

    Parameters
    ----------
    folder : Path
    licence : str
        Of the weights.
    """
    content = read_pack_file(folder)
    return {
        "software": f"bagau-bids {__version__}",
        "licence": licence,
        "preprocessing": {
            "template": content.origin.template,
            "registration": content.origin.registration,
            **preprocessing_facts(),
        },
        "training_data": content.origin.datasets,
        "training_scans": [entry.name for entry in content.training],
        "validation_scans": [entry.name for entry in content.validation],
        "heads": content.heads,
        "stroke_slices": content.stroke,
    }


def read_real(folder: Path) -> list[RealSlices]:
    """Read the slices of labelled scans of a pack."""
    scans = []
    for entry in read_pack_file(folder).training:
        arrays = read_arrays(folder / REAL / f"{entry.name}.npz", SLICES, PART_HINT)
        shard = Shard({name: arrays[name] for name in CHANNELS}, arrays["target"])
        scans.append(RealSlices(entry.name, entry.subject, shard))
    return scans


def read_validation(folder: Path) -> list[TrainingScan]:
    """Read the whole scans of a pack."""
    scans = []
    for entry in read_pack_file(folder).validation:
        arrays = read_arrays(folder / VALIDATION / f"{entry.name}.npz", WHOLE, PART_HINT)
        inputs = NetworkInput(
            channels={
                "flair": decode_flair(arrays["flair"]),
                "atlas": arrays["atlas"].astype(np.float32) / np.float32(255),
            },
            brain=arrays["brain"],
            plane=plane_of(arrays),
        )
        scans.append(
            TrainingScan(
                **structs.asdict(entry),
                dataset=0,
                inputs=inputs,
                brain_mask=arrays["brain_mask"],
                reference=arrays["reference"],
                affine=arrays["affine"],
            )
        )
    return scans


def read_stroke(folder: Path) -> dict[str, NDArray] | None:
    """Read the slices of stroke patients of a pack; None where it holds none."""
    if not read_pack_file(folder).stroke:
        return None
    return read_arrays(folder / STROKE_FILE, STROKE, PART_HINT)


def _identity(scan: TrainingScan) -> PackedScan:
    return PackedScan(scan.name, f"{scan.dataset}-{scan.subject}", scan.key)


def _slices_of(scan: TrainingScan) -> dict[str, NDArray]:
    """Slices with brain, in scans of thin slices one in every slab."""
    step = max(1, round(SLAB_MM / float(voxel_sizes(scan.affine)[2])))
    shard = training_shard(scan.inputs, scan.reference).take(slice(None, None, step))
    return {
        "flair": encode_flair(shard.channels["flair"]),
        "atlas": encode_atlas(shard.channels["atlas"]),
        "target": shard.target,
    }


def _whole(scan: TrainingScan) -> dict[str, NDArray]:
    return {
        "flair": encode_flair(scan.inputs.channels["flair"]),
        "atlas": encode_atlas(scan.inputs.channels["atlas"]),
        "brain": scan.inputs.brain,
        "brain_mask": scan.brain_mask,
        "reference": scan.reference,
        "affine": scan.affine,
        **{f"plane_{key}": np.array(value) for key, value in asdict(scan.inputs.plane).items()},
    }


def _save(path: Path, arrays: Mapping[str, NDArray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **dict[str, Any](arrays))
