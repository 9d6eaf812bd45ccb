"""Rows of the group table: everything that is known of a scan, whatever became of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from bagau_bids.bids.tables import Column, column_descriptions, listed
from bagau_bids.errors import ProcessingError
from bagau_bids.measures.outliers import outlying
from bagau_bids.measures.regions import REGIONS, SIDES
from bagau_bids.reports.results import COMPLETE, INCOMPLETE, ScanResults, read_table
from bagau_bids.reports.scan_tables import Fazekas, Volumes

# Columns that identify a scan or are about its state, and not figures of it.
NAMES = (
    "bids_name",
    "participant_id",
    "session_id",
    "status",
    "problem",
    "n_flags",
    "flags",
    "outliers",
)
FIRST = ("bids_name", "participant_id", "session_id", "status")
# Descriptions in the order of the columns (``data/tables``), under the heading of the page.
SECTIONS = {
    "White matter hyperintensities": "volumes",
    "By region": "group_regions",
    "Fazekas grades, estimated": "group_fazekas",
    "Quality": "quality",
    "Processing": "group",
}
# Quality figures that say nothing beside the volume of an edited mask.
OF_NETWORKS_MASK = ("wmh_wm_contrast", "wmh_soft_to_hard")
SCALES = ("periventricular", "deep")
# What a scan of an older version does not have; it is complete all the same.
LATER_FIGURES = {
    "volumes by region": "left_mm3",
    "an estimate of the Fazekas grades": "fazekas_deep_estimate",
    "quality flags": "n_flags",
}


@dataclass(frozen=True)
class ScanRow:
    """One scan: its row, and for each raised flag what asks for a look, in words."""

    values: dict[str, Any]
    asks: tuple[str, ...] = ()


@dataclass
class _Known:
    """What was found of a scan, and what of it is damaged."""

    values: dict[str, Any] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def group_columns() -> dict[str, Column]:
    """Columns of the table in order, each with its meaning and unit."""
    sections = column_sections().values()
    described = {name: entry for section in sections for name, entry in section.items()}
    return {name: described[name] for name in FIRST} | described


def column_sections() -> dict[str, dict[str, Column]]:
    """Columns with their descriptions, by the heading under which the page shows them.

    A column that several tables describe belongs to the first of them.
    """
    sections: dict[str, dict[str, Column]] = {}
    seen = {"region"}  # names the rows of the table of volumes, of which one is taken
    for heading, table in SECTIONS.items():
        entries = column_descriptions(table)
        sections[heading] = {name: e for name, e in entries.items() if name not in seen}
        seen |= set(entries)
    return sections


def figure_columns(descriptions: Mapping[str, Column]) -> list[str]:
    """Columns that hold figures of a scan: all that have a unit, but for its state."""
    return [name for name, entry in descriptions.items() if entry.units and name not in NAMES]


def scan_row(scan: ScanResults, descriptions: Mapping[str, Column]) -> ScanRow:
    """Gather one scan; every column is there, None where nothing is known.

    Parameters
    ----------
    scan : ScanResults
    descriptions : mapping
        As by `group_columns`.

    Returns
    -------
    ScanRow
        A complete scan whose tables are damaged is incomplete, and says why.
    """
    found = _Known()
    _add_volumes(found, scan)
    _add_fazekas(found, scan)
    found.values |= _processing(scan)
    found.values |= {
        "bids_name": f"{scan.stem}_FLAIR",
        "participant_id": f"sub-{scan.entities['sub']}",
        "session_id": f"ses-{scan.entities['ses']}" if "ses" in scan.entities else None,
    }
    row = {column: found.values.get(column) for column in descriptions}
    status, problem = scan.status, scan.problem
    if status == COMPLETE and found.damaged:
        status, problem = INCOMPLETE, "; ".join(found.damaged)
    asks = tuple(f"{flag.name}: {flag.words}" for flag in scan.flags)
    return ScanRow(row | {"status": status, "problem": problem or None}, asks)


def mark_outliers(rows: Sequence[dict[str, Any]], descriptions: Mapping[str, Column]) -> None:
    """Fill the column outliers of complete scans."""
    complete = [row for row in rows if row["status"] == COMPLETE]
    apart: dict[int, list[str]] = {}
    for column in figure_columns(descriptions):
        known = [row for row in complete if row[column] is not None]
        values = [float(row[column]) for row in known]
        for row, marked in zip(known, outlying(values, descriptions[column].units), strict=True):
            if marked:
                apart.setdefault(id(row), []).append(column)
    for row in complete:
        row["outliers"] = ",".join(apart.get(id(row), ())) or None


def lacking(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which complete scans have no figures that an older version did not write."""
    complete = [row for row in rows if row["status"] == COMPLETE]
    blind = [row for row in complete if _has_no_ventricles(row)]
    if blind:
        names = [row["bids_name"] for row in blind]
        yield (
            f"Without lateral ventricles in the scan: {listed(names)}. Regions that follow from "
            "the distance to them, and the Fazekas grades, are n/a."
        )
    for what, column in LATER_FIGURES.items():
        lacks = [row for row in complete if row[column] is None]
        names = [row["bids_name"] for row in lacks if column == "n_flags" or row not in blind]
        if names:
            yield (
                f"Without {what}: {listed(names)}. An older version did not write them, or their "
                "file was removed; process these scans again to have them."
            )


def _has_no_ventricles(row: Mapping[str, Any]) -> bool:
    """Tell a scan whose sides are known, which need no ventricles, but not what is deep."""
    return row["left_mm3"] is not None and row["deep_mm3"] is None


def _add_volumes(found: _Known, scan: ScanResults) -> None:
    path = scan.path("volumes_table")
    if not path.is_file():
        return
    try:
        rows = {row.region: row for row in read_table(path, Volumes)}
        found.values |= msgspec.structs.asdict(rows["all"])
    except (ProcessingError, KeyError):
        found.damaged.append(f"missing or damaged: {path.name}")
        return
    for name in (*REGIONS, *SIDES):
        found.values[f"{name}_mm3"] = rows[name].volume_mm3 if name in rows else None
    if "deep" in rows:
        found.values["periventricular_rule"] = "3mm" if "juxtaventricular" in rows else "10mm"


def _add_fazekas(found: _Known, scan: ScanResults) -> None:
    path = scan.path("fazekas_table")
    if not path.is_file():
        return
    try:
        rows = {row.scale: row for row in read_table(path, Fazekas)}
        for scale in SCALES:
            grade = rows[scale].fazekas_estimate
            found.values[f"fazekas_{scale}_estimate"] = None if grade is None else int(grade)
            found.values[f"fazekas_{scale}_mm"] = rows[scale].measured_mm
    except (ProcessingError, KeyError):
        found.damaged.append(f"missing or damaged: {path.name}")


def _processing(scan: ScanResults) -> dict[str, Any]:
    """How a scan was processed and judged, from its record."""
    if scan.record is None:
        return {}
    steps, options = scan.record.steps, scan.record.options
    found: dict[str, Any] = {
        **(asdict(steps.measure.quality) if steps.measure else {}),
        "threshold": options.threshold,
        "min_lesion_size_mm3": options.min_lesion_size_mm3,
        "version": scan.record.versions.get("bagau-bids"),
    }
    if steps.registration:
        found["registration_stage"] = steps.registration.stage
        found["registration_overlap"] = steps.registration.overlap
    if steps.segmentation:
        models = steps.segmentation.models
        found["model"] = "+".join(model.name for model in models)
        found["model_sha256"] = "+".join(model.sha256 for model in models)
        found["tta"] = "yes" if steps.segmentation.tta else "no"
        found["device"] = steps.segmentation.device
    found["edited"] = "yes" if scan.edited else "no"
    if scan.edited:
        found |= dict.fromkeys(OF_NETWORKS_MASK)
    if scan.judged:
        names = dict.fromkeys(flag.name for flag in scan.flags)
        found |= {"n_flags": len(names), "flags": ",".join(names) or None}
    return found
