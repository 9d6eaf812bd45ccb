"""What the derivatives folder holds of each scan; the only thing that reports read."""

import csv
import json
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from bagau_bids.bids.derivatives import derivative_path, source_folder, source_stem
from bagau_bids.bids.tables import natural_key
from bagau_bids.errors import ProcessingError
from bagau_bids.measures.flags import Flag
from bagau_bids.spaces import reorient

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
    record : dict
        Content of the processing record, empty where it is missing or cannot be read.
    """

    output_dir: Path
    entities: dict[str, str]
    record: dict[str, Any] = field(default_factory=dict)

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
        recorded = self.record.get("options", {}).get("template")
        if recorded:
            return str(recorded)
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
        if self.record.get("status") == FAILED:
            return FAILED
        return INCOMPLETE if self.missing or not self.record else COMPLETE

    @property
    def problem(self) -> str:
        """Why the status is not ``complete``, in one line; empty otherwise."""
        if self.status == FAILED:
            return " ".join(str(self.failure.get("message") or "no reason was recorded").split())
        absent = [self.path(name).name for name in self.missing]
        if not self.record:
            absent.append(self.path("record").name)
        return f"missing or damaged: {', '.join(absent)}" if absent else ""

    @property
    def failure(self) -> dict[str, Any]:
        """What was recorded of a failure: ``step``, ``message``, ``crash_file``."""
        return self.record.get("failure") or {}

    def step(self, name: str) -> dict[str, Any]:
        """Record of one processing step, empty where there is none."""
        return self.record.get("steps", {}).get(name) or {}

    @property
    def quality(self) -> dict[str, Any]:
        """Quality figures as recorded, see `bagau_bids.measures.quality`."""
        return self.step("measure").get("quality") or {}

    @property
    def judged(self) -> bool:
        """Whether the quality figures were held against limits, and what came of it is known."""
        return "flags" in self.step("measure") and not self.flags_problem

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Figures that asked for a look when the scan was processed."""
        return () if self.flags_problem else self._read_flags()

    @property
    def flags_problem(self) -> str:
        """Why the recorded flags cannot be read; empty where they can."""
        try:
            self._read_flags()
        except (TypeError, ValueError) as error:
            return (
                f"{self.path('record')}: flags cannot be read ({error}); expected name, figure, "
                "value, limit and words of each: process the scan again"
            )
        return ""

    def _read_flags(self) -> tuple[Flag, ...]:
        """Read the flags as recorded; raises TypeError or ValueError at another shape."""
        read = [Flag(**flag) for flag in self.step("measure").get("flags") or ()]
        if not all(
            isinstance(t, str) for flag in read for t in (flag.name, flag.figure, flag.words)
        ):
            raise TypeError("a name, figure or words is no text")
        return tuple(
            replace(flag, value=float(flag.value), limit=float(flag.limit)) for flag in read
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps noted, in plain words."""
        steps = self.record.get("steps", {})
        return tuple(str(note) for step in steps for note in self.step(step).get("notes") or ())


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


def read_table(path: Path) -> list[dict[str, float | str | None]]:
    """Read a BIDS table: numbers as float, ``n/a`` as None.

    Raises
    ------
    ProcessingError
        If it cannot be read, or a row is shorter or longer than the header.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream, delimiter="\t")
        return [
            {name: _value(text) for name, text in zip(header, row, strict=True)} for row in rows
        ]
    except (OSError, ValueError) as error:
        raise ProcessingError(
            f"{path}: cannot be read as a table ({error}); expected tab-separated columns under "
            "one header: process the scan again"
        ) from error


def load_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load an image in RAS order: data (X, Y, Z) float32 and affine (4, 4).

    Raises
    ------
    ProcessingError
        If it cannot be read.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        return reorient(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise ProcessingError(
            f"{path}: cannot be read ({error}); expected a NIfTI image of this pipeline: process "
            "the scan again"
        ) from error


def load_image_on(path: Path, flair: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Load an image that must lie on the grid of the FLAIR, both in RAS order.

    Raises
    ------
    ProcessingError
        If it cannot be read, or lies on another grid.
    """
    data, found = load_image(path)
    if data.shape != flair.shape or not np.allclose(found, affine, atol=1e-3):
        raise ProcessingError(
            f"{path}: lies on another grid ({data.shape} voxels in RAS order) than the FLAIR "
            f"({flair.shape}); expected images of one run: process the scan again"
        )
    return data


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
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    return ScanResults(output_dir, entities, record if _is_record(record) else {})


def _is_record(content: Any) -> bool:
    """Whether a record has the shape that the participant level gives it."""
    if not isinstance(content, dict):
        return False
    parts = [content.get(key, {}) for key in ("options", "versions", "steps", "failure")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    steps = content.get("steps", {})
    inner = (step.get("quality", {}) for step in steps.values() if isinstance(step, dict))
    return all(isinstance(part, dict) for part in (*steps.values(), *inner))


def _value(text: str) -> float | str | None:
    if text == "n/a":
        return None
    try:
        return float(text)
    except ValueError:
        return text
