"""Which of a participant's sessions came first, as the data set says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bagau_bids.bids.tables import Tsv, natural_key, read_tsv

ACQ_TIME, SESSIONS_TSV, LABELS = "acq_time", "sessions.tsv", "labels"  # who said so


@dataclass(frozen=True)
class SessionOrder:
    """Sessions of one participant, the earliest first.

    Attributes
    ----------
    labels
        Without ``ses-``.
    source
        `ACQ_TIME`, `SESSIONS_TSV` or `LABELS`: what the order is taken from.
    notes
        Tables that cannot be used, and why.
    """

    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def order_sessions(
    folders: Sequence[Path], subject: str, images: Mapping[str, str]
) -> SessionOrder:
    """Order the sessions of a participant in time.

    By the ``acq_time`` of each image in ``*_scans.tsv``, or of its session in ``*_sessions.tsv``,
    where all have one and no two the same; else in the order of ``*_sessions.tsv``, where that
    lists all; else by the labels, numbers in them by their value, which may be wrong.

    Parameters
    ----------
    folders
        Roots of data sets that may have the tables, the preferred one first.
    subject
        Label of the participant.
    images
        Path of each session's image below the session's folder, e.g.
        ``anat/sub-1_ses-2_FLAIR.nii.gz``, by the label of the session.
    """
    notes: list[str] = []
    listed = _first(folders, f"sub-{subject}/sub-{subject}_sessions.tsv", "session_id", notes)
    times = {}
    for session, image in images.items():
        name = f"sub-{subject}/ses-{session}/sub-{subject}_ses-{session}_scans.tsv"
        own = _first(folders, name, "filename", notes)
        time = _time(own.get(image)) or _time(listed.get(f"ses-{session}"))
        if time is not None:
            times[session] = time
    if set(times) == set(images) and len(set(times.values())) == len(times):
        return SessionOrder(tuple(sorted(images, key=times.__getitem__)), ACQ_TIME, tuple(notes))
    places = {name.removeprefix("ses-"): place for place, name in enumerate(listed)}
    if set(images) <= set(places):
        order = tuple(sorted(images, key=places.__getitem__))
        return SessionOrder(order, SESSIONS_TSV, tuple(notes))
    return SessionOrder(tuple(sorted(images, key=natural_key)), LABELS, tuple(notes))


def _first(
    folders: Sequence[Path], name: str, key: str, notes: list[str]
) -> dict[str, dict[str, str]]:
    """Rows of the first such table by what the column `key` has; empty where there is none."""
    for folder in folders:
        path = folder / name
        if not path.is_file():
            continue
        try:
            table = read_tsv(path)
        except (OSError, ValueError) as error:
            notes.append(f"{path}: cannot be read ({error}); repair it and run again.")
            return {}
        problem = _problem(table, key)
        if problem:
            notes.append(f"{path}: {problem}, so the order of sessions is not read from it.")
            return {}
        rows = (dict(zip(table.header, row, strict=True)) for row in table.rows.values())
        return {row[key]: row for row in rows}
    return {}


def _problem(table: Tsv, key: str) -> str:
    if key not in table.header:
        return f"no column {key}"
    if {key, "acq_time"} & set(table.doubled):
        return "columns are there twice"
    place = table.header.index(key)
    names = [row[place] for row in table.rows.values()]
    return f"the same {key} is there twice" if len(set(names)) < len(names) else ""


def _time(row: Mapping[str, str] | None) -> datetime | None:
    """Local time of a row, as BIDS writes it; None where there is none that can be read."""
    try:
        return datetime.fromisoformat((row or {}).get("acq_time", "")).replace(tzinfo=None)
    except ValueError:
        return None
