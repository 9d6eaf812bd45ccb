"""Which scan deserves a look: quality figures held against limits.

The limits are data (``data/quality_limits.json``); how they were chosen, and how often each flag
is right, stands in ``docs/quality.md``. A flag asks for a look and changes no result.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
import pandas as pd

from bagau_bids.measures.quality import Figures


@dataclass(frozen=True)
class Flag:
    """A figure beyond its limit.

    Parameters
    ----------
    name : str
        What the figure is about, e.g. ``noise``; several figures may share a flag.
    figure : str
        Name of the figure, as in ``data/tables/quality.json``.
    value, limit : float
        The figure, and the limit that it passed.
    words : str
        What it means, and what to look at.
    """

    name: str
    figure: str
    value: float
    limit: float
    words: str


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """Range in which a figure raises no flag, the flag's name, and what it means, in words."""

    flag: str
    words: str
    lower: float | None = None
    upper: float | None = None

    def passed(self, value: float) -> float | None:
        """Return the end of the range that a value lies beyond, if it does."""
        if self.lower is not None and value < self.lower:
            return self.lower
        return self.upper if self.upper is not None and value > self.upper else None


@cache
def limits() -> dict[str, Limit]:
    """Limits by figure (``data/quality_limits.json``)."""
    content = files("bagau_bids.data").joinpath("quality_limits.json").read_bytes()
    return msgspec.json.decode(content, type=dict[str, Limit])


def raised_flags(figures: Figures, places: Mapping[str, str] | None = None) -> tuple[Flag, ...]:
    """Raise a flag for each figure that lies beyond its limit.

    Parameters
    ----------
    figures : Figures
        One that is None raises nothing.
    places : mapping, optional
        Where to look, in words, by figure; added to what the flag means.

    Returns
    -------
    tuple of Flag
        In the order of the limits; empty where nothing asks for a look.
    """
    raised = []
    for figure, limit in limits().items():
        value = getattr(figures, figure)
        passed = None if value is None else limit.passed(value)
        if passed is not None:
            place = (places or {}).get(figure)
            words = f"{limit.words}; {place}" if place else limit.words
            raised.append(Flag(limit.flag, figure, value, passed, words))
    return tuple(raised)


def quality_table(figures: Figures) -> pd.DataFrame:
    """Table of all figures of a scan, with their limits and which ask for a look.

    Returns
    -------
    DataFrame
        Row ``flags`` first: how many flags are raised. Then a row a figure. The columns are
        described in ``data/tables/quality_table.json``.
    """
    raised = raised_flags(figures)
    count = len({flag.name for flag in raised})
    asking = {flag.figure for flag in raised}
    rows: list[tuple[Any, ...]] = [("flags", count, None, None, _word(count > 0), None)]
    for figure, value in asdict(figures).items():
        limit = limits().get(figure)
        look = None if value is None or limit is None else _word(figure in asking)
        ends = (limit.lower, limit.upper) if limit else (None, None)
        rows.append((figure, value, *ends, look, limit.flag if limit else None))
    columns = ["figure", "value", "lower_limit", "upper_limit", "look", "flag"]
    numbers = dict.fromkeys(("value", "lower_limit", "upper_limit"), "Float64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def _word(look: bool) -> str:
    return "yes" if look else "no"
