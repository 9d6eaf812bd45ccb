"""Masks of a BIDS derivative data set, each known by the scan it was drawn or made on."""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bagau_bids.bids.annex import broken_link
from bagau_bids.bids.derivatives import source_folder, source_stem
from bagau_bids.errors import InputImageError

NIFTI_EXTENSION = re.compile(r"\.nii(\.gz)?$")
# What a mask's name may add to the entities of its scan.
FREE_ENTITIES = ("space", "label", "desc", "res")
# Data sets in a folder of results: masks that a person edited and others have replaced.
KEPT = "derivatives/edited"
KEPT_FOLDER = re.compile(r"edited([0-9]*)")


def extension_of(path: Path) -> str | None:
    """``.nii.gz`` or ``.nii``; None for any other file."""
    found = NIFTI_EXTENSION.search(path.name)
    return found[0] if found else None


@dataclass(frozen=True)
class LesionMask:
    """A WMH mask on disk.

    Attributes
    ----------
    path
        The image.
    entities
        Entities of its scan, short key to label, in the order of the name.
    space
        Label of ``space``; ``orig``, the scan's own, where the name has none.
    """

    path: Path
    entities: dict[str, str] = field(hash=False)
    space: str

    @property
    def scan(self) -> str:
        """Entities of its scan as in file names, e.g. ``sub-01_ses-2``."""
        return "_".join(f"{key}-{label}" for key, label in self.entities.items())


def name_entities(path: Path) -> dict[str, str]:
    """Entities of a BIDS file name, short key to label, in order; the suffix is left out."""
    parts = NIFTI_EXTENSION.sub("", path.name).split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


def lesion_mask_at(path: Path) -> LesionMask | None:
    """Read the name of a file; None where it is not that of a WMH mask of BIDS.

    Such a name holds the entities of the scan, ``label-WMH``, at most ``space``, ``desc`` and
    ``res`` besides, and the suffix ``mask``.
    """
    entities = name_entities(path)
    suffix = NIFTI_EXTENSION.sub("", path.name).split("_")[-1]
    named = NIFTI_EXTENSION.search(path.name) and suffix == "mask" and "sub" in entities
    if not named or entities.get("label") != "WMH":
        return None
    own = {key: label for key, label in entities.items() if key not in FREE_ENTITIES}
    return LesionMask(path, own, entities.get("space", "orig"))


def find_lesion_masks(folder: Path) -> list[LesionMask]:
    """Find the WMH masks below a folder, sorted by path; none where there is no such folder.

    Masks of earlier days that are kept in a folder of results (`KEPT`) do not count.
    """
    paths = sorted(folder.rglob("*_mask.nii*")) if folder.is_dir() else []
    return [
        mask
        for path in paths
        if not _is_kept(path.relative_to(folder)) and (mask := lesion_mask_at(path)) is not None
    ]


def _is_kept(path: Path) -> bool:
    parent, *_ = Path(KEPT).parts
    return any(
        above == parent and KEPT_FOLDER.fullmatch(name)
        for above, name in itertools.pairwise(path.parts)
    )


def find_brain_mask(derivatives: Mapping[str, Path], entities: Mapping[str, Any]) -> Path | None:
    """Look for a brain mask of one FLAIR in other derivative data sets.

    Parameters
    ----------
    derivatives : mapping of str to Path
        Roots of the data sets under their names, the preferred one first.
    entities : mapping
        Entities of the FLAIR, as for `source_stem`; the mask must carry all of them.

    Returns
    -------
    Path or None
        ``[_space-orig]_label-brain_mask`` or ``[_space-orig]_desc-brain_mask`` of the same scan;
        None where no data set has one.

    Raises
    ------
    InputImageError
        If one data set holds several that fit, or a link to one that was not fetched.
    """
    stem, folder = source_stem(entities), source_folder(entities)
    names = [
        f"{stem}{space}_{kind}-brain_mask{extension}"
        for space in ("_space-orig", "")
        for kind in ("label", "desc")
        for extension in (".nii.gz", ".nii")
    ]
    for root in derivatives.values():
        found = [path for name in names if os.path.lexists(path := root / folder / name)]
        if len(found) > 1:
            raise InputImageError(
                f"{root}: holds several brain masks of {stem}: "
                f"{', '.join(path.name for path in found)}; expected one: leave out the others"
            )
        if found and (reason := broken_link(found[0])):
            raise InputImageError(reason)
        if found:
            return found[0]
    return None
