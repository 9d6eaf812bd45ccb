"""The frozen configuration of a run: the only place where defaults are stated.

Built once by the command line, unpacked to plain values by whoever builds workflows, and
saved beside the log. Nothing reads it globally.
"""

import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from bagau_bids import values
from bagau_bids.options import Spelling, argument, option, part, spelling

TEMPLATES = ("MNI152NLin2009cSym", "ICBM152NLin2009aSym")
MODELS = ("small", "full", "stroke")
REGISTRATIONS = ("robust", "paper")
SKULL_STRIPS = ("auto", "skip")
PERIVENTRICULAR_RULES = ("10mm", "3mm")
ANALYSIS_LEVELS = ("participant", "group")
MAX_OMP_NTHREADS = 8
INFARCT_THRESHOLD = 0.5  # of the calibrated probability, from which on a voxel may be infarct


def available_cpus() -> int:
    """Return how many cores this process may use: those of its affinity mask, as SLURM sets it."""
    return len(os.sched_getaffinity(0))


def default_omp_nthreads(nprocs: int, scans: int) -> int:
    """Return the threads of one step, up to 8: so many that all scans are at work at once.

    Parameters
    ----------
    nprocs
        Threads in total.
    scans
        Scans to process.
    """
    return max(1, min(nprocs // max(scans, 1), MAX_OMP_NTHREADS))


def new_run_uuid() -> str:
    """Return a new identifier of a run, ``<date>-<time>_<uuid4>``, unique also on a cluster."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4()}"


_most_used = partial(option, group="most used")  # groups of the help; this one is first
_segmentation = partial(option, group="segmentation")
_preprocessing = partial(option, group="preprocessing")
_outputs = partial(option, group="outputs")


def _accepted(name: str, text: str, **keywords: Any) -> Spelling:
    """Return an option of other BIDS-Apps that changes nothing here."""
    return spelling(name, dest="accepted", help=f"accepted for compatibility; {text}", **keywords)


@dataclass(frozen=True)
class Selection:
    """Which scans to process."""

    participant_labels: tuple[str, ...] = _most_used(
        (),
        "only these participants, with or without sub-; default: all",
        "--participant-label",
        "--participant-labels",
        metavar="LABEL",
        type=values.label("sub"),
    )
    session_labels: tuple[str, ...] = _most_used(
        (),
        "only these sessions, with or without ses-; default: all",
        "--session-label",
        "--session-id",
        metavar="LABEL",
        type=values.label("ses"),
    )
    bids_filters: Path | None = option(
        None,
        'JSON such as {"flair": {"acquisition": "3D", "run": [1, 2]}} with pybids names of '
        'entities; null: must be absent, "*": must be present. Keys for other images are ignored',
        "--bids-filter-file",
        metavar="FILE",
        type=values.existing_file,
    )
    database_dir: Path | None = option(
        None,
        "keep the pybids index of the whole data set here, and use the one that is there",
        "--bids-database-dir",
        metavar="PATH",
        type=values.any_path,
    )
    database_wipe: bool = option(False, "write the index anew", "--bids-database-wipe")
    skip_bids_validation: bool = option(
        False,
        "accept a data set without a valid dataset_description.json",
        "--skip-bids-validation",
        "--skip-bids-validator",
    )


@dataclass(frozen=True)
class Processing:
    """What is done to each scan; every field is part of what makes a result."""

    model: str = _most_used(
        "small", "packaged weights to use (default: %(default)s)", choices=MODELS
    )
    weights: tuple[Path, ...] = _segmentation(
        (),
        "weights (.safetensors) instead of packaged ones, the card (.json) beside each; the "
        "probabilities of several are averaged",
        metavar="PATH",
        type=values.any_path,
    )
    tta: bool = _segmentation(
        False, "average with the result of the mirrored FLAIR; takes the network twice as long"
    )
    infarct: bool = _most_used(
        False,
        "put infarcts out too: a mask, a probability, their volume and their outline on the "
        "page; the weights must tell infarcts",
    )
    known_lesions: tuple[Path, ...] = _segmentation(
        (),
        "derivatives with masks (label-lesion, -infarct, -tumour or -resection, suffix mask "
        "or roi) of what is known to be no WMH; preferred to *_label-lesion_roi beside the FLAIR, "
        "which is used anyway",
        metavar="[NAME=]PATH",
        type=values.derivatives_dir,
    )
    ignore_lesion_roi: bool = _segmentation(
        False, "do not use *_label-lesion_roi beside the FLAIR"
    )
    threshold: float = _most_used(
        0.5,
        "probability from which on a voxel is WMH (default: %(default)s)",
        metavar="P",
        type=values.threshold,
    )
    min_lesion_size_mm3: float = _segmentation(
        0.0,
        "remove lesions smaller than this volume in mm3 (default: %(default)g, none)",
        "--min-lesion-size",
        metavar="MM3",
        type=values.lesion_size_mm3,
    )
    periventricular_rule: str = _segmentation(
        "10mm",
        "which white matter is periventricular. 10mm: up to 10 mm from the lateral "
        "ventricles. 3mm: up to 3 mm is juxtaventricular, from there to 13 mm periventricular "
        "(default: %(default)s)",
        choices=PERIVENTRICULAR_RULES,
    )
    random_seed: int = _segmentation(
        0, "seed of the registration's sampling (default: %(default)s)", **values.at_least(0)
    )
    template: str = _preprocessing(
        "MNI152NLin2009cSym",
        "template whose white-matter map guides the network; ICBM152NLin2009aSym comes with "
        "the installation and needs no download (default: %(default)s)",
        choices=TEMPLATES,
    )
    templateflow_home: Path | None = _preprocessing(
        None,
        "TemplateFlow folder; default: $TEMPLATEFLOW_HOME, then ~/.cache/templateflow",
        metavar="PATH",
        type=values.any_path,
    )
    offline: bool = _most_used(False, "never try to use the network")
    registration: str = _preprocessing(
        "robust",
        "parameters of the registration of the template (default: %(default)s)",
        choices=REGISTRATIONS,
    )
    skull_strip: str = _preprocessing(
        "auto",
        "auto: find the brain, detect FLAIRs that are stripped already; skip: take every "
        "FLAIR as stripped (default: %(default)s)",
        choices=SKULL_STRIPS,
    )
    derivatives: tuple[Path, ...] = _preprocessing(
        (),
        "use the FLAIR's brain mask where one is found in these derivatives",
        "-d",
        "--derivatives",
        metavar="[NAME=]PATH",
        type=values.derivatives_dir,
    )
    sloppy: bool = _preprocessing(False, "low quality and fast, for tests of an installation")
    output_spaces: tuple[str, ...] = _outputs(
        ("orig",),
        "orig: the FLAIR's own grid, always written; a template's name: also there",
        metavar="SPACE",
        type=values.output_space(TEMPLATES),
        also=[_accepted("--output-layout", "always bids", choices=("bids",))],
    )


@dataclass(frozen=True)
class Resources:
    """What the run may use; no field changes a result."""

    device: str = _most_used(
        "auto",
        "where the networks run; auto: CUDA if usable (default: %(default)s)",
        metavar="{auto,cpu,cuda,cuda:N}",
        type=values.device,
    )
    batch_size: int = option(8, "slices at once (default: %(default)s)", **values.at_least(1))
    nprocs: int = _most_used(
        available_cpus,
        "threads in total (default: the cores this process may use, here %(default)s)",
        *("--nprocs", "--nthreads", "--n-cpus", "-n-cpus", "--ncpus", "--n-procs"),
        **values.at_least(1),
    )
    omp_nthreads: int | None = option(
        None,
        "threads of one step (default: as many of --nprocs as there are for each scan, up to 8)",
        "--omp-nthreads",
        "--ants-nthreads",
        **values.at_least(1),
    )
    mem_gb: float | None = _most_used(
        None,
        "memory that may be used, with its unit, such as 16G or 16000M; default: 90 %% of "
        "what there is",
        "--mem",
        metavar="AMOUNT",
        type=values.memory_gb(None),
        also=[
            spelling(
                f"--mem-{unit.lower()}b",
                metavar=f"{unit}B",
                type=values.memory_gb(unit),
                help=f"the same, a bare number is in {unit}B",
            )
            for unit in "MG"
        ],
    )
    low_mem: bool = option(False, "keep intermediate images uncompressed: less memory, more disk")
    plugin_file: Path | None = option(
        None,
        "YAML with nipype's plugin: and plugin_args:",
        "--use-plugin",
        "--nipype-plugin-file",
        metavar="FILE",
        type=values.existing_file,
    )


@dataclass(frozen=True)
class Execution:
    """How the run behaves: where it works, when it stops, what it keeps and shows."""

    aggregate_session_reports: int = _outputs(
        4,
        "one page a participant up to N sessions, one page a session above (default: %(default)s)",
        **values.at_least(1),
    )
    reports_only: bool = _outputs(
        False, "write the pages again from the derivatives in OUTPUT_DIR and process nothing"
    )
    boilerplate_only: bool = _outputs(
        False,
        "write logs/CITATION.md and .bib and process nothing",
        "--boilerplate-only",
        "--boilerplate",
        also=[
            _accepted(
                "--md-only-boilerplate", "the text is always Markdown only", action="store_true"
            )
        ],
    )
    work_dir: Path = _most_used(
        Path("work"),
        "folder of intermediate files; the same again continues an interrupted run "
        "(default: ./%(default)s)",
        "-w",
        "--work-dir",
        metavar="PATH",
        type=values.any_path,
    )
    clean_workdir: bool = option(
        False, "before the run, delete what earlier runs left in the work folder of these scans"
    )
    rm_work_on_success: bool = option(False, "delete the work folder of each scan that is done")
    stop_on_first_crash: bool = option(
        False, "stop when a scan fails; default: go on with the others"
    )
    strict: bool = option(False, "exit with 1 also when a participant has no FLAIR")
    dry_run: bool = option(
        False, "find the scans, check files and build the workflow; process nothing"
    )
    write_graph: bool = option(False, "write the workflow's graph")
    resource_monitor: bool = option(
        False,
        "record memory and processor use of every step",
        also=[_accepted("--crashfile-format", "always txt", choices=("txt",))],
    )
    debug: tuple[str, ...] = option(
        (),
        "pdb: open the debugger where a run crashes",
        choices=("pdb",),
        also=[_accepted("--notrack", "nothing is ever tracked", action="store_true")],
    )
    verbose: int = option(
        0,
        "say more: -v what is done, -vv also libraries, -vvv everything",
        "-v",
        "--verbose",
        action="count",
    )


@dataclass(frozen=True)
class Config:
    """One run of ``bagau-bids``."""

    bids_dir: Path = argument("root folder of the BIDS data set", type=values.any_path)
    output_dir: Path = argument("folder of the derivatives", type=values.any_path)
    analysis_levels: tuple[str, ...] = argument(
        "participant: segment scans; group: tables and a page over all results in "
        "OUTPUT_DIR. Both may be given",
        metavar="{participant,group}",
        choices=ANALYSIS_LEVELS,
    )
    run_uuid: str = field(default_factory=new_run_uuid)
    selection: Selection = part(Selection, "which scans")
    processing: Processing = part(Processing)
    resources: Resources = part(Resources, "resources")
    execution: Execution = part(Execution, "how the run behaves")

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
