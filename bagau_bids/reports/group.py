"""The group level: one table over all FLAIRs and its page, from the derivatives folder alone."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.bids.participants import find_participants
from bagau_bids.bids.tables import described_table, natural_key
from bagau_bids.errors import UsageError
from bagau_bids.files import write_json, write_table
from bagau_bids.reports.changes import write_changes
from bagau_bids.reports.frequency import write_frequency_maps
from bagau_bids.reports.group_page import Cohort, write_group_page
from bagau_bids.reports.group_table import group_columns, lacking, mark_outliers, scan_row
from bagau_bids.reports.results import COMPLETE, ScanResults, find_results

log = logging.getLogger(__name__)
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
        What else is missing: figures that older versions did not write, scans that are not in
        the lesion frequency map, sessions that were not compared.
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
    descriptions = group_columns()
    gathered = [scan_row(scan, descriptions) for scan in scans]
    rows = [row.values for row in gathered]
    mark_outliers(rows, descriptions)
    problems = (
        *(f"{row['bids_name']}: {row['problem']}" for row in rows if row["status"] != COMPLETE),
        *_participants_without_results(output_dir, scans),
    )
    path = output_dir / TABLE_NAME
    write_table(path, described_table(rows, descriptions))
    write_json(path.with_suffix(".json"), descriptions)
    participants = find_participants(output_dir)
    asks = {row.values["bids_name"]: row.asks for row in gathered}
    cohort = Cohort(output_dir, rows, asks, problems, tuple(lacking(rows)), participants)
    by_name = {f"{scan.stem}_FLAIR": scan for scan in scans}
    maps = write_frequency_maps(output_dir, [by_name[row["bids_name"]] for row in cohort.one_each])
    changes = write_changes(output_dir, [by_name[row["bids_name"]] for row in cohort.complete])
    unmapped = tuple(note for one in maps for note in one.problems)
    notes = (*cohort.lacking, *unmapped, *changes.problems, *changes.notes)
    for problem in (*problems, *notes):
        log.warning("%s", problem)
    table = GroupTable(path, len(rows), problems, notes)
    pictures = [one.picture for one in maps if one.picture]
    write_group_page(table.page, cohort, pictures=pictures, notes=unmapped, changes=changes)
    return table


def _participants_without_results(output_dir: Path, scans: list[ScanResults]) -> Iterator[str]:
    """Participants with a folder, or a page, but nothing of a scan."""
    known = {f"sub-{scan.entities['sub']}" for scan in scans}
    folders = {path.name for path in output_dir.glob("sub-*") if path.is_dir()}
    # Sessions and scans may have pages of their own, as sub-01_ses-1.html.
    pages = {path.stem.split("_")[0] for path in output_dir.glob("sub-*.html")}
    for participant in sorted((folders | pages) - known, key=natural_key):
        yield f"{participant}: no result of any scan; see {participant}/log for the reason"
