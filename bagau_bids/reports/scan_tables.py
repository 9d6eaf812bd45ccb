"""Tables and words about one scan for its page: summary, flags, regions, grades, quality."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bagau_bids.bids.sidecars import RULE_TEXTS
from bagau_bids.bids.tables import column_descriptions
from bagau_bids.measures import fazekas
from bagau_bids.measures.regions import COLOURS, REGIONS, SIDES
from bagau_bids.reports.results import ScanResults, read_table
from bagau_bids.reports.strips import short

Row = dict[str, Any]
# Volumes of what is no WMH: column, name and what to add.
OTHER_VOLUMES = (
    ("infarct_mm3", "Infarct volume", "not part of the WMH"),
    ("known_lesion_mm3", "Known lesions", "given as a mask, not part of the WMH"),
)
UNITS = {"1": "", "cm^2": " cm²", "mm^3": " mm³"}


@dataclass(frozen=True)
class Reason:
    """Why a scan deserves a look.

    Parameters
    ----------
    flag : str
        What it is about, e.g. ``brain mask``.
    words : str
        What is wrong, and what to look at.
    measured : str
        The figure and the limit that it passed.
    """

    flag: str
    words: str
    measured: str


@dataclass(frozen=True)
class Grade:
    """Estimate of one Fazekas grade, and the rule that gave it.

    Parameters
    ----------
    scale : str
        ``periventricular`` or ``deep``.
    grade : int
    measured_mm : float
    rule : tuple of str
        What makes the grades 0 to 3.
    """

    scale: str
    grade: int
    measured_mm: float
    rule: tuple[str, ...]


def read_rows(scan: ScanResults, name: str) -> list[Row]:
    """Read a table of the scan, no rows where it is not there; raises `ProcessingError`."""
    path = scan.path(name)
    return read_table(path) if path.is_file() else []


def whole_brain(volumes: Sequence[Row]) -> Row:
    """Row of the whole brain of the volumes table, empty where there is none."""
    return next((row for row in volumes if row.get("region") == "all"), {})


def key_figures(volumes: Row, grades: Sequence[Grade]) -> Iterator[tuple[str, str, str]]:
    """Name, number and what to add, of what one looks for first."""
    if not volumes:
        return
    yield "WMH volume", f"{volumes['volume_mm3'] / 1000:.2f} ml", ""
    if (share := volumes.get("fraction_of_brain")) is not None:
        brain_ml = volumes["brain_mm3"] / 1000
        yield "Share of the brain", f"{100 * share:.2f} %", f"of {brain_ml:.0f} ml"
    if volumes["n_lesions"]:
        sizes = (
            f"median {volumes['median_lesion_mm3']:.0f} mm³, largest "
            f"{volumes['max_lesion_mm3']:.0f} mm³"
        )
        yield "Lesions", f"{volumes['n_lesions']:.0f}", sizes
    else:
        yield "Lesions", "0", "none found"
    for column, name, more in OTHER_VOLUMES:
        if (volume := volumes.get(column)) is not None:
            yield name, f"{volume / 1000:.2f} ml", more
    if grades:
        both = " and ".join(str(grade.grade) for grade in grades)
        scales = " and ".join(grade.scale for grade in grades)
        yield "Fazekas grade, estimate", both, f"{scales}; not a rating"


def summary(scan: ScanResults) -> Iterator[tuple[str, str]]:
    """Rows about how the scan was made and processed: name, and value in words."""
    segmentation, registration = scan.step("segmentation"), scan.step("registration")
    if conform := scan.step("conform"):
        yield "FLAIR", _grid_in_words(conform)
    if models := segmentation.get("models"):
        mirrored = "; averaged with the mirrored FLAIR (--tta)" if segmentation.get("tta") else ""
        yield "Model", ", ".join(_model_in_words(model) for model in models) + mirrored
    if options := scan.record.get("options"):
        yield "Threshold", _threshold_in_words(options)
    if device := segmentation.get("device"):
        precision = segmentation.get("precision")
        yield "Device", f"{device}, {precision}" if precision else str(device)
    if registration:
        yield "Registration", _registration_in_words(scan.template, registration)
    if versions := scan.record.get("versions"):
        yield "Versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    if finished := scan.record.get("finished"):
        yield "Processed", str(finished)


def _grid_in_words(conform: Mapping[str, Any]) -> str:
    size = " × ".join(str(count) for count in conform.get("shape", ()))
    parts = [f"{size} voxels of {' × '.join(f'{mm:.2f}' for mm in conform['spacing_mm'])} mm"]
    if axes := conform.get("stored_axes"):
        parts.append(f"stored in the order {axes}")
    if (tilt := conform.get("tilt_degrees")) is not None:
        parts.append(f"tilted by {tilt:.0f}°" if tilt >= 0.5 else "not tilted")
    return ", ".join(parts)


def _model_in_words(model: Mapping[str, Any]) -> str:
    version = f" {model['Version']}" if model.get("Version") else ""
    checksum = f", SHA-256 {model['SHA256'][:12]}…" if model.get("SHA256") else ""
    return f"{model.get('Name', 'unnamed')}{version}{checksum}"


def _threshold_in_words(options: Mapping[str, Any]) -> str:
    smallest = options.get("min_lesion_size_mm3") or 0
    kept = f"lesions below {smallest:g} mm³ dropped" if smallest else "lesions of any size kept"
    return f"probability {options.get('threshold', 'n/a')}, {kept}"


def _registration_in_words(template: str, registration: Mapping[str, Any]) -> str:
    stages = {"bspline": "affine and B-spline", "affine": "affine only"}
    parts = [template, stages.get(str(registration.get("stage")), registration.get("stage"))]
    if (overlap := registration.get("overlap")) is not None:
        parts.append(f"brain overlap (Dice) {overlap:.2f}")
    attempts = len(registration.get("attempts") or ())
    if attempts > 1:
        parts.append(f"{attempts} attempts")
    return ", ".join(str(part) for part in parts if part)


def reasons(scan: ScanResults) -> Iterator[Reason]:
    """Why the scan deserves a look, one a figure beyond its limit."""
    described = column_descriptions("quality")
    for flag in scan.flags:
        entry = described.get(flag.figure, {})
        unit = _unit(entry)
        side = "below" if flag.value < flag.limit else "above"
        name = entry.get("LongName", flag.figure)
        measured = f"{name} {short(flag.value)}{unit}, {side} the limit of {flag.limit:g}{unit}"
        yield Reason(flag.name, flag.words, measured)


def quality_rows(scan: ScanResults) -> list[Row]:
    """Rows of the quality table for the page: those that ask for a look first.

    Each has ``name``, ``value`` and ``limits`` in words, ``look`` (``yes``, ``no`` or None where
    nothing was judged) and ``meaning``. Raises `ProcessingError` if the table cannot be read.
    """
    described = column_descriptions("quality")
    rows = []
    for row in read_rows(scan, "quality_table"):
        figure, value = str(row.get("figure")), row.get("value")
        if figure == "flags":  # counts the flags, and is no figure itself
            continue
        entry = described.get(figure, {})
        rows.append(
            {
                "name": entry.get("LongName", figure),
                "value": "n/a" if value is None else f"{short(value)}{_unit(entry)}",
                "limits": _limits_in_words(row.get("lower_limit"), row.get("upper_limit")),
                "look": row.get("look"),
                "meaning": entry.get("Description", ""),
            }
        )
    return sorted(rows, key=lambda row: row["look"] != "yes")


def _limits_in_words(lower: float | None, upper: float | None) -> str:
    if lower is not None and upper is not None:
        return f"{lower:g} to {upper:g}"
    if lower is not None:
        return f"at least {lower:g}"
    return "–" if upper is None else f"at most {upper:g}"


def _unit(entry: Mapping[str, Any]) -> str:
    unit = str(entry.get("Units", ""))
    return UNITS.get(unit, f" {unit}" if unit else "")


def region_rows(volumes: Sequence[Row]) -> list[Row]:
    """Rows by region: ``name``, ``colour`` and, in all and on each side, ``ml``, share and count.

    Empty where the volumes were not told apart by region.
    """
    by_name = {str(row.get("region")): row for row in volumes}
    found = [name for name in REGIONS if name in by_name]
    if not found:
        return []
    names = {**dict.fromkeys(found), "all": None}
    return [
        {
            "name": name,
            "colour": COLOURS[name][0] if name in COLOURS else "",
            "whole": by_name[name],
            "sides": [by_name.get(_on_side(name, side), {}) for side in SIDES],
        }
        for name in names
    ]


def _on_side(region: str, side: str) -> str:
    return side if region == "all" else f"{side}-{region}"


def region_rule(scan: ScanResults) -> str:
    """By which rule regions were told apart, in words; empty where it was not recorded."""
    return RULE_TEXTS.get(str(scan.step("regions").get("rule")), "")


def grades(scan: ScanResults) -> list[Grade]:
    """Estimates of both Fazekas grades; raises `ProcessingError` if the table cannot be read."""
    rules = {
        "periventricular": (
            f"no lesion within {fazekas.TOUCHING_MM:g} mm of the lateral ventricles",
            *_grades_in_words("reach", fazekas.PERIVENTRICULAR_MM),
        ),
        "deep": (
            f"no focus of {fazekas.SMALLEST_FOCUS_MM:g} mm beyond {fazekas.DEEP_MM:g} mm from the "
            "ventricles",
            *_grades_in_words("longest axial diameter", fazekas.DEEP_DIAMETER_MM),
        ),
    }
    return [
        Grade(
            scale=row["scale"],
            grade=int(row["fazekas_estimate"]),
            measured_mm=row["measured_mm"],
            rule=rules[row["scale"]],
        )
        for row in read_rows(scan, "fazekas_table")
        if row.get("scale") in rules and row.get("fazekas_estimate") is not None
    ]


def _grades_in_words(length: str, limits_mm: tuple[float, float]) -> tuple[str, str, str]:
    low, high = limits_mm
    return (
        f"{length} below {low:g} mm",
        f"{length} {low:g} to {high:g} mm",
        f"{length} {high:g} mm or more",
    )
