"""Which result belongs to which reference: two files, two BIDS derivatives, or two folders."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bagau_bids.bids.masks import (
    NIFTI_EXTENSION,
    extension_of,
    find_lesion_masks,
    lesion_mask_at,
)
from bagau_bids.bids.tables import natural_key, read_records
from bagau_bids.errors import UsageError

_Key = tuple[frozenset[tuple[str, str]] | str, str]  # scan and space
_EXAMPLES = 3  # names that a message shows of each side


@dataclass(frozen=True)
class MaskPair:
    """A reference mask and the result to be judged by it.

    Parameters
    ----------
    case : str
        What tables call it: the entities of the scan, or the path of a plain file below its
        folder without extension.
    reference, result : Path
    entities : dict
        Entities of the scan, short key to label; empty for plain files.
    """

    case: str
    reference: Path
    result: Path
    entities: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Unpaired:
    """A case that cannot be scored because its files do not make one pair.

    Parameters
    ----------
    case : str
    problem : str
        What is there and what is missing, with the paths.
    entities : dict
        As in `MaskPair`.
    """

    case: str
    problem: str
    entities: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class _Found:
    """A mask under what identifies it: the scan, and the space where a scan may have several."""

    scan: str
    space: str
    path: Path
    entities: Mapping[str, str]

    @property
    def key(self) -> _Key:
        return frozenset(self.entities.items()) or self.scan, self.space

    @property
    def case(self) -> str:
        return self.scan if self.space in ("orig", "") else f"{self.scan}_space-{self.space}"


def find_pairs(reference: Path, result: Path) -> tuple[list[MaskPair], list[Unpaired]]:
    """Pair the masks of two files or two folders.

    Two files are one pair. Of two folders that both hold ``*_label-WMH_mask.nii[.gz]`` these
    masks are paired where they have the same entities, ``desc`` and ``res`` apart and no
    ``space`` counting as ``space-orig``; a mask in a further space of a scan that has a pair is
    left alone. Otherwise all ``*.nii[.gz]`` of both folders are paired by their path below
    the folder without extension: in flat folders, by the file's stem.

    Parameters
    ----------
    reference, result : Path
        Both files or both folders.

    Returns
    -------
    pairs : list of MaskPair
    unpaired : list of Unpaired
        Masks of one folder only, and cases with several masks in one.

    Raises
    ------
    UsageError
        If a path does not exist, one is a file and the other a folder, or nothing pairs.
    """
    for path in (reference, result):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; check the path")
    if reference.is_file() and result.is_file():
        mask = lesion_mask_at(reference)
        name = mask.scan if mask else NIFTI_EXTENSION.sub("", reference.name)
        return [MaskPair(name, reference, result, mask.entities if mask else {})], []
    if reference.is_file() or result.is_file():
        raise UsageError(
            f"{reference} and {result}: a file and a folder; expected two files or two folders"
        )
    sides = _masks_of_both(reference, result)
    pairs, unpaired = _pair(*sides)
    if not pairs:
        raise UsageError(
            f"nothing to compare: no mask of {reference} ({_examples(sides[0])}) has the name of "
            f"one of {result} ({_examples(sides[1])}); expected *_label-WMH_mask.nii.gz of the "
            "same scans in both, or files of the same names: name the folders that hold them, or "
            "pair files of other names by --pairs TABLE or --by-order"
        )
    return pairs, unpaired


def table_pairs(table: Path, reference: Path, result: Path) -> list[MaskPair]:
    """Pair masks of any names as the lines of a table do.

    Parameters
    ----------
    table : Path
        ``.tsv`` with the columns ``reference`` and ``result``: paths below the two folders.
    reference, result : Path
        Folders.

    Raises
    ------
    UsageError
        If the table cannot be read, or a path is no mask.
    """
    pairs = []
    for row in read_records(table, ("reference", "result")):
        paths = reference / row["reference"], result / row["result"]
        for path in paths:
            if not (path.is_file() and extension_of(path)):
                raise UsageError(
                    f"{table}: {path} is no NIfTI file that is there; expected paths below "
                    f"{reference} in the column reference, and below {result} in result"
                )
        pairs.append(MaskPair(NIFTI_EXTENSION.sub("", row["reference"]), *paths))
    if not pairs:
        raise UsageError(f"{table}: has no line below its header; expected one a pair of masks")
    return pairs


def ordered_pairs(reference: Path, result: Path) -> list[MaskPair]:
    """Pair the masks of two folders by their order, numbers in names by their value.

    Raises
    ------
    UsageError
        If either is no folder, or they hold different numbers of NIfTI files.
    """
    for folder in (reference, result):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; expected two folders of masks")
    sides = [
        sorted(_plain_masks(folder), key=lambda mask: natural_key(mask.scan))
        for folder in (reference, result)
    ]
    truth, found = sides
    if len(truth) != len(found) or not truth:
        raise UsageError(
            f"{reference} ({_examples(truth)}) and {result} ({_examples(found)}): expected as "
            "many masks in both to pair them by order: move other files away, or give a table"
        )
    return [MaskPair(a.case, a.path, b.path) for a, b in zip(truth, found, strict=True)]


def pairing_in_words(pairs: Sequence[MaskPair], how: str) -> list[str]:
    """Say how masks were paired, and the first pairs, so that a wrong pairing is seen."""
    shown = [f"  {pair.reference.name} with {pair.result.name}" for pair in pairs[:_EXAMPLES]]
    more = [f"  and {len(pairs) - _EXAMPLES} more"] if len(pairs) > _EXAMPLES else []
    return [f"{len(pairs)} pairs, {how}:", *shown, *more]


def _masks_of_both(reference: Path, result: Path) -> tuple[list[_Found], list[_Found]]:
    truth, found = _bids_masks(reference), _bids_masks(result)
    if truth and found:
        return truth, found
    return _plain_masks(reference), _plain_masks(result)


def _bids_masks(folder: Path) -> list[_Found]:
    return [
        _Found(mask.scan, mask.space, mask.path, mask.entities)
        for mask in find_lesion_masks(folder)
    ]


def _plain_masks(folder: Path) -> list[_Found]:
    return [
        _Found(NIFTI_EXTENSION.sub("", path.relative_to(folder).as_posix()), "", path, {})
        for path in sorted(folder.rglob("*.nii*"))
        if NIFTI_EXTENSION.search(path.name) and not path.name.startswith(".")
    ]


def _pair(truth: list[_Found], found: list[_Found]) -> tuple[list[MaskPair], list[Unpaired]]:
    references, results = _by_key(truth), _by_key(found)
    shared = references.keys() & results.keys()
    paired_scans = {key[0] for key in shared}
    pairs, unpaired = [], []
    for key in (*references, *(key for key in results if key not in references)):
        sides = references.get(key, []), results.get(key, [])
        first = (*sides[0], *sides[1])[0]
        if key not in shared and key[0] in paired_scans:
            continue  # a copy in a space that the other side does not have
        problem = _problem(*sides)
        if problem:
            unpaired.append(Unpaired(first.case, problem, first.entities))
        else:
            pairs.append(MaskPair(first.case, sides[0][0].path, sides[1][0].path, first.entities))
    return pairs, unpaired


def _by_key(masks: list[_Found]) -> dict[_Key, list[_Found]]:
    groups: dict[_Key, list[_Found]] = defaultdict(list)
    for mask in masks:
        groups[mask.key].append(mask)
    return groups


def _problem(references: list[_Found], results: list[_Found]) -> str:
    """Why masks under one name are not one pair; empty where they are."""
    if not results:
        return f"{references[0].path}: the result has no mask of this case, expected one"
    if not references:
        return f"{results[0].path}: the reference has no mask of this case, expected one"
    for kind, masks in (("reference", references), ("result", results)):
        if len(masks) > 1:
            names = ", ".join(str(mask.path) for mask in masks)
            return f"{names}: {len(masks)} masks in the {kind}; expected one: move the others"
    return ""


def _examples(masks: list[_Found]) -> str:
    names = [mask.path.name for mask in masks[:_EXAMPLES]]
    more = ["..."] if len(masks) > _EXAMPLES else []
    return f"{len(masks)} masks: {', '.join(names + more)}" if masks else "no mask"
