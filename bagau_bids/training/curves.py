"""The course of a training as a picture, drawn from the tables that it writes."""

import os
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

TRAINING, VALIDATION = "training.csv", "validation.csv"
CURVES = "curves.png"


def draw_curves(folder: Path) -> Figure:
    """Loss and learning rate over the steps, and validation Dice of each scan and their mean.

    Parameters
    ----------
    folder : Path
        Holds ``training.csv`` and, after the first validation, ``validation.csv``.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
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
        scores = pd.read_csv(folder / VALIDATION).pivot(
            index="step", columns="scan", values="dice"
        )
        for scan in scores:
            name = str(scan).replace("$", r"\$")  # no formula
            judged.plot(scores.index, scores[scan], marker=".", alpha=0.6, label=name)
        judged.plot(scores.index, scores.mean(axis=1), "k.-", label="mean")
        judged.legend(loc="lower right")
    return figure


def save_curves(folder: Path) -> None:
    """Draw the curves of a training into ``curves.png`` beside its tables, by a rename."""
    temporary = folder / f".{os.getpid()}.{CURVES}"
    draw_curves(folder).savefig(temporary, format="png")
    temporary.replace(folder / CURVES)
