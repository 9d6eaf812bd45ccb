"""``bagau experiment``: train and judge all systems of a table, and write the table."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bagau_bids import values
from bagau_bids.cli.labelled import Registration, device_option
from bagau_bids.config import available_cpus
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, BagauError, UsageError
from bagau_bids.options import Exclusive, argument, option, option_words, part
from bagau_bids.processes import module_command

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import LabelledScan, TrainingScan
    from bagau_bids.experiments.definition import Experiment
    from bagau_bids.experiments.jobs import Job, Shared
    from bagau_bids.experiments.plan import Plan

log = logging.getLogger(__name__)


class NamedPath(NamedTuple):
    """Where something lies that the experiment's file names."""

    name: str
    path: Path

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.name}={self.path}"


def _named_path(text: str) -> NamedPath:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected NAME=PATH")
    return NamedPath(name, values.any_path(path))


def _named_paths(metavar: str, text: str) -> Any:
    return option((), text, group=DATA, action="append", metavar=metavar, type=_named_path)


DATA, RUNNING = "data", "running"  # in the help
_parts = partial(option, group="parts", exclusive=Exclusive())


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    file: Path = argument("the experiment, a TOML file", metavar="FILE", type=values.existing_file)
    output_dir: Path = argument(
        "folder of the experiment: cache, a folder a job, the table; the same command "
        "continues what is there",
        metavar="OUT",
        type=values.any_path,
    )
    data: tuple[NamedPath, ...] = _named_paths(
        "NAME=BIDS_DIR", "where a data set of the file lies"
    )
    masks: tuple[NamedPath, ...] = _named_paths(
        "NAME=DERIVATIVE", "its masks, where they are not where the file says"
    )
    second_rater: tuple[NamedPath, ...] = _named_paths(
        "NAME=DERIVATIVE", "masks of a second rater: one more row"
    )
    template: Registration = part(Registration, DATA)
    cache: Path | None = option(
        None,
        "preprocessed scans, shared with other experiments (default: OUT/cache)",
        group=DATA,
        metavar="DIR",
        type=values.any_path,
    )
    jobs: int = option(
        1,
        "jobs at once, each in a process of its own (default: %(default)s)",
        group=RUNNING,
        **values.at_least(1),
    )
    threads: int | None = option(
        None,
        "threads of each job on the CPU (default: the cores divided by --jobs)",
        group=RUNNING,
        **values.at_least(1),
    )
    device: str = device_option("networks are trained and run", group=RUNNING)
    changes: tuple[str, ...] = option(
        (),
        "change a value of the file, e.g. recipe.steps=3 or split.folds=2",
        "--set",
        group=RUNNING,
        action="append",
        metavar="KEY=VALUE",
    )
    only: tuple[str, ...] = _parts(
        (),
        "run these jobs, one after the other in this process, and write no table",
        metavar="SYSTEM/fold-N",
    )
    list: bool = _parts(False, "print the jobs and stop")
    slurm: bool = _parts(False, "print the script of a SLURM job array and stop")
    prepare_only: bool = _parts(False, "fill the cache and stop")
    table: bool = _parts(False, "write the table of what is done and stop")

    def command(self) -> Sequence[str]:
        """Return the words after ``bagau`` that make the same plan again."""
        of_this_call = {"jobs", "threads", "only", "list", "slurm", "prepare_only", "table"}
        said = option_words(self, of_this_call)
        return ["experiment", str(self.file), str(self.output_dir), *said]


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.table:
        return _write_table(options.output_dir)
    from bagau_bids.experiments.definition import read_experiment
    from bagau_bids.experiments.plan import Paths, make_plan, write_plan

    experiment = read_experiment(options.file, options.changes)
    paths = Paths(dict(options.data), dict(options.masks), dict(options.second_rater))
    plan = make_plan(experiment, paths)
    if options.list or options.slurm:
        text = _slurm_script(options) if options.slurm else "\n".join(j.name for j in plan.jobs)
        print(text.rstrip())
        return EXIT_OK
    for scan, reason in plan.left_out.items():
        log.info("%s is left out: %s", scan, reason)
    write_plan(plan, experiment, options.changes, options.output_dir)
    around = _shared(options, experiment, plan)
    jobs = _chosen(options, plan)
    if options.prepare_only or options.only:
        return _run_here(options, jobs, around, plan)
    failed = _run_apart(options, jobs, around, plan)
    code = _write_table(options.output_dir)
    return EXIT_SUBJECT_FAILED if failed else code


def _slurm_script(options: Options) -> str:
    from bagau_bids.cli.array_script import ArrayJob, array_script, of_installation

    command = ["bagau", *options.command()]
    table = ["bagau", "experiment", str(options.file), str(options.output_dir), "--table"]
    return array_script(
        ArrayJob(
            sbatch=("--job-name=bagau-experiment",),
            folder=options.output_dir / "slurm",
            tool=of_installation(Path(sys.prefix)),
            list_command=[*command, "--list"],
            work=(f'tool {shlex.join(command)} --only "$@"',),
            last_command=table,
            dependency="afterany",
        )
    )


def _shared(options: Options, experiment: "Experiment", plan: "Plan") -> "Shared":
    from bagau_bids.experiments.jobs import Shared

    return Shared(
        experiment=experiment,
        output_dir=options.output_dir,
        bids_dirs=plan.bids_dirs,
        template=options.template.template,
        registration=options.template.registration,
        device=options.device,
        rater_masks=plan.rater_masks,
    )


def _chosen(options: Options, plan: "Plan") -> "list[Job]":
    if not options.only:
        return list(plan.jobs)
    by_name = {job.name: job for job in plan.jobs}
    unknown = [name for name in options.only if name not in by_name]
    if unknown:
        raise UsageError(
            f"--only {' '.join(unknown)}: no such job; expected some of {', '.join(by_name)}"
        )
    return [by_name[name] for name in options.only]


def _cache(options: Options) -> Path:
    return options.cache or options.output_dir / "cache"


def _prepare(
    options: Options, experiment: "Experiment", scans: "Sequence[LabelledScan]"
) -> "dict[LabelledScan, TrainingScan]":
    from bagau_bids.datasets.labelled import prepare_scans

    prepared, _ = prepare_scans(
        scans,
        options.template.find(_cache(options)),
        options.template.registration,
        _cache(options),
        inputs=experiment.inputs,
    )
    return prepared


def _run_here(options: Options, jobs: "Sequence[Job]", around: "Shared", plan: "Plan") -> int:
    """Run jobs in this process; one that fails leaves its reason and does not stop the others."""
    import torch

    from bagau_bids.experiments.jobs import is_complete, run_job
    from bagau_bids.experiments.records import FAILURE, FailureRecord
    from bagau_bids.files import write_json

    torch.set_num_threads(_threads(options))
    if options.prepare_only:
        _prepare(options, around.experiment, plan.scans)
        return EXIT_OK
    todo = [job for job in jobs if not is_complete(job, around)]
    needed = {
        one
        for job in todo
        for name in ("training", "validation", "test")
        for one in getattr(job.fold.split, name)
    }
    scans = _prepare(options, around.experiment, [one for one in plan.scans if one in needed])
    failed = False
    for job in todo:
        try:
            run_job(job, around, scans)
        except Exception as error:
            failed = True
            known = isinstance(error, BagauError)
            reason = str(error) if known else f"unexpected {error!r}"
            if not known:
                log.exception("%s", job.name)
            write_json(around.folder(job) / FAILURE, FailureRecord(reason))
            print(f"{job.name}: {reason}", flush=True)
        else:
            log.info("%s: done", job.name)
    return EXIT_SUBJECT_FAILED if failed else EXIT_OK


def _threads(options: Options) -> int:
    return options.threads or max(1, available_cpus() // options.jobs)


def _run_apart(
    options: Options, jobs: "Sequence[Job]", around: "Shared", plan: "Plan"
) -> dict[str, str]:
    """Run the jobs that are not done in processes of their own; return why some failed."""
    from bagau_bids.experiments.jobs import is_complete
    from bagau_bids.experiments.records import FAILURE, FailureRecord
    from bagau_bids.experiments.schedule import Launcher, run_all
    from bagau_bids.files import write_json

    todo = [job.name for job in jobs if not is_complete(job, around)]
    log.info("%d of %d jobs are done already", len(jobs) - len(todo), len(jobs))
    if todo:
        _prepare(options, around.experiment, plan.scans)
    command = module_command("bagau_bids.cli.toolbox", *options.command())
    command += ["--threads", str(_threads(options))]

    def tell(name: str, reason: str) -> None:
        log.info("%s: %s", name, f"FAILED, {reason}" if reason else "done")
        path = options.output_dir / name / FAILURE
        if reason and not path.is_file():
            write_json(path, FailureRecord(reason))

    launch = Launcher(
        lambda name: [*command, "--only", name], lambda name: options.output_dir / name / "log.txt"
    )
    return run_all(todo, options.jobs, launch, tell)


def _write_table(output_dir: Path) -> int:
    from bagau_bids.experiments.report import write_experiment_table

    table = write_experiment_table(output_dir)
    for name, reason in table.unfinished.items():
        log.info("not done: %s: %s", name, reason)
    print(f"{table.path} ({table.done} of {table.planned} jobs)")
    return EXIT_OK
