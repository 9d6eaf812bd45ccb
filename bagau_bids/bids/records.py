"""The record of how a scan was processed, and of each of its steps: types, reading, checking.

A field without a default is in every record. One that came later has a default, so that records
of older versions are read without it; what a newer version adds is passed over. ``UNSET`` is a
key that is not written, None is written as ``null``. Fields are written in their order here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from bagau_bids import __version__
from bagau_bids.errors import ProcessingError
from bagau_bids.files import read_json
from bagau_bids.measures.flags import Flag
from bagau_bids.measures.quality import Figures
from bagau_bids.measures.suspects import Suspect


class KnownLesions(Struct, frozen=True, kw_only=True):
    """The mask of known lesions that was given: its name, and its volume on the FLAIR's grid."""

    file: str
    resampled: bool
    volume_ml: float


class ConformRecord(Struct, frozen=True, kw_only=True):
    """How the FLAIR was stored: voxels and mm of the conformed grid, order of the axes, tilt."""

    notes: tuple[str, ...]
    sidecar_signs: tuple[str, ...] = ()
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    stored_axes: str
    tilt_degrees: float
    known_lesions: KnownLesions | UnsetType = UNSET
    duration_s: float | UnsetType = UNSET


class BrainMaskRecord(Struct, frozen=True, kw_only=True):
    """Where the brain mask comes from; the share of its voxels that are clipped at one value."""

    method: str
    file: str | UnsetType = UNSET
    network_sha256: str | UnsetType = UNSET
    stripped: bool
    notes: tuple[str, ...]
    description: str = "Brain mask."
    volume_ml: float | None = None
    clipped_share: float | None = None
    duration_s: float | UnsetType = UNSET


class BiasFieldRecord(Struct, frozen=True, kw_only=True):
    """How the bias field was corrected."""

    method: str
    notes: tuple[str, ...]
    duration_s: float | UnsetType = UNSET


class Attempt(Struct, frozen=True):
    """One start of the registration and how it ended.

    Attributes
    ----------
    start
        Name of the start.
    stage
        ``bspline``, ``affine`` (the B-spline was implausible) or ``failed``.
    overlap
        Dice of the FLAIR's brain mask and the warped template brain mask.
    mutual_information
        Between the FLAIR and the warped T1w in the brain mask, nats.
    min_jacobian, max_jacobian
        Range of the Jacobian determinant in the brain mask: volume in the template of a unit
        volume of the FLAIR.
    folded_fraction
        Share of the brain mask where it is not positive.
    note
        Why it failed or was reduced to its affine; empty otherwise.
    """

    start: str
    stage: str
    overlap: float = 0.0
    mutual_information: float = 0.0
    min_jacobian: float = 0.0
    max_jacobian: float = 0.0
    folded_fraction: float = 0.0
    note: str = ""


class RegistrationRecord(Struct, frozen=True, kw_only=True):
    """The attempt that was taken, after the preset it was made with; then all attempts."""

    method: str
    start: str
    stage: str
    overlap: float
    mutual_information: float
    min_jacobian: float
    max_jacobian: float
    folded_fraction: float
    note: str
    attempts: tuple[Attempt, ...]
    notes: tuple[str, ...]
    head_turn: float | None = None
    seed: int
    threads: int
    duration_s: float | UnsetType = UNSET


class RegionsRecord(Struct, frozen=True, kw_only=True):
    """How regions were told apart, and the large areas at the cortex that ask for a look."""

    suspects: tuple[Suspect, ...] = ()
    rule: Literal["10mm", "3mm"]
    ventricles: Literal["flair", "template"]
    csf: float | None = None
    csf_threshold: float | None = None
    fov_coverage: float | None = None
    notes: tuple[str, ...]
    duration_s: float | UnsetType = UNSET


class Model(Struct, frozen=True, kw_only=True, rename="pascal"):
    """Weights of a network, as sidecars name them too."""

    name: str
    architecture: str
    version: str | None
    sha256: str = field(name="SHA256")
    outputs: tuple[str, ...] = ()
    threshold_before_calibration: float | None = None
    infarct_threshold_before_calibration: float | UnsetType = UNSET


class SegmentationRecord(Struct, frozen=True, kw_only=True):
    """On what the networks ran, and which they were."""

    notes: tuple[str, ...]
    device: str
    precision: str
    batch_size: int
    tta: bool
    models: tuple[Model, ...]
    mirrored_dice: float | None = None  # later than others: older records lack it
    duration_s: float | UnsetType = UNSET


class MeasureRecord(Struct, frozen=True, kw_only=True):
    """Figures of quality, and those that asked for a look; None where they were not judged."""

    notes: tuple[str, ...]
    quality: Figures
    flags: tuple[Flag, ...] | None = None
    infarct_ml: float | None = None
    duration_s: float | UnsetType = UNSET


class T1wRecord(Struct, frozen=True, kw_only=True):
    """How the T1w was brought onto the FLAIR: (4, 4) FLAIR to T1w points, mm, RAS+."""

    start: str
    mutual_information: float
    coverage: float
    transform: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...]
    file: str
    duration_s: float | UnsetType = UNSET


StepRecord = (
    ConformRecord
    | BrainMaskRecord
    | BiasFieldRecord
    | RegistrationRecord
    | RegionsRecord
    | SegmentationRecord
    | MeasureRecord
    | T1wRecord
)


class Steps(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Records of the steps that there were."""

    conform: ConformRecord | None = None
    brain_mask: BrainMaskRecord | None = None
    bias_field: BiasFieldRecord | None = None
    registration: RegistrationRecord | None = None
    regions: RegionsRecord | None = None
    segmentation: SegmentationRecord | None = None
    measure: MeasureRecord | None = None
    t1w: T1wRecord | None = None

    def __iter__(self) -> Iterator[StepRecord]:
        """Yield the steps that there were, in order."""
        steps = (getattr(self, name) for name in self.__struct_fields__)
        return (step for step in steps if step is not None)


class Options(Struct, frozen=True, kw_only=True):
    """Options of the run that make a result; see `bagau_bids.config.Processing`."""

    template: str
    registration: str
    skull_strip: str
    model: str
    tta: bool = False
    infarct: bool = False
    ignore_lesion_roi: bool = False
    threshold: float
    min_lesion_size_mm3: float
    periventricular_rule: str | None = None
    random_seed: int
    sloppy: bool


class Failure(Struct, frozen=True, kw_only=True):
    """Which step failed and why, and the file with the details, relative to the output folder."""

    step: str
    message: str
    crash_file: str | UnsetType = UNSET


class Edited(Struct, frozen=True, kw_only=True):
    """That the results are of a mask which a person edited.

    Attributes
    ----------
    mask
        Name of its file.
    at
        When it was measured.
    network_mm3
        Volume that the network had found; None where it is not known.
    network_sha256
        Of the network's voxels, eight a byte in RAS order, by which its mask is known when it is
        given back; None where an older version did not write it.
    """

    mask: str
    at: str
    network_mm3: float | None
    network_sha256: str | None = None


class Record(Struct, frozen=True, kw_only=True):
    """How a scan was processed, as the participant level leaves it beside the results."""

    status: Literal["complete", "failed"]
    finished: str
    source: str
    entities: dict[str, str]
    options: Options
    versions: dict[str, str]
    failure: Failure | UnsetType = UNSET
    steps: Steps
    outputs: tuple[str, ...] | UnsetType = UNSET
    edited: Edited | UnsetType = UNSET


def read_record(path: Path) -> Record:
    """Read the record of a scan.

    Raises
    ------
    ProcessingError
        If it is missing or damaged, or a version wrote it whose records this one cannot read.
    """
    hint = f"expected a record as version {__version__} writes it: process the scan again"
    return read_json(path, Record, hint, ProcessingError)
