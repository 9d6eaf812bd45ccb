"""What an experiment will do on given data: its scans, folds and jobs, kept in ``plan.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.bids.scans import find_scans, find_t1w, find_unavailable
from bagau_bids.config import Selection
from bagau_bids.datasets.labelled import LabelledScan, pair_masks
from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.experiments.definition import DataSource, Experiment
from bagau_bids.experiments.folds import Fold, Person, make_folds, read_people
from bagau_bids.experiments.jobs import Job, list_jobs
from bagau_bids.experiments.records import (
    PLAN,
    DataSet,
    PlannedFold,
    PlannedSystem,
    PlanRecord,
    ScanNames,
    read_record,
)
from bagau_bids.files import write_json
from bagau_bids.network.cards import T1
from bagau_bids.training.card import describe_dataset
from bagau_bids.training.settings import TrainingSettings


@dataclass(frozen=True)
class Paths:
    """Where the data of an experiment lie, by the names in its file.

    Attributes
    ----------
    data
        BIDS data sets.
    masks
        Their lesion masks, where they are not where the file says.
    raters
        Masks of a second rater.
    """

    data: Mapping[str, Path]
    masks: Mapping[str, Path]
    raters: Mapping[str, Path]


@dataclass(frozen=True)
class Plan:
    """Scans, folds and jobs.

    Attributes
    ----------
    bids_dirs
        Data sets, in the order of their numbers.
    scans
        All that take part.
    left_out
        Those that do not, with the reason, by the name of the scan.
    folds, jobs
        In order.
    rater_masks
        Masks of a second rater, by scan.
    """

    bids_dirs: tuple[Path, ...]
    scans: tuple[LabelledScan, ...]
    left_out: Mapping[str, str]
    folds: tuple[Fold, ...]
    jobs: tuple[Job, ...]
    rater_masks: Mapping[LabelledScan, Path]


def make_plan(experiment: Experiment, paths: Paths) -> Plan:
    """Find the scans of an experiment and divide them; no image is opened.

    Parameters
    ----------
    experiment : Experiment
    paths : Paths

    Raises
    ------
    UsageError
        If a data set is not given or unknown, or cannot be divided.
    """
    _check_names(experiment, paths)
    scans: list[LabelledScan] = []
    left_out: dict[str, str] = {}
    strata: dict[Person, str] = {}
    raters: dict[LabelledScan, Path] = {}
    for number, source in enumerate(experiment.data):
        bids_dir = paths.data[source.name]
        if not bids_dir.is_dir():
            raise UsageError(f"--data {source.name}={bids_dir}: no such folder")
        people = read_people(bids_dir, source)
        found, reasons = _scans_of(number, source, bids_dir, people, paths)
        left_out |= reasons
        if people is not None:
            strata |= {(number, subject): value for subject, value in people.items()}
        if source.name in paths.raters:
            second, _ = pair_masks([one.scan for one in found], paths.raters[source.name], number)
            by_path = {one.scan.path: one.mask_path for one in second}
            raters |= {o: by_path[o.scan.path] for o in found if o.scan.path in by_path}
        scans += found
    if T1 in experiment.inputs:
        scans, without = _with_t1w(scans)
        left_out |= without
    folds = make_folds(scans, experiment.plan, experiment.data, strata)
    return Plan(
        bids_dirs=tuple(paths.data[source.name] for source in experiment.data),
        scans=tuple(scans),
        left_out=left_out,
        folds=tuple(folds),
        jobs=tuple(list_jobs(experiment, folds, raters)),
        rater_masks=raters,
    )


def _check_names(experiment: Experiment, paths: Paths) -> None:
    names = [source.name for source in experiment.data]
    for option, given in (
        ("--data", paths.data),
        ("--masks", paths.masks),
        ("--second-rater", paths.raters),
    ):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise UsageError(
                f"{option} {', '.join(unknown)}: the experiment has the data sets "
                f"{', '.join(names)}; expected one of these names before the '='"
            )
    missing = [name for name in names if name not in paths.data]
    if missing:
        raise UsageError(
            f"--data: the experiment needs {', '.join(missing)} too; expected "
            + " ".join(f"--data {name}=BIDS_DIR" for name in missing)
        )


def _scans_of(
    number: int,
    source: DataSource,
    bids_dir: Path,
    people: Mapping[str, str] | None,
    paths: Paths,
) -> tuple[list[LabelledScan], dict[str, str]]:
    """Find the scans with masks of one data set, and why others are left out."""
    left_out = {}
    wanted = []
    found = find_scans(bids_dir, Selection())
    unavailable = find_unavailable(found)
    for scan in found:
        if scan.subject in source.exclude:
            left_out[scan.stem] = "excluded in the experiment's file"
        elif scan in unavailable:
            left_out[scan.stem] = unavailable[scan]
        elif people is None or scan.subject in people:
            wanted.append(scan)
    masks = paths.masks.get(source.name, bids_dir / source.masks)
    labelled, _ = pair_masks(wanted, masks, number)
    with_mask = {one.scan for one in labelled}
    left_out |= {s.stem: f"no lesion mask in {masks}" for s in wanted if s not in with_mask}
    return labelled, left_out


def _with_t1w(scans: Sequence[LabelledScan]) -> tuple[list[LabelledScan], dict[str, str]]:
    """Keep scans that have a T1w, so that all rows of the table are over the same scans."""
    kept, left_out = [], {}
    for one in scans:
        try:
            find_t1w(one.scan)
        except InputImageError:
            left_out[one.scan.stem] = "it has no T1w, which one of the systems needs"
        else:
            kept.append(one)
    return kept, left_out


def write_plan(
    plan: Plan, experiment: Experiment, changes: Sequence[str], output_dir: Path
) -> None:
    """Write ``plan.json``, from which the table is made; `changes` are of the command line.

    Raises
    ------
    UsageError
        If the folder holds another experiment, or the same one on other scans.
    """
    content = _described(plan, experiment, changes)
    path = output_dir / PLAN
    if path.is_file():
        before = read_record(path, PlanRecord)
        shared = zip(before.folds, content.folds, strict=False)
        if before.title != content.title or any(old != new for old, new in shared):
            raise UsageError(
                f"{path}: the folder holds {before.title!r} with other folds or scans; "
                "expected the same as now, or more folds of it: name another folder"
            )
    write_json(path, content)


def _described(plan: Plan, experiment: Experiment, changes: Sequence[str]) -> PlanRecord:
    data = []
    for number, source in enumerate(experiment.data):
        own = [one.scan for one in plan.scans if one.dataset == number]
        described = describe_dataset(plan.bids_dirs[number])
        data.append(DataSet(source.name, described, len(own), len({one.subject for one in own})))
    return PlanRecord(
        title=experiment.title,
        source=experiment.source,
        caveats=experiment.caveats,
        changes=tuple(changes),
        recipe=experiment.recipe,
        paper_recipe=TrainingSettings(),
        checkpoint=experiment.checkpoint,
        data=tuple(data),
        left_out=dict(plan.left_out),
        systems=tuple(
            PlannedSystem(
                one.name, one.label, one.paper, one.note, one.seeds if one.trained else (0,)
            )
            for one in experiment.systems
        ),
        folds=tuple(PlannedFold(one.number, ScanNames.of(one.split)) for one in plan.folds),
        jobs=tuple(job.name for job in plan.jobs),
    )
