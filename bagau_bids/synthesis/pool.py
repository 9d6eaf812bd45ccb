"""Pools of network-ready slices: in memory from real scans, on disk from synthetic ones.

On disk a shard is three ``.npy`` files, which are mapped and not read::

    <name>_flair.npy   (N, H, W) float16   z-scored FLAIR, as network_input makes it
    <name>_atlas.npy   (N, H, W) uint8     white-matter probability times 255
    <name>_target.npy  (N, H, W) uint8     0 background, 1 WMH, 2 not to be judged

Beside them, ``pool.json`` says from what a synthetic pool was drawn.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bagau_bids.errors import UsageError
from bagau_bids.files import DAMAGE, claim_origin, read_json, replacing
from bagau_bids.network.slices import PLANE_SIZE, NetworkInput, SlicePlane, to_slices

CHANNELS = ("flair", "atlas")  # of slices on disk

# Labels of a target; what is not judged is "other pathology" in the WMH challenge. An infarct is
# no WMH; a hidden one is an infarct too, but nobody could tell it from WMH, so that it is not
# judged as such.
BACKGROUND, WMH, NOT_JUDGED, INFARCT, HIDDEN_INFARCT = 0, 1, 2, 3, 4

ORIGIN_FILE = "pool.json"


@dataclass(frozen=True)
class Shard:
    """Slices that lie in one set of arrays.

    Parameters
    ----------
    channels : dict of str to (N, H, W) array
        As of :class:`bagau_bids.network.slices.NetworkInput`: float, the atlas also as uint8 in
        [0, 255]. A T1w is never on disk.
    target : (N, H, W) uint8 array
        0 background, 1 WMH, 2 not to be judged.
    """

    channels: dict[str, NDArray]
    target: NDArray[np.uint8]

    def __len__(self) -> int:
        """Count the slices."""
        return len(self.target)

    def take(self, rows: slice | NDArray[np.int64]) -> "Shard":
        """Take some of the slices, in the order of their numbers."""
        return Shard({name: of[rows] for name, of in self.channels.items()}, self.target[rows])


class SlicePool:
    """Slices of several shards under one running number.

    Parameters
    ----------
    shards : sequence of Shard
        All with slices of the same size.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._first = np.cumsum([0, *map(len, self.shards)])

    def __len__(self) -> int:
        """Count the slices."""
        return int(self._first[-1])

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> Shard:
        """Slices by their running numbers.

        Returns
        -------
        Shard
            Of ``len(numbers)`` slices; all but the target float32, the atlas in [0, 1].
        """
        found = []
        for number in numbers:
            shard_number = int(np.searchsorted(self._first, number, side="right")) - 1
            row = int(number - self._first[shard_number])
            one = self.shards[shard_number].take(slice(row, row + 1))
            found.append(Shard({k: _floats(of) for k, of in one.channels.items()}, one.target))
        return join_shards(found)


def _floats(values: NDArray) -> NDArray[np.float32]:
    scale = np.float32(255 if values.dtype == np.uint8 else 1)
    return np.asarray(values, dtype=np.float32) / scale


def training_shard(inputs: NetworkInput, reference: NDArray) -> Shard:
    """Slices of one scan with brain in them, on the usual plane of 200 x 200 mm.

    Parameters
    ----------
    inputs : NetworkInput
    reference : (X, Y, Z) array
        Labels on the scan's own grid: 0 background, 1 WMH, 2 not to be judged.

    Returns
    -------
    Shard
        The very values of `inputs`; the outermost pixels of a larger plane are cut off.
    """
    target = target_slices(reference, inputs.plane)
    kept = np.flatnonzero(inputs.brain.any(axis=(1, 2)))
    margin = (inputs.plane.size - PLANE_SIZE) // 2
    window = slice(margin, margin + PLANE_SIZE)
    channels = {name: of[kept, window, window] for name, of in inputs.channels.items()}
    return Shard(channels, target[kept, window, window])


def target_slices(reference: NDArray, plane: SlicePlane) -> NDArray[np.uint8]:
    """Labels of a scan on the network's plane.

    Parameters
    ----------
    reference : (X, Y, Z) array
        0 background, 1 WMH, 2 not to be judged, 3 infarct, 4 hidden infarct.
    plane : SlicePlane

    Returns
    -------
    target : (Z, size, size) uint8 array
        The label that fills at least half of a pixel.
    """
    target = np.zeros((plane.shape[2], plane.size, plane.size), dtype=np.uint8)
    for label in (HIDDEN_INFARCT, INFARCT, NOT_JUDGED, WMH):
        members = reference == label
        if members.any():
            target[to_slices(members, plane) >= 0.5] = label
    return target


def write_shard(folder: Path, name: str, shard: Shard) -> None:
    """Write slices where :func:`open_pool` finds them; a shard half written is never seen.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    name : str
        Unique within the folder; an existing shard of this name is replaced.
    shard : Shard
        Float atlas in [0, 1].
    """
    arrays = {
        "flair": shard.channels["flair"].astype(np.float16),
        "atlas": np.rint(shard.channels["atlas"] * 255).astype(np.uint8),
        "target": shard.target.astype(np.uint8),  # last: its presence completes the shard
    }
    for kind, array in arrays.items():
        with replacing(folder / f"{name}_{kind}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, array)


def join_shards(shards: Sequence[Shard]) -> Shard:
    """One shard with the slices of several, in their order, and the channels that all have."""
    names = [name for name in shards[0].channels if all(name in one.channels for one in shards)]
    channels = {name: np.concatenate([one.channels[name] for one in shards]) for name in names}
    return Shard(channels, np.concatenate([one.target for one in shards]))


def has_shard(folder: Path, name: str) -> bool:
    """Whether a folder holds the whole of a shard."""
    return (folder / f"{name}_target.npy").is_file()


def claim_pool(folder: Path, origin: Mapping[str, Any]) -> None:
    """Note in a folder what its pool is drawn from, so that no other drawing is mixed into it.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    origin : mapping
        What decides the slices, as JSON can hold it.

    Raises
    ------
    UsageError
        If the folder holds a pool of another or of unknown origin.
    """
    path = folder / ORIGIN_FILE
    drawn = any(folder.glob("*_target.npy")) or any(folder.glob("heads/*.npz"))
    if drawn and not path.is_file():
        raise UsageError(
            f"{folder}: found slices or heads but no {ORIGIN_FILE} that says what they were "
            "drawn from, expected a new folder or a pool to go on with; name another folder"
        )
    claim_origin(path, origin)


def read_origin(folder: Path) -> dict[str, Any] | None:
    """Read from what a pool was drawn; None where its folder does not say.

    Raises
    ------
    UsageError
        If the file that says it cannot be read.
    """
    path = folder / ORIGIN_FILE
    if not path.is_file():
        return None
    hint = "expected what 'bagau synthetic-pool' wrote; copy the pool again"
    return read_json(path, dict[str, Any], hint)


def describe_pool(pool: SlicePool, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Say in the card of weights what their synthetic slices are.

    Parameters
    ----------
    pool : SlicePool
    origin : mapping
        As :func:`read_origin` gives it; empty where it is not known.
    """
    counts = {"slices": len(pool)}
    if "volumes_per_shard" in origin:
        counts["volumes"] = len(pool.shards) * origin["volumes_per_shard"]
    return {**origin, **counts}


def pool_digest(pool: SlicePool) -> str:
    """SHA-256 that tells a pool from others, without reading all of it.

    Returns
    -------
    digest : str
        In hexadecimal; of the number of slices and the first slice of each shard, in order.
    """
    digest = hashlib.sha256()
    for shard in pool.shards:
        digest.update(f"{shard.target.shape}".encode())
        for array in (*(shard.channels[name] for name in CHANNELS), shard.target):
            digest.update(np.ascontiguousarray(array[:1]).tobytes())
    return digest.hexdigest()


def open_pool(folder: Path) -> SlicePool:
    """Map the shards of a folder in the order of their names.

    Raises
    ------
    UsageError
        If the folder holds no shard, shards of different slice sizes, or a file of a shard is
        missing or damaged.
    """
    targets = sorted(folder.glob("*_target.npy"))
    if not targets:
        raise UsageError(
            f"{folder}: no shard of slices; expected *_flair.npy, *_atlas.npy and *_target.npy"
        )
    shards = []
    for path in targets:
        stem = path.name.removesuffix("_target.npy")
        channels = {name: _mapped(folder, stem, name) for name in CHANNELS}
        shards.append(Shard(channels, _mapped(folder, stem, "target")))
    sizes = {shard.channels["flair"].shape[1:] for shard in shards}
    if sizes != {(PLANE_SIZE, PLANE_SIZE)}:
        raise UsageError(
            f"{folder}: slices of {sorted(sizes)}; expected {PLANE_SIZE} x {PLANE_SIZE} pixels in "
            "every shard; draw the pool again"
        )
    return SlicePool(shards)


def _mapped(folder: Path, stem: str, kind: str) -> NDArray:
    path = folder / f"{stem}_{kind}.npy"
    try:
        return npy.open_memmap(path, mode="r")
    except DAMAGE as error:
        raise UsageError(
            f"{path}: cannot be read ({error}), expected slices as 'bagau synthetic-pool' writes "
            f"them; copy the pool again, or remove {stem}_*.npy and draw them again"
        ) from error
