"""What is known of participants beside their scans: ``participants.tsv``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from bagau_bids.bids.tables import MOST_NAMED, Tsv, listed, read_tsv

FILE_NAME = "participants.tsv"
UNKNOWN = ("", "n/a", "N/A", "NaN", "nan")


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
    folders = [output_dir, *raw_folder(output_dir)]
    found = [folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()]
    if not found:
        places = " nor ".join(str(folder) for folder in folders)
        return Participants(note=f"No {FILE_NAME} was found in {places}.")
    try:
        return _read(found[0])
    except (OSError, ValueError) as error:
        return Participants(
            note=f"{found[0]}: cannot be read ({error}); expected a tab-separated table with the "
            "column participant_id: repair it and run the group level again."
        )


def raw_folder(output_dir: Path) -> list[Path]:
    """Folder of the raw data set, where a derivative's description names one on this machine.

    At most one, and it may not be there.
    """
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
    table = read_tsv(path)
    if "participant_id" not in table.header:
        raise ValueError(f"its columns are {', '.join(table.header)}")
    if "participant_id" in table.doubled:
        raise ValueError("the column participant_id is there twice")
    known: dict[str, dict[str, str]] = {}
    again = []
    for number, row in table.rows.items():
        values = dict(zip(table.header, row, strict=True))
        name = values.pop("participant_id")
        participant = name if name.startswith("sub-") else f"sub-{name}"
        if participant in known:
            again.append(f"{participant} in line {number}")
            continue
        known[participant] = values
    columns = {
        column: {name: row[column] for name, row in known.items() if row[column] not in UNKNOWN}
        for column in table.header
        if column != "participant_id" and column not in table.doubled
    }
    described = _descriptions(path.with_suffix(".json"))
    return Participants(path, columns, described, _note(path, table, again), tuple(known))


def _note(path: Path, table: Tsv, again: Sequence[str]) -> str:
    """Say what of the table was passed over, and why; empty where nothing was."""
    parts = []
    if table.uneven:
        rows = listed(table.uneven, MOST_NAMED)
        expected = len(table.header)
        parts.append(f"rows were passed over: {rows}; expected {expected}, as the header")
    if again:
        rows = listed(again, MOST_NAMED)
        parts.append(f"participants are there again, the first row counts: {rows}")
    if table.doubled:
        columns = listed(table.doubled, MOST_NAMED)
        parts.append(f"columns that are there twice were left out: {columns}")
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
