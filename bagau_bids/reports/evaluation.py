"""The page of an evaluation: how well results agree with references, and where they do not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bagau_bids.bids.tables import column_descriptions
from bagau_bids.errors import InputImageError
from bagau_bids.evaluation.pairs import MaskPair
from bagau_bids.evaluation.scoring import Mask, check_grid, read_pair
from bagau_bids.evaluation.tables import ALL, MEANS, SIZES
from bagau_bids.files import write_text
from bagau_bids.preprocessing.conform import read_volume
from bagau_bids.reports import charts, figures
from bagau_bids.reports.pages import Layer, Picture, embed, render
from bagau_bids.spaces import reorient, voxel_sizes

PAGE_NAME = "evaluation_FLAIR.html"
WORST_CASES = 4
SLICES = 12
NO_FLAIR_GREY = 0.18  # tells slices from what lies between them; 0 is black
MARGIN_MM = 40.0  # shown around the masks
# Colours that people with red-green blindness tell apart (Wong 2011, doi:10.1038/nmeth.1618).
BOTH_COLOUR = "#009e73"
MISSED_COLOUR = "#56b4e9"
FALSE_COLOUR = "#e66f00"
IGNORED_COLOUR = "#8d99ae"
# Measures with the digits after the point that the page shows.
DIGITS = {
    "dice": 3,
    "hausdorff95_mm": 1,
    "volume_difference_percent": 1,
    "lesion_recall": 2,
    "lesion_precision": 2,
    "lesion_f1": 2,
    "voxel_recall": 2,
    "voxel_precision": 2,
    "reference_ml": 2,
    "result_ml": 2,
    "volume_difference_ml": 2,
    **{f"{size}_lesion_f1": 2 for size in SIZES},
    "volume_correlation": 3,
}
# Columns of the table of cases; all others are in the file.
SHOWN = tuple(name for name in DIGITS if name not in ("lesion_precision", "volume_correlation"))
HEADS = {
    "dice": "Dice",
    "hausdorff95_mm": "H95 (mm)",
    "volume_difference_percent": "AVD (%)",
    "lesion_recall": "Lesion recall",
    "lesion_precision": "Lesion precision",
    "lesion_f1": "Lesion F1",
    "voxel_recall": "Voxel recall",
    "voxel_precision": "Voxel precision",
    "reference_ml": "Reference (ml)",
    "result_ml": "Result (ml)",
    "volume_difference_ml": "Difference (ml)",
    "small_lesion_f1": "F1 < 0.1 ml",
    "medium_lesion_f1": "F1 0.1-1 ml",
    "large_lesion_f1": "F1 > 1 ml",
    "volume_correlation": "Volume correlation",
}


@dataclass(frozen=True)
class Comparison:
    """What was compared, for the page.

    Parameters
    ----------
    reference, result : Path
        Files or folders.
    pairs : mapping of str to MaskPair
        By case.
    flairs : mapping of str to Path
        FLAIR by case, where there is one.
    threshold : float or None
        With which probability maps were made masks.
    seed : int
        Of the bootstrap.
    """

    reference: Path
    result: Path
    pairs: Mapping[str, MaskPair]
    flairs: Mapping[str, Path] = field(default_factory=dict)
    threshold: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class WorstCase:
    """A case shown in a picture, and why its FLAIR is not in it, if it should be."""

    picture: Picture
    note: str = ""


def write_evaluation_page(
    path: Path, cases: pd.DataFrame, summary: pd.DataFrame, comparison: Comparison
) -> None:
    """Write the page, one file that holds all its pictures.

    Parameters
    ----------
    path : Path
        The page.
    cases, summary : DataFrame
        As `bagau_bids.evaluation.tables` makes them.
    comparison : Comparison
    """
    scored = cases[cases["status"] == "scored"]
    text = render(
        "evaluation.html",
        comparison=comparison,
        heads=HEADS,
        summary=[_summary_row(row) for row in _records(summary[summary["group"] == ALL])],
        groups=_groups(summary),
        charts=_charts(scored, summary) if len(scored) else (),
        columns=SHOWN,
        cases=[_case_row(row) for row in _records(cases)],
        unscored=_records(cases[cases["status"] != "scored"]),
        scored=len(scored),
        empty=int(((scored["reference_ml"] == 0) | (scored["result_ml"] == 0)).sum()),
        worst=[_worst_case(row, comparison) for row in _records(_worst(scored))],
        described=_definitions(),
    )
    write_text(path, text)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, missing values as None."""
    known = table.astype(object).where(table.notna(), None)
    return [dict(zip(table.columns, row, strict=True)) for row in known.to_numpy().tolist()]


def _summary_row(row: Mapping[str, Any]) -> dict[str, str]:
    digits = DIGITS[row["measure"]]
    numbers = {
        name: _number(row[name], digits)
        for name in ("value", "sd", "median", "minimum", "maximum")
    }
    limits = [_number(row[name], digits) for name in ("ci_low", "ci_high")]
    interval = "–" if row["ci_low"] is None else f"{limits[0]} to {limits[1]}"
    spread = f"{numbers['minimum']} to {numbers['maximum']}" if row["minimum"] is not None else "–"
    return {
        "measure": row["measure"],
        "name": HEADS[row["measure"]],
        "statistic": row["statistic"],
        "n_cases": str(row["n_cases"]),
        "interval": interval,
        "spread": spread,
        **numbers,
    }


@dataclass(frozen=True)
class Group:
    """A group of cases: its name, its number of cases, and words by measure and statistic."""

    group: str
    n: str
    measured: dict[str, dict[str, str]]


def _groups(summary: pd.DataFrame) -> list[Group]:
    rows = []
    own = summary[summary["group"] != ALL]
    for group, part in own.groupby("group", sort=False):
        measured = {row["measure"]: _summary_row(row) for row in _records(part)}
        rows.append(Group(str(group), measured["dice"]["n_cases"], measured))
    return rows


def _case_row(row: Mapping[str, Any]) -> dict[str, str]:
    numbers = {name: _number(row[name], DIGITS[name]) for name in SHOWN}
    return {"case": row["case"], "status": row["status"], **numbers}


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _charts(scored: pd.DataFrame, summary: pd.DataFrame) -> tuple[Picture, ...]:
    values = summary[summary["group"] == ALL].set_index("measure")["value"]
    correlation = None if pd.isna(values["volume_correlation"]) else values["volume_correlation"]
    dice = charts.draw_dice(scored["case"].tolist(), scored["dice"].tolist(), values["dice"])
    volumes = charts.draw_volumes(
        scored["reference_ml"].tolist(), scored["result_ml"].tolist(), correlation
    )
    return (
        embed(("dice", "Dice of every case", "From the best to the worst."), dice),
        embed(
            (
                "volumes",
                "Volumes",
                "Left: result against reference. Right: their difference against their mean, with "
                "the mean difference and the limits of agreement, between which 95 % of "
                "differences lie if they are normally distributed.",
            ),
            volumes,
        ),
    )


def _worst(scored: pd.DataFrame) -> pd.DataFrame:
    """Cases of the lowest Dice; none that agrees in every voxel."""
    imperfect = scored[scored["dice"] < 1]
    return imperfect.sort_values("dice", kind="stable").head(WORST_CASES)


def _worst_case(row: Mapping[str, Any], comparison: Comparison) -> WorstCase:
    case = row["case"]
    reference, result = read_pair(comparison.pairs[case], threshold=comparison.threshold)
    shown = _case_row(row)
    facts = (
        f"Dice {shown['dice']}, H95 {shown['hausdorff95_mm']} mm; reference "
        f"{shown['reference_ml']} ml in {_lesions(row['reference_lesions'])}, result "
        f"{shown['result_ml']} ml in {_lesions(row['result_lesions'])}."
    )
    flair, note = _flair_of(comparison.flairs.get(case), reference)
    return WorstCase(_picture((case, facts), reference, result, flair), note)


def _lesions(count: int) -> str:
    return f"{count} lesion" if count == 1 else f"{count} lesions"


def _flair_of(path: Path | None, mask: Mask) -> tuple[np.ndarray | None, str]:
    """FLAIR in the mask's voxel order, or None with the reason where it cannot be shown."""
    if path is None:
        return None, ""
    try:
        stored = read_volume(path)
        check_grid(mask.stored, stored)
    except InputImageError as error:
        return None, f"Shown without its FLAIR: {error}"
    flair = np.nan_to_num(reorient(stored).data.astype(np.float32))
    return flair, ""


def _picture(
    texts: tuple[str, str], reference: Mask, result: Mask, flair: np.ndarray | None
) -> Picture:
    """Slices with what agrees and what does not; on grey where there is no FLAIR.

    `texts` are the case and the first words of the caption.
    """
    case, facts = texts
    truth, ignored = reference.data == 1, reference.data == 2
    found = (result.data != 0) & ~ignored
    either = truth | found
    axis = figures.scan_axis(reference.affine)
    slices = figures.busiest_slices(either, axis, SLICES)
    region = _around(either, reference.affine)
    base, window = np.full(either.shape, NO_FLAIR_GREY, np.float32), (0.0, 1.0)
    if flair is not None:
        base, window = flair, figures.display_window(flair, region & (flair > 0))
    columns = min((4, 3), key=lambda columns: -len(slices) % columns)
    layout = figures.mosaic([(axis, slices)], region, reference.affine, columns=columns)
    filled = figures.draw_regions(
        layout,
        [
            (ignored, IGNORED_COLOUR),
            (truth & ~found, MISSED_COLOUR),
            (found & ~truth, FALSE_COLOUR),
            (truth & found, BOTH_COLOUR),
        ],
        opacity=0.75 if flair is not None else 1.0,
    )
    outlines = figures.stack_transparent(
        figures.draw_outline(layout, truth, MISSED_COLOUR),
        figures.draw_outline(layout, found, FALSE_COLOUR),
    )
    touched = np.count_nonzero(either.any(axis=tuple(a for a in range(3) if a != axis)))
    share = "All" if len(slices) == touched else f"{len(slices)} of the"
    caption = f"{facts} {share} {touched} {figures.PLANE_NAMES[axis]} slices with either mask."
    layers = [Layer("regions", "agreement", filled), Layer("outlines", "outlines", outlines)]
    return embed(
        (f"worst-{_anchor(case)}", case, caption),
        figures.draw_slices(layout, base, window),
        layers,
        without="" if flair is None else "FLAIR only",
    )


def _around(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Box around a mask with a margin."""
    places = np.argwhere(mask)
    margin = np.ceil(MARGIN_MM / voxel_sizes(affine)).astype(int)
    low = np.maximum(places.min(axis=0) - margin, 0)
    high = places.max(axis=0) + margin + 1
    box = np.zeros(mask.shape, dtype=bool)
    box[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return box


def _anchor(case: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in case)


def _definitions() -> Iterator[tuple[str, str]]:
    described = column_descriptions("evaluation")
    for name in (*MEANS, *(f"{size}_lesion_f1" for size in SIZES)):
        yield HEADS[name], described[name].description
