"""Finding the FLAIR images of a BIDS data set with pybids, without opening any of them."""

import difflib
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bagau_bids.bids.annex import broken_link
from bagau_bids.bids.derivatives import longest_name, source_stem
from bagau_bids.bids.filters import ABSENT, ANY, Query, build_query
from bagau_bids.bids.index import entities_above, rooted_config
from bagau_bids.bids.masks import name_entities
from bagau_bids.bids.near_misses import explain_nothing_found, explain_subject
from bagau_bids.config import Selection
from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.files import one_at_a_time

if TYPE_CHECKING:
    from bids.layout import BIDSLayoutIndexer

ANY_SUBJECT = r"[^/\udc80-\udcff]+"
INDEX_FILE = "layout_index.sqlite"  # pybids' own name


@dataclass(frozen=True)
class Scan:
    """One FLAIR image of the data set.

    Attributes
    ----------
    path
        The image.
    entities
        Entities of its name, short key to label, e.g. ``{"sub": "01", "run": "1"}``.
    """

    path: Path
    entities: dict[str, str] = field(hash=False)

    @property
    def stem(self) -> str:
        """First part of the names of everything made from it: all entities, without suffix."""
        return source_stem(self.entities)

    @property
    def subject(self) -> str:
        """Label of the participant."""
        return self.entities["sub"]


def list_subjects(bids_dir: Path) -> list[str]:
    """Return the labels of the ``sub-*`` folders, sorted; nothing below them is looked at.

    A link to nothing counts: a participant whose folder is not there is one to be told of.
    """
    return sorted(
        path.name.removeprefix("sub-")
        for path in bids_dir.iterdir()
        if path.name.startswith("sub-") and (path.is_dir() or broken_link(path))
    )


def find_scans(bids_dir: Path, selection: Selection) -> list[Scan]:
    """Find the FLAIR images asked for; each is a scan of its own.

    Only folders and names that can match are indexed, so that other participants cost
    nothing; with ``selection.database_dir`` the FLAIRs of the whole data set are indexed once and
    kept there.

    Parameters
    ----------
    bids_dir
        Root of the data set.
    selection
        Participants, sessions, filters and the place of the index.

    Returns
    -------
    list of Scan
        Sorted by path; never empty. Their files may be missing or empty, see
        `find_unavailable`.

    Raises
    ------
    UsageError
        If a label, a filter or the index is wrong, or nothing matches: the message lists the
        query, the files seen and the nearest miss.
    """
    subjects, query = _request(bids_dir, selection)
    paths = _ask_pybids(bids_dir, selection, query) if subjects else []
    if not paths:
        raise UsageError(explain_nothing_found(bids_dir, subjects, query))
    return [Scan(path, name_entities(path)) for path in paths]


def find_t1w(scan: Scan) -> tuple[Path, str]:
    """Find the T1w that belongs to a FLAIR: of the same participant and session.

    Among several, one without contrast agent is taken, then the one whose name shares most with
    the FLAIR's, then the one with the shortest name.

    Parameters
    ----------
    scan
        The FLAIR.

    Returns
    -------
    path
        The T1w; its file may be missing or damaged.
    note
        Which was taken and which were not; empty where there was one.

    Raises
    ------
    InputImageError
        If there is none.
    """
    folder = scan.path.parent
    found = [path for path in folder.glob("*_T1w.nii*") if path.name.endswith((".nii", ".nii.gz"))]
    if not found:
        seen = sorted(path.name for path in folder.glob("*.nii*"))
        raise InputImageError(
            f"{scan.path}: no T1w beside this FLAIR, and the network needs one; expected "
            f"*_T1w.nii[.gz] in {folder}, found {_shortened(seen)}; add it, or use a network "
            "that needs the FLAIR alone"
        )

    def unlikely(path: Path) -> tuple[bool, int, int, str]:
        own = name_entities(path)
        shared = sum(own.get(key) == label for key, label in scan.entities.items())
        return "ce" in own, -shared, len(path.name), path.name

    first, *others = sorted(found, key=unlikely)
    names = ", ".join(path.name for path in others)
    return first, f"Of several T1w {first.name} was taken, not {names}." if others else ""


def find_missing(bids_dir: Path, selection: Selection, scans: Iterable[Scan]) -> dict[str, str]:
    """Return the participants asked for that have no scan, each with the likely reason.

    Parameters
    ----------
    bids_dir, selection
        As for `find_scans`.
    scans
        What `find_scans` returned.
    """
    found = {scan.subject for scan in scans}
    subjects, query = _request(bids_dir, selection)
    return {
        subject: explain_subject(bids_dir, subject, query)
        for subject in subjects
        if subject not in found
    }


def _request(bids_dir: Path, selection: Selection) -> tuple[list[str], Query]:
    """Return the participants asked for, by option, by filter file or all, and the query.

    Raises
    ------
    UsageError
        If one asked for by name is not in the data set; names the nearest that are.
    """
    query = build_query(
        selection.participant_labels, selection.session_labels, selection.bids_filters
    )
    there = list_subjects(bids_dir)
    wanted = _named_subjects(query)
    subjects = wanted or there
    _check_labels(bids_dir, "participant", wanted, there)
    if selection.session_labels:
        sessions = {name for subject in subjects for name in _list_sessions(bids_dir, subject)}
        _check_labels(bids_dir, "session", selection.session_labels, sorted(sessions))
    return subjects, query


def _named_subjects(query: Query) -> list[str]:
    return [value for value in query.wanted.get("subject", ()) if value not in (ABSENT, ANY)]


def _check_labels(bids_dir: Path, what: str, wanted: Iterable[str], there: Sequence[str]) -> None:
    known = set(there)
    unknown = [label for label in wanted if label not in known]
    if unknown:
        raise UsageError(
            f"{bids_dir} has no {what} {', '.join(unknown)}."
            + "".join(_nearest_labels(label, there) for label in unknown)
            + (f" It has {len(there)}: {_shortened(there)}." if there else " It has none.")
        )


def find_unavailable(scans: Sequence[Scan]) -> dict[Scan, str]:
    """Return the scans whose file cannot be used, each with the reason; no image is opened.

    A file kept by git-annex that was not fetched is a link to nothing; the reason names the
    command that fetches it.
    """
    same_name = defaultdict(list)
    for scan in scans:
        same_name[scan.stem].append(scan)
    reasons = {}
    for scan in scans:
        reason = _unavailable(scan.path) or _unclear_name(scan, same_name[scan.stem])
        if reason:
            reasons[scan] = reason
    return reasons


def find_too_long(scans: Sequence[Scan], output_dir: Path, template: str) -> dict[Scan, str]:
    """Return the scans whose results cannot be written for their names' length, with the reason.

    Parameters
    ----------
    scans
        Of the data set.
    output_dir
        Where results go; it need not be there yet.
    template
        Name of the template, which some results have in their names.
    """
    there = next(folder for folder in (output_dir, *output_dir.parents) if folder.is_dir())
    most = os.pathconf(there, "PC_NAME_MAX")
    reasons = {}
    for scan in scans:
        name = longest_name(scan.entities, template)
        if (length := len(os.fsencode(name))) > most:
            reasons[scan] = (
                f"{scan.path}: the name of a result, {name}, has {length} characters, and "
                f"{output_dir} takes {most}; shorten a label of the FLAIR's name"
            )
    return reasons


def _list_sessions(bids_dir: Path, subject: str) -> list[str]:
    return [path.name.removeprefix("ses-") for path in bids_dir.glob(f"sub-{subject}/ses-*/")]


def _unavailable(path: Path) -> str | None:
    if reason := broken_link(path):
        return reason
    if not path.exists():
        return f"{path}: in the index, but no longer there; write it anew: --bids-database-wipe"
    if path.stat().st_size == 0:
        return f"{path}: an empty file (0 bytes); copy or fetch it again"
    return None


def _unclear_name(scan: Scan, same_name: Sequence[Scan]) -> str | None:
    unknown = [f"{key}-{label}" for key, label in scan.entities.items() if not _is_entity(key)]
    if unknown:
        return f"{scan.path}: {', '.join(unknown)} in the name is no BIDS entity; rename the file"
    others = [other.path.name for other in same_name if other is not scan]
    if others:
        return (
            f"{scan.path}: {', '.join(others)} would have the same results; remove one, or "
            "choose by extension with --bids-filter-file"
        )
    return None


def _is_entity(key: str) -> bool:
    return source_stem({key: "x"}) != ""


def _ask_pybids(bids_dir: Path, selection: Selection, query: Query) -> list[Path]:
    from bids.layout import BIDSLayout
    from bids.layout import Query as BidsQuery
    from sqlalchemy.exc import SQLAlchemyError

    database = selection.database_dir
    named = _named_subjects(query)
    # Where all are asked for, a pattern of all labels would be matched against every path.
    indexed = "|".join(map(re.escape, named)) if named and not database else ANY_SUBJECT
    try:
        if database is not None:
            _prepare_database(bids_dir, database, wipe=selection.database_wipe)
        layout = BIDSLayout(
            bids_dir,
            validate=False,
            config=rooted_config(bids_dir),
            database_path=database,
            indexer=_flair_indexer(indexed),
        )
    except SQLAlchemyError as error:
        raise UsageError(
            f"{database}: no pybids index that can be used ({str(error).splitlines()[0]}); "
            "name another folder, or write it anew: --bids-database-wipe"
        ) from error
    if Path(layout.root).resolve() != bids_dir.resolve():
        raise UsageError(
            f"{database}: an index of {layout.root}, not of {bids_dir}; "
            "name another folder, or write it anew: --bids-database-wipe"
        )
    if above := entities_above(layout):
        words = ", ".join(f"{entity} {word}" for entity, word in above.items())
        raise UsageError(
            f"{database}: an index that takes folders above {bids_dir} for part of the data set "
            f"({words}); write it anew: --bids-database-wipe"
        )
    special = {ABSENT: BidsQuery.NONE, ANY: BidsQuery.ANY}
    filters: dict[str, Any] = {
        entity: [special.get(value, value) for value in values]
        for entity, values in query.wanted.items()
    }
    filters.pop("subject", None)  # may ask for any, as no filter does
    if named:
        filters["subject"] = named
    found = layout.get(return_type="file", invalid_filters="allow", **filters)
    return [path for path in map(Path, found) if _named_as_its_folders(path)]


def _flair_indexer(subjects: str) -> "BIDSLayoutIndexer":
    from bids.layout import BIDSLayoutIndexer

    return BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[_everything_but_flair(subjects)]
    )


def _prepare_database(bids_dir: Path, database: Path, *, wipe: bool) -> None:
    """Index the FLAIRs of a data set into a folder, unless that was done.

    pybids writes an index little by little, and takes one that another job is writing for a
    complete one: scans would be missing. So one job writes it elsewhere and puts it there in one
    step, while others wait.
    """
    from bids.layout import BIDSLayout

    if (database / INDEX_FILE).exists() and not wipe:
        return
    asked = time.time()
    with one_at_a_time(database / ".lock"):
        if _changed_since(database / INDEX_FILE, asked if wipe else 0):
            return  # by a job that this one waited for
        with TemporaryDirectory(dir=database, prefix=".new-") as folder:
            layout = BIDSLayout(
                bids_dir,
                validate=False,
                config=rooted_config(bids_dir),
                database_path=folder,
                indexer=_flair_indexer(ANY_SUBJECT),
            )
            layout.session.close()
            Path(folder, INDEX_FILE).replace(database / INDEX_FILE)


def _changed_since(path: Path, seconds: float) -> bool:
    return path.exists() and path.stat().st_mtime >= seconds


def _named_as_its_folders(path: Path) -> bool:
    """Tell whether a name repeats the participant and session of the folders, as it must."""
    above = path.parts[-4:-2] if path.parts[-3].startswith("ses-") else path.parts[-3:-2]
    return path.name.startswith("_".join(above) + "_")


def _everything_but_flair(subjects: str) -> re.Pattern[str]:
    """Return a pattern for all paths below the root that need not be indexed.

    Names that are no UTF-8 text, which no database can hold, are no names of BIDS.
    """
    name = r"[^/\udc80-\udcff]+"
    folders = rf"/sub-({subjects})(/ses-{name})?"
    return re.compile(rf"^(?!{folders}(/anat(/{name}_FLAIR\.nii(\.gz)?)?)?$)")


def _nearest_labels(label: str, there: Sequence[str]) -> str:
    close = difflib.get_close_matches(label, there, n=3)
    padded = [name for name in there if name.lstrip("0") == label.lstrip("0")]
    names = list(dict.fromkeys([*padded, *close]))
    return f" Nearest to {label}: {', '.join(names)}." if names else ""


def _shortened(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
