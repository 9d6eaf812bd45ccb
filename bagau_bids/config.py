"""The frozen configuration of a run: the only place where defaults are stated.

Built once by the command line, unpacked to plain values by whoever builds workflows, and
saved beside the log. Nothing reads it globally.
"""

from dataclasses import dataclass
from pathlib import Path

TEMPLATES = ("MNI152NLin2009cSym", "ICBM152NLin2009aSym")
MODELS = ("full", "small")


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
    threshold: float = 0.5
    min_lesion_size_mm3: float = 0.0
    random_seed: int = 0
    sloppy: bool = False


@dataclass(frozen=True)
class Resources:
    """What the run may use; no field changes a result."""

    device: str = "auto"
    batch_size: int = 8
    nprocs: int = 1
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
    resources: Resources = Resources()
    execution: Execution = Execution()
