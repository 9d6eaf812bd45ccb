"""The page of one participant: every FLAIR of it, what was found, and how far to trust it.

Built from the derivatives folder alone, so it can be made again at any time. The pictures lie
in ``sub-<label>/figures`` and are also embedded: the page is one file that can be mailed.
"""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from nibabel.filebasedimages import ImageFileError

from bagau_bids import __version__
from bagau_bids.bids.derivatives import write_bytes, write_text
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.reports import figures
from bagau_bids.reports.methods import Methods, render_methods
from bagau_bids.reports.results import ScanResults, find_results, natural_key, read_table
from bagau_bids.spaces import reorient

BRAIN_COLOUR = "#2fb8ff"
ATLAS_COLOUR = "#ff9f1c"
WMH_COLOUR = "#ff2d2d"
LESION_SLICES = 24
OVERVIEW_COLUMNS = 7
LONGEST_LESION_LIST = 25


@dataclass(frozen=True)
class View:
    """One way to look at a picture: the layers shown over its slices."""

    name: str
    layer: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: slices, and layers to be switched."""

    anchor: str
    title: str
    caption: str
    files: tuple[str, ...]
    base: str
    views: tuple[View, ...] = ()


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


@dataclass(frozen=True)
class Crash:
    """A crash file: its path below the output folder, and its text."""

    path: str
    text: str


def write_participant_report(
    output_dir: Path, participant_label: str, *, run_uuid: str | None = None
) -> Path:
    """Write ``sub-<label>.html`` and the figures it shows.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant_label : str
        Without ``sub-``.
    run_uuid : str or None
        Run whose crash files are shown; None takes the last that left any.

    Returns
    -------
    Path
        The page. It and its figures are written in one step each, and left alone where
        nothing changed.

    Raises
    ------
    UsageError
        If the folder holds nothing of this participant.
    """
    scans = find_results(output_dir, participant_label)
    crashes = tuple(_crashes(output_dir, participant_label, run_uuid))
    if not scans and not crashes:
        raise UsageError(
            f"{output_dir}: holds no results of sub-{participant_label}; expected files below "
            f"sub-{participant_label}: run the participant level first"
        )
    page = _template().render(
        participant=f"sub-{participant_label}",
        scans=[_section(scan) for scan in scans],
        crashes=crashes,
        methods=_methods(output_dir),
        style=Markup(_text("report.css")),
        version=__version__,
    )
    path = output_dir / f"sub-{participant_label}.html"
    write_text(path, page)
    return path


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
    described = json.loads(files("bagau_bids.data").joinpath("tables/quality.json").read_text())
    for name, value in scan.quality.items():
        entry = described.get(name, {})
        unit = {"1": "", "cm^2": " cm²"}.get(entry.get("Units"), f" {entry.get('Units', '')}")
        number = "n/a" if value is None else f"{value:.3g}{unit}"
        yield entry.get("LongName", name), number, entry.get("Description", "")


def _slice_pictures(scan: ScanResults) -> tuple[Picture, ...]:
    """Draw the mosaics of what images are there; lesions first, they are what one came for."""
    if not scan.path("preproc_flair").is_file() or not scan.path("brain_mask").is_file():
        return ()
    flair, affine = _load(scan.path("preproc_flair"))
    brain = _load_on(scan.path("brain_mask"), flair, affine) > 0
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
        return _load_on(self.scan.path(name), self.flair, self.affine)

    def layout(
        self, planes: Iterator[tuple[int, list[int]]], region: np.ndarray, columns: int
    ) -> figures.Mosaic:
        return figures.mosaic(tuple(planes), region, self.affine, columns=columns)

    def draw(self, layout: figures.Mosaic) -> bytes:
        return figures.draw_slices(layout, self.flair, self.window)


def _wmh_picture(shown: _Shown) -> Picture:
    mask = shown.load("wmh_mask") > 0
    axis = figures.scan_axis(shown.affine)
    touched = np.count_nonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    if touched:
        slices = figures.busiest_slices(mask, axis, LESION_SLICES)
        share = "All" if len(slices) == touched else f"{len(slices)} of"
        which = f"{share} {touched} slices with lesions"
    else:
        slices = figures.spread_slices(shown.brain, axis, LESION_SLICES // 2)
        which = "No lesion was found; slices spread over the brain"
    columns = figures.balanced_columns(len(slices))
    layout = shown.layout(iter([(axis, slices)]), shown.brain, columns)
    base = shown.draw(layout)
    layers = {"wmh": ("outline", figures.draw_outline(layout, mask, WMH_COLOUR))}
    if shown.scan.path("wmh_probseg").is_file():
        heat = figures.draw_heat(layout, shown.load("wmh_probseg"))
        layers["prob"] = ("probability", heat)
    caption = f"{which} ({figures.PLANE_NAMES[axis]}); outlines are those of the mask."
    return _picture(shown.scan, "White matter hyperintensities", caption, base, layers)


def _brain_picture(shown: _Shown) -> Picture:
    layout = shown.layout(_overview(shown.brain), _head(shown.flair), OVERVIEW_COLUMNS)
    layers = {"brainmask": ("outline", figures.draw_outline(layout, shown.brain, BRAIN_COLOUR))}
    caption = "Outline of the brain mask. Lesions are looked for inside it only."
    return _picture(shown.scan, "Brain mask", caption, shown.draw(layout), layers)


def _atlas_picture(shown: _Shown) -> Picture:
    layout = shown.layout(_overview(shown.brain), shown.brain, OVERVIEW_COLUMNS)
    atlas = shown.load("wm_atlas")
    layers = {"atlas": ("outline", figures.draw_outline(layout, atlas, ATLAS_COLOUR))}
    caption = (
        f"Outline of white matter of the template {shown.scan.template} (probability 0.5) after "
        "registration to this FLAIR. It guides the network and should follow the border of "
        "white and grey matter."
    )
    return _picture(shown.scan, "Registered white matter map", caption, shown.draw(layout), layers)


def _size_picture(
    scan: ScanResults, lesions: list[dict[str, Any]], volumes: dict[str, Any]
) -> tuple[Picture, ...]:
    sizes = [lesion["volume_mm3"] for lesion in lesions]
    if not sizes or not volumes:
        return ()
    drawn = figures.draw_size_histogram(sizes, volumes["voxel_mm3"])
    caption = f"Number of lesions by volume; one voxel is {volumes['voxel_mm3']:.2f} mm³."
    return (_picture(scan, "Lesion sizes", caption, drawn, {"sizes": ("", b"")}),)


def _overview(brain: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Two rows of axial slices, one of coronal and one of sagittal ones."""
    for axis, rows in ((2, 2), (1, 1), (0, 1)):
        yield axis, figures.spread_slices(brain, axis, rows * OVERVIEW_COLUMNS)


def _head(flair: np.ndarray) -> np.ndarray:
    """Voxels clearly brighter than air: what the picture of the brain mask is cropped to."""
    return flair > 0.1 * np.percentile(flair, 98)


def _picture(
    scan: ScanResults, title: str, caption: str, base: bytes, layers: dict[str, tuple[str, bytes]]
) -> Picture:
    """Save a picture with each of its layers, and prepare it for the page."""
    folder = scan.output_dir / f"sub-{scan.entities['sub']}" / "figures"
    saved, views = [], []
    for name, (view, layer) in layers.items():
        path = folder / f"{scan.stem}_desc-{name}_FLAIR.png"
        write_bytes(path, figures.stack(base, layer) if layer else base)
        saved.append(path.relative_to(scan.output_dir).as_posix())
        if layer:
            views.append(View(view, _data_uri(layer)))
    if views:
        views.append(View("FLAIR only"))
    anchor = f"{scan.stem}_{next(iter(layers))}"
    return Picture(anchor, title, caption, tuple(saved), _data_uri(base), tuple(views))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load an image in RAS order: data (X, Y, Z) float32 and affine (4, 4)."""
    try:
        image = nib.Nifti1Image.from_filename(path)
        return reorient(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise ProcessingError(
            f"{path}: cannot be read ({error}); expected a NIfTI image of this pipeline: process "
            "the scan again"
        ) from error


def _load_on(path: Path, flair: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Load an image that must lie on the grid of the FLAIR."""
    data, found = _load(path)
    if data.shape != flair.shape or not np.allclose(found, affine, atol=1e-3):
        raise ProcessingError(
            f"{path}: lies on another grid ({data.shape} voxels in RAS order) than the FLAIR "
            f"({flair.shape}); expected images of one run: process the scan again"
        )
    return data


def _methods(output_dir: Path) -> Methods | None:
    """Methods text of the last run, None where it was not written."""
    texts = [output_dir / "logs" / name for name in ("CITATION.md", "CITATION.bib")]
    if not texts[0].is_file():
        return None
    markdown, bibtex = (
        path.read_text(encoding="utf-8") if path.is_file() else "" for path in texts
    )
    return render_methods(markdown, bibtex)


def _crashes(output_dir: Path, participant_label: str, run_uuid: str | None) -> Iterator[Crash]:
    """Crash files of a run, or of the last run that left any."""
    logs = output_dir / f"sub-{participant_label}" / "log"
    paths = sorted(logs.glob("*/crash*"), key=lambda path: natural_key(path.as_posix()))
    run = run_uuid or (paths[-1].parent.name if paths else "")
    for path in paths:
        if path.parent.name == run and path.suffix == ".txt":
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Crash(path.relative_to(output_dir).as_posix(), text)


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("participant.html"))


def _text(name: str) -> str:
    return files("bagau_bids.data").joinpath("reports", name).read_text(encoding="utf-8")
