"""What became of every scan and participant: shown at the end, kept beside the log."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DONE = "done"
FAILED = "failed"
NO_FLAIR = "no FLAIR"
ELSEWHERE = "in another run"
TO_DO = "would be processed"
GAVE_WAY = "its edited mask gave way to the network's and is kept. To take it again: "
MOST_PAGES = 3  # named at the end of a run


@dataclass(frozen=True)
class Row:
    """One line of the summary.

    Attributes
    ----------
    name
        Stem of the scan, or the participant where there is none.
    status
        ``done``, ``failed``, ``no FLAIR``, ``in another run`` or ``would be processed``.
    reason
        Why, where it is not done.
    found
        What was found, where it is done.
    """

    name: str
    status: str
    reason: str = ""
    found: str = ""


def summary_text(
    rows: Sequence[Row],
    log_path: Path,
    pages: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the summary for a person: how many of each kind, then each scan, then the pages.

    What needs a look comes last, where it is seen, and then the notes.
    """
    counts = Counter(row.status for row in rows)
    width = max((len(row.name) for row in rows), default=0)
    status_width = max((len(row.status) for row in rows), default=0)
    order = (TO_DO, DONE, NO_FLAIR, ELSEWHERE, FAILED)
    lines = ["Summary: " + ", ".join(f"{counts[kind]} {kind}" for kind in order if counts[kind])]
    for row in sorted(rows, key=lambda row: order.index(row.status)):
        told = _one_line(row.reason or row.found)
        line = f"  {row.name:<{width}}  {row.status:<{status_width}}  {told}"
        lines.append(line.rstrip())
    lines += notes
    lines += [f"Page: {path}" for path in pages[:MOST_PAGES]]
    if len(pages) > MOST_PAGES:
        lines.append(f"and {len(pages) - MOST_PAGES} more pages in that folder")
    return "\n".join([*lines, f"Log: {log_path}"])


def write_summary(rows: Sequence[Row], path: Path) -> None:
    """Write the summary as a table: scan, status, reason; its description goes beside it."""
    from bagau_bids.bids.derivatives import sidecar_path
    from bagau_bids.bids.tables import column_descriptions
    from bagau_bids.files import write_json

    lines = ["scan\tstatus\treason"]
    lines += [f"{row.name}\t{row.status}\t{_one_line(row.reason) or 'n/a'}" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(sidecar_path(path), column_descriptions("run_summary"))


def _one_line(text: str) -> str:
    return " ".join(text.split())
