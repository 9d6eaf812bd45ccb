"""WMH masks that a person edited, kept when the network's or another take their place."""

import itertools
import shlex
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from bagau_bids.bids.derivatives import catalogue, derivative_path, sidecar_path
from bagau_bids.bids.description import BIDS_VERSION
from bagau_bids.bids.masks import KEPT, KEPT_FOLDER
from bagau_bids.errors import UsageError
from bagau_bids.files import copy_file, read_json, write_json


def was_edited(output_dir: Path, entities: Mapping[str, Any]) -> bool:
    """Tell whether the mask of a scan is a person's work.

    Either `bagau remeasure` has marked it, or it was saved over the network's and never measured.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    entities : mapping
        Of the scan.
    """
    mask = derivative_path(output_dir, entities, "wmh_mask")
    if not mask.is_file():
        return False
    sidecar = sidecar_path(mask)
    if sidecar.is_file():
        try:
            if read_json(sidecar, dict[str, Any], "process it again").get("Manual") is True:
                return True
        except UsageError:  # damaged; it is written anew, and the mask says as much
            pass
    return saved_over(mask, output_dir, entities)


def saved_over(mask: Path, output_dir: Path, entities: Mapping[str, Any]) -> bool:
    """Tell whether a mask has other voxels than the lesions that were measured on it.

    Parameters
    ----------
    mask : Path
        The scan's, or a copy of it. One that is not there or is no whole image was not edited.
    output_dir, entities
        As for `was_edited`; without lesions nothing can be told.
    """
    found = _voxels(mask)
    measured = _voxels(derivative_path(output_dir, entities, "lesions_dseg"))
    return found is not None and measured is not None and not np.array_equal(found, measured)


def keep(mask: Path, output_dir: Path, entities: Mapping[str, Any], unlike: Path) -> Path | None:
    """Keep a copy of a mask that is about to be replaced.

    Parameters
    ----------
    mask : Path
    output_dir, entities
        As for `was_edited`.
    unlike : Path
        What takes its place; nothing is kept where that has the same voxels.

    Returns
    -------
    Path or None
        The copy: ``derivatives/edited`` of the output folder is a data set of such masks, each
        under its own name; a further one of the same scan goes into ``edited2``, and so on.
    """
    found, other = _voxels(mask), _voxels(unlike)
    if found is None or (other is not None and np.array_equal(found, other)):
        return None
    name = derivative_path(Path(), entities, "wmh_mask")
    for number in itertools.count(1):
        root = output_dir / f"{KEPT}{number if number > 1 else ''}"
        path = root / name
        if not path.is_file() or path.read_bytes() == mask.read_bytes():
            break
    describe_edited(root, "WMH masks edited by hand, which others have replaced")
    copy_file(mask, path)
    row = catalogue().files["wmh_mask"]
    text = "White matter hyperintensities as a person left them."
    write_json(sidecar_path(path), {**row.metadata, "Manual": True, "Description": text})
    return path


def describe_edited(root: Path, name: str) -> None:
    """Write what a data set of edited masks is."""
    write_json(
        root / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "bagau remeasure"}],
        },
    )


def kept_masks(output_dir: Path, entities: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the masks of a scan that `keep` has kept, the latest last."""
    name = derivative_path(Path(), entities, "wmh_mask")
    return tuple(path for root in _roots(output_dir) if (path := root / name).is_file())


def kept_of(output_dir: Path, participant: str) -> tuple[Path, ...]:
    """Return all files that `keep` has made for a participant (``sub-<label>``), sorted."""
    found = (path for root in _roots(output_dir) for path in (root / participant).rglob("*"))
    return tuple(sorted(path for path in found if path.is_file()))


def how_to_take(out: Path, kept: Path, entities: Mapping[str, Any]) -> str:
    """Return the command that measures results anew from a mask that was kept.

    Parameters
    ----------
    out : Path
        Folder of the results, as a user calls it.
    kept : Path
        As by `keep`.
    entities : mapping
        Of the scan.
    """
    depth = len(derivative_path(Path(), entities, "wmh_mask").parts)
    words = ["bagau", "remeasure", str(out), "--masks", str(kept.parents[depth - 1])]
    return shlex.join(words)


def _roots(output_dir: Path) -> Iterator[Path]:
    """Find the data sets of kept masks, the latest last."""
    found = ((KEPT_FOLDER.fullmatch(root.name), root) for root in output_dir.glob(f"{KEPT}*"))
    numbered = [(int(match[1] or 1), root) for match, root in found if match and root.is_dir()]
    yield from (root for _, root in sorted(numbered))


def _voxels(path: Path) -> NDArray[np.bool_] | None:
    """Voxels of a mask or of labels, as they are stored; None where there is no whole image."""
    try:
        return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj) > 0
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        return None
