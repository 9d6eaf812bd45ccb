"""FLAIRs of any name and place: laid out as a BIDS data set, their results under plain names."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from bagau_bids.bids.derivatives import derivative_path, sidecar_path
from bagau_bids.bids.description import BIDS_VERSION
from bagau_bids.bids.masks import KEPT, NIFTI_EXTENSION, extension_of
from bagau_bids.bids.tables import read_records
from bagau_bids.errors import UsageError
from bagau_bids.files import (
    copy_file,
    one_at_a_time,
    place_file,
    write_json,
    write_table,
    write_text,
)

NIFTI_ENDINGS = (".nii.gz", ".nii")
PARTICIPANTS = "participants.tsv"
COLUMNS = ("participant_id", "scan", "source")
COLUMN_TEXTS = {
    "scan": {"Description": "Name of the scan's results: that of its file"},
    "source": {"Description": "File or folder that was given"},
}
# What people look for first, by the key of the catalogue of derivatives.
PLAIN_NAMES = {
    "wmh_mask": "wmh_mask.nii.gz",
    "wmh_probseg": "wmh_probability.nii.gz",
    "infarct_mask": "infarct_mask.nii.gz",
    "brain_mask": "brain_mask.nii.gz",
    "volumes_table": "volumes.tsv",
    "lesions_table": "lesions.tsv",
    "quality_table": "quality.tsv",
}
PAGE = "report.html"
OUT = "OUT"  # how a page calls the folder of the results in a command
# Paragraphs of a page that hold nothing but links to files.
_OF_FILES = re.compile(r'<p class="files">Get the picture: .*?</p>\n', re.DOTALL)


def name_scans(paths: Sequence[Path]) -> dict[str, Path]:
    """Give each FLAIR the name of its results.

    Parameters
    ----------
    paths : sequence of Path
        NIfTI files, or folders of DICOM files; what is named twice is taken once.

    Returns
    -------
    dict of str to Path
        The name without ending; where several have the same, as many folders above as
        tell them apart come before it, as in ``patient1_FLAIR``, and a number where none do.

    Raises
    ------
    UsageError
        If a path is neither a NIfTI file nor a folder, or its name is of no use.
    """
    parts = {path: _parts(path) for path in dict.fromkeys(_there(path) for path in paths)}
    levels = dict.fromkeys(parts, 1)
    while True:
        names = defaultdict[str, list[Path]](list)
        for path, level in levels.items():
            names["_".join(parts[path][-level:])].append(path)
        longer = [
            path
            for same in names.values()
            for path in same
            if len({parts[one] for one in same}) > 1 and levels[path] < len(parts[path])
        ]
        if not longer:
            break
        for path in longer:
            levels[path] += 1
    return dict(_numbered(names))


def _numbered(names: Mapping[str, Sequence[Path]]) -> Iterator[tuple[str, Path]]:
    """Tell paths apart that stay alike to the root, such as ``x.nii`` and ``x.nii.gz``."""
    taken = set(names)
    for name, (first, *others) in names.items():
        yield name, first
        for path in others:
            other = next(o for n in itertools.count(2) if (o := f"{name}_{n}") not in taken)
            taken.add(other)
            yield other, path


def _there(path: Path) -> Path:
    """Return the absolute path of a NIfTI file or a folder; links to it are not followed."""
    path = path.absolute()
    name = NIFTI_EXTENSION.sub("", path.name)
    if path.is_dir() or (path.is_file() and extension_of(path)):
        if name.strip(" .") and name.isprintable():
            return path
        found, advice = "has no name that a folder can have", "rename it"
    elif path.is_file():
        found, advice = "is no NIfTI file", "convert it, for example with dcm2niix or nibabel"
    else:
        found, advice = "does not exist", "check the path"
    raise UsageError(
        f"{path}: {found}; expected a FLAIR as .nii or .nii.gz, or a folder of DICOM files: "
        f"{advice}"
    )


def _parts(path: Path) -> tuple[str, ...]:
    """Return the names of the folders down to a path, and its own without the ending."""
    *folders, name = path.parts[1:]
    return *folders, NIFTI_EXTENSION.sub("", name).strip()


def lay_out(
    root: Path, scans: Mapping[str, Path], sources: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """Lay FLAIRs out as a BIDS data set of links to them, beside those that are there already.

    Parameters
    ----------
    root : Path
        Folder of the data set, made where missing. ``participants.tsv`` says which participant
        is which scan.
    scans : mapping of str to Path
        FLAIRs by name, as `name_scans` returns them; a JSON file beside one goes with it.
    sources : mapping of str to Path, optional
        What each was made from, such as a folder of DICOM files; by default the FLAIR.

    Returns
    -------
    dict of str to str
        Label of the participant by the name of the scan: its letters and digits, with a number
        where that is another's; a name keeps its label.

    Raises
    ------
    UsageError
        If ``participants.tsv`` cannot be read, or a name is that of another scan there.
    """
    sources = sources or scans
    root.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root / ".lock"):
        table = root / PARTICIPANTS
        rows = read_records(table, COLUMNS) if table.is_file() else []
        known = {row["scan"]: row["source"] for row in rows}
        for name, source in sources.items():
            if known.setdefault(name, str(source)) != str(source):
                raise UsageError(
                    f"{source}: {root.parent} has results of {known[name]} under its name, "
                    f"{name}; expected one scan of a name: choose another folder for the results, "
                    "or name both scans in one command, which tells them apart by their folders"
                )
        labels = {row["scan"]: row["participant_id"].removeprefix("sub-") for row in rows}
        taken = {label.casefold() for label in labels.values()}  # names of folders
        for name in scans:
            if name not in labels:
                labels[name] = _new_label(name, taken)
                taken.add(labels[name].casefold())
        listed = [(f"sub-{label}", name, known[name]) for name, label in labels.items()]
        write_table(table, pd.DataFrame(listed, columns=COLUMNS))
        write_json(sidecar_path(table), COLUMN_TEXTS)
        description = {"Name": "FLAIRs as they were found", "BIDSVersion": BIDS_VERSION}
        write_json(root / "dataset_description.json", description)
    for name, path in scans.items():
        folder, stem = root / f"sub-{labels[name]}" / "anat", f"sub-{labels[name]}_FLAIR"
        beside = path.with_name(NIFTI_EXTENSION.sub("", path.name) + ".json")
        sources = {extension_of(path) or "": path} | (
            {".json": beside} if beside.is_file() else {}
        )
        for ending in (*NIFTI_ENDINGS, ".json"):
            if ending in sources:
                _link(sources[ending], folder / f"{stem}{ending}")
            else:
                (folder / f"{stem}{ending}").unlink(missing_ok=True)  # of a file of that name
    return {name: labels[name] for name in scans}


def _new_label(name: str, taken: Iterable[str]) -> str:
    base = re.sub(r"[^0-9A-Za-z]", "", name) or "scan"
    label, number = base, 2
    while label.casefold() in taken:
        label, number = f"{base}n{number}", number + 1
    return label


def _link(source: Path, path: Path) -> None:
    """Link to a file, or copy it where the file system knows no links."""
    try:
        place_file(source, path, "symlink")
    except OSError:
        copy_file(source, path)


def take_results(
    derivatives: Path,
    label: str,
    folder: Path,
    *,
    complete: bool,
    name: str,
    names: Mapping[Path, Path] = MappingProxyType({}),
) -> None:
    """Copy the results of a participant's one FLAIR to plain names.

    Parameters
    ----------
    derivatives : Path
        Root of the derivatives.
    label : str
        Of the participant.
    folder : Path
        Gets `PLAIN_NAMES` and `PAGE`; what is there of an earlier run and is no result of this
        one is removed. The page's links to these files lead to them, and there are no others:
        the folder may be taken anywhere.
    complete : bool
        Whether the scan is done; else its page alone is copied, which says why.
    name : str
        By what name the page is to call the scan.
    names : mapping of Path to Path
        By what name of a file the page is to call it.
    """
    there = {
        plain: source
        for key, plain in PLAIN_NAMES.items()
        if complete and (source := derivative_path(derivatives, {"sub": label}, key)).is_file()
    }
    for plain in PLAIN_NAMES.values():
        if plain in there:
            copy_file(there[plain], folder / plain)
        else:
            (folder / plain).unlink(missing_ok=True)
    page = derivatives / f"sub-{label}.html"
    if not page.is_file():
        (folder / PAGE).unlink(missing_ok=True)
        return
    links = {path.relative_to(derivatives).as_posix(): plain for plain, path in there.items()}
    text = _linked(page.read_text(encoding="utf-8"), links)
    called_so = re.compile(rf"(>[^<>]*)\bsub-{label}(?=<| –)")  # in words, not in addresses
    text = called_so.sub(lambda found: f"{found[1]}{escape(name)}", text)
    kept = escape(f"{OUT}/{KEPT}")
    below = Path(os.path.relpath(derivatives, folder.parent), KEPT)
    text = text.replace(kept, escape(f"{OUT}/{below.as_posix()}"))
    for link, called in names.items():  # as a page has them, in which a name may hold no markup
        text = text.replace(escape(str(link)), escape(str(called)))
    write_text(folder / PAGE, text)


def _linked(page: str, links: Mapping[str, str]) -> str:
    """Let a page's links to files lead to other names; those to any other file are left out."""

    def link(found: re.Match[str]) -> str:
        target, words = found.groups()
        if target.startswith(("#", "https://")):
            return found[0]
        return f'<a href="{links[target]}">{words}</a>' if target in links else words

    return re.sub(r'<a href="([^"]*)">(.*?)</a>', link, _OF_FILES.sub("", page))


def renamed(text: str, names: Mapping[Path, Path]) -> str:
    """Call files in a text by other names: those that the user gave."""
    for path, name in names.items():
        text = text.replace(str(path), str(name))
    return text
