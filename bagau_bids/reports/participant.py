"""The page of one participant: every FLAIR of it, what was found, and how far to trust it.

Built from the derivatives folder alone, so it can be made again at any time. The pictures lie
in ``sub-<label>/figures`` and are also embedded: the page is one file that can be mailed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bagau_bids.bids.derivatives import write_bytes, write_text
from bagau_bids.bids.tables import column_descriptions, natural_key
from bagau_bids.config import Execution
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.reports import figures
from bagau_bids.reports.methods import Methods, render_methods
from bagau_bids.reports.pages import Layer, Picture, embed, render
from bagau_bids.reports.results import (
    FAILED,
    ScanResults,
    find_results,
    load_image,
    load_image_on,
    read_table,
)
from bagau_bids.reports.viewer import scan_viewer, viewer_code

BRAIN_COLOUR = "#2fb8ff"
ATLAS_COLOUR = "#ff9f1c"
WMH_COLOUR = "#ff2d2d"
LESION_SLICES = 24
OVERVIEW_COLUMNS = 7
LONGEST_LESION_LIST = 25


@dataclass(frozen=True)
class ScanSection:
    """Everything the page shows of one scan."""

    anchor: str
    title: str
    results: ScanResults
    summary: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]
    quality: tuple[tuple[str, str, str], ...]
    lesions: tuple[dict[str, Any], ...]
    lesions_left_out: int
    trouble: tuple[str, ...]
    viewer: str = ""


@dataclass(frozen=True)
class Crash:
    """A crash file: the scan it is about, its path below the output folder, and its text."""

    scan: str
    path: str
    text: str


def write_participant_report(
    output_dir: Path,
    participant_label: str,
    *,
    aggregate_session_reports: int = Execution.aggregate_session_reports,
) -> tuple[Path, ...]:
    """Write ``sub-<label>.html`` and the figures it shows.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant_label : str
        Without ``sub-``.
    aggregate_session_reports : int
        With more sessions than this, each has a page of its own
        (``sub-<label>_ses-<label>.html``) and the participant's page links to them.

    Returns
    -------
    tuple of Path
        The participant's page, then those of sessions. Pages and figures are written in one
        step each, and left alone where nothing changed.

    Raises
    ------
    UsageError
        If the folder holds nothing of this participant.
    """
    participant = f"sub-{participant_label}"
    scans = find_results(output_dir, participant_label)
    crashes = tuple(_crashes(output_dir, participant, scans))
    if not scans and not crashes:
        raise UsageError(
            f"{output_dir}: holds no results of {participant}; expected files below "
            f"{participant}: run the participant level first"
        )
    sections = [_section(scan) for scan in scans]
    sessions = _by_session(sections) if len(scans) > 1 else {}
    if len(sessions) <= aggregate_session_reports:
        return (_write_page(output_dir, participant, sections, crashes),)
    pages = tuple(
        _write_page(output_dir, f"{participant}_ses-{session}", own, crashes)
        for session, own in sessions.items()
    )
    return _write_page(output_dir, participant, sections, crashes, split=True), *pages


def _by_session(sections: Sequence[ScanSection]) -> dict[str, list[ScanSection]]:
    sessions: dict[str, list[ScanSection]] = {}
    for section in sections:
        if session := section.results.entities.get("ses"):
            sessions.setdefault(session, []).append(section)
    return sessions


def _write_page(
    output_dir: Path,
    name: str,
    sections: Sequence[ScanSection],
    crashes: Sequence[Crash],
    *,
    split: bool = False,
) -> Path:
    """Write one page; of a split one, sections of scans lie on the pages of their sessions."""
    subject = name.split("_")[0]
    sections = _with_viewers(sections, split)
    stems = {section.results.stem for section in sections}
    scans = [section for section in sections if not split or "ses" not in section.results.entities]
    links = {
        section.anchor: f"#{section.anchor}"
        if section in scans
        else f"{subject}_ses-{section.results.entities['ses']}.html"
        for section in sections
    }
    text = render(
        "participant.html",
        participant=name,
        subject=subject,
        listed=sections,
        links=links,
        scans=scans,
        crashes=[crash for crash in crashes if not crash.scan or crash.scan in stems],
        methods=_methods(output_dir),
        viewer_code=viewer_code(),
    )
    path = output_dir / f"{name}.html"
    write_text(path, text)
    return path


def _with_viewers(sections: Sequence[ScanSection], split: bool) -> list[ScanSection]:
    """Add viewers to the sections that one page shows; of a split one, those without a session."""
    shown = [section for section in sections if not split or "ses" not in section.results.entities]
    return [
        replace(section, viewer=scan_viewer(section.results, len(shown)))
        if section in shown
        else section
        for section in sections
    ]


def _section(scan: ScanResults) -> ScanSection:
    """Gather one scan; what cannot be read is said on the page, the rest is still shown."""
    trouble: list[str] = []

    def attempt(make: Callable[[ScanResults], Any], otherwise: Any) -> Any:
        try:
            return make(scan)
        except ProcessingError as error:
            trouble.append(str(error))
            return otherwise

    lesions = attempt(_lesions, [])
    volumes = attempt(_volumes, {})
    return ScanSection(
        anchor=scan.stem,
        title=scan.title,
        results=scan,
        summary=tuple(_summary(scan, volumes)),
        pictures=(
            *attempt(_slice_pictures, ()),
            *attempt(lambda scan: _size_picture(scan, lesions, volumes), ()),
        ),
        quality=tuple(_quality_rows(scan)),
        lesions=tuple(lesions[:LONGEST_LESION_LIST]),
        lesions_left_out=max(len(lesions) - LONGEST_LESION_LIST, 0),
        trouble=tuple(trouble),
    )


def _volumes(scan: ScanResults) -> dict[str, Any]:
    """Row of the whole brain of the volumes table, empty where there is no table."""
    path = scan.path("volumes_table")
    rows = read_table(path) if path.is_file() else []
    return next((row for row in rows if row.get("region") == "all"), {})


def _lesions(scan: ScanResults) -> list[dict[str, Any]]:
    path = scan.path("lesions_table")
    return read_table(path) if path.is_file() else []


def _summary(scan: ScanResults, volumes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the summary table: what it is, and its value in words."""
    if volumes:
        yield "WMH volume", _volume_in_words(volumes)
        yield "Lesions", _lesions_in_words(volumes)
    segmentation, registration = scan.step("segmentation"), scan.step("registration")
    if brain_mm3 := volumes.get("brain_mm3"):
        yield "Brain volume", f"{brain_mm3 / 1000:.0f} ml (ventricles and sulci inside)"
    if spacing := scan.step("conform").get("spacing_mm"):
        size = " × ".join(str(count) for count in scan.step("conform").get("shape", ()))
        yield "FLAIR", f"{size} voxels of {' × '.join(f'{mm:.2f}' for mm in spacing)} mm"
    if models := segmentation.get("models"):
        yield "Model", ", ".join(_model_in_words(model) for model in models)
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


def _volume_in_words(volumes: dict[str, Any]) -> str:
    text = f"{volumes['volume_mm3'] / 1000:.2f} ml"
    share = volumes.get("fraction_of_brain")
    return text if share is None else f"{text} ({100 * share:.2f} % of the brain volume)"


def _lesions_in_words(volumes: dict[str, Any]) -> str:
    count = volumes["n_lesions"]
    if not count:
        return "none found"
    return (
        f"{count:.0f} (median {volumes['median_lesion_mm3']:.0f} mm³, largest "
        f"{volumes['max_lesion_mm3']:.0f} mm³)"
    )


def _model_in_words(model: dict[str, Any]) -> str:
    version = f" {model['Version']}" if model.get("Version") else ""
    checksum = f", SHA-256 {model['SHA256'][:12]}…" if model.get("SHA256") else ""
    return f"{model.get('Name', 'unnamed')}{version}{checksum}"


def _threshold_in_words(options: dict[str, Any]) -> str:
    smallest = options.get("min_lesion_size_mm3") or 0
    kept = f"lesions below {smallest:g} mm³ dropped" if smallest else "lesions of any size kept"
    return f"probability {options.get('threshold', 'n/a')}, {kept}"


def _registration_in_words(template: str, registration: dict[str, Any]) -> str:
    stages = {"bspline": "affine and B-spline", "affine": "affine only"}
    parts = [template, stages.get(str(registration.get("stage")), registration.get("stage"))]
    if (overlap := registration.get("overlap")) is not None:
        parts.append(f"brain overlap (Dice) {overlap:.2f}")
    attempts = len(registration.get("attempts") or ())
    if attempts > 1:
        parts.append(f"{attempts} attempts")
    return ", ".join(str(part) for part in parts if part)


def _quality_rows(scan: ScanResults) -> Iterator[tuple[str, str, str]]:
    """Name, value with unit, and meaning of every quality figure."""
    described = column_descriptions("quality")
    for name, value in scan.quality.items():
        entry = described.get(name, {})
        unit = {"1": "", "cm^2": " cm²"}.get(entry.get("Units"), f" {entry.get('Units', '')}")
        number = "n/a" if value is None else f"{_short(value)}{unit}"
        yield entry.get("LongName", name), number, entry.get("Description", "")


def _short(value: float) -> str:
    """Write a number with three significant digits, and never with an exponent above 100."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _slice_pictures(scan: ScanResults) -> tuple[Picture, ...]:
    """Draw the mosaics of what images are there; lesions first, they are what one came for."""
    if not scan.path("preproc_flair").is_file() or not scan.path("brain_mask").is_file():
        return ()
    flair, affine = load_image(scan.path("preproc_flair"))
    brain = load_image_on(scan.path("brain_mask"), flair, affine) > 0
    shown = _Shown(scan, flair, affine, brain, figures.display_window(flair, brain))
    makers = {"wmh_mask": _wmh_picture, "brain_mask": _brain_picture, "wm_atlas": _atlas_picture}
    return tuple(make(shown) for name, make in makers.items() if scan.path(name).is_file())


@dataclass(frozen=True)
class _Shown:
    """A scan's images, in RAS order, that several pictures share."""

    scan: ScanResults
    flair: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    window: tuple[float, float]

    def load(self, name: str) -> np.ndarray:
        return load_image_on(self.scan.path(name), self.flair, self.affine)

    def layout(
        self, planes: Iterator[tuple[int, list[int]]], region: np.ndarray, columns: int
    ) -> figures.Mosaic:
        return figures.mosaic(tuple(planes), region, self.affine, columns=columns)

    def draw(self, layout: figures.Mosaic) -> Image.Image:
        return figures.draw_slices(layout, self.flair, self.window)


def _wmh_picture(shown: _Shown) -> Picture:
    mask = shown.load("wmh_mask") > 0
    axis = figures.scan_axis(shown.affine)
    touched = np.count_nonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    if touched:
        slices = figures.busiest_slices(mask, axis, LESION_SLICES)
        share = "All" if len(slices) == touched else f"{len(slices)} of the"
        which = f"{share} {touched} slices with lesions"
    else:
        slices = figures.spread_slices(shown.brain, axis, LESION_SLICES // 2)
        which = "No lesion was found; slices spread over the brain"
    columns = figures.balanced_columns(len(slices))
    layout = shown.layout(iter([(axis, slices)]), shown.brain, columns)
    base = shown.draw(layout)
    layers = [Layer("wmh", "outline", figures.draw_outline(layout, mask, WMH_COLOUR))]
    if shown.scan.path("wmh_probseg").is_file():
        heat = figures.draw_heat(layout, shown.load("wmh_probseg"))
        layers.append(Layer("prob", "probability", heat))
    plane = figures.PLANE_NAMES[axis]
    caption = f"{which} ({plane}). The outline of the mask is drawn smoothly between voxels."
    return _picture(shown.scan, "wmh", "White matter hyperintensities", caption, base, layers)


def _brain_picture(shown: _Shown) -> Picture:
    layout = shown.layout(_overview(shown.brain), _head(shown.flair), OVERVIEW_COLUMNS)
    outline = figures.draw_outline(layout, shown.brain, BRAIN_COLOUR)
    layers = [Layer("brainmask", "outline", outline)]
    caption = "Outline of the brain mask. Lesions are looked for inside it only."
    base = shown.draw(layout)
    return _picture(shown.scan, "brainmask", "Brain mask", caption, base, layers)


def _atlas_picture(shown: _Shown) -> Picture:
    layout = shown.layout(_overview(shown.brain), shown.brain, OVERVIEW_COLUMNS)
    atlas = shown.load("wm_atlas")
    layers = [Layer("atlas", "outline", figures.draw_outline(layout, atlas, ATLAS_COLOUR))]
    caption = (
        f"Outline of white matter of the template {shown.scan.template} (probability 0.5) after "
        "registration to this FLAIR. It guides the network and should follow the border of "
        "white and grey matter."
    )
    title, base = "Registered white matter map", shown.draw(layout)
    return _picture(shown.scan, "atlas", title, caption, base, layers)


def _size_picture(
    scan: ScanResults, lesions: list[dict[str, Any]], volumes: dict[str, Any]
) -> tuple[Picture, ...]:
    sizes = [lesion["volume_mm3"] for lesion in lesions]
    if not sizes or not volumes:
        return ()
    drawn = figures.draw_size_histogram(sizes, volumes["voxel_mm3"])
    caption = f"Number of lesions by volume; one voxel is {volumes['voxel_mm3']:.2f} mm³."
    return (_picture(scan, "sizes", "Lesion sizes", caption, drawn),)


def _overview(brain: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Two rows of axial slices, one of coronal and one of sagittal ones."""
    for axis, rows in ((2, 2), (1, 1), (0, 1)):
        yield axis, figures.spread_slices(brain, axis, rows * OVERVIEW_COLUMNS)


def _head(flair: np.ndarray) -> np.ndarray:
    """Voxels clearly brighter than air: what the picture of the brain mask is cropped to."""
    return flair > 0.1 * np.percentile(flair, 98)


def _picture(
    scan: ScanResults,
    name: str,
    title: str,
    caption: str,
    base: Image.Image,
    layers: Sequence[Layer] = (),
) -> Picture:
    """Save a picture, with each of its layers if it has any, and prepare it for the page."""
    folder = scan.output_dir / f"sub-{scan.entities['sub']}" / "figures"
    whole = {layer.name: figures.stack(base, layer.picture) for layer in layers}
    saved = []
    for file, picture in (whole or {name: base}).items():
        path = folder / f"{scan.stem}_desc-{file}_FLAIR.png"
        write_bytes(path, figures.png_bytes(picture))
        saved.append(path.relative_to(scan.output_dir).as_posix())
    names = f"{scan.stem}_{name}", title, caption
    return embed(names, base, layers, without="FLAIR only", saved=saved)


def _methods(output_dir: Path) -> Methods | None:
    """Methods text of the last run, None where it was not written."""
    texts = [output_dir / "logs" / name for name in ("CITATION.md", "CITATION.bib")]
    if not texts[0].is_file():
        return None
    markdown, bibtex = (
        path.read_text(encoding="utf-8") if path.is_file() else "" for path in texts
    )
    return render_methods(markdown, bibtex)


def _crashes(output_dir: Path, participant: str, scans: Sequence[ScanResults]) -> Iterator[Crash]:
    """Crash files that the records of failed scans name; without any scan, all of them."""
    named = {
        output_dir / str(failure["crash_file"]): scan.stem
        for scan in scans
        if scan.status == FAILED and (failure := scan.failure).get("crash_file")
    }
    if not scans:
        found = (output_dir / participant / "log").glob("*/crash-*.txt")
        named = dict.fromkeys(sorted(found, key=lambda path: natural_key(path.as_posix())), "")
    for path, stem in named.items():
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Crash(stem, path.relative_to(output_dir).as_posix(), text)
