"""``bagau experiment``: train and judge all systems of a table, and write the table."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli.labelled import (
    add_device_option,
    add_registration_option,
    add_template_options,
    template_of,
)
from bagau_bids.config import available_cpus
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, BagauError, UsageError
from bagau_bids.processes import module_command

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import LabelledScan, TrainingScan
    from bagau_bids.experiments.definition import Experiment
    from bagau_bids.experiments.jobs import Job, Shared
    from bagau_bids.experiments.plan import Plan

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "file", metavar="FILE", type=values.existing_file, help="the experiment, a TOML file"
    )
    parser.add_argument(
        "output_dir",
        metavar="OUT",
        type=values.any_path,
        help="folder of the experiment: cache, a folder a job, the table; the same command "
        "continues what is there",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_running_options(parser.add_argument_group("running"))
    only = parser.add_argument_group("parts").add_mutually_exclusive_group()
    only.add_argument(
        "--only",
        metavar="SYSTEM/fold-N",
        nargs="+",
        help="run these jobs, one after the other in this process, and write no table",
    )
    only.add_argument("--list", action="store_true", help="print the jobs and stop")
    only.add_argument(
        "--slurm", action="store_true", help="print the script of a SLURM job array and stop"
    )
    only.add_argument("--prepare-only", action="store_true", help="fill the cache and stop")
    only.add_argument(
        "--table", action="store_true", help="write the table of what is done and stop"
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    for option, metavar, text in (
        ("--data", "NAME=BIDS_DIR", "where a data set of the file lies"),
        ("--masks", "NAME=DERIVATIVE", "its masks, where they are not where the file says"),
        ("--second-rater", "NAME=DERIVATIVE", "masks of a second rater: one more row"),
    ):
        group.add_argument(
            option, metavar=metavar, type=_named_path, action="append", default=[], help=text
        )
    add_template_options(group, values.any_path)
    add_registration_option(group)
    group.add_argument(
        "--cache",
        metavar="DIR",
        type=values.any_path,
        help="preprocessed scans, shared with other experiments (default: OUT/cache)",
    )


def _add_running_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--jobs",
        metavar="N",
        type=values.whole_number(1),
        default=1,
        help="jobs at once, each in a process of its own (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=values.whole_number(1),
        help="threads of each job on the CPU (default: the cores divided by --jobs)",
    )
    add_device_option(group, "networks are trained and run")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value of the file, e.g. recipe.steps=3 or split.folds=2",
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected NAME=PATH")
    return name, values.any_path(path)


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.table:
        return _write_table(args.output_dir)
    from bagau_bids.experiments.definition import read_experiment
    from bagau_bids.experiments.plan import Paths, make_plan, write_plan

    experiment = read_experiment(args.file, args.set)
    paths = Paths(dict(args.data), dict(args.masks), dict(args.second_rater))
    plan = make_plan(experiment, paths)
    if args.list or args.slurm:
        text = _slurm_script(args) if args.slurm else "\n".join(j.name for j in plan.jobs)
        print(text.rstrip())
        return EXIT_OK
    for scan, reason in plan.left_out.items():
        log.info("%s is left out: %s", scan, reason)
    write_plan(plan, experiment, args.output_dir)
    around = _shared(args, experiment, plan)
    jobs = _chosen(args, plan)
    if args.prepare_only or args.only:
        return _run_here(args, jobs, around, plan)
    failed = _run_apart(args, jobs, around, plan)
    code = _write_table(args.output_dir)
    return EXIT_SUBJECT_FAILED if failed else code


def _slurm_script(args: argparse.Namespace) -> str:
    from bagau_bids.cli.array_script import ArrayJob, array_script, of_installation

    command = ["bagau", *_command(args)]
    return array_script(
        ArrayJob(
            sbatch=("--job-name=bagau-experiment",),
            folder=args.output_dir / "slurm",
            tool=of_installation(Path(sys.prefix)),
            list_command=[*command, "--list"],
            work=(f'tool {shlex.join(command)} --only "$@"',),
            last_command=["bagau", "experiment", str(args.file), str(args.output_dir), "--table"],
            dependency="afterany",
        )
    )


def _command(args: argparse.Namespace) -> list[str]:
    """Arguments of ``bagau`` that make the same plan again."""
    command = ["experiment", str(args.file), str(args.output_dir)]
    for option in ("data", "masks", "second_rater"):
        for name, path in getattr(args, option):
            command += [f"--{option.replace('_', '-')}", f"{name}={path}"]
    for option in ("template", "registration", "device", "templateflow_home", "cache"):
        value = getattr(args, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    for change in args.set:
        command += ["--set", change]
    return command + (["--offline"] if args.offline else [])


def _shared(args: argparse.Namespace, experiment: "Experiment", plan: "Plan") -> "Shared":
    from bagau_bids.experiments.jobs import Shared

    return Shared(
        experiment=experiment,
        output_dir=args.output_dir,
        bids_dirs=plan.bids_dirs,
        template=args.template,
        registration=args.registration,
        device=args.device,
        rater_masks=plan.rater_masks,
    )


def _chosen(args: argparse.Namespace, plan: "Plan") -> "list[Job]":
    if not args.only:
        return list(plan.jobs)
    by_name = {job.name: job for job in plan.jobs}
    unknown = [name for name in args.only if name not in by_name]
    if unknown:
        raise UsageError(
            f"--only {' '.join(unknown)}: no such job; expected some of {', '.join(by_name)}"
        )
    return [by_name[name] for name in args.only]


def _cache(args: argparse.Namespace) -> Path:
    return args.cache or args.output_dir / "cache"


def _prepare(
    args: argparse.Namespace, experiment: "Experiment", scans: "Sequence[LabelledScan]"
) -> "dict[LabelledScan, TrainingScan]":
    from bagau_bids.datasets.labelled import prepare_scans

    prepared, _ = prepare_scans(
        scans,
        template_of(args, _cache(args)),
        args.registration,
        _cache(args),
        with_t1=experiment.with_t1,
    )
    return prepared


def _run_here(
    args: argparse.Namespace, jobs: "Sequence[Job]", around: "Shared", plan: "Plan"
) -> int:
    """Run jobs in this process; one that fails leaves its reason and does not stop the others."""
    import torch

    from bagau_bids.experiments.jobs import FAILURE, is_complete, run_job
    from bagau_bids.files import write_json

    torch.set_num_threads(_threads(args))
    if args.prepare_only:
        _prepare(args, around.experiment, plan.scans)
        return EXIT_OK
    todo = [job for job in jobs if not is_complete(job, around)]
    needed = {
        one
        for job in todo
        for part in ("training", "validation", "test")
        for one in getattr(job.fold.split, part)
    }
    scans = _prepare(args, around.experiment, [one for one in plan.scans if one in needed])
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
            write_json(around.folder(job) / FAILURE, {"reason": reason})
            print(f"{job.name}: {reason}", flush=True)
        else:
            log.info("%s: done", job.name)
    return EXIT_SUBJECT_FAILED if failed else EXIT_OK


def _threads(args: argparse.Namespace) -> int:
    return args.threads or max(1, available_cpus() // args.jobs)


def _run_apart(
    args: argparse.Namespace, jobs: "Sequence[Job]", around: "Shared", plan: "Plan"
) -> dict[str, str]:
    """Run the jobs that are not done in processes of their own; return why some failed."""
    from bagau_bids.experiments.jobs import FAILURE, is_complete
    from bagau_bids.experiments.schedule import Launcher, run_all
    from bagau_bids.files import write_json

    todo = [job.name for job in jobs if not is_complete(job, around)]
    log.info("%d of %d jobs are done already", len(jobs) - len(todo), len(jobs))
    if todo:
        _prepare(args, around.experiment, plan.scans)
    command = module_command("bagau_bids.cli.toolbox", *_command(args))
    command += ["--threads", str(_threads(args))]

    def tell(name: str, reason: str) -> None:
        log.info("%s: %s", name, f"FAILED, {reason}" if reason else "done")
        path = args.output_dir / name / FAILURE
        if reason and not path.is_file():
            write_json(path, {"reason": reason})

    launch = Launcher(
        lambda name: [*command, "--only", name], lambda name: args.output_dir / name / "log.txt"
    )
    return run_all(todo, args.jobs, launch, tell)


def _write_table(output_dir: Path) -> int:
    from bagau_bids.experiments.report import write_experiment_table

    table = write_experiment_table(output_dir)
    for name, reason in table.unfinished.items():
        log.info("not done: %s: %s", name, reason)
    print(f"{table.path} ({table.done} of {table.planned} jobs)")
    return EXIT_OK
