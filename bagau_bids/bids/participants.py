"""What is known of participants beside their scans: ``participants.tsv``."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from bagau_bids.bids.tables import listed

FILE_NAME = "participants.tsv"
UNKNOWN = ("", "n/a", "N/A", "NaN", "nan")
MOST_NAMED = 5  # rows that are complained of


@dataclass(frozen=True)
class Participants:
    """The table of participants that belongs to a derivative data set.

    Parameters
    ----------
    source : Path or None
        The file; None where none was found.
    values : mapping
        Texts by column, then by participant (``sub-01``); what is not known is left out.
    descriptions : mapping
        Content of ``participants.json``, empty where there is none.
    note : str
        Why there is no table, or what is wrong with it; empty otherwise.
    listed : tuple of str
        Every participant of the table, in its order.
    """

    source: Path | None = None
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    descriptions: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    listed: tuple[str, ...] = ()


def find_participants(output_dir: Path) -> Participants:
    """Read the table of participants of a derivative data set.

    The derivatives' own ``participants.tsv`` comes first, then that of the data set which
    ``DatasetLinks`` in ``dataset_description.json`` calls ``raw``. Nothing else is read of that.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.

    Returns
    -------
    Participants
        Without values where no table is found or it cannot be read; the note says why.
    """
    folders = [output_dir, *_raw_folder(output_dir)]
    found = [folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()]
    if not found:
        places = " nor ".join(str(folder) for folder in folders)
        return Participants(note=f"No {FILE_NAME} was found in {places}.")
    try:
        return _read(found[0])
    except (OSError, ValueError, csv.Error) as error:
        return Participants(
            note=f"{found[0]}: cannot be read ({error}); expected a tab-separated table with the "
            "column participant_id: repair it and run the group level again."
        )


def _raw_folder(output_dir: Path) -> list[Path]:
    """Folder of the raw data set, where the description names one on this machine."""
    try:
        text = (output_dir / "dataset_description.json").read_text(encoding="utf-8")
        link = json.loads(text)["DatasetLinks"]["raw"]
        parts = urlparse(link)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if parts.scheme == "file":
        return [Path(unquote(parts.path))]
    return [] if parts.scheme else [output_dir / link]


def _read(path: Path) -> Participants:
    text = io.StringIO(path.read_text(encoding="utf-8-sig"))
    lines = [
        (number, [field.strip() for field in fields])
        for number, fields in enumerate(csv.reader(text, delimiter="\t"), start=1)
        if any(field.strip() for field in fields)
    ]
    header = _without_empty_ends(lines[0][1], 0) if lines else []
    if "participant_id" not in header:
        raise ValueError(f"its columns are {', '.join(header)}")
    known: dict[str, dict[str, str]] = {}
    uneven, again = [], []
    for number, fields in lines[1:]:
        row = _without_empty_ends(fields, len(header))
        if len(row) != len(header):
            uneven.append(f"line {number} has {len(row)} fields")
            continue
        values = dict(zip(header, row, strict=True))
        name = values.pop("participant_id")
        participant = name if name.startswith("sub-") else f"sub-{name}"
        if participant in known:
            again.append(f"{participant} in line {number}")
            continue
        known[participant] = values
    columns = {
        column: {name: row[column] for name, row in known.items() if row[column] not in UNKNOWN}
        for column in header
        if column != "participant_id"
    }
    described = _descriptions(path.with_suffix(".json"))
    note = _note(path, len(header), uneven, again)
    return Participants(path, columns, described, note, tuple(known))


def _without_empty_ends(fields: Sequence[str], fewest: int) -> list[str]:
    """Take empty fields off the end, which tabs at the end of lines make, but for so many."""
    length = len(fields)
    while length > fewest and not fields[length - 1]:
        length -= 1
    return list(fields[:length])


def _note(path: Path, columns: int, uneven: Sequence[str], again: Sequence[str]) -> str:
    """Say which rows of the table were passed over, and why; empty where none was."""
    parts = []
    if uneven:
        rows = listed(uneven, MOST_NAMED)
        parts.append(f"rows were passed over: {rows}; expected {columns}, as the header")
    if again:
        rows = listed(again, MOST_NAMED)
        parts.append(f"participants are there again, the first row counts: {rows}")
    return f"{path}: {'; '.join(parts)}; repair it and run again." if parts else ""


def _descriptions(path: Path) -> dict[str, Any]:
    """Read a sidecar; an empty one where it is missing or damaged, for it only names axes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}
