"""What is known of participants beside their scans: ``participants.tsv``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd

FILE_NAME = "participants.tsv"


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
    except (OSError, ValueError) as error:
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
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if "participant_id" not in table.columns:
        raise ValueError(f"its columns are {', '.join(table.columns)}")
    names = [str(name) for name in table["participant_id"]]
    ids = [name if name.startswith("sub-") else f"sub-{name}" for name in names]
    values = {
        str(column): {
            participant: text.strip()
            for participant, text in zip(ids, table[column], strict=True)
            if text.strip() not in ("", "n/a", "N/A", "NaN", "nan")
        }
        for column in table.columns
        if column != "participant_id"
    }
    return Participants(path, values, _descriptions(path.with_suffix(".json")), "", tuple(ids))


def _descriptions(path: Path) -> dict[str, Any]:
    """Read a sidecar; an empty one where it is missing or damaged, for it only names axes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}
