"""What the derivatives folder holds of each scan; the only thing that reports read."""

import csv
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from bagau_bids.bids.derivatives import derivative_path, source_folder, source_stem
from bagau_bids.bids.edited import kept_masks
from bagau_bids.bids.records import Edited, Failure, Record, Steps, read_record
from bagau_bids.bids.tables import natural_key
from bagau_bids.errors import ProcessingError
from bagau_bids.measures.flags import Flag
from bagau_bids.spaces import Image, reorient

# Files without which a scan counts as incomplete.
EXPECTED = (
    "wmh_mask",
    "wmh_probseg",
    "brain_mask",
    "preproc_flair",
    "wm_atlas",
    "volumes_table",
    "lesions_table",
)
Row = TypeVar("Row", bound=msgspec.Struct)
COMPLETE, INCOMPLETE, FAILED = "complete", "incomplete", "failed"


@dataclass(frozen=True)
class ScanResults:
    """The derivatives of one FLAIR.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    entities : dict
        Entities of the source scan under their short names.
    record : Record or None
        How it was processed; None where that is missing or cannot be read.
    record_problem : str
        Why it cannot be read.
    """

    output_dir: Path
    entities: dict[str, str]
    record: Record | None = None
    record_problem: str = ""

    @property
    def stem(self) -> str:
        """Entities as in file names, e.g. ``sub-01_ses-2_run-1``."""
        return source_stem(self.entities)

    @property
    def title(self) -> str:
        """What tells this scan from the others of its participant, in words."""
        names = {"ses": "Session", "acq": "acquisition", "ce": "contrast", "rec": "reconstruction"}
        parts = [
            f"{names.get(key, key)} {value}"
            for key, value in self.entities.items()
            if key != "sub"
        ]
        title = ", ".join(parts) or "FLAIR"
        return title[0].upper() + title[1:]

    def path(self, name: str) -> Path:
        """Where a derivative is expected, under its name in ``data/derivatives.json``."""
        return derivative_path(self.output_dir, self.entities, name, template=self.template)

    @property
    def template(self) -> str:
        """Template of the white-matter map: from the record, else from the file's name."""
        if self.record:
            return self.record.options.template
        folder = self.output_dir / source_folder(self.entities)
        for path in sorted(folder.glob(f"{self.stem}_space-orig_atlas-*_label-WM_probseg.nii.gz")):
            return path.name.split("_atlas-")[1].split("_")[0]
        return "unknown"

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of expected files that are not there."""
        return tuple(name for name in EXPECTED if not self.path(name).is_file())

    @property
    def status(self) -> str:
        """``failed`` as recorded, ``incomplete`` where files are missing, else ``complete``."""
        if self.record and self.record.status == FAILED:
            return FAILED
        return COMPLETE if self.record and not self.missing else INCOMPLETE

    @property
    def problem(self) -> str:
        """Why the status is not ``complete``, in one line; empty otherwise."""
        if self.status == FAILED:
            message = self.failure.message if self.failure else ""
            return " ".join(message.split()) or "no reason was recorded"
        absent = [self.path(name).name for name in self.missing]
        if not self.record and not self.record_problem:
            absent.append(self.path("record").name)
        said = [f"missing or damaged: {', '.join(absent)}"] if absent else []
        return "; ".join([*said, *([self.record_problem] if self.record_problem else ())])

    @property
    def edited(self) -> Edited | None:
        """That the mask was edited by hand, and how; None where it was not."""
        return (self.record.edited or None) if self.record else None

    @property
    def replaced(self) -> tuple[Path, ...]:
        """Edited masks that were kept when the network's took their place, the latest last."""
        return () if self.edited else kept_masks(self.output_dir, self.entities)

    @property
    def failure(self) -> Failure | None:
        """What was recorded of a failure."""
        return (self.record.failure or None) if self.record else None

    @property
    def steps(self) -> Steps:
        """Records of the processing steps; of none where there is no record."""
        return self.record.steps if self.record else Steps()

    @property
    def judged(self) -> bool:
        """Whether the quality figures were held against limits, and what came of it is known."""
        return self.steps.measure is not None and self.steps.measure.flags is not None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Figures that asked for a look when the scan was processed."""
        return (self.steps.measure.flags or ()) if self.steps.measure else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps noted, in plain words."""
        return tuple(note for step in self.steps for note in step.notes)


def find_results(output_dir: Path, participant_label: str | None = None) -> list[ScanResults]:
    """Find every scan of which anything was written.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant_label : str or None
        Without ``sub-``; None takes all participants.

    Returns
    -------
    list of ScanResults
        In the order of the stems, numbers by their value.
    """
    subject = "sub-*" if participant_label is None else f"sub-{participant_label}"
    stems = {
        stem: _entities(stem)
        for pattern in (f"{subject}/anat/sub-*", f"{subject}/ses-*/anat/sub-*")
        for path in output_dir.glob(pattern)
        if (stem := _stem(path.name))
    }
    ordered = sorted(stems, key=natural_key)
    return [_read(output_dir, stems[stem]) for stem in ordered]


def read_table(path: Path, kind: type[Row]) -> list[Row]:
    """Read a BIDS table into a type a row: numbers as float, ``n/a`` as None.

    Raises
    ------
    ProcessingError
        If it cannot be read, a row is shorter or longer than the header, or a field is not of
        its type.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream, delimiter="\t")
        return [
            msgspec.convert(dict(zip(header, map(_value, row), strict=True)), kind) for row in rows
        ]
    except (OSError, ValueError) as error:
        raise ProcessingError(
            f"{path}: cannot be read as a table ({error}); expected tab-separated columns under "
            "one header: process the scan again"
        ) from error


def load_image(path: Path) -> Image:
    """Load an image in RAS order, float32.

    Raises
    ------
    ProcessingError
        If it cannot be read.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        return reorient(Image(np.asarray(image.dataobj, dtype=np.float32), image.affine))
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise ProcessingError(
            f"{path}: cannot be read ({error}); expected a NIfTI image of this pipeline: process "
            "the scan again"
        ) from error


def load_image_on(path: Path, flair: Image) -> np.ndarray:
    """Load an image, (X, Y, Z), that must lie on the grid of the FLAIR, both in RAS order.

    Raises
    ------
    ProcessingError
        If it cannot be read, or lies on another grid.
    """
    found, shape = load_image(path), flair.data.shape
    if found.data.shape != shape or not np.allclose(found.affine, flair.affine, atol=1e-3):
        raise ProcessingError(
            f"{path}: lies on another grid ({found.data.shape} voxels in RAS order) than the "
            f"FLAIR ({shape}); expected images of one run: process the scan again"
        )
    return found.data


def _stem(filename: str) -> str:
    """Leading entities of a derivative's name that are those of its source."""
    parts = []
    for part in filename.split(".")[0].split("_"):
        key, dash, value = part.partition("-")
        if not dash or source_stem({key: value}) != part:
            break
        parts.append(part)
    return "_".join(parts)


def _entities(stem: str) -> dict[str, str]:
    pairs = (part.partition("-") for part in stem.split("_"))
    return {key: value for key, _, value in pairs}


def _read(output_dir: Path, entities: dict[str, str]) -> ScanResults:
    path = derivative_path(output_dir, entities, "record")
    try:
        record = read_record(path) if path.is_file() else None
    except ProcessingError as error:
        return ScanResults(output_dir, entities, record_problem=str(error))
    return ScanResults(output_dir, entities, record)


def _value(text: str) -> float | str | None:
    if text == "n/a":
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
