"""The course of a training: the tables that grow with it, and a picture drawn from them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from bagau_bids.files import replacing

TRAINING, VALIDATION = "training.csv", "validation.csv"
CURVES = "curves.png"
OF_INFARCTS = {  # columns of the validation that have a curve: label and colour
    "infarct_dice": ("infarct Dice", "black"),
    "infarct_called_wmh": ("infarct called WMH", "tab:red"),
}


def draw_curves(folder: Path) -> Figure:
    """Loss and learning rate over the steps, and validation Dice of each scan and their mean.

    Dashed, where infarcts were judged: their Dice, and the share of them that is called WMH.

    Parameters
    ----------
    folder : Path
        Holds ``training.csv`` and, after the first validation, ``validation.csv``.
    """
    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    loss, judged = figure.add_subplot(121), figure.add_subplot(122)
    steps = pd.read_csv(folder / TRAINING)
    loss.plot(steps["step"], steps["loss"], color="tab:blue", alpha=0.3, label="loss")
    smooth = steps["loss"].ewm(span=max(2, len(steps) // 10)).mean()
    loss.plot(steps["step"], smooth, color="tab:blue", label="loss, smoothed")
    loss.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    rate = loss.twinx()
    rate.plot(steps["step"], steps["learning_rate"], color="tab:gray", ls=":", label="rate")
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    loss.legend(loc="upper right")
    judged.set(xlabel="step", ylabel="Dice at native resolution", ylim=(0, 1))
    if (folder / VALIDATION).is_file():
        validation = pd.read_csv(folder / VALIDATION)
        scores = validation.pivot(index="step", columns="scan", values="dice")
        scores = scores.dropna(axis="columns", how="all")  # of heads without lesions
        for number, scan in enumerate(scores):
            name = str(scan).replace("$", r"\$")  # no formula
            shade = colormaps["tab20"](number % 20)
            judged.plot(scores.index, scores[scan], marker=".", color=shade, label=name)
        judged.plot(scores.index, scores.mean(axis=1), "k.-", label="mean")
        for column, (label, colour) in OF_INFARCTS.items():
            if column in validation and validation[column].notna().any():
                shares = validation.dropna(subset=column).groupby("step")[column].mean()
                judged.plot(shares.index, shares, ".--", color=colour, label=label)
        judged.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def save_curves(folder: Path) -> None:
    """Draw the curves of a training into ``curves.png`` beside its tables, by a rename."""
    with replacing(folder / CURVES) as temporary:
        draw_curves(folder).savefig(temporary, format="png")


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a CSV file, with a header if it is new.

    Parameters
    ----------
    path : Path
    rows : sequence of mapping
        All with the same keys, ``step`` first; may be empty. See :func:`rounded`.
    """
    if not rows:
        return
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(map(rounded, rows))


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give numbers five significant digits."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def drop_rows_after(path: Path, step: int) -> None:
    """Forget the lines of steps that will be done again; nothing where there is no table."""
    if not path.is_file():
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if int(line.split(",", 1)[0]) <= step]
    path.write_text("".join([header, *kept]), encoding="utf-8")
