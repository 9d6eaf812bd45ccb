"""The table of all participants: one row a FLAIR, from the derivatives folder alone."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagau_bids.bids.derivatives import write_json, write_table
from bagau_bids.bids.tables import column_descriptions, described_table, natural_key
from bagau_bids.errors import ProcessingError, UsageError
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
    """

    path: Path
    scans: int
    problems: tuple[str, ...]


def write_group(output_dir: Path) -> GroupTable:
    """Gather every scan of the output folder into ``group_FLAIR.tsv`` and ``.json``.

    Reads tables and records only, no image. May be run again at any time; rows are ordered by
    participant, session and scan, numbers by their value. Scans that failed or lack files
    have a row that says so; problems also go to the log.

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
    rows = [_row(scan, list(descriptions)) for scan in scans]
    problems = (
        *(f"{row['bids_name']}: {row['problem']}" for row in rows if row["status"] != COMPLETE),
        *_participants_without_results(output_dir, scans),
    )
    for problem in problems:
        LOGGER.warning("%s", problem)
    path = output_dir / TABLE_NAME
    write_table(path, described_table(rows, descriptions))
    write_json(path.with_suffix(".json"), descriptions)
    return GroupTable(path, len(rows), problems)


def _descriptions() -> dict[str, Any]:
    """Columns of the table in order, each with its meaning and unit."""
    group, volumes, quality = map(column_descriptions, ("group", "volumes", "quality"))
    del volumes["region"]
    first = ("bids_name", "participant_id", "session_id", "status")
    return {name: group[name] for name in first} | volumes | quality | group


def _row(scan: ScanResults, columns: list[str]) -> dict[str, Any]:
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
    known |= {"status": status, "problem": problem or None}
    if "ses" in scan.entities:
        known["session_id"] = f"ses-{scan.entities['ses']}"
    return {column: known.get(column) for column in columns}


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
