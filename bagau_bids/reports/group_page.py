"""The page over all participants: what is usual, what is not, and links to each one's page."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bagau_bids.bids.participants import Participants
from bagau_bids.bids.tables import Column, listed, natural_key
from bagau_bids.files import write_text
from bagau_bids.measures.flags import limits
from bagau_bids.measures.outliers import FENCE, FEWEST_VALUES
from bagau_bids.measures.regions import REGIONS, SIDES
from bagau_bids.reports import strips
from bagau_bids.reports.changes import Changes, Pair
from bagau_bids.reports.covariates import drawn_covariates, find_covariates
from bagau_bids.reports.group_table import (
    NAMES,
    SCALES,
    column_sections,
    figure_columns,
    group_columns,
)
from bagau_bids.reports.pages import Picture, embed, render
from bagau_bids.reports.results import COMPLETE
from bagau_bids.reports.scan_pictures import thumbnail_path

UNIT_TEXTS = {"1": "", "mm^3": "mm³", "cm^2": "cm²", "mm^2": "mm²", "voxels": "", "lesions": ""}
# Volumes that are shown in ml, as on the pages of participants; sizes of lesions stay in mm3.
IN_ML = ("volume_mm3", *(f"{name}_mm3" for name in (*REGIONS, *SIDES)))
# What another column says as well: brain_volume_ml, and a share of the whole that is always 1.
TOLD_ELSEWHERE = ("brain_mm3", "fraction_of_wmh")
LONGEST_LIST = 200  # rows of a table of the page; the file has all
GRADES = (0, 1, 2, 3)
MOST_THUMBNAILS = 2000  # of about 4 kB


@dataclass(frozen=True)
class Cohort:
    """Everything the page is made from.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives, for links.
    rows : sequence of mapping
        Rows of the group table, value by column.
    asks : mapping
        What asks for a look, in words, by the name of the scan.
    problems : sequence of str
        What is not complete.
    lacking : sequence of str
        Which complete scans are without some figures.
    participants : Participants
    """

    output_dir: Path
    rows: Sequence[Mapping[str, Any]]
    asks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    lacking: Sequence[str] = ()
    participants: Participants = field(default_factory=Participants)

    @cached_property
    def descriptions(self) -> dict[str, Column]:
        """What the columns mean."""
        return group_columns()

    @property
    def complete(self) -> list[Mapping[str, Any]]:
        """Rows of scans that are complete: only these count."""
        return [row for row in self.rows if row["status"] == COMPLETE]

    @property
    def one_each(self) -> list[Mapping[str, Any]]:
        """Return the row of the first complete scan of each participant."""
        first: dict[str, Mapping[str, Any]] = {}
        for row in self.complete:
            first.setdefault(row["participant_id"], row)
        return list(first.values())

    def link(self, bids_name: str) -> str:
        """Return the link to a scan on the page that shows it, empty where there is none.

        That is a page of the scan's own, of its session or of its participant.
        """
        stem = bids_name.removesuffix("_FLAIR")
        participant = stem.split("_")[0]
        session = next((part for part in stem.split("_") if part.startswith("ses-")), None)
        names = (stem, f"{participant}_{session}" if session else participant, participant)
        pages = (f"{name}.html" for name in names)
        page = next((page for page in pages if (self.output_dir / page).is_file()), None)
        return f"{page}#{stem}" if page else ""

    def head(self, column: str) -> str:
        """Return the name of a column for a person."""
        return self.descriptions[column].long_name or column

    def unit(self, column: str) -> str:
        """Return the unit of a column for a person."""
        unit = "ml" if column in IN_ML else self.descriptions[column].units
        return UNIT_TEXTS.get(unit, unit)

    def number(self, row: Mapping[str, Any], column: str) -> float:
        """Return the value of a scan in that unit."""
        return float(row[column]) / (1000 if column in IN_ML else 1)


@dataclass(frozen=True)
class Figure:
    """One figure of all scans, as a row of the page."""

    column: str
    name: str
    unit: str
    description: str
    n: int
    median: str
    quartiles: str
    outliers: int
    strip: strips.Strip


@dataclass(frozen=True)
class Line:
    """One scan in the lists of the page, in words."""

    name: str
    link: str
    status: str
    volume: str
    lesions: str
    flags: str
    outliers: int


@dataclass(frozen=True)
class Thumbnail:
    """A slice of a scan for the mosaic of all: data URI, and the scan's line."""

    picture: str
    line: Line


def thumbnails(cohort: Cohort) -> tuple[list[Thumbnail], list[str]]:
    """Gather the small pictures that the participants' pages left of complete scans.

    Returns
    -------
    thumbnails : list of Thumbnail
        In the order of the table, the first `MOST_THUMBNAILS`.
    without : list of str
        Scans that have none, or that there is no room for.
    """
    found, without = list[Thumbnail](), list[str]()
    for row in cohort.complete:
        line = _line(cohort, row)
        path = thumbnail_path(cohort.output_dir, line.name)
        if len(found) < MOST_THUMBNAILS and path.is_file():
            content = base64.b64encode(path.read_bytes()).decode("ascii")
            found.append(Thumbnail(f"data:image/webp;base64,{content}", line))
        else:
            without.append(line.name)
    return found, without


def covariate_picture(cohort: Cohort) -> tuple[Picture | None, str]:
    """Draw WMH volume against the columns of the table of participants.

    Returns
    -------
    picture : Picture or None
        None where there is nothing to show.
    note : str
        What is not shown and why; empty where nothing is missing.
    """
    participants = cohort.participants
    if participants.source is None:
        return None, participants.note
    volumes = {
        row["participant_id"]: row["volume_mm3"] / 1000
        for row in cohort.one_each
        if row["volume_mm3"] is not None
    }
    covariates, left_out = find_covariates(participants, volumes)
    drawn, failed = drawn_covariates(covariates)
    without = [name for name in volumes if name not in participants.listed]
    notes = [participants.note] if participants.note else []
    if left_out or failed:
        notes.append(f"Not shown of participants.tsv: {'; '.join([*left_out, *failed])}.")
    if without:
        notes.append(f"Not in participants.tsv: {listed(without)}.")
    if absent := sorted(
        set(participants.listed) - {row["participant_id"] for row in cohort.rows}, key=natural_key
    ):
        notes.append(f"In participants.tsv, without any result here: {listed(absent)}.")
    if drawn is None:
        return None, " ".join(notes)
    caption = (
        f"One point a participant, with its first complete scan. From {participants.source}. "
        "Volumes are stretched by the cube root; n is the number of participants whose value is "
        "known."
    )
    names = ("covariates", "WMH volume and participants.tsv", caption)
    return embed(names, drawn), " ".join(notes)


def write_group_page(
    path: Path,
    cohort: Cohort,
    *,
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    changes: Changes | None = None,
) -> None:
    """Write the page, one file that holds all its pictures.

    Parameters
    ----------
    path : Path
        The page, at the root of the derivatives: links to participants are relative.
    cohort : Cohort
    pictures : sequence of Picture
        Lesion frequency maps.
    notes : sequence of str
        What is missing in them.
    changes : Changes or None
        Between sessions.
    """
    figures, settings = _figures(cohort)
    covariates, covariates_note = covariate_picture(cohort)
    mosaic, unpictured = thumbnails(cohort)
    apart = [row for row in cohort.complete if row["outliers"]]
    apart.sort(key=lambda row: -len(row["outliers"].split(",")))
    text = render(
        "group.html",
        summary=tuple(_summary(cohort)),
        mosaic=mosaic,
        unpictured=listed(unpictured),
        figures=figures,
        complete=len(cohort.complete),
        settings=settings,
        grades=_grades(cohort),
        flags=_flag_counts(cohort),
        flagged=_flagged(cohort)[:LONGEST_LIST],
        flagged_left_out=max(len(_flagged(cohort)) - LONGEST_LIST, 0),
        recorded=sum(row["n_flags"] is not None for row in cohort.complete),
        lacking=cohort.lacking,
        kinds=_kinds(cohort),
        outliers=[(_line(cohort, row), _outlying(cohort, row)) for row in apart[:LONGEST_LIST]],
        outliers_left_out=max(len(apart) - LONGEST_LIST, 0),
        judged=len(cohort.complete) >= FEWEST_VALUES,
        fence=FENCE,
        fewest=FEWEST_VALUES,
        problems=cohort.problems,
        scans=[_line(cohort, row) for row in cohort.rows],
        covariates=covariates,
        covariates_note=covariates_note,
        pictures=pictures,
        notes=notes,
        changes=changes.picture if changes else None,
        pairs=[(_names(cohort, pair), pair.figures, pair.problem) for pair in changes.rows]
        if changes
        else (),
        order_notes=changes.notes if changes else (),
        strip_size=(strips.WIDTH, strips.HEIGHT),
    )
    write_text(path, text)


def _summary(cohort: Cohort) -> Iterator[tuple[str, str]]:
    rows = cohort.rows
    states = Counter(row["status"] for row in rows)
    participants = {row["participant_id"] for row in rows}
    repeated = Counter(
        participant for participant, _ in {(r["participant_id"], r["session_id"]) for r in rows}
    )
    several = sum(count > 1 for count in repeated.values())
    yield (
        "Participants",
        str(len(participants)) + (f", {several} with several sessions" if several else ""),
    )
    yield "Scans", f"{len(rows)}: " + ", ".join(f"{n} {state}" for state, n in states.items())
    volumes = [r["volume_mm3"] / 1000 for r in cohort.complete if r["volume_mm3"] is not None]
    if volumes:
        low, median, high = np.percentile(volumes, [25, 50, 75])
        yield (
            "WMH volume",
            f"median {median:.2f} ml, quartiles {low:.2f} to {high:.2f} ml, range "
            f"{min(volumes):.2f} to {max(volumes):.2f} ml",
        )
        yield "Without a lesion", str(sum(volume == 0 for volume in volumes))
    if judged := [row["n_flags"] for row in cohort.complete if row["n_flags"] is not None]:
        yield "Flagged", f"{sum(count > 0 for count in judged)} of {len(judged)} scans"
    if len(cohort.complete) >= FEWEST_VALUES:
        outlying = sum(bool(row["outliers"]) for row in cohort.complete)
        yield "Outliers", f"{outlying} scan{'s' * (outlying != 1)}"


def _figures(
    cohort: Cohort,
) -> tuple[dict[str, list[Figure]], list[tuple[str, str]]]:
    """Figures that differ between scans, by heading, and those that are the same for all."""
    figures: dict[str, list[Figure]] = {}
    settings = []
    for heading, section in column_sections().items():
        for column in figure_columns(section):
            if column in TOLD_ELSEWHERE:
                continue
            known = [row for row in cohort.complete if row[column] is not None]
            if not known:
                continue
            numbers = [cohort.number(row, column) for row in known]
            if len(known) > 1 and min(numbers) == max(numbers):
                value = f"{strips.short(numbers[0])} {cohort.unit(column)}".strip()
                settings.append((cohort.head(column), value))
                continue
            figures.setdefault(heading, []).append(_figure(cohort, column, known))
    return figures, settings


def _figure(cohort: Cohort, column: str, known: Sequence[Mapping[str, Any]]) -> Figure:
    unit = cohort.descriptions[column].units
    values = [
        strips.Value(
            cohort.number(row, column),
            row["bids_name"].removesuffix("_FLAIR"),
            cohort.link(row["bids_name"]),
        )
        for row in known
    ]
    drawn = strips.strip(values, unit)
    low, median, high = np.percentile([value.number for value in values], [25, 50, 75])
    return Figure(
        column=column,
        name=cohort.head(column),
        unit=cohort.unit(column),
        description=cohort.descriptions[column].description,
        n=len(values),
        median=strips.short(float(median)),
        quartiles=f"{strips.short(float(low))} to {strips.short(float(high))}",
        outliers=sum(point.outlying for point in drawn.points),
        strip=drawn,
    )


def _grades(cohort: Cohort) -> list[tuple[str, list[tuple[int, str]]]]:
    """Of each Fazekas scale: how many scans are estimated at each grade, and their share."""
    table = []
    for scale in SCALES:
        column = f"fazekas_{scale}_estimate"
        grades = [row[column] for row in cohort.complete if row[column] is not None]
        counts = [grades.count(grade) for grade in GRADES]
        if grades:
            cells = [(n, f"{100 * n / len(grades):.0f} %") for n in counts]
            table.append((scale.capitalize(), cells))
    return table


def _flag_counts(cohort: Cohort) -> list[tuple[str, int]]:
    """Name every flag that can be raised, with how many complete scans raise it."""
    counts = Counter(name for row in cohort.complete for name in _flags(row))
    known = dict.fromkeys(limit.flag for limit in limits().values())
    return [(name, counts[name]) for name in {**known, **counts}]


def _flagged(cohort: Cohort) -> list[tuple[Line, Sequence[str]]]:
    """Complete scans with a raised flag and why, those with the most flags first."""
    rows = sorted((row for row in cohort.complete if _flags(row)), key=lambda r: -r["n_flags"])
    return [(_line(cohort, row), cohort.asks[row["bids_name"]]) for row in rows]


def _flags(row: Mapping[str, Any]) -> list[str]:
    return row["flags"].split(",") if row["flags"] else []


def _kinds(cohort: Cohort) -> list[tuple[str, list[tuple[str, int]]]]:
    """Columns of words: how often each was found, the most frequent first."""
    kinds = []
    for column, entry in cohort.descriptions.items():
        if entry.units or column in NAMES or column.startswith("fazekas"):
            continue
        counts = Counter(str(row[column]) for row in cohort.complete if row[column] is not None)
        if counts:
            kinds.append((cohort.head(column), counts.most_common(8)))
    return kinds


def _names(cohort: Cohort, pair: Pair) -> list[tuple[str, str]]:
    """Names of both scans of a pair, with the links to them."""
    return [(name.removesuffix("_FLAIR"), cohort.link(name)) for name in (pair.before, pair.after)]


def _outlying(cohort: Cohort, row: Mapping[str, Any]) -> list[str]:
    """Name the figures of a scan that lie apart, with their values."""
    columns = row["outliers"].split(",")
    columns = [column for column in columns if column not in TOLD_ELSEWHERE] or columns
    return [
        f"{cohort.head(column)} {strips.short(cohort.number(row, column))} "
        f"{cohort.unit(column)}".strip()
        for column in columns
    ]


def _line(cohort: Cohort, row: Mapping[str, Any]) -> Line:
    volume, lesions = row["volume_mm3"], row["n_lesions"]
    return Line(
        name=row["bids_name"].removesuffix("_FLAIR"),
        link=cohort.link(row["bids_name"]),
        status=row["status"],
        volume="–" if volume is None else f"{volume / 1000:.2f}",
        lesions="–" if lesions is None else f"{lesions:.0f}",
        flags=", ".join(_flags(row)),
        outliers=len(row["outliers"].split(",")) if row["outliers"] else 0,
    )
