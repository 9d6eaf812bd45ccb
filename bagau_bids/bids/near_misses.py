"""Why nothing was found: the files that are there and what keeps the nearest one from matching."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bagau_bids.bids.annex import broken_link
from bagau_bids.bids.filters import ABSENT, ANY, ENTITIES, Query

_MOST_SUBJECTS = 20
_MOST_FILES = 10
_IMAGE = re.compile(r"\.(nii(\.gz)?|img|hdr|mgz|mgh|dcm|mnc|nrrd)$", re.IGNORECASE)
_NIFTI = re.compile(r"\.nii(\.gz)?$")


def explain_nothing_found(bids_dir: Path, subjects: Sequence[str], query: Query) -> str:
    """Return the message for a query without a match.

    Parameters
    ----------
    bids_dir
        Root of the data set.
    subjects
        Labels of the participants asked for; they exist.
    query
        What was asked for.

    Returns
    -------
    str
        Several lines: the query, the files seen, the nearest miss.
    """
    lines = [f"No FLAIR image to process in {bids_dir}.", f"Query: {query}."]
    if not subjects:
        return "\n".join([*lines, _no_subjects(bids_dir)])
    files = [
        path
        for subject in subjects[:_MOST_SUBJECTS]
        for path in _files(bids_dir / f"sub-{subject}")
    ]
    if not files and (gone := _broken_folders(bids_dir, subjects)):
        return "\n".join([*lines, *gone])
    images = [path for path in files if _IMAGE.search(path.name)]
    where = (
        f" of the first {_MOST_SUBJECTS} participants" if len(subjects) > _MOST_SUBJECTS else ""
    )
    names = [str(path.relative_to(bids_dir)) for path in images]
    more = ", ..." if len(names) > _MOST_FILES else ""
    lines.append(
        f"Images seen{where}: {len(names)}"
        + (f": {', '.join(names[:_MOST_FILES])}{more}" if names else "")
        + "."
    )
    return "\n".join([*lines, _nearest(bids_dir, files, query)])


def explain_subject(bids_dir: Path, subject: str, query: Query) -> str:
    """Return in one line why one participant has no FLAIR that matches."""
    folder = bids_dir / f"sub-{subject}"
    files = _files(folder)
    if not files:
        return broken_link(folder) or _empty(folder)
    misses = [path for path in files if "flair" in path.name.lower()]
    if misses:
        return _nearest(bids_dir, misses, query)
    images = [path.name for path in files if _IMAGE.search(path.name)]
    seen = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "") or "no image at all"
    return f"its folder has {seen}"


def _no_subjects(bids_dir: Path) -> str:
    there = sorted(path.name for path in bids_dir.iterdir())
    hint = ""
    for name in there:
        below = bids_dir / name
        if below.is_dir() and any(below.glob("sub-*")):
            hint = f" {below} has some: is that the data set?"
            break
    listed = ", ".join(there[:_MOST_FILES]) + (", ..." if len(there) > _MOST_FILES else "")
    return (
        "It has no folder whose name begins with sub-, as BIDS asks for; it has "
        f"{listed or 'nothing'}.{hint}"
    )


def _empty(folder: Path) -> str:
    return (
        f"{folder} is empty; where it is a DataLad subdataset that was not fetched, run: "
        f"datalad get {folder}"
    )


def _broken_folders(bids_dir: Path, subjects: Sequence[str]) -> list[str]:
    """Say of participants whose folder is a link to nothing what it points to."""
    reasons = (broken_link(bids_dir / f"sub-{subject}") for subject in subjects[:_MOST_SUBJECTS])
    return [reason for reason in reasons if reason]


def _files(folder: Path) -> list[Path]:
    return sorted(
        Path(directory) / name
        for directory, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    )


def _nearest(bids_dir: Path, files: Sequence[Path], query: Query) -> str:
    """Return the nearest miss: the file with the fewest things wrong."""
    candidates = [path for path in files if "flair" in path.name.lower()]
    if not candidates:
        if not files:
            return "The participants' folders are empty; for DataLad subdatasets run datalad get."
        return "No name contains FLAIR; BIDS names such an image sub-<label>_FLAIR.nii.gz."
    judged = [(_differences(path.relative_to(bids_dir), query), path) for path in candidates]
    differences, path = min(judged, key=lambda item: (len(item[0]), item[1]))
    reasons = "; ".join(differences) or "it appeared while the data set was read"
    return f"Nearest miss: {path.relative_to(bids_dir)}: {reasons}."


def _differences(relative: Path, query: Query) -> list[str]:
    """Return everything that keeps a file with FLAIR in its name from matching."""
    found = []
    name = relative.name
    if not _NIFTI.search(name):
        found.append(_not_nifti(name))
    stem = name.split(".", 1)[0]
    *parts, suffix = stem.split("_")
    if suffix != "FLAIR":
        spelled = "BIDS spells it" if suffix.lower() == "flair" else "it must be"
        found.append(f'its suffix is "{suffix}", {spelled} "FLAIR"')
    beginning = "_".join(part for part in relative.parts[:2] if part[:4] in ("sub-", "ses-"))
    if not name.startswith(f"{beginning}_"):
        found.append(f"its name must begin with {beginning}_, as its folders say")
    folder = relative.parent.name
    if folder != "anat":
        found.append(f'it lies in the folder "{folder}", expected "anat"')
    return found + _entity_differences(parts, query)


def _not_nifti(name: str) -> str:
    if name.endswith(".json"):
        return "a sidecar without its image (.nii.gz or .nii)"
    return "no NIfTI file (.nii.gz or .nii); convert it"


def _entity_differences(parts: Sequence[str], query: Query) -> list[str]:
    labels = dict(part.split("-", 1) for part in parts if "-" in part)
    found = []
    for key, entity in ENTITIES.items():
        wanted = query.wanted.get(entity)
        if wanted is None or entity == "subject":
            continue
        label = labels.get(key)
        if not any(_matches(label, value) for value in wanted):
            asked = " or ".join("none" if value is ABSENT else str(value) for value in wanted)
            found.append(f"its {entity} is {label or 'none'}, asked for is {asked}")
    return found


def _matches(label: str | None, wanted: str | None) -> bool:
    if wanted == ANY:
        return label is not None
    if label is None or wanted is None:
        return label is wanted
    return label == wanted or (label.isdigit() and wanted.isdigit() and int(label) == int(wanted))
