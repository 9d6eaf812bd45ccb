"""One job of an experiment: a system on a fold, trained, judged, and marked when it is done.

A job's folder holds ``complete.json`` (scores, cost, machine, and a key of everything that
decides the result), the masks it found, and one folder a network. It is written last: a job
that was stopped goes on from its checkpoint, one that is marked is not done again.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bagau_bids import __version__
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.scans import find_t1w
from bagau_bids.config import available_cpus
from bagau_bids.datasets.labelled import LabelledScan, Split, TrainingScan, read_reference
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.experiments.definition import RATER, THRESHOLD, Experiment, System
from bagau_bids.experiments.folds import Fold
from bagau_bids.experiments.records import (
    COMPLETE,
    ENSEMBLE,
    FAILURE,
    Case,
    Cost,
    JobRecord,
    Machine,
    ScanNames,
    read_record,
)
from bagau_bids.experiments.threshold import IntensityThreshold, choose_threshold
from bagau_bids.files import file_digest, write_bytes, write_json
from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.measures.metrics import challenge_scores
from bagau_bids.network.cards import T1, Card
from bagau_bids.network.inference import choose_device, segment
from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.spaces import Image
from bagau_bids.training.card import training_card
from bagau_bids.training.checkpoint import CHECKPOINT
from bagau_bids.training.curves import TRAINING
from bagau_bids.training.settings import LoopSettings
from bagau_bids.training.slices import THRESHOLD as CUT
from bagau_bids.training.slices import SliceTrainer, TrainingData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A system on a fold."""

    system: System
    fold: Fold

    @property
    def name(self) -> str:
        """Its folder in the output of the experiment."""
        return f"{self.system.name}/fold-{self.fold.number}"


@dataclass(frozen=True)
class Shared:
    """What the jobs of an experiment share.

    Attributes
    ----------
    experiment
        The experiment.
    output_dir
        Its folder.
    bids_dirs
        Data sets, in the order of their numbers.
    template, registration
        Options of the preprocessing.
    device
        As for `LoopSettings`.
    rater_masks
        Masks of a second rater by scan.
    """

    experiment: Experiment
    output_dir: Path
    bids_dirs: tuple[Path, ...]
    template: str
    registration: str
    device: str
    rater_masks: Mapping[LabelledScan, Path]

    def folder(self, job: Job) -> Path:
        """Folder of a job."""
        return self.output_dir / job.name


def list_jobs(
    experiment: Experiment, folds: Sequence[Fold], rater_masks: Mapping[LabelledScan, Path]
) -> list[Job]:
    """Return all jobs in the order of the table; those of a rater only where masks are given."""
    return [
        Job(system, fold)
        for system in experiment.systems
        if system.architecture != RATER or rater_masks
        for fold in folds
    ]


def is_complete(job: Job, around: Shared) -> bool:
    """Tell whether a job is done, with these settings on these scans.

    Raises
    ------
    UsageError
        If it was done with others, or its file is damaged.
    """
    path = around.folder(job) / COMPLETE
    if not path.is_file():
        return False
    if read_record(path, JobRecord).key != job_key(job, around):
        raise UsageError(
            f"{path}: made by another version, or with other settings, scans or masks than now; "
            "expected the same: remove that folder to do it again, or name another output"
        )
    return True


def job_key(job: Job, around: Shared) -> str:
    """Digest of everything that decides the result of a job."""
    experiment, split = around.experiment, job.fold.split
    settings = (
        [asdict(experiment.settings(job.system, seed)) for seed in job.system.seeds]
        if job.system.trained
        else job.system.architecture
    )
    parts = {
        name: [(_digest(one.scan.path), _digest(one.mask_path)) for one in getattr(split, name)]
        for name in ("training", "validation", "test")
    }
    everybody = [*split.training, *split.validation, *split.test]
    takes_t1 = job.system.trained and T1 in job.system.inputs
    rater = [str(around.rater_masks.get(one)) for one in split.test]
    ingredients = [
        __version__,
        around.template,
        around.registration,
        settings,
        experiment.checkpoint,
        experiment.validate_every,
        parts,
        rater if job.system.architecture == RATER else None,
        [_digest(find_t1w(one.scan)[0]) for one in everybody] if takes_t1 else None,
    ]
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()


_digest = cache(file_digest)


def run_job(job: Job, around: Shared, scans: Mapping[LabelledScan, TrainingScan]) -> JobRecord:
    """Train and judge a system on a fold, and mark it as done.

    Parameters
    ----------
    job : Job
    around : Shared
    scans : mapping
        Preprocessed scans; one that is missing could not be preprocessed.

    Returns
    -------
    JobRecord
        What was written into ``complete.json``.

    Raises
    ------
    ProcessingError
        If no scan is left of a part, or the training fails.
    """
    folder = around.folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    there = Split(*(_present(job, part, scans) for part in ("training", "validation", "test")))
    chosen, costs = None, tuple[Cost, ...]()
    if job.system.architecture == RATER:
        rows = _judge_rater(job, there, around, scans)
    else:
        models, chosen, costs = _models(job, there, around, scans)
        rows = _judge(job, models, there, around, scans)
    result = JobRecord(
        key=job_key(job, around),
        system=job.system.name,
        fold=job.fold.number,
        scans=ScanNames.of(there),
        rows=tuple(rows),
        z_score_threshold=chosen,
        cost=costs,
        machine=describe_machine(around.device),
        version=__version__,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(folder / COMPLETE, result)
    (folder / FAILURE).unlink(missing_ok=True)
    return result


def _present(
    job: Job, part: str, scans: Mapping[LabelledScan, TrainingScan]
) -> tuple[LabelledScan, ...]:
    wanted = getattr(job.fold.split, part)
    there = tuple(one for one in wanted if one in scans)
    if not there:
        raise ProcessingError(
            f"none of the {len(wanted)} {part} scans could be preprocessed; expected one at "
            "least, see the reasons in the log"
        )
    return there


def _models(
    job: Job, there: Split, around: Shared, scans: Mapping[LabelledScan, TrainingScan]
) -> tuple[list[LoadedNetwork], float | None, tuple[Cost, ...]]:
    """Networks of a job, with the z-score of a threshold, and what trainings cost."""
    if job.system.architecture == THRESHOLD:
        chosen = choose_threshold([scans[one] for one in (*there.training, *there.validation)])
        card = Card(architecture=THRESHOLD, config={}, sha256="")
        return [LoadedNetwork(IntensityThreshold(chosen), card)], chosen, ()
    data = TrainingData.of_scans(
        [scans[one] for one in there.training], [scans[one] for one in there.validation]
    )
    models, costs = [], []
    for seed in job.system.seeds:
        folder = around.folder(job) / f"seed-{seed}"
        costs.append(_train(job, seed, there, data, around))
        models.append(load_weights(folder / f"{around.experiment.checkpoint}.safetensors"))
    return models, None, tuple(costs)


def _train(job: Job, seed: int, there: Split, data: TrainingData, around: Shared) -> Cost:
    """Train one network, or go on with it; return what it cost."""
    experiment = around.experiment
    settings = experiment.settings(job.system, seed)
    folder = around.folder(job) / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    card = training_card(
        settings,
        there,
        around.bids_dirs,
        template=around.template,
        registration=around.registration,
        licence="not stated",
    )
    loop = LoopSettings(device=around.device, validate_every=experiment.validate_every)
    trainer = SliceTrainer(settings, loop, data, folder, card)
    if (folder / CHECKPOINT).is_file():
        trainer.resume()
    log.info("%s, seed %d: %s", job.name, seed, trainer.position)
    trainer.run()
    steps = pd.read_csv(folder / TRAINING)
    assert data.real is not None
    assert trainer.total_steps is not None
    return Cost(
        seed=seed,
        steps=trainer.total_steps,
        seconds_per_step=float(steps["seconds_per_step"].median()),
        training_slices=len(data.real),
        parameters=sum(p.numel() for p in trainer.learners[0].model.parameters()),
    )


def _judge(
    job: Job,
    models: Sequence[LoadedNetwork],
    there: Split,
    around: Shared,
    scans: Mapping[LabelledScan, TrainingScan],
) -> list[Case]:
    """Scores of each network on each test scan, and of all networks together."""
    device = choose_device(around.device)
    members: list[tuple[str, list[LoadedNetwork]]] = [
        (str(seed), [model]) for seed, model in zip(job.system.seeds, models, strict=True)
    ]
    if len(models) > 1:
        members.append((ENSEMBLE, list(models)))
    rows = []
    for one in there.test:
        scan = scans[one]
        for member, networks in members:
            found = segment(networks, scan.inputs, scan.brain_mask, device=device)
            mask = found.probability >= CUT
            rows.append(_row(job, member, one, scan, mask))
        _write_mask(around.folder(job) / "masks", one, mask)  # of all networks together
    return rows


def _judge_rater(
    job: Job, there: Split, around: Shared, scans: Mapping[LabelledScan, TrainingScan]
) -> list[Case]:
    rows = []
    for one in there.test:
        if one in around.rater_masks:
            mask = read_reference(around.rater_masks[one], one.scan.path) == 1
            rows.append(_row(job, str(job.system.seeds[0]), one, scans[one], mask))
    return rows


def _row(job: Job, member: str, one: LabelledScan, scan: TrainingScan, mask: np.ndarray) -> Case:
    scores = asdict(challenge_scores(Image(scan.reference, scan.affine), mask))
    voxel_ml = voxel_volume_mm3(scan.affine) / 1000
    return Case(
        system=job.system.name,
        fold=job.fold.number,
        member=member,
        scan=one.scan.stem,
        dataset=one.dataset,
        **scores,
        reference_ml=float((scan.reference == 1).sum()) * voxel_ml,
        result_ml=float((mask & (scan.reference != 2)).sum()) * voxel_ml,
    )


def _write_mask(root: Path, one: LabelledScan, mask: np.ndarray) -> None:
    import nibabel as nib

    from bagau_bids.preprocessing.conform import to_source

    path = derivative_path(root, one.scan.entities, "wmh_mask")
    image = to_source(mask.astype(np.uint8), nib.load(one.scan.path), np.uint8)
    write_bytes(path, _gzipped(image))


def _gzipped(image: Any) -> bytes:
    import gzip

    return gzip.compress(image.to_bytes(), mtime=0)


def describe_machine(device: str) -> Machine:
    """Say on what machine this runs."""
    chosen = choose_device(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else None
    return Machine(
        processor=models[0] if models else platform.processor() or platform.machine(),
        cores=available_cpus(),
        threads=torch.get_num_threads(),
        device=gpu or str(chosen),
        torch=str(torch.__version__),
        load=round(os.getloadavg()[0], 1),
    )
