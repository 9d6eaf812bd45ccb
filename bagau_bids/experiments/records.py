"""The files in the folder of an experiment, as types; fields are written in their order here."""

from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from msgspec import Struct

from bagau_bids.datasets.labelled import Split
from bagau_bids.experiments.definition import WithRecipe
from bagau_bids.files import read_json
from bagau_bids.training.settings import TrainingSettings

PLAN, COMPLETE, FAILURE = "plan.json", "complete.json", "failure.json"
ENSEMBLE = "ensemble"  # member of a system, beside its seeds
Content = TypeVar("Content")


class ScanNames(Struct, frozen=True):
    """Names of the scans of each part."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, split: Split) -> Self:
        """Name the scans of a division."""
        parts = (getattr(split, name) for name in cls.__struct_fields__)
        return cls(*(tuple(one.scan.stem for one in part) for part in parts))

    def __len__(self) -> int:
        """Count the scans."""
        return len(self.training) + len(self.validation) + len(self.test)


class DataSet(Struct, frozen=True):
    """A data set of the plan, as it describes itself, and how much of it takes part."""

    name: str
    description: dict[str, Any]
    scans: int
    people: int


class PlannedSystem(Struct, frozen=True):
    """A row of the table; see `bagau_bids.experiments.definition.System`."""

    name: str
    label: str
    paper: dict[str, float]
    note: str
    seeds: tuple[int, ...]


class PlannedFold(Struct, frozen=True):
    """A fold and its scans."""

    number: int
    scans: ScanNames


class PlanRecord(Struct, frozen=True, kw_only=True):
    """What was asked for: ``plan.json``. The recipe is what differs from that of the paper."""

    title: str
    source: str
    caveats: tuple[str, ...]
    changes: tuple[str, ...]
    recipe: dict[str, Any]
    paper_recipe: TrainingSettings
    checkpoint: str
    data: tuple[DataSet, ...]
    left_out: dict[str, str]
    systems: tuple[PlannedSystem, ...]
    folds: tuple[PlannedFold, ...]
    jobs: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a recipe that this version does not know."""
        msgspec.convert({"recipe": self.recipe}, WithRecipe)


class Case(Struct, frozen=True, kw_only=True):
    """Scores of one member of a system on one scan: a row of ``cases.tsv``."""

    system: str
    fold: int
    member: str
    scan: str
    dataset: int
    dice: float | None
    hausdorff95_mm: float | None
    volume_difference_percent: float | None
    lesion_recall: float | None
    lesion_precision: float | None
    lesion_f1: float | None
    reference_ml: float
    result_ml: float


class Cost(Struct, frozen=True, kw_only=True):
    """What the training of one network cost."""

    seed: int
    steps: int
    seconds_per_step: float
    training_slices: int
    parameters: int


class Machine(Struct, frozen=True, kw_only=True):
    """The machine that a job ran on."""

    processor: str
    cores: int
    threads: int
    device: str
    torch: str
    load: float


class JobRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came out of a job: ``complete.json``. The key is of everything that decides it."""

    key: str
    system: str
    fold: int
    scans: ScanNames
    rows: tuple[Case, ...]
    z_score_threshold: float | None = None
    cost: tuple[Cost, ...] = ()
    machine: Machine
    version: str
    finished: str


class FailureRecord(Struct, frozen=True):
    """Why a job failed: ``failure.json``."""

    reason: str


def read_record(path: Path, kind: type[Content]) -> Content:
    """Read a file of an experiment's folder.

    Raises
    ------
    UsageError
        If it is damaged, or of another version; the message names the field.
    """
    hint = "expected what 'bagau experiment' writes: remove the file and give the command again"
    return read_json(path, kind, hint)
