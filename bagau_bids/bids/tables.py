"""Tables of BIDS derivatives: what their columns mean, the types of their values, row order."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd

COUNTED = ("voxels", "lesions", "cases", "flags")  # units of whole numbers


def column_descriptions(table: str) -> dict[str, Any]:
    """Read what the columns of a table mean (``data/tables``), in order, for its sidecar."""
    source = files("bagau_bids.data").joinpath("tables", f"{table}.json")
    return json.loads(source.read_text(encoding="utf-8"))


def described_table(
    rows: Sequence[Mapping[str, Any]], descriptions: Mapping[str, Any]
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
        if described.get("Units") in COUNTED:
            table[name] = table[name].astype("Float64").astype("Int64")
        elif "Units" in described:
            table[name] = table[name].astype("Float64")
    return table


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
