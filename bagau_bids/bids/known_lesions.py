"""Masks of what a user knows to be no WMH: an infarct, a tumour, a resection."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagau_bids.bids.annex import broken_link
from bagau_bids.bids.derivatives import source_folder, source_stem
from bagau_bids.bids.masks import NIFTI_EXTENSION, name_entities
from bagau_bids.errors import InputImageError

RAW_LABELS = ("lesion",)  # beside the FLAIR, with the suffix roi
DERIVATIVE_LABELS = ("lesion", "infarct", "tumour", "tumor", "resection")
# What a mask's name may add to the entities of its FLAIR.
FREE_ENTITIES = ("label", "desc", "mod", "space")


@dataclass(frozen=True)
class KnownLesions:
    """A mask of known lesions.

    Attributes
    ----------
    path
        The image.
    note
        What to tell about how it was chosen; empty where there was nothing to choose.
    """

    path: Path
    note: str = ""


def find_known_lesions(
    flair: Path,
    entities: Mapping[str, Any],
    derivatives: Iterable[Path] = (),
    *,
    beside: bool = True,
) -> KnownLesions | None:
    """Look for the mask of known lesions that belongs to a FLAIR.

    A mask belongs to it whose name holds no other entities than the FLAIR's and, besides, at most
    ``label``, ``desc``, ``mod`` and ``space-orig``. Of several, those with the most entities of
    the FLAIR come first. A part such as ``T1w`` before the label, as older data sets have it, is
    passed over.

    Parameters
    ----------
    flair : Path
        The FLAIR.
    entities : mapping
        Its entities, as for `source_stem`.
    derivatives : iterable of Path
        Roots of derivative data sets whose ``label-lesion``, ``label-infarct``, ``label-tumour``
        or ``label-resection`` masks (suffix ``mask`` or ``roi``) are taken, the preferred first.
    beside : bool
        Whether to look for ``*_label-lesion_roi`` in the folder of the FLAIR too. It comes last.

    Returns
    -------
    KnownLesions or None

    Raises
    ------
    InputImageError
        If several fit equally well, or one is a link to a file that was not fetched.
    """
    places: list[tuple[Path, tuple[str, ...], tuple[str, ...]]] = [
        (root / source_folder(entities), ("roi", "mask"), DERIVATIVE_LABELS)
        for root in derivatives
    ]
    if beside:
        places.append((flair.parent, ("roi",), RAW_LABELS))
    chosen: list[Path] = []
    for folder, suffixes, labels in places:
        found = _best(_fitting(folder, suffixes, labels, entities), entities)
        if len(found) > 1 and not chosen:
            names = ", ".join(path.name for path in found)
            raise InputImageError(
                f"{folder}: holds several masks of known lesions of {source_stem(entities)}: "
                f"{names}; expected one: join them in one file, or name a folder of derivatives "
                "that holds one with --known-lesions"
            )
        chosen += found
    if not chosen:
        return None
    if reason := broken_link(chosen[0]):
        raise InputImageError(reason)
    others = ", ".join(str(path) for path in chosen[1:])
    note = f"Known lesions are those of {chosen[0]}, not of {others}." if others else ""
    return KnownLesions(chosen[0], note)


def _fitting(
    folder: Path, suffixes: tuple[str, ...], labels: tuple[str, ...], entities: Mapping[str, Any]
) -> Iterator[Path]:
    """Masks of known lesions in a folder that may belong to a scan, by their names."""
    for path in sorted(folder.glob("*_label-*.nii*")):
        own = name_entities(path)
        suffix = NIFTI_EXTENSION.sub("", path.name).split("_")[-1]
        named = NIFTI_EXTENSION.search(path.name) and suffix in suffixes
        if not named or own.get("label") not in labels or own.get("space", "orig") != "orig":
            continue
        scan = {key: label for key, label in own.items() if key not in FREE_ENTITIES}
        if all(entities.get(key) == label for key, label in scan.items()):
            yield path


def _best(paths: Iterable[Path], entities: Mapping[str, Any]) -> list[Path]:
    """Those whose names hold the most entities of the scan."""
    shared = {path: len(name_entities(path).keys() & entities.keys()) for path in paths}
    return [path for path, count in shared.items() if count == max(shared.values())]
