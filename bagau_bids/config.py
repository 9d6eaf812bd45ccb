"""The frozen configuration of a run: the only place where defaults are stated.

Built once by the command line, unpacked to plain values by whoever builds workflows, and
saved beside the log. Nothing reads it globally.
"""

import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

TEMPLATES = ("MNI152NLin2009cSym", "ICBM152NLin2009aSym")
MODELS = ("small", "full")
REGISTRATIONS = ("robust", "paper")
SKULL_STRIPS = ("auto", "skip")
PERIVENTRICULAR_RULES = ("10mm", "3mm")
ANALYSIS_LEVELS = ("participant", "group")
MAX_OMP_NTHREADS = 8
INFARCT_THRESHOLD = 0.5  # of the calibrated probability, from which on a voxel may be infarct


def available_cpus() -> int:
    """Return how many cores this process may use: those of its affinity mask, as SLURM sets it."""
    return len(os.sched_getaffinity(0))


def default_omp_nthreads(nprocs: int) -> int:
    """Return the threads of one step where ``nprocs`` are allowed in total: all but one, to 8."""
    return max(1, min(nprocs - 1, MAX_OMP_NTHREADS))


def new_run_uuid() -> str:
    """Return a new identifier of a run, ``<date>-<time>_<uuid4>``, unique also on a cluster."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4()}"


@dataclass(frozen=True)
class Selection:
    """Which scans to process."""

    participant_labels: tuple[str, ...] = ()
    session_labels: tuple[str, ...] = ()
    bids_filters: Path | None = None
    database_dir: Path | None = None
    database_wipe: bool = False
    skip_bids_validation: bool = False


@dataclass(frozen=True)
class Processing:
    """What is done to each scan; every field is part of what makes a result."""

    template: str = "MNI152NLin2009cSym"
    templateflow_home: Path | None = None
    offline: bool = False
    registration: str = "robust"
    skull_strip: str = "auto"
    derivatives: tuple[Path, ...] = ()
    output_spaces: tuple[str, ...] = ("orig",)
    model: str = "small"
    weights: tuple[Path, ...] = ()
    tta: bool = False
    infarct: bool = False
    known_lesions: tuple[Path, ...] = ()
    ignore_lesion_roi: bool = False
    threshold: float = 0.5
    min_lesion_size_mm3: float = 0.0
    periventricular_rule: str = "10mm"
    random_seed: int = 0
    sloppy: bool = False


@dataclass(frozen=True)
class Resources:
    """What the run may use; no field changes a result."""

    device: str = "auto"
    batch_size: int = 8
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int = 1
    mem_gb: float | None = None
    low_mem: bool = False
    plugin_file: Path | None = None


@dataclass(frozen=True)
class Execution:
    """How the run behaves: where it works, when it stops, what it keeps and shows."""

    work_dir: Path = Path("work")
    clean_workdir: bool = False
    rm_work_on_success: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    strict: bool = False
    resource_monitor: bool = False
    write_graph: bool = False
    dry_run: bool = False
    debug: tuple[str, ...] = ()
    aggregate_session_reports: int = 4
    verbose: int = 0


@dataclass(frozen=True)
class Config:
    """One run of ``bagau-bids``."""

    bids_dir: Path
    output_dir: Path
    analysis_levels: tuple[str, ...]
    run_uuid: str
    selection: Selection = Selection()
    processing: Processing = Processing()
    resources: Resources = field(default_factory=Resources)
    execution: Execution = Execution()

    @property
    def log_dir(self) -> Path:
        """Folder of this run's log, frozen configuration and summary."""
        return self.output_dir / "logs" / self.run_uuid


def as_plain(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries of TOML's own types.

    Paths become text, tuples lists; a field that is None is left out, TOML has no word for it.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))
