"""A table of FLAIRs and manual masks, read as cases."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bagau_bids.bids.masks import NIFTI_EXTENSION, extension_of
from bagau_bids.bids.tables import MOST_NAMED, Tsv, listed, read_tsv
from bagau_bids.datasets.cases import (
    Case,
    Collection,
    Failure,
    Placement,
    mask_placement,
    raw_placement,
    read_json_object,
)
from bagau_bids.errors import InputImageError, UsageError

IMAGES = ("flair", "mask", "t1w")
REQUIRED = IMAGES[:2]
LABELS = {"participant_id": "sub", "session_id": "ses"}
SOURCEDATA = Path("sourcedata", "pairs")
MASK_TEXT = (
    "Manual mask as given: 0 background, 1 (or 255) white matter hyperintensity, 2 not judged."
)
ABSENT = "n/a"


def read_pairs(path: Path) -> Collection:
    """Read a table of pairs; no image is opened.

    Parameters
    ----------
    path : Path
        ``.tsv`` (tabs) or ``.csv`` (commas). Columns ``flair`` and ``mask`` are needed,
        ``participant_id``, ``session_id`` and ``t1w`` are known, any other tells something of
        the participant. Paths are relative to the folder of the table.

    Returns
    -------
    Collection
        The table itself, and its JSON file where there is one, are among the extras.

    Raises
    ------
    UsageError
        If the table cannot be read or lacks a column that is needed.
    """
    table = _read_table(path)
    if "participant_id" not in table:
        width = max(2, len(str(len(table))))
        table["participant_id"] = [f"{number:0{width}d}" for number in range(1, len(table) + 1)]
    cases, failures = [], []
    for number, row in enumerate(table.to_dict("records"), start=2):
        cells = {str(key): str(value) for key, value in row.items() if value != ABSENT}
        missing = [column for column in (*REQUIRED, "participant_id") if column not in cells]
        name = f"line {number}"
        try:
            if missing:
                raise InputImageError(f"{path}: no {' and '.join(missing)}; fill in the cell")
            cases.append(_case(name, cells, row, path.parent))
        except InputImageError as error:
            named = tuple(path.parent / cells[column] for column in IMAGES if column in cells)
            failures.append(
                Failure(name, str(error), tuple(one for one in named if one.is_file()))
            )
    extras = [
        Placement(one, SOURCEDATA / one.name, copied=True)
        for one in (path, path.with_suffix(".json"))
        if one.is_file()
    ]
    return Collection(path.parent, tuple(cases), tuple(extras), tuple(failures))


def column_descriptions(path: Path) -> dict[str, object]:
    """Describe the columns that `read_pairs` hands over, from ``<table>.json`` where it does.

    Parameters
    ----------
    path : Path
        The table.

    Returns
    -------
    dict
        As ``participants.json`` has it.

    Raises
    ------
    UsageError
        If the JSON file holds no object.
    """
    described = path.with_suffix(".json")
    try:
        given = read_json_object(described) if described.is_file() else {}
    except InputImageError as error:
        raise UsageError(str(error)) from error
    columns = [name for name in _read_table(path) if name not in (*IMAGES, *LABELS)]
    texts = {
        str(name): {"Description": f"Column {name} of {path.name}, as given"} for name in columns
    }
    return {name: given.get(str(name), text) for name, text in texts.items()}


def _read_csv(path: Path) -> Tsv:
    """Read fields between commas, in quotes where one holds a comma; a row is a line."""
    text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    lines = [line for line in csv.reader(text, strict=True) if any(map(str.strip, line))]
    header = tuple(map(str.strip, lines[0])) if lines else ()
    rows, uneven = {}, []
    for number, line in enumerate(lines[1:], start=2):
        fields = tuple(map(str.strip, line))
        if len(fields) != len(header) or any("\n" in field for field in fields):
            uneven.append(
                f"row {number}, which begins with {fields[0]!r}, has {len(fields)} fields"
            )
        else:
            rows[number] = fields
    return Tsv(header, rows, tuple(uneven))


READERS = {".tsv": read_tsv, ".csv": _read_csv}


def _read_table(path: Path) -> pd.DataFrame:
    """Cells as text; n/a where one is empty."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: expected a table whose name ends in .tsv or .csv: save it so")
    try:
        found = reader(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{path}: cannot be read as a table ({error}); expected UTF-8 text with columns "
            f"{' and '.join(REQUIRED)}: check the path, save it again"
        ) from error
    if found.doubled:
        raise UsageError(f"{path}: column {', '.join(found.doubled)} is there twice; leave one")
    if found.uneven:
        raise UsageError(
            f"{path}: {listed(found.uneven, MOST_NAMED)}; expected {len(found.header)}, as the "
            "header: repair it"
        )
    table = pd.DataFrame(list(found.rows.values()), columns=list(found.header), dtype=str)
    missing = [column for column in REQUIRED if column not in table]
    if missing or table.empty:
        raise UsageError(
            f"{path}: {len(table)} rows with columns {', '.join(found.header) or 'none'}; "
            f"expected at least one row, and columns {' and '.join(REQUIRED)}: name them so in "
            "the first line"
        )
    return table.mask(table == "", ABSENT)


def _case(name: str, cells: Mapping[str, str], row: Mapping[object, object], folder: Path) -> Case:
    entities = {
        short: _label(column, cells[column]) for column, short in LABELS.items() if column in cells
    }
    paths = {column: folder / cells[column] for column in IMAGES if column in cells}
    for column, path in paths.items():
        if extension_of(path) is None:
            raise InputImageError(
                f"{path}: expected a .nii.gz or .nii file as {column}: convert it"
            )
    flair = raw_placement(paths["flair"], entities, "FLAIR")
    others = _with_metadata(flair)[1:]
    if "t1w" in paths:
        others += _with_metadata(raw_placement(paths["t1w"], entities, "T1w"))
    return Case(
        name=name,
        entities=entities,
        columns={str(key): value for key, value in row.items() if key not in (*IMAGES, *LABELS)},
        flair=flair,
        mask=mask_placement(paths["mask"], flair, entities, MASK_TEXT),
        others=tuple(others),
    )


def _label(column: str, text: str) -> str:
    """Drop the prefix of a BIDS label that may have one."""
    prefix = LABELS[column]
    label = text.removeprefix(f"{prefix}-")
    if not re.fullmatch(r"[0-9a-zA-Z]+", label):
        raise InputImageError(
            f"{column} {text!r}: is no BIDS label; expected letters and digits, such as 01 or "
            f"{prefix}-01: rename it in the table"
        )
    return label


def _with_metadata(scan: Placement) -> list[Placement]:
    """Return a scan and, where one lies beside it, the JSON file of its name."""

    def beside(path: Path) -> Path:
        return path.with_name(NIFTI_EXTENSION.sub("", path.name) + ".json")

    metadata = beside(scan.source)
    found = [Placement(metadata, beside(scan.target), "json")] if metadata.is_file() else []
    return [scan, *found]
