"""``bagau slurm``: the script of a SLURM job array that processes a data set."""

import argparse
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids.cli import values
from bagau_bids.cli.parser import add_options, option_words, parse
from bagau_bids.config import ANALYSIS_LEVELS, Config, Execution
from bagau_bids.errors import EXIT_OK, MissingResourceError, UsageError

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.usage = "bagau slurm BIDS_DIR OUTPUT_DIR [options] [options of bagau-bids] > job.sh"
    parser.epilog = "Every other option is one of bagau-bids, and goes to each task."
    add_options(parser, hidden=True)
    parser.add_argument("bids_dir", type=values.any_path, help="root folder of the BIDS data set")
    parser.add_argument("output_dir", type=values.any_path, help="folder of the derivatives")
    parser.add_argument(
        "analysis_levels",
        metavar="{participant,group}",
        nargs="*",
        type=_level,
        help="may stand here, as for bagau-bids; the script does both in any case",
    )
    parser.conflict_handler = "resolve"  # --nprocs and --mem are said otherwise here
    _add_tasks(parser.add_argument_group("tasks"))
    parser.set_defaults(nprocs=1)


def _level(text: str) -> str:
    if text not in ANALYSIS_LEVELS:
        raise argparse.ArgumentTypeError(
            f"{text!r} was given; expected {' or '.join(ANALYSIS_LEVELS)}, or nothing: the script "
            "does both"
        )
    return text


def _add_tasks(tasks: argparse._ArgumentGroup) -> None:
    where = tasks.add_mutually_exclusive_group()
    where.add_argument(
        "--container", metavar="IMAGE", type=values.any_path, help="run this .sif image"
    )
    where.add_argument(
        "--venv",
        metavar="DIR",
        type=values.any_path,
        help="run bagau-bids of this virtual environment (default: the one that runs this)",
    )
    tasks.add_argument(
        "--nprocs",
        metavar="N",
        type=values.whole_number(1),
        help="cores a task; more than one only helps a task with several scans "
        "(default: %(default)s)",
    )
    tasks.add_argument(
        "--mem",
        dest="mem_gb",
        metavar="AMOUNT",
        type=values.memory_gb(None),
        help=f"memory a task, such as 8G (default: {MEMORY_GB:g}G for the first core, 2G for each "
        "further one)",
    )
    tasks.add_argument(
        "--minutes",
        metavar="N",
        type=values.whole_number(1),
        help="time limit of a task "
        f"(default: {MINUTES_PER_TASK}, and {MINUTES_PER_SCAN} more for each scan)",
    )
    tasks.add_argument(
        "--per-task",
        metavar="N",
        type=values.whole_number(1),
        help="participants a task (default: 1, more where there would be more than "
        f"{MOST_TASKS} tasks)",
    )
    tasks.add_argument(
        "--at-once",
        metavar="N",
        type=values.whole_number(1),
        default=0,
        help="tasks that may run at once (default: no limit)",
    )
    tasks.add_argument(
        "--group-after",
        choices=("afterok", "afterany"),
        default="afterok",
        help="run the group level if all tasks ended well, or in any case (default: %(default)s)",
    )
    tasks.add_argument(
        "--list",
        action="store_true",
        help="print the participants that are not done, a line a task, and stop",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.bids.scans import find_scans
    from bagau_bids.cli.array_script import array_script

    config = _config(args)
    _check(args, config)
    scans: dict[str, list[Scan]] = {}
    for scan in find_scans(config.bids_dir, config.selection):
        scans.setdefault(scan.subject, []).append(scan)
    if args.list:
        todo = [subject for subject, own in scans.items() if not is_done(config, subject, own)]
        for line in _tasks(todo, args.per_task):
            print(" ".join(line))
        return EXIT_OK
    sys.stdout.write(array_script(_job(args, config, scans)))
    return EXIT_OK


def _config(args: argparse.Namespace) -> Config:
    """Return the configuration of a run over all tasks, from the words that tasks are given."""
    words = ["--nprocs", str(args.nprocs), *option_words(args, {"nprocs", "mem_gb"})]
    if not _has_own_work_dir(args):  # a task makes its own
        words += ["--work-dir", str(Path(tempfile.gettempdir(), "bagau-work"))]
    return parse([str(args.bids_dir), str(args.output_dir), "participant", *words])


def _has_own_work_dir(args: argparse.Namespace) -> bool:
    return args.work_dir != Execution().work_dir


def _check(args: argparse.Namespace, config: Config) -> None:
    """Refuse options that a task can do nothing with, and files that are not there."""
    for name, reason in POINTLESS.items():
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no use here: {reason}. Run bagau-bids with it.")
    for path in config.processing.weights:
        for part in (path, path.with_suffix(".json")):
            if not part.is_file():
                raise UsageError(
                    f"--weights: {part}: no such file; expected the weights (.safetensors) and, "
                    "beside them, their card (.json)"
                )
    home = config.processing.templateflow_home
    if home is not None and not home.is_dir():
        raise UsageError(
            f"--templateflow-home {home}: no such folder; get the template before the tasks need "
            f"it: bagau fetch --dest {home}"
        )
    if config.processing.offline and (home is not None or _tasks_see_this_system(args)):
        _check_template(config)


def _tasks_see_this_system(args: argparse.Namespace) -> bool:
    """Tell whether tasks look for the template where this process would."""
    return args.container is None or str(args.container) == _running_image()


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
    import json

    from bagau_bids import __version__
    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.workflow.flair import result_options

    expected = {"status": "complete", "options": result_options(config.processing)}
    if not (config.output_dir / f"sub-{subject}.html").is_file():
        return False
    for scan in scans:
        path = derivative_path(config.output_dir, scan.entities, "record")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if record.get("versions", {}).get("bagau-bids") != __version__ or any(
            record.get(key) != value for key, value in expected.items()
        ):
            return False
    return True


def _tasks(subjects: Sequence[str], per_task: int | None) -> list[Sequence[str]]:
    """Divide participants into tasks."""
    size = per_task or max(1, math.ceil(len(subjects) / MOST_TASKS))
    return [subjects[start : start + size] for start in range(0, len(subjects), size)]


def _job(
    args: argparse.Namespace, config: Config, scans: "Mapping[str, Sequence[Scan]]"
) -> "ArrayJob":
    from bagau_bids.cli.array_script import ArrayJob

    folders = [str(config.bids_dir), str(config.output_dir)]
    mem_gb = args.mem_gb or MEMORY_GB + 2 * (args.nprocs - 1)
    minutes = args.minutes or MINUTES_PER_TASK + MINUTES_PER_SCAN * max(
        sum(len(scans[subject]) for subject in line) for line in _tasks([*scans], args.per_task)
    )
    gpu = config.resources.device.startswith("cuda")
    per_task = ["--per-task", f"{args.per_task}"] if args.per_task else []
    sbatch = (
        "--job-name=bagau",
        f"--cpus-per-task={args.nprocs}",
        f"--mem={math.ceil(1000 * mem_gb)}M",
        f"--time={minutes}",
        *(["--gres=gpu:1"] if gpu else []),
    )
    pairs = sum(len(own) - 1 for own in scans.values())
    minutes_of_group = MINUTES_OF_GROUP * len(scans) + MINUTES_OF_PAIR * pairs
    database = config.selection.database_dir
    asked = option_words(args, {"nprocs", "omp_nthreads", "mem_gb", "work_dir"})
    return ArrayJob(
        sbatch=sbatch,
        folder=config.output_dir / "logs" / "slurm",
        tool=_tool(args, config, gpu=gpu),
        list_command=["bagau", "slurm", *folders, "--list", *per_task, *asked],
        work=_work(args, config, MEMORY_SHARE * mem_gb),
        last_command=["bagau-bids", *folders, "group"],
        last_sbatch=(
            f"--time={MINUTES_PER_TASK + math.ceil(minutes_of_group)}",
            *(["--gres=none"] if gpu else []),
        ),
        at_once=args.at_once,
        dependency=args.group_after,
        needed_folders=(database,) if database else (),
    )


def _tool(args: argparse.Namespace, config: Config, *, gpu: bool) -> tuple[str, ...]:
    from bagau_bids.cli.array_script import of_container, of_installation

    here = _running_image()
    if args.container:
        # The image that this runs in need not be seen from its inside.
        if str(args.container) != here and not args.container.is_file():
            raise UsageError(f"--container {args.container}: no such file; expected a .sif image")
        return of_container(args.container, _paths(config), gpu=gpu)
    if here and not args.venv:
        raise UsageError(
            f"bagau slurm runs in the image {here}, and tasks start outside of it, where they "
            f"would not find bagau-bids; add --container {shlex.quote(here)}"
        )
    prefix = args.venv or Path(sys.prefix)
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


def _work(args: argparse.Namespace, config: Config, mem_gb: float) -> tuple[str, ...]:
    """Body of the shell function that processes the participants in its words.

    Each has a call of its own, which writes its results and its page: what a task that is killed
    has done by then stays done.
    """
    own_work_dir = _has_own_work_dir(args)
    said_here = {"nprocs", "mem_gb", "work_dir", "participant_labels"}
    once = {"database_wipe"}  # when the list is made
    call = [
        *("bagau-bids", str(config.bids_dir), str(config.output_dir), "participant"),
        *("--nprocs", str(args.nprocs), "--mem", f"{mem_gb:.1f}G"),
        *option_words(args, said_here | once),
    ]
    before = (
        (f"work_dir={shlex.quote(str(args.work_dir))}", 'mkdir -p "$work_dir"')
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
