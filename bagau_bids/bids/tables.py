"""Tables of BIDS derivatives: what their columns mean, the types of their values, row order."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from bagau_bids.errors import UsageError
from bagau_bids.files import read_shipped

MOST_NAMED = 5  # lines that are complained of
# A field in quotes that ends where a field ends, else all up to the next tab.
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^\t]*))(?=\t|$)')
COUNTED = ("voxels", "lesions", "cases", "flags")  # units of whole numbers


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """What a column means, as the sidecar of its table says."""

    long_name: str = ""
    description: str
    units: str = ""
    levels: dict[str, str] = {}
    format: str = ""


def column_descriptions(table: str) -> dict[str, Column]:
    """Read what the columns of a table mean (``data/tables``), in order, for its sidecar."""
    return read_shipped(f"tables/{table}.json", dict[str, Column])


def described_table(
    rows: Sequence[Mapping[str, Any]], descriptions: Mapping[str, Column]
) -> pd.DataFrame:
    """Make a table of the columns described, in their order.

    Parameters
    ----------
    rows : sequence of mapping
        Value by column; None, or no key, where there is none.
    descriptions : mapping
        Description by column, as `column_descriptions` returns; what has a unit is a number.

    Returns
    -------
    DataFrame
        Whole numbers without a decimal point, missing values as NA.
    """
    table = pd.DataFrame(rows, columns=list(descriptions), dtype=object)
    for name, described in descriptions.items():
        if described.units in COUNTED:
            table[name] = table[name].astype("Float64").astype("Int64")
        elif described.units:
            table[name] = table[name].astype("Float64")
    return table


@dataclass(frozen=True)
class Tsv:
    """A table of tab-separated fields as it is in its file, ends of fields without blanks.

    Attributes
    ----------
    header
        Names of the columns.
    rows
        Fields by the number of their line, 1 being the header; as many as the header has.
    uneven
        What is to be said of lines that have another number of fields; they are no rows.
    """

    header: tuple[str, ...]
    rows: Mapping[int, tuple[str, ...]]
    uneven: tuple[str, ...] = ()

    @property
    def doubled(self) -> tuple[str, ...]:
        """Columns whose name is there more than once."""
        return tuple(name for name, count in Counter(self.header).items() if count > 1)


def read_tsv(path: Path) -> Tsv:
    """Read a TSV file of BIDS; a row is a line, whatever quotes there are in it.

    A field is quoted only where its quotes begin and end it, as BIDS asks for fields that hold a
    tab. All other quotes are part of the text. Empty lines, and empty fields at the ends of lines,
    do not count.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no UTF-8 text.
    """
    text = path.read_text(encoding="utf-8-sig")
    lines = {
        number: [field.strip() for field in split_fields(line)]
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1)
        if line.strip()
    }
    header = _without_empty_ends(lines.pop(min(lines)), 0) if lines else ()
    rows, uneven = {}, []
    for number, fields in lines.items():
        row = _without_empty_ends(fields, len(header))
        if len(row) == len(header):
            rows[number] = row
        elif any(row):
            uneven.append(f"line {number} has {len(row)} fields")
    return Tsv(header, rows, tuple(uneven))


def read_records(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read a TSV file of which some columns are needed: one dict a row, column to text.

    Raises
    ------
    UsageError
        If it cannot be read, a column that is needed is missing or there twice, or a line has
        another number of fields than the header.
    """
    try:
        table = read_tsv(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as a table ({error}); expected UTF-8 text with tabs between "
            "the columns: save it so"
        ) from error
    missing = [name for name in needed if name not in table.header]
    if missing:
        raise UsageError(
            f"{path}: no column {', '.join(missing)}; it has "
            f"{', '.join(table.header) or 'none'}: name a column that is there, or add it"
        )
    if wrong := [name for name in table.doubled if name in needed]:
        raise UsageError(f"{path}: column {', '.join(wrong)} is there twice; leave one")
    if table.uneven:
        raise UsageError(
            f"{path}: {listed(table.uneven, MOST_NAMED)}; expected {len(table.header)}, as the "
            "header: repair it"
        )
    return [dict(zip(table.header, row, strict=True)) for row in table.rows.values()]


def split_fields(line: str) -> list[str]:
    """Split a line at its tabs; see `read_tsv` for quotes."""
    fields, start = [], 0
    while start <= len(line):
        match = _FIELD.match(line, start)
        assert match is not None  # the second alternative takes anything
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        start = match.end() + 1
    return fields


def _without_empty_ends(fields: Sequence[str], fewest: int) -> tuple[str, ...]:
    """Take empty fields off the end, which tabs at the end of lines make, but for so many."""
    length = len(fields)
    while length > fewest and not fields[length - 1]:
        length -= 1
    return tuple(fields[:length])


def listed(names: Sequence[str], most: int = 20) -> str:
    """Name so many at most, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which ``sub-2`` comes before ``sub-10``."""
    return [
        (0, int(part), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]
