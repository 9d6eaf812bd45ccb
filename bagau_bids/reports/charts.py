"""Charts of an evaluation: Dice of every case, and the volumes of both masks compared."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from bagau_bids.reports.figures import figure_image

COLOUR = "#3a6ea5"
NOTE_COLOUR = "#5b6570"
MOST_NAMES = 60  # cases that have their name at the axis; more are numbered
AGREEMENT = 1.96  # standard deviations of the limits of agreement


def draw_dice(cases: Sequence[str], dice: Sequence[float], mean: float) -> Image.Image:
    """Dice of every case, the best on top, with a line at the mean.

    Parameters
    ----------
    cases : sequence of str
        Names.
    dice : sequence of float
        As many; at least one.
    mean : float
    """
    order = np.argsort(dice, kind="stable")
    named = len(cases) <= MOST_NAMES
    height = 0.9 + (0.24 * len(cases) if named else 6)
    figure = Figure(figsize=(7, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(cases))
    values = np.asarray(dice, dtype=float)[order]
    axes.hlines(places, 0, values, color=COLOUR, alpha=0.35, linewidth=2)
    axes.plot(values, places, "o", color=COLOUR, markersize=5 if named else 3)
    axes.axvline(mean, color=NOTE_COLOUR, linewidth=1, linestyle="--")
    axes.text(
        mean, len(cases) - 0.3, f" mean {mean:.2f}", color=NOTE_COLOUR, fontsize=8, va="bottom"
    )
    if named:
        axes.set_yticks(places, labels=[literal(cases[i]) for i in order], fontsize=8)
    else:
        axes.set_ylabel("cases, from the worst to the best")
    axes.set_ylim(-0.7, len(cases) + 0.2)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("Dice")
    axes.grid(axis="x", color="#dee2e6", linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes)
    return figure_image(figure)


def draw_volumes(
    reference_ml: Sequence[float], result_ml: Sequence[float], correlation: float | None
) -> Image.Image:
    """Volumes of result against reference, and their differences against their means.

    Parameters
    ----------
    reference_ml, result_ml : sequences of float
        Volume of each case, ml; at least one.
    correlation : float or None
        Pearson correlation, written into the chart.
    """
    reference, result = (np.asarray(v, dtype=float) for v in (reference_ml, result_ml))
    figure = Figure(figsize=(8, 3.7), dpi=190, layout="constrained")
    scatter, bland_altman = figure.subplots(1, 2)
    _draw_scatter(scatter, reference, result, correlation)
    _draw_bland_altman(bland_altman, reference, result)
    return figure_image(figure)


def _draw_scatter(
    axes: Axes, reference: NDArray, result: NDArray, correlation: float | None
) -> None:
    top = 1.06 * max(reference.max(), result.max()) or 1.0
    axes.plot([0, top], [0, top], color=NOTE_COLOUR, linewidth=1, linestyle="--")
    axes.text(
        0.97 * top, 0.97 * top, "equal ", color=NOTE_COLOUR, fontsize=8, ha="right", va="top"
    )
    axes.plot(reference, result, "o", color=COLOUR, alpha=0.75, markersize=6)
    known = "n/a" if correlation is None else f"{correlation:.3f}"
    axes.set_title(f"Volumes (Pearson r = {known})", fontsize=10, loc="left")
    axes.set_xlabel("reference (ml)")
    axes.set_ylabel("result (ml)")
    axes.set_xlim(-0.02 * top, top)
    axes.set_ylim(-0.02 * top, top)
    axes.set_aspect("equal")
    bare(axes)


def _draw_bland_altman(axes: Axes, reference: NDArray, result: NDArray) -> None:
    """Differences against means (Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8)."""
    means, differences = (reference + result) / 2, result - reference
    bias = float(differences.mean())
    lines = [(bias, "-", f"mean {bias:+.2f} ml")]
    if len(differences) > 1:
        half = AGREEMENT * float(differences.std(ddof=1))
        lines += [
            (bias + half, "--", f"+1.96 SD: {bias + half:+.2f} ml"),
            (bias - half, "--", f"−1.96 SD: {bias - half:+.2f} ml"),
        ]
    axes.axhline(0, color="#adb5bd", linewidth=0.8)
    axes.plot(means, differences, "o", color=COLOUR, alpha=0.75, markersize=6)
    for height, style, text in lines:
        axes.axhline(height, color=NOTE_COLOUR, linewidth=1, linestyle=style)
        axes.annotate(
            text,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            color=NOTE_COLOUR,
            fontsize=8,
            ha="right",
        )
    axes.set_title("Bland-Altman", fontsize=10, loc="left")
    axes.set_xlabel("mean of reference and result (ml)")
    axes.set_ylabel("result − reference (ml)")
    axes.margins(x=0.08, y=0.15)
    bare(axes)


def literal(text: str) -> str:
    """Text of a data set as matplotlib shows it letter by letter: dollars start no formula."""
    return text.replace("$", r"\$")


def bare(axes: Axes) -> None:
    """Take away the upper and the right edge of a chart."""
    axes.spines[["top", "right"]].set_visible(False)
