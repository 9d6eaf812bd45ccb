"""The group level: one table over all FLAIRs and its page, from the derivatives folder alone."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagau_bids.bids.derivatives import write_json, write_table
from bagau_bids.bids.participants import find_participants
from bagau_bids.bids.tables import column_descriptions, described_table, natural_key
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.measures.outliers import outlying
from bagau_bids.reports.changes import write_changes
from bagau_bids.reports.frequency import write_frequency_maps
from bagau_bids.reports.group_page import Cohort, figure_columns, write_group_page
from bagau_bids.reports.results import (
    COMPLETE,
    INCOMPLETE,
    ScanResults,
    find_results,
    read_table,
)

LOGGER = logging.getLogger(__name__)
TABLE_NAME = "group_FLAIR.tsv"


@dataclass(frozen=True)
class GroupTable:
    """The group table that was written.

    Parameters
    ----------
    path : Path
        The table; its description lies beside it (``.json``).
    scans : int
        Number of rows.
    problems : tuple of str
        One line for each scan that is not complete and each participant without any result.
    notes : tuple of str
        What else could not be done, such as scans that are missing in the lesion frequency map.
    """

    path: Path
    scans: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def page(self) -> Path:
        """The page beside the table."""
        return self.path.with_suffix(".html")


def write_group(output_dir: Path) -> GroupTable:
    """Gather every scan of the output folder into ``group_FLAIR.tsv``, ``.json`` and ``.html``.

    A lesion frequency map and, where participants have several sessions, a table of changes are
    written beside them. May be run again at any time; rows are ordered
    by participant, session and scan, numbers by their value. Scans that failed or lack files have
    a row that says so; problems also go to the log.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.

    Returns
    -------
    GroupTable

    Raises
    ------
    UsageError
        If the folder holds no result of any scan.
    """
    scans = find_results(output_dir)
    if not scans:
        raise UsageError(
            f"{output_dir}: holds no results of a scan; expected sub-*/[ses-*/]anat as the "
            "participant level writes it: run the participant level first"
        )
    descriptions = _descriptions()
    rows = [_row(scan, descriptions) for scan in scans]
    _mark_outliers(rows, descriptions)
    problems = (
        *(f"{row['bids_name']}: {row['problem']}" for row in rows if row["status"] != COMPLETE),
        *_participants_without_results(output_dir, scans),
    )
    path = output_dir / TABLE_NAME
    write_table(path, described_table(rows, descriptions))
    write_json(path.with_suffix(".json"), descriptions)
    participants = find_participants(output_dir)
    cohort = Cohort(output_dir, rows, descriptions, problems, participants)
    by_name = {f"{scan.stem}_FLAIR": scan for scan in scans}
    maps = write_frequency_maps(output_dir, [by_name[row["bids_name"]] for row in cohort.one_each])
    changes = write_changes(output_dir, [by_name[row["bids_name"]] for row in cohort.complete])
    notes = tuple(note for one in maps for note in one.problems)
    for problem in (*problems, *notes, *changes.problems):
        LOGGER.warning("%s", problem)
    table = GroupTable(path, len(rows), problems, (*notes, *changes.problems))
    pictures = [one.picture for one in maps if one.picture]
    write_group_page(table.page, cohort, pictures=pictures, notes=notes, changes=changes)
    return table


def _descriptions() -> dict[str, Any]:
    """Columns of the table in order, each with its meaning and unit."""
    group, volumes, quality = map(column_descriptions, ("group", "volumes", "quality"))
    del volumes["region"]
    first = ("bids_name", "participant_id", "session_id", "status")
    return {name: group[name] for name in first} | volumes | quality | group


def _row(scan: ScanResults, descriptions: Mapping[str, Any]) -> dict[str, Any]:
    """One scan; every column is there, None where nothing is known."""
    status, problem = scan.status, scan.problem
    volumes: dict[str, Any] = {}
    path = scan.path("volumes_table")
    if path.is_file():
        try:
            volumes = next(row for row in read_table(path) if row.get("region") == "all")
        except (ProcessingError, StopIteration):
            status = INCOMPLETE if status == COMPLETE else status
            problem = problem or f"missing or damaged: {path.name}"
    known = {**volumes, **scan.quality, **_processing(scan)}
    known |= {"bids_name": f"{scan.stem}_FLAIR", "participant_id": f"sub-{scan.entities['sub']}"}
    if "ses" in scan.entities:
        known["session_id"] = f"ses-{scan.entities['ses']}"
    row = {column: known.get(column) for column in descriptions}
    for column in figure_columns(descriptions):
        if row[column] is not None and not _is_number(row[column]):
            status = INCOMPLETE if status == COMPLETE else status
            problem = problem or f"{column} is not a number: {row[column]!r}"
            row[column] = None
    return row | {"status": status, "problem": problem or None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mark_outliers(rows: list[dict[str, Any]], descriptions: Mapping[str, Any]) -> None:
    """Fill the column outliers of complete scans."""
    complete = [row for row in rows if row["status"] == COMPLETE]
    apart: dict[int, list[str]] = {}
    for column in figure_columns(descriptions):
        known = [row for row in complete if row[column] is not None]
        values = [float(row[column]) for row in known]
        for row, marked in zip(
            known, outlying(values, descriptions[column]["Units"]), strict=True
        ):
            if marked:
                apart.setdefault(id(row), []).append(column)
    for row in complete:
        row["outliers"] = ",".join(apart.get(id(row), ())) or None


def _processing(scan: ScanResults) -> dict[str, Any]:
    """How a scan was processed, from its record."""
    segmentation, registration = scan.step("segmentation"), scan.step("registration")
    models = segmentation.get("models") or ()
    options = scan.record.get("options") or {}
    return {
        "registration_stage": registration.get("stage"),
        "registration_overlap": registration.get("overlap"),
        "model": "+".join(str(model.get("Name")) for model in models) or None,
        "model_sha256": "+".join(str(model.get("SHA256")) for model in models) or None,
        "threshold": options.get("threshold"),
        "min_lesion_size_mm3": options.get("min_lesion_size_mm3"),
        "device": segmentation.get("device"),
        "version": (scan.record.get("versions") or {}).get("bagau-bids"),
    }


def _participants_without_results(output_dir: Path, scans: list[ScanResults]) -> Iterator[str]:
    """Participants with a folder, or a page, but nothing of a scan."""
    known = {f"sub-{scan.entities['sub']}" for scan in scans}
    folders = {path.name for path in output_dir.glob("sub-*") if path.is_dir()}
    pages = {path.stem for path in output_dir.glob("sub-*.html")}
    for participant in sorted((folders | pages) - known, key=natural_key):
        yield f"{participant}: no result of any scan; see {participant}/log for the reason"
