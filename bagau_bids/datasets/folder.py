"""A folder of FLAIRs as they come, NIfTI or DICOM: which they are, and a BIDS data set of them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from bagau_bids.bids.derivatives import sidecar_path, source_folder, source_stem
from bagau_bids.bids.description import BIDS_VERSION
from bagau_bids.bids.masks import NIFTI_EXTENSION, extension_of
from bagau_bids.bids.tables import natural_key
from bagau_bids.datasets.dicom import NAMED, take_flair
from bagau_bids.errors import UsageError
from bagau_bids.files import claim_origin, copy_file, place_file, write_json, write_table

CLAIM = ".bagau-import.json"
TABLE = Path("sourcedata", "import.tsv")
COLUMNS = ("source", "became", "reason")
MOST_TOLD = 10  # files left out that are named on the terminal
# In names of images that are made from a FLAIR, or drawn on it.
MADE = re.compile(
    r"(?<![a-z])(mask|label|seg|segmentation|lesions?|roi|prob|probseg|probability|wmh|bet)"
    r"(?![a-z])",
    re.IGNORECASE,
)
# Of the FLAIR's own name; other letters and digits of a path become the participant's label.
_CONTRAST = re.compile(r"(t2)?[ _-]*(flair|dark[ _-]?fluid|tirm)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A FLAIR that was found: a NIfTI file, or a folder of DICOM files, and what it becomes."""

    path: Path
    entities: Mapping[str, str]

    @property
    def place(self) -> Path:
        """Where it goes in the data set, without extension."""
        return Path(source_folder(self.entities), f"{source_stem(self.entities)}_FLAIR")


@dataclass(frozen=True)
class Row:
    """What became of a file or folder: its place in the data set, or why it has none."""

    source: str
    became: str = ""
    reason: str = ""


def find_sources(folder: Path) -> tuple[list[Source], list[Row]]:
    """Find the FLAIRs of a folder, and say what else is in it and why it is left out.

    NIfTI files count whose name says FLAIR, or all where no name does; names of masks and the like
    do not. A folder without any NIfTI file that has files of no extension, or of ``.dcm`` and
    ``.ima``, counts as DICOM with all below it.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    sources : list of Source
        Those of one subfolder are of one participant: its further subfolders are sessions where
        there are several, and files that are alike otherwise are runs. Files that lie in the
        folder itself are of a participant each.
    left_out : list of Row

    Raises
    ------
    UsageError
        If there is no such folder, or no FLAIR in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected one with NIfTI or DICOM files")
    images = [path for path in _files(folder) if extension_of(path)]
    made = {path for path in images if MADE.search(_own_name(path))}
    named = [path for path in images if NAMED.search(path.name) and path not in made]
    chosen = named or [path for path in images if path not in made]
    left_out = [
        Row(
            _below(path, folder),
            reason="by its name made from a scan"
            if path in made
            else "its name does not say FLAIR, those of others do",
        )
        for path in images
        if path not in chosen
    ]
    paths = [*chosen, *_dicom_folders(folder)]
    if not paths:
        raise UsageError(
            f"{folder}: no FLAIR found ({len(left_out)} other images); expected .nii or .nii.gz "
            "files, or folders of DICOM files: look at the names"
        )
    return _named(sorted(paths, key=lambda one: natural_key(str(one))), folder), left_out


def left_out_lines(rows: Sequence[Row], more: str) -> Iterator[str]:
    """Say of files that were left out why, of `MOST_TOLD` at most, and where the others are."""
    for row in rows[:MOST_TOLD]:
        yield f"left out: {row.source}: {row.reason}"
    if len(rows) > MOST_TOLD:
        yield f"left out: {len(rows) - MOST_TOLD} more{more}"


def import_folder(
    folder: Path,
    out: Path,
    *,
    how: str,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Make a BIDS data set of the FLAIRs of a folder; see `find_sources`.

    Parameters
    ----------
    folder, out : Path
    how : {'hard', 'symlink', 'copy'}
        How NIfTI files get their place; DICOM files are converted.
    progress : callable
        Gets a line for each, and for the first that are left out.

    Returns
    -------
    list of Row
        What became of each, as ``sourcedata/import.tsv`` has it.

    Raises
    ------
    UsageError
        If the data set's folder holds something else, or no FLAIR is found.
    """
    sources, rows = find_sources(folder)
    if out.is_dir() and any(out.iterdir()) and not (out / CLAIM).is_file():
        raise UsageError(
            f"{out}: is not empty and not of this import; expected a new folder, or that of the "
            "same import, which goes on"
        )
    claim_origin(out / CLAIM, {"command": "bagau import folder", "source": str(folder.absolute())})
    done = []
    for source in sources:
        row = _place(source, folder, out, how)
        progress(f"{row.source}: {row.became or f'left out: {row.reason}'}")
        done.append(row)
    for line in left_out_lines(rows, f", each with its reason in {out / TABLE}"):
        progress(line)
    _write_tables(out, folder, sources, [*done, *rows])
    return [*done, *rows]


def _place(source: Source, folder: Path, out: Path, how: str) -> Row:
    """Put one FLAIR into the data set."""
    name, target = _below(source.path, folder), out / source.place
    if source.path.is_dir():
        with TemporaryDirectory(prefix="bagau-import-") as temporary:
            made = Path(temporary, "flair.nii.gz")
            try:
                take_flair(source.path, made)
            except UsageError as error:
                return Row(name, reason=" ".join(str(error).split()))
            for path, ending in ((made, ".nii.gz"), (sidecar_path(made), ".json")):
                copy_file(path, target.with_name(target.name + ending))
        return Row(name, f"{source.place.as_posix()}.nii.gz")
    ending = extension_of(source.path) or ""
    place_file(source.path, target.with_name(target.name + ending), how)
    beside = source.path.with_name(NIFTI_EXTENSION.sub("", source.path.name) + ".json")
    if beside.is_file():
        place_file(beside, target.with_name(f"{target.name}.json"), how)
    return Row(name, f"{source.place.as_posix()}{ending}")


def _write_tables(out: Path, folder: Path, sources: Sequence[Source], rows: Sequence[Row]) -> None:
    """Write what the data set is, who is in it, and what became of everything."""
    write_json(
        out / "dataset_description.json", {"Name": folder.name, "BIDSVersion": BIDS_VERSION}
    )
    people = dict.fromkeys(f"sub-{one.entities['sub']}" for one in sources)
    there = [label for label in people if (out / label).is_dir()]
    write_table(out / "participants.tsv", pd.DataFrame({"participant_id": there}))
    listed = [(row.source, row.became or "n/a", row.reason or "n/a") for row in rows]
    write_table(out / TABLE, pd.DataFrame(listed, columns=COLUMNS))


def has_images(folder: Path) -> bool:
    """Tell whether a folder holds NIfTI files, at any depth."""
    return any(extension_of(path) for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones and those of hidden folders left out, in order."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _dicom_folders(folder: Path) -> list[Path]:
    """Topmost folders of DICOM files: those of a participant, or of a session where it has some.

    They are told by the names of files, not by their content, which dcm2niix reads later.
    """
    with_images = {
        parent for path in _files(folder) if extension_of(path) for parent in path.parents
    }
    slices = [
        path.parent
        for path in _files(folder)
        if path.suffix.lower() in ("", ".dcm", ".ima") and path.parent not in with_images
    ]
    studies = set()
    for parent in dict.fromkeys(slices):
        parts = parent.relative_to(folder).parts
        studies.add(folder.joinpath(*parts[:1]) if parts else folder)
    return sorted(studies - with_images) or ([folder] if slices and not with_images else [])


def _named(paths: Sequence[Path], folder: Path) -> list[Source]:
    """Give each FLAIR its entities."""
    people: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        parts = path.relative_to(folder).parts or (folder.name,)
        own = parts[0] if len(parts) > 1 or path.is_dir() else _own_name(path)
        people[own].append(path)
    labels = _labels(people)
    return [
        Source(path, {"sub": labels[name], **more})
        for name, own in people.items()
        for path, more in _sessions(own, folder).items()
    ]


def _sessions(paths: Sequence[Path], folder: Path) -> dict[Path, dict[str, str]]:
    """Sessions and runs of the FLAIRs of one participant; none where it has only one."""
    if len(paths) == 1:
        return {paths[0]: {}}
    visits: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        parts = path.relative_to(folder).parts
        visits[parts[1] if len(parts) > 2 else ""].append(path)
    labels = _labels(visits) if len(visits) > 1 else dict.fromkeys(visits, "")
    found = {}
    for name, own in visits.items():
        session = {"ses": labels[name]} if labels[name] else {}
        for number, path in enumerate(own, start=1):
            found[path] = {**session, **({"run": str(number)} if len(own) > 1 else {})}
    return found


def _labels(names: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Make BIDS labels of names: letters and digits, and a number where these are alike."""
    short = {}
    for name in names:
        base = re.sub(r"^(sub|ses)-", "", _CONTRAST.sub("", name))
        short[name] = re.sub(r"[^0-9A-Za-z]", "", base) or re.sub(r"[^0-9A-Za-z]", "", name) or "1"
    counts, seen = Counter(label.casefold() for label in short.values()), Counter[str]()
    labels = {}
    for name, label in short.items():
        seen[label.casefold()] += 1
        alike = counts[label.casefold()] > 1
        labels[name] = f"{label}n{seen[label.casefold()]}" if alike else label
    return labels


def _own_name(path: Path) -> str:
    return NIFTI_EXTENSION.sub("", path.name)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
