"""WMH volume against what ``participants.tsv`` says: a scatter plot or groups, by column."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from bagau_bids.bids.participants import Participants
from bagau_bids.reports.charts import COLOUR, NOTE_COLOUR, bare, literal
from bagau_bids.reports.figures import figure_image

FIRST = ("age", "sex", "group")  # shown before other columns
MOST_COLUMNS = 6
MOST_LEVELS = 8  # groups of a column of words
# Different numbers from which on a column is a scale and no code, unless it is known to be one.
FEWEST_NUMBERS = 6
FEWEST_FOR_CORRELATION = 10
# What matplotlib raises at texts and numbers that it cannot place.
DRAWING_ERRORS = (ValueError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class Covariate:
    """A column of the table of participants with the volumes that belong to its values.

    Parameters
    ----------
    name : str
        Of the column, with its unit where known.
    texts : tuple of str
        Values as they are in the table.
    volumes_ml : tuple of float
        As many.
    levels : tuple of str
        Groups in order; empty where the column is a scale of numbers.
    """

    name: str
    texts: tuple[str, ...]
    volumes_ml: tuple[float, ...]
    levels: tuple[str, ...] = ()


def find_covariates(
    participants: Participants, volumes_ml: Mapping[str, float]
) -> tuple[list[Covariate], list[str]]:
    """Match columns with volumes and choose those that can be shown.

    Parameters
    ----------
    participants : Participants
    volumes_ml : mapping
        Volume by participant (``sub-01``).

    Returns
    -------
    covariates : list of Covariate
        At most `MOST_COLUMNS`; age, sex and group first.
    left_out : list of str
        For each other column its name and why it is not shown.
    """
    covariates: list[Covariate] = []
    left_out = []
    for column in sorted(participants.values, key=_rank):
        values = participants.values[column]
        known = [name for name in volumes_ml if name in values]
        texts = tuple(values[name] for name in known)
        unit = participants.descriptions.get(column, {}).get("Units")
        fewest = 2 if unit or column.lower() == "age" else FEWEST_NUMBERS
        levels = () if _is_scale(texts, fewest) else tuple(sorted(set(texts)))
        reason = _reason(texts, levels, len(covariates))
        if reason:
            left_out.append(f"{column} ({reason})")
            continue
        label = f"{column} ({unit})" if unit else column
        volumes = tuple(volumes_ml[name] for name in known)
        covariates.append(Covariate(label, texts, volumes, levels))
    return covariates, left_out


def _rank(column: str) -> int:
    return FIRST.index(column.lower()) if column.lower() in FIRST else len(FIRST)


def _is_scale(texts: Sequence[str], fewest: int) -> bool:
    """Whether values are numbers, and not fewer different ones than codes would be."""
    try:
        numbers = {float(text) for text in texts}
    except ValueError:
        return False
    return all(map(math.isfinite, numbers)) and len(numbers) >= fewest


def _reason(texts: Sequence[str], levels: Sequence[str], shown: int) -> str:
    """Why a column is not shown; empty where it is."""
    if not texts:
        return "no value of a participant with results"
    if len(levels) == 1:
        return f"{levels[0]} in all"
    if len(levels) > MOST_LEVELS:
        return f"{len(levels)} different texts"
    return f"more than {MOST_COLUMNS} columns" if shown >= MOST_COLUMNS else ""


def drawn_covariates(
    covariates: Sequence[Covariate],
) -> tuple[Image.Image | None, list[str]]:
    """Draw what can be drawn: values of a table that nobody checked must not cost the page.

    Parameters
    ----------
    covariates : sequence of Covariate

    Returns
    -------
    picture : Image or None
        As by `draw_covariates`; None where nothing could be drawn.
    failed : list of str
        For each covariate that could not be drawn its name and why.
    """
    if not covariates:
        return None, []
    try:
        return draw_covariates(covariates), []
    except DRAWING_ERRORS:
        alone = [(one, _drawing_error(one)) for one in covariates]
    failed = [f"{one.name} (cannot be drawn: {error})" for one, error in alone if error]
    fit = [one for one, error in alone if not error]
    return (draw_covariates(fit) if fit else None), failed


def _drawing_error(covariate: Covariate) -> str:
    """Say why a covariate cannot be drawn by itself; empty where it can."""
    try:
        draw_covariates([covariate])
    except DRAWING_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def draw_covariates(covariates: Sequence[Covariate]) -> Image.Image:
    """One chart a covariate, three in a row; volumes on an axis of cube roots.

    Parameters
    ----------
    covariates : sequence of Covariate
        At least one.
    """
    columns = min(3, len(covariates))
    rows = -(-len(covariates) // columns)
    figure = Figure(figsize=(max(2.7 * columns, 4), 2.8 * rows), dpi=160, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, covariate in zip(places, covariates, strict=False):
        if covariate.levels:
            _draw_groups(axes, covariate)
        else:
            _draw_scale(axes, covariate)
        axes.set_yscale("function", functions=(np.cbrt, lambda roots: roots**3))
        axes.set_ylim(0, 1.15 * max(*covariate.volumes_ml, 0.1))
        axes.set_yticks(list(_volume_ticks(max(covariate.volumes_ml))))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(literal(covariate.name))
        axes.set_ylabel("WMH volume (ml)")
        bare(axes)
    for axes in places[len(covariates) :]:
        axes.set_axis_off()
    return figure_image(figure)


def _volume_ticks(largest: float) -> Iterator[float]:
    yield from (tick for tick in (0, 0.1, 1, 5, 10, 20, 50, 100, 200) if tick <= 1.1 * largest)


def _draw_scale(axes: Axes, covariate: Covariate) -> None:
    numbers = [float(text) for text in covariate.texts]
    axes.plot(numbers, covariate.volumes_ml, "o", color=COLOUR, alpha=0.6, markersize=4)
    text = f"n = {len(numbers)}"
    if len(numbers) >= FEWEST_FOR_CORRELATION and len(set(covariate.volumes_ml)) > 1:
        found = float(stats.spearmanr(numbers, covariate.volumes_ml).statistic)
        text += f", Spearman's ρ = {found:.2f}"
    axes.set_title(text, fontsize=9, loc="left", color=NOTE_COLOUR)


def _draw_groups(axes: Axes, covariate: Covariate) -> None:
    rng = np.random.default_rng(0)
    counts = []
    for place, level in enumerate(covariate.levels):
        pairs = zip(covariate.texts, covariate.volumes_ml, strict=True)
        volumes = [volume for text, volume in pairs if text == level]
        spread = rng.uniform(-0.22, 0.22, len(volumes))
        axes.plot(place + spread, volumes, "o", color=COLOUR, alpha=0.6, markersize=4)
        axes.hlines(np.median(volumes), place - 0.32, place + 0.32, color=NOTE_COLOUR, linewidth=2)
        counts.append(f"{literal(level)}\nn = {len(volumes)}")
    axes.set_xticks(range(len(counts)), labels=counts, fontsize=8)
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_title("lines: medians", fontsize=9, loc="left", color=NOTE_COLOUR)
