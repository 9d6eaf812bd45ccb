"""``bagau slurm``: the script of a SLURM job array that processes a data set."""

import argparse
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli.parser import add_rejected, parse
from bagau_bids.config import (
    ANALYSIS_LEVELS,
    Config,
    Execution,
    Processing,
    Resources,
    Selection,
)
from bagau_bids.errors import EXIT_OK, MissingResourceError, ProcessingError, UsageError
from bagau_bids.options import (
    CommandParser,
    Exclusive,
    argument,
    option,
    option_words,
    part,
)

if TYPE_CHECKING:
    from bagau_bids.bids.scans import Scan
    from bagau_bids.cli.array_script import ArrayJob

# What a scan costs, with room to spare: see docs/hpc.md for what was measured.
MINUTES_PER_SCAN = 5
MINUTES_PER_TASK = 10
MINUTES_OF_GROUP = 0.002  # for each participant
MINUTES_OF_PAIR = 0.2  # at the group level, for each further scan of a participant
MEMORY_GB = 4.0
MEMORY_SHARE = 0.9  # of what SLURM was asked for; the rest is for the shell and the file cache
MOST_TASKS = 1000  # SLURM's own limit, unless a cluster raises it

POINTLESS = {
    "dry_run": "tasks are there to process scans",
    "reports_only": "tasks are there to process scans",
    "boilerplate_only": "tasks are there to process scans",
    "debug": "a task has no terminal",
}
# Variables that name the image, in a container.
RUNNING_IMAGE = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


def _level(text: str) -> str:
    if text not in ANALYSIS_LEVELS:
        raise argparse.ArgumentTypeError(
            f"{text!r} was given; expected {' or '.join(ANALYSIS_LEVELS)}, or nothing: the script "
            "does both"
        )
    return text


TOOL = Exclusive()
_task_option = partial(option, group="tasks")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told, for the tasks and of them."""

    selection: Selection = part(Selection, hidden=True)
    processing: Processing = part(Processing, hidden=True)
    resources: Resources = part(Resources, hidden=True)
    execution: Execution = part(Execution, hidden=True)
    bids_dir: Path = argument("root folder of the BIDS data set", type=values.any_path)
    output_dir: Path = argument("folder of the derivatives", type=values.any_path)
    analysis_levels: tuple[str, ...] = argument(
        "may stand here, as for bagau-bids; the script does both in any case",
        metavar="{participant,group}",
        nargs="*",
        type=_level,
    )
    container: Path | None = _task_option(
        None, "run this .sif image", exclusive=TOOL, metavar="IMAGE", type=values.any_path
    )
    venv: Path | None = _task_option(
        None,
        "run bagau-bids of this virtual environment (default: the one that runs this)",
        exclusive=TOOL,
        metavar="DIR",
        type=values.any_path,
    )
    nprocs: int = _task_option(
        1,
        "cores a task; more than one only helps a task with several scans (default: %(default)s)",
        **values.at_least(1),
    )
    mem_gb: float | None = _task_option(
        None,
        f"memory a task, such as 8G (default: {MEMORY_GB:g}G for the first core, 2G for each "
        "further one)",
        "--mem",
        metavar="AMOUNT",
        type=values.memory_gb(None),
    )
    minutes: int | None = _task_option(
        None,
        "time limit of a task "
        f"(default: {MINUTES_PER_TASK}, and {MINUTES_PER_SCAN} more for each scan)",
        **values.at_least(1),
    )
    per_task: int | None = _task_option(
        None,
        "participants a task (default: 1, more where there would be more than "
        f"{MOST_TASKS} tasks)",
        **values.at_least(1),
    )
    at_once: int = _task_option(
        0, "tasks that may run at once (default: no limit)", **values.at_least(1)
    )
    group_after: str = _task_option(
        "afterok",
        "run the group level if all tasks ended well, or in any case (default: %(default)s)",
        choices=("afterok", "afterany"),
    )
    list: bool = _task_option(
        False, "print the participants that are not done, a line a task, and stop"
    )

    def words(self, *leave_out: str) -> Sequence[str]:
        """Return what of the options of bagau-bids was said, but for some fields."""
        sections = (self.selection, self.processing, self.resources, self.execution)
        return [
            word
            for section in sections
            for word in option_words(section, {"nprocs", "mem_gb", *leave_out})
        ]

    @property
    def has_own_work_dir(self) -> bool:
        """Whether the work folder was named; else each task makes its own."""
        return self.execution.work_dir != Execution().work_dir


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.usage = "bagau slurm BIDS_DIR OUTPUT_DIR [options] [options of bagau-bids] > job.sh"
    parser.epilog = "Every other option is one of bagau-bids, and goes to each task."
    parser.add_options(Options)
    add_rejected(parser)


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.bids.scans import find_scans
    from bagau_bids.cli.array_script import array_script

    config = _config(options)
    _check(options, config)
    scans: dict[str, list[Scan]] = {}
    for scan in find_scans(config.bids_dir, config.selection):
        scans.setdefault(scan.subject, []).append(scan)
    if options.list:
        todo = [subject for subject, own in scans.items() if not is_done(config, subject, own)]
        for line in _tasks(todo, options.per_task):
            print(" ".join(line))
        return EXIT_OK
    sys.stdout.write(array_script(_job(options, config, scans)))
    return EXIT_OK


def _config(options: Options) -> Config:
    """Return the configuration of a run over all tasks, from the words that tasks are given."""
    words = ["--nprocs", str(options.nprocs), *options.words()]
    if not options.has_own_work_dir:
        words += ["--work-dir", str(Path(tempfile.gettempdir(), "bagau-work"))]
    return parse([str(options.bids_dir), str(options.output_dir), "participant", *words])


def _check(options: Options, config: Config) -> None:
    """Refuse options that a task can do nothing with, and files that are not there."""
    for name, reason in POINTLESS.items():
        if getattr(options.execution, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no use here: {reason}. Run bagau-bids with it.")
    for path in config.processing.weights:
        for file in (path, path.with_suffix(".json")):
            if not file.is_file():
                raise UsageError(
                    f"--weights: {file}: no such file; expected the weights (.safetensors) and, "
                    "beside them, their card (.json)"
                )
    home = config.processing.templateflow_home
    if home is not None and not home.is_dir():
        raise UsageError(
            f"--templateflow-home {home}: no such folder; get the template before the tasks need "
            f"it: bagau fetch --dest {home}"
        )
    if config.processing.offline and (home is not None or _tasks_see_this_system(options)):
        _check_template(config)


def _tasks_see_this_system(options: Options) -> bool:
    """Tell whether tasks look for the template where this process would."""
    return options.container is None or str(options.container) == _running_image()


def _running_image() -> str | None:
    return next((os.environ[name] for name in RUNNING_IMAGE if os.environ.get(name)), None)


def _check_template(config: Config) -> None:
    """Find the template now, since every task would end for the lack of it."""
    from bagau_bids.preprocessing.template import EMBEDDED_TEMPLATES, find_template

    processing = config.processing
    if processing.template not in EMBEDDED_TEMPLATES:
        find_template(processing.template, processing.templateflow_home, offline=True)


def is_done(config: Config, subject: str, scans: "Sequence[Scan]") -> bool:
    """Tell whether a participant's results and page are in the output folder.

    They are, if each scan has a record of a run that ended well, by this version and with these
    options.
    """
    from bagau_bids import __version__
    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.bids.records import read_record
    from bagau_bids.workflow.flair import result_options

    expected = ("complete", __version__, result_options(config.processing))
    if not (config.output_dir / f"sub-{subject}.html").is_file():
        return False
    for scan in scans:
        try:
            record = read_record(derivative_path(config.output_dir, scan.entities, "record"))
        except ProcessingError:
            return False
        if (record.status, record.versions.get("bagau-bids"), record.options) != expected:
            return False
    return True


def _tasks(subjects: Sequence[str], per_task: int | None) -> list[Sequence[str]]:
    """Divide participants into tasks."""
    size = per_task or max(1, math.ceil(len(subjects) / MOST_TASKS))
    return [subjects[start : start + size] for start in range(0, len(subjects), size)]


def _job(options: Options, config: Config, scans: "Mapping[str, Sequence[Scan]]") -> "ArrayJob":
    from bagau_bids.cli.array_script import ArrayJob

    folders = [str(config.bids_dir), str(config.output_dir)]
    mem_gb = options.mem_gb or MEMORY_GB + 2 * (options.nprocs - 1)
    minutes = options.minutes or MINUTES_PER_TASK + MINUTES_PER_SCAN * max(
        sum(len(scans[subject]) for subject in line) for line in _tasks([*scans], options.per_task)
    )
    gpu = config.resources.device.startswith("cuda")
    per_task = ["--per-task", f"{options.per_task}"] if options.per_task else []
    sbatch = (
        "--job-name=bagau",
        f"--cpus-per-task={options.nprocs}",
        f"--mem={math.ceil(1000 * mem_gb)}M",
        f"--time={minutes}",
        *(["--gres=gpu:1"] if gpu else []),
    )
    pairs = sum(len(own) - 1 for own in scans.values())
    minutes_of_group = MINUTES_OF_GROUP * len(scans) + MINUTES_OF_PAIR * pairs
    database = config.selection.database_dir
    asked = options.words("omp_nthreads", "work_dir")
    return ArrayJob(
        sbatch=sbatch,
        folder=config.output_dir / "logs" / "slurm",
        tool=_tool(options, config, gpu=gpu),
        list_command=["bagau", "slurm", *folders, "--list", *per_task, *asked],
        work=_work(options, config, MEMORY_SHARE * mem_gb),
        last_command=["bagau-bids", *folders, "group"],
        last_sbatch=(
            f"--time={MINUTES_PER_TASK + math.ceil(minutes_of_group)}",
            *(["--gres=none"] if gpu else []),
        ),
        at_once=options.at_once,
        dependency=options.group_after,
        needed_folders=(database,) if database else (),
    )


def _tool(options: Options, config: Config, *, gpu: bool) -> tuple[str, ...]:
    from bagau_bids.cli.array_script import of_container, of_installation

    here = _running_image()
    if options.container:
        # The image that this runs in need not be seen from its inside.
        if str(options.container) != here and not options.container.is_file():
            raise UsageError(
                f"--container {options.container}: no such file; expected a .sif image"
            )
        return of_container(options.container, _paths(config), gpu=gpu)
    if here and not options.venv:
        raise UsageError(
            f"bagau slurm runs in the image {here}, and tasks start outside of it, where they "
            f"would not find bagau-bids; add --container {shlex.quote(here)}"
        )
    prefix = options.venv or Path(sys.prefix)
    if not (prefix / "bin" / "bagau-bids").is_file():
        raise MissingResourceError(
            f"{prefix}: has no bin/bagau-bids; name the virtual environment it is installed in "
            "with --venv, or an image with --container"
        )
    return of_installation(prefix)


def _paths(config: Config) -> list[Path]:
    """Files and folders that a run reads and writes, the work folder apart."""
    found = [config.bids_dir, config.output_dir]
    for section in (config.selection, config.processing, config.resources):
        for field in fields(section):
            value = getattr(section, field.name)
            items = value if isinstance(value, tuple) else (value,)
            found += [item for item in items if isinstance(item, Path)]
    # A weights file needs its card beside it.
    weights = config.processing.weights
    return [path.parent if path in weights else path for path in found]


def _work(options: Options, config: Config, mem_gb: float) -> tuple[str, ...]:
    """Body of the shell function that processes the participants in its words.

    Each has a call of its own, which writes its results and its page: what a task that is killed
    has done by then stays done.
    """
    own_work_dir = options.has_own_work_dir
    once = "database_wipe"  # when the list is made
    call = [
        *("bagau-bids", str(config.bids_dir), str(config.output_dir), "participant"),
        *("--nprocs", str(options.nprocs), "--mem", f"{mem_gb:.1f}G"),
        *options.words("work_dir", "participant_labels", once),
    ]
    before = (
        (f"work_dir={shlex.quote(str(options.execution.work_dir))}", 'mkdir -p "$work_dir"')
        if own_work_dir
        else (
            "# On the node's own disk, $SLURM_TMPDIR on many clusters; gone when the task ends.",
            'work_dir=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/bagau-XXXXXX")',
            "trap 'rm -rf \"$work_dir\"' EXIT",
            "trap 'exit 143' TERM",
            "export TMPDIR=$work_dir",
        )
    )
    return (
        "local label status=0",
        *before,
        'for label in "$@"; do',
        f'    tool {shlex.join(call)} --work-dir "$work_dir" \\',
        '        --participant-label "$label" || status=$?',
        *(() if own_work_dir else ('    rm -rf "${work_dir:?}"/*',)),
        "done",
        'return "$status"',
    )
