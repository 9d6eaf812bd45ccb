"""The folders of the WMH Segmentation Challenge, as they were handed out, read as cases.

Two layouts are known: that of the public release, ``<split>/<site>[/<scanner>]/<number>/``, and
that of 2017, ``<site or scanner>/<number>/``, which held training data alone. What is in the
files of a case, and how scanners are called, is data (``data/wmh_challenge.json``).
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bagau_bids.bids.derivatives import bids_uri, source_folder, source_stem
from bagau_bids.bids.masks import extension_of
from bagau_bids.datasets.cases import (
    Case,
    Collection,
    Failure,
    Placement,
    mask_placement,
    raw_placement,
)
from bagau_bids.errors import UsageError
from bagau_bids.files import read_shipped

IMAGES = ("orig", "pre")
SPLITS = ("training", "test")
OBSERVERS = "additional_annotations"
SOURCEDATA = Path("sourcedata", "wmh-challenge")
JUNK = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini", re.IGNORECASE)
REFERENCE_TEXT = (
    "Reference standard of the challenge: 0 background, 1 white matter hyperintensity, 2 other "
    "pathology, not judged."
)
Identity = tuple[str, str, str]  # split, scanner (a key of the facts, or empty), number
OBSERVER_TEXT = "Outlined by observer {label} of the challenge: 1 white matter hyperintensity."


@cache
def challenge_facts() -> dict[str, Any]:
    """Return what is known of the data: scanners, files, description of the data set."""
    return read_shipped("wmh_challenge.json", dict[str, Any])


def find_cases(source: Path, images: str = "orig") -> Collection:
    """Read a folder of the challenge; no image is opened.

    Parameters
    ----------
    source : Path
        Folder of the release, or one above or below its ``training`` and ``test``.
    images : {'orig', 'pre'}
        Which FLAIR and T1w become the raw data; the others become derivatives.

    Returns
    -------
    Collection
        With every file below `source`.

    Raises
    ------
    UsageError
        If there is no folder of a case.
    """
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; expected the data of the WMH challenge")
    found, ignored, failures = _list_files(source)
    folders, observers, rest = _sort_files(source, found)
    if not folders:
        raise UsageError(
            f"{source}: {len(found)} files, but no folder of a case; expected folders such as "
            "training/Utrecht/0 with orig/FLAIR.nii.gz and wmh.nii.gz: give the folder above them"
        )
    cases = []
    for folder, contents in folders.items():
        identity = _identity(source / folder)
        further = observers.pop(identity, {})
        fault = _fault(folder, contents, identity, images)
        if fault:
            lost = (*contents.values(), *further.values())
            failures.append(Failure(folder.as_posix(), fault, lost))
            continue
        case = _case(folder, contents, identity, further, images)
        used = {one.source for one in case.placements}
        rest += [path for path in contents.values() if path not in used]
        cases.append(case)
    rest += [path for masks in observers.values() for path in masks.values()]
    assumed = [folder for folder in folders if not _names_split(source / folder)]
    return Collection(
        root=source,
        cases=tuple(sorted(cases, key=lambda case: source_stem(case.entities))),
        extras=tuple(Placement(path, SOURCEDATA / path.relative_to(source)) for path in rest),
        failures=tuple(failures),
        ignored=ignored,
        notes=(_assumption(assumed),) if assumed else (),
    )


def _sort_files(
    source: Path, found: Sequence[Path]
) -> tuple[dict[Path, dict[str, Path]], dict[Identity, dict[str, Path]], list[Path]]:
    """Tell files of cases from masks of further observers and from everything else.

    Returns
    -------
    folders : dict
        By the folder of a case, relative to `source`: its files by their name within it.
    observers : dict
        By split, scanner and number of a case: masks by the label of their observer.
    rest : list of Path
    """
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    observers: dict[Identity, dict[str, Path]] = defaultdict(dict)
    rest = []
    for path in found:
        inner = path.relative_to(source)
        observer, (folder, name) = _observer_of(inner), _place_in_case(inner)
        if observer:
            taken, name = observers[_identity(source / observer[1])], observer[0]
        elif name:
            taken = folders[folder]
        if not (observer or name) or name in taken:
            rest.append(path)
        else:
            taken[name] = path
    return folders, observers, rest


def _list_files(source: Path) -> tuple[list[Path], dict[Path, str], list[Failure]]:
    """List the files of a folder, those to ignore, and the links to folders: not followed."""
    found, ignored, failures = [], {}, []
    for root, folders, names in os.walk(source):
        for name in folders:
            path = Path(root, name)
            if path.is_symlink():
                reason = f"{path}: a link to a folder, not followed; import what it points to"
                failures.append(Failure(path.relative_to(source).as_posix(), reason, (path,)))
        for path in (Path(root, name) for name in names):
            if JUNK.fullmatch(path.name):
                ignored[path] = "left by an operating system, not part of the data"
            else:
                found.append(path)
    return sorted(found), ignored, failures


def _place_in_case(path: Path) -> tuple[Path, str]:
    """Folder of the case and name within it without extension; an empty name for other files."""
    stem = path.name.split(".")[0]
    if path.parent.name in IMAGES:
        return path.parent.parent, f"{path.parent.name}/{stem}"
    if stem == "wmh" and extension_of(path):
        return path.parent, stem
    return path.parent, ""


def _observer_of(path: Path) -> tuple[str, Path] | None:
    """Label of a further observer and the folder of the case, for one of their masks."""
    parts = path.parts
    if OBSERVERS not in parts or path.name.split(".")[0] != "result":
        return None
    start = parts.index(OBSERVERS) + 1
    label = re.sub(r"[^0-9a-zA-Z]", "", parts[start].removeprefix("observer_"))
    return label, Path(*parts[start + 1 : -1])


def _plain(name: str) -> str:
    """Reduce a folder's name to what all copies of it have in common.

    One is called ``Philips_VU .PETMR_01.``: a space and a final dot, which some systems change.
    """
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _names_from_end(folder: Path) -> Iterator[str]:
    """Names above a case, the nearest first, the Amsterdam of its scanners left out."""
    above = list(folder.absolute().parts[:-1])[::-1]
    yield above[0] if above else ""
    yield from (name for name in above[1:] if _plain(name) != "amsterdam")


def _identity(folder: Path) -> Identity:
    """Say from its path which case of the challenge a folder holds."""
    names = [_plain(name) for name in _names_from_end(folder)]
    known = [key for key in challenge_facts()["scanners"] if key in names[0]]
    split = names[1] if names[1:] and names[1] in SPLITS else SPLITS[0]
    return split, known[0] if known else "", folder.name


def _names_split(folder: Path) -> bool:
    return list(_names_from_end(folder))[1:2] in [[split] for split in SPLITS]


def _assumption(folders: list[Path]) -> str:
    return (
        f"{len(folders)} cases, the first {folders[0].as_posix()}, lie in no folder training or "
        "test: taken as training, as in the download of 2017"
    )


def _case(
    folder: Path,
    contents: Mapping[str, Path],
    identity: Identity,
    observers: Mapping[str, Path],
    images: str,
) -> Case:
    """Make the case of a folder in which `_fault` finds nothing."""
    split, key, number = identity
    facts = challenge_facts()
    scanner = facts["scanners"][key]
    entities = {"sub": f"{int(number):03d}{scanner['label']}"}
    sidecar = {**scanner["sidecar"], "Description": facts["images"][images]}
    flair = raw_placement(contents[f"{images}/FLAIR"], entities, "FLAIR", sidecar)
    masks = [
        mask_placement(path, flair, entities, OBSERVER_TEXT.format(label=label), label)
        for label, path in sorted(observers.items())
    ]
    return Case(
        name=folder.as_posix(),
        entities=entities,
        columns={
            "site": scanner["site"],
            "scanner": scanner["scanner"],
            "split": split,
            "challenge_id": number,
        },
        flair=flair,
        mask=mask_placement(contents["wmh"], flair, entities, REFERENCE_TEXT),
        others=(*_other_files(contents, entities, images, flair, sidecar), *masks),
    )


def _fault(folder: Path, contents: Mapping[str, Path], identity: Identity, images: str) -> str:
    """Say what keeps a folder from being a case; an empty text where nothing does."""
    _, key, number = identity
    if not number.isdigit():
        return f"{folder}: expected a folder that is named by the number of the case, such as 0"
    if not key:
        return (
            f"{folder}: found no site of the challenge above the number; expected Utrecht, "
            "Singapore, or Amsterdam with GE3T, GE1T5 or Philips_VU .PETMR_01."
        )
    wanted = {f"{images}/FLAIR": f"{images}/FLAIR.nii.gz", "wmh": "wmh.nii.gz"}
    missing = [
        name for stem, name in wanted.items() if not extension_of(contents.get(stem, Path()))
    ]
    if not missing:
        return ""
    other = next(name for name in IMAGES if name != images)
    hint = f" (--images {other} takes that of {other}/)" if f"{other}/FLAIR" in contents else ""
    return (
        f"{folder}: {' and '.join(missing)} not found, expected in every case: copy the folder "
        f"again{hint if wanted[f'{images}/FLAIR'] in missing else ''}"
    )


def _other_files(
    contents: Mapping[str, Path],
    entities: Mapping[str, str],
    images: str,
    flair: Placement,
    sidecar: Mapping[str, Any],
) -> list[Placement]:
    """Place what is known beside FLAIR and mask."""
    other = next(name for name in IMAGES if name != images)
    stem = source_stem(entities)
    t1w = raw_placement(contents.get(f"{images}/3DT1", flair.source), entities, "T1w").target
    words = {
        "chosen": images,
        "other": other,
        "stem": stem,
        "text": challenge_facts()["images"][other],
        "flair": bids_uri("raw", flair.target),
        "t1w": bids_uri("raw", t1w),
    }
    placed = []
    for known in challenge_facts()["files"]:
        path = contents.get(known["source"].format(**words))
        if path is None:
            continue
        if known["dataset"] == ".":
            placed.append(raw_placement(path, entities, "T1w", sidecar))
            continue
        folder = Path("derivatives", known["dataset"]) / source_folder(entities)
        name = known["name"].format(**words) + "".join(path.suffixes)
        filled = {
            key: value.format(**words) if isinstance(value, str) else value
            for key, value in known["sidecar"].items()
        }
        placed.append(Placement(path, folder / name, known["check"], filled))
    return placed
