"""Which scan deserves a look: quality figures held against limits.

The limits are data (``data/quality_limits.json``); how they were chosen, and how often each flag
is right, stands in ``docs/quality.md``. A flag asks for a look and changes no result.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd


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


@cache
def limits() -> dict[str, dict[str, Any]]:
    """Limits by figure: ``flag``, ``words``, and ``lower``, ``upper`` or both."""
    text = files("bagau_bids.data").joinpath("quality_limits.json").read_text(encoding="utf-8")
    return json.loads(text)


def raised_flags(
    figures: Mapping[str, float | None], places: Mapping[str, str] | None = None
) -> tuple[Flag, ...]:
    """Raise a flag for each figure that lies beyond its limit.

    Parameters
    ----------
    figures : mapping
        Figures by name; one that is missing or None raises nothing.
    places : mapping, optional
        Where to look, in words, by figure; added to what the flag means.

    Returns
    -------
    tuple of Flag
        In the order of the limits; empty where nothing asks for a look.
    """
    raised = []
    for figure, limit in limits().items():
        value = figures.get(figure)
        passed = None if value is None else _passed(float(value), limit)
        if value is not None and passed is not None:
            place = (places or {}).get(figure)
            words = f"{limit['words']}; {place}" if place else limit["words"]
            raised.append(Flag(limit["flag"], figure, float(value), passed, words))
    return tuple(raised)


def _passed(value: float, limit: Mapping[str, Any]) -> float | None:
    """Return the limit that a value passed, if it did."""
    if "lower" in limit and value < limit["lower"]:
        return float(limit["lower"])
    if "upper" in limit and value > limit["upper"]:
        return float(limit["upper"])
    return None


def quality_table(figures: Mapping[str, float | None]) -> pd.DataFrame:
    """Table of all figures of a scan, with their limits and which ask for a look.

    Parameters
    ----------
    figures : mapping
        Figures by name.

    Returns
    -------
    DataFrame
        Row ``flags`` first: how many flags are raised. Then a row a figure. The columns are
        described in ``data/tables/quality_table.json``.
    """
    raised = raised_flags(figures)
    count = len({flag.name for flag in raised})
    asking = {flag.figure for flag in raised}
    rows: list[tuple[Any, ...]] = [("flags", float(count), pd.NA, pd.NA, _word(count > 0), pd.NA)]
    for figure, value in figures.items():
        limit = limits().get(figure, {})
        judged = value is not None and bool(limit)
        rows.append(
            (
                figure,
                pd.NA if value is None else float(value),
                limit.get("lower", pd.NA),
                limit.get("upper", pd.NA),
                _word(figure in asking) if judged else pd.NA,
                limit.get("flag", pd.NA),
            )
        )
    columns = ["figure", "value", "lower_limit", "upper_limit", "look", "flag"]
    numbers = dict.fromkeys(("value", "lower_limit", "upper_limit"), "Float64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def _word(look: bool) -> str:
    return "yes" if look else "no"
