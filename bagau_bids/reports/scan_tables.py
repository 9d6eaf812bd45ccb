"""Tables and words about one scan for its page: key figures, flags, regions, quality, settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from bagau_bids.bids.records import ConformRecord, Model, Options, RegistrationRecord
from bagau_bids.bids.sidecars import RULE_TEXTS
from bagau_bids.bids.tables import Column, column_descriptions
from bagau_bids.measures import fazekas
from bagau_bids.measures.regions import COLOURS, REGIONS, SIDES
from bagau_bids.reports.results import Row, ScanResults, read_table
from bagau_bids.reports.strips import short

# Words of the page that not everybody knows, in words that everybody does.
MEANINGS = {
    "WMH volume": "All white matter hyperintensities: spots of the white matter that are brighter "
    "than it on FLAIR, of whatever cause",
    "Lesions": "Spots that touch nowhere, counted in three dimensions",
    "Share of the brain": "Of the volume inside the brain mask, ventricles included",
    "Infarct volume": "Tissue that the network calls an infarct",
    "Known lesions": "What was given as a mask of something else",
    "Fazekas grade, estimate": "A scale from 0 (none) to 3 (most) that readers give by eye; here "
    "reckoned from lengths",
    "Accuracy to expect": "Dice: overlap with a mask drawn by hand, 0 for none and 1 for all; two "
    "people who draw the same scan do not reach 1 either",
    "juxtaventricular": "Touching the fluid-filled chambers of the brain, or nearly so",
    "periventricular": "Around the fluid-filled chambers of the brain (ventricles)",
    "deep": "In the white matter away from ventricles and cortex; deep grey matter included",
    "juxtacortical": "Just below the cortex",
    "infratentorial": "In the brain stem and the cerebellum",
}
# Quality figures of the network's mask or probability, which say nothing of an edited mask.
OF_NETWORK = (
    "wmh_wm_contrast",
    "wmh_soft_ml",
    "wmh_soft_to_hard",
    "wmh_entropy",
    "mirrored_dice",
)
UNITS = {"1": "", "cm^2": " cm²", "mm^3": " mm³"}


class Volumes(Struct, frozen=True):
    """Row of the table of volumes; what is not known, or came later, is None."""

    region: str
    volume_mm3: float | None
    volume_voxels: float | None
    n_lesions: float | None
    mean_lesion_mm3: float | None = None
    median_lesion_mm3: float | None = None
    max_lesion_mm3: float | None = None
    voxel_mm3: float | None = None
    brain_mm3: float | None = None
    fraction_of_brain: float | None = None
    fraction_of_wmh: float | None = None
    infarct_mm3: float | None = None
    known_lesion_mm3: float | None = None


class Lesion(Struct, frozen=True):
    """Row of the table of lesions, of what the page shows."""

    index: float
    volume_mm3: float
    centroid_x_mm: float | None
    centroid_y_mm: float | None
    centroid_z_mm: float | None
    region: str | None = None
    side: str | None = None
    template_x_mm: float | None = None
    template_y_mm: float | None = None
    template_z_mm: float | None = None
    ventricle_distance_mm: float | None = None
    mean_probability: float | None = None
    flair_to_wm: float | None = None


class Fazekas(Struct, frozen=True):
    """Row of the table of Fazekas grades; None where no grade can be told."""

    scale: str
    fazekas_estimate: float | None
    measured_mm: float | None


class Judged(Struct, frozen=True):
    """Row of the table of quality: a figure, its limits, and whether it asks for a look."""

    figure: str
    value: float | None
    lower_limit: float | None
    upper_limit: float | None
    look: str | None


@dataclass(frozen=True)
class Shown:
    """A row of the quality table for the page: value and limits in words."""

    name: str
    value: str
    limits: str
    look: str | None
    meaning: str


@dataclass(frozen=True)
class RegionVolumes:
    """A region of the page, its colour, and its volumes in all and on each side."""

    name: str
    colour: str
    whole: Volumes
    sides: tuple[Volumes | None, ...]


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


def read_rows(scan: ScanResults, name: str, kind: type[Row]) -> list[Row]:
    """Read a table of the scan, no rows where it is not there; raises `ProcessingError`."""
    path = scan.path(name)
    return read_table(path, kind) if path.is_file() else []


def whole_brain(volumes: Sequence[Volumes]) -> Volumes | None:
    """Row of the whole brain of the volumes table, None where there is none."""
    return next((row for row in volumes if row.region == "all"), None)


def headline(scan: ScanResults) -> str:
    """Say in a line what was found and what asks for a look; raises `ProcessingError`."""
    volumes = whole_brain(read_rows(scan, "volumes_table", Volumes))
    if volumes is None or volumes.volume_mm3 is None or volumes.n_lesions is None:
        return ""
    flags = ", ".join(dict.fromkeys(flag.name for flag in scan.flags)) or "nothing"
    number = f"{volumes.n_lesions:.0f} lesion{'s' * (volumes.n_lesions != 1)}"
    return f"WMH {volumes.volume_mm3 / 1000:.2f} ml in {number}; to look at: {flags}"


def key_figures(
    volumes: Sequence[Volumes], grades: Sequence[Grade]
) -> Iterator[tuple[str, str, str]]:
    """Name, number and what to add, of what one looks for first."""
    whole = whole_brain(volumes)
    if not whole or whole.volume_mm3 is None:
        return
    yield "WMH volume", f"{whole.volume_mm3 / 1000:.2f} ml", ""
    if whole.fraction_of_brain is not None and whole.brain_mm3 is not None:
        share, brain_ml = 100 * whole.fraction_of_brain, whole.brain_mm3 / 1000
        yield "Share of the brain", f"{share:.2f} %", f"of {brain_ml:.0f} ml"
    if whole.n_lesions:
        sizes = f"median {whole.median_lesion_mm3:.0f} mm³, largest {whole.max_lesion_mm3:.0f} mm³"
        yield "Lesions", f"{whole.n_lesions:.0f}", sizes
    else:
        yield "Lesions", "0", "none found"
    for volume, name, more in (
        (whole.infarct_mm3, "Infarct volume", "not part of the WMH"),
        (whole.known_lesion_mm3, "Known lesions", "given as a mask, not part of the WMH"),
    ):
        if volume is not None:
            yield name, f"{volume / 1000:.2f} ml", more
    if grades:
        both = " and ".join(str(grade.grade) for grade in grades)
        scales = " and ".join(grade.scale for grade in grades)
        more = f"{scales}; not a rating"
        yield "Fazekas grade, estimate", both, f"{more}. {grade_note(volumes, grades)}".rstrip()


def grade_note(volumes: Sequence[Volumes], grades: Sequence[Grade]) -> str:
    """Say why a volume near the ventricles may go with a grade of 0 there; empty where none does.

    Regions go by the distance of a voxel, the grade by lesions that touch the ventricles.
    """
    if not any(one.scale == "periventricular" and one.grade == 0 for one in grades):
        return ""
    near = ("juxtaventricular", "periventricular")
    found_mm3 = sum(row.volume_mm3 or 0 for row in volumes if row.region in near)
    if not found_mm3:
        return ""
    return (
        f"Periventricular 0 although {found_mm3 / 1000:.2f} ml lie around the ventricles: none of "
        f"it comes within {fazekas.TOUCHING_MM:g} mm of them, as the caps and bands do that are "
        "graded"
    )


def settings(scan: ScanResults) -> Iterator[tuple[str, str]]:
    """Rows about how the scan was made and processed: name, and value in words."""
    if scan.record is None:
        return
    steps = scan.record.steps
    if steps.conform:
        yield "FLAIR", _grid_in_words(steps.conform)
    if steps.segmentation:
        mirrored = "; averaged with the mirrored FLAIR (--tta)" if steps.segmentation.tta else ""
        yield "Model", ", ".join(map(_model_in_words, steps.segmentation.models)) + mirrored
    yield "Threshold", _threshold_in_words(scan.record.options)
    if steps.segmentation:
        yield "Device", f"{steps.segmentation.device}, {steps.segmentation.precision}"
    if steps.registration:
        yield "Registration", _registration_in_words(scan.template, steps.registration)
    yield (
        "Versions",
        ", ".join(f"{name} {number}" for name, number in scan.record.versions.items()),
    )
    yield "Processed", scan.record.finished


def _grid_in_words(conform: ConformRecord) -> str:
    size = " × ".join(str(count) for count in conform.shape)
    spacing, tilt = " × ".join(f"{mm:.2f}" for mm in conform.spacing_mm), conform.tilt_degrees
    turned = f"tilted by {tilt:.0f}°" if tilt >= 0.5 else "not tilted"
    return f"{size} voxels of {spacing} mm, stored in the order {conform.stored_axes}, {turned}"


def _model_in_words(model: Model) -> str:
    version = f" {model.version}" if model.version else ""
    return f"{model.name}{version}, SHA-256 {model.sha256[:12]}…"


def _threshold_in_words(options: Options) -> str:
    smallest = options.min_lesion_size_mm3
    kept = f"lesions below {smallest:g} mm³ dropped" if smallest else "lesions of any size kept"
    return f"probability {options.threshold}, {kept}"


def _registration_in_words(template: str, registration: RegistrationRecord) -> str:
    stages = {"bspline": "affine and B-spline", "affine": "affine only"}
    stage = stages.get(registration.stage, registration.stage)
    attempts = len(registration.attempts)
    tried = f", {attempts} attempts" if attempts > 1 else ""
    return f"{template}, {stage}, brain overlap (Dice) {registration.overlap:.2f}{tried}"


def reasons(scan: ScanResults) -> Iterator[Reason]:
    """Why the scan deserves a look, one a figure beyond its limit."""
    described = column_descriptions("quality")
    for flag in scan.flags:
        name, unit = _named(flag.figure, described)
        side = "below" if flag.value < flag.limit else "above"
        measured = f"{name} {short(flag.value)}{unit}, {side} the limit of {flag.limit:g}{unit}"
        yield Reason(flag.name, flag.words, measured)


def quality_rows(scan: ScanResults) -> list[Shown]:
    """Rows of the quality table for the page: those that ask for a look first.

    Raises `ProcessingError` if the table cannot be read.
    """
    described = column_descriptions("quality")
    rows = []
    for row in read_rows(scan, "quality_table", Judged):
        if row.figure == "flags":  # counts the flags, and is no figure itself
            continue
        name, unit = _named(row.figure, described)
        if scan.edited and row.figure in OF_NETWORK:
            name += " (of the network's result, not of the edited mask)"
        rows.append(
            Shown(
                name=name,
                value="n/a" if row.value is None else f"{short(row.value)}{unit}",
                limits=_limits_in_words(row.lower_limit, row.upper_limit),
                look=row.look,
                meaning=described[row.figure].description if row.figure in described else "",
            )
        )
    return sorted(rows, key=lambda row: row.look != "yes")


def _limits_in_words(lower: float | None, upper: float | None) -> str:
    if lower is not None and upper is not None:
        return f"{lower:g} to {upper:g}"
    if lower is not None:
        return f"at least {lower:g}"
    return "–" if upper is None else f"at most {upper:g}"


def _named(figure: str, described: Mapping[str, Column]) -> tuple[str, str]:
    """Name and unit of a figure in words; its own name where this version does not know it."""
    if figure not in described:
        return figure, ""
    unit = described[figure].units
    return described[figure].long_name, UNITS.get(unit, f" {unit}")


def region_rows(volumes: Sequence[Volumes]) -> list[RegionVolumes]:
    """Rows by region; empty where the volumes were not told apart by region."""
    by_name = {row.region: row for row in volumes}
    found = [name for name in REGIONS if name in by_name]
    if not found:
        return []
    return [
        RegionVolumes(
            name=name,
            colour=COLOURS[name][0] if name in COLOURS else "",
            whole=by_name[name],
            sides=tuple(
                by_name.get(side if name == "all" else f"{side}-{name}") for side in SIDES
            ),
        )
        for name in (*found, "all")
    ]


def region_rule(scan: ScanResults) -> str:
    """By which rule regions were told apart, in words; empty where it was not recorded."""
    return RULE_TEXTS[scan.steps.regions.rule] if scan.steps.regions else ""


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
        Grade(row.scale, int(row.fazekas_estimate), row.measured_mm, rules[row.scale])
        for row in read_rows(scan, "fazekas_table", Fazekas)
        if row.scale in rules and row.fazekas_estimate is not None and row.measured_mm is not None
    ]


def _grades_in_words(length: str, limits_mm: tuple[float, float]) -> tuple[str, str, str]:
    low, high = limits_mm
    return (
        f"{length} below {low:g} mm",
        f"{length} {low:g} to {high:g} mm",
        f"{length} {high:g} mm or more",
    )
