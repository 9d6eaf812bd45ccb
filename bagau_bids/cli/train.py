"""``bagau train``: train the segmentation network on BIDS data sets with lesion masks."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.cli.labelled import (
    LabelledData,
    Registration,
    device_option,
    labelled_scans,
    licence_option,
)
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError
from bagau_bids.options import argument, option, part
from bagau_bids.training.settings import LoopSettings, TrainingSettings

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import LabelledScan, Split, TrainingScan

LOOP = LoopSettings()
log = logging.getLogger(__name__)


_data = partial(option, group="data")
_running = partial(option, group="running")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    data: LabelledData = part(LabelledData)
    output_dir: Path = argument(
        "folder of the training: cache, logs, checkpoint, best and last weights", metavar="OUT"
    )
    validation: tuple[str, ...] = _data(
        (),
        "subjects to choose the checkpoint by (default: drawn 8:1:1 for training, "
        "validation and test)",
        metavar="LABEL",
        type=values.label("sub"),
    )
    test: tuple[str, ...] = _data(
        (), "subjects left alone", metavar="LABEL", type=values.label("sub")
    )
    exclude: tuple[str, ...] = _data(
        (), "subjects not read", metavar="LABEL", type=values.label("sub")
    )
    synthetic_pool: Path | None = _data(
        None, "slices drawn beforehand by the synthesis engine", metavar="DIR"
    )
    recipe: TrainingSettings = part(TrainingSettings, "recipe, by default the paper's")
    template: Registration = part(Registration, "data")
    licence: str = licence_option("data")
    init: Path | None = _running(None, "start from these weights: fine-tuning", metavar="WEIGHTS")
    resume: bool = _running(False, "go on from the checkpoint in OUT, if there is one")
    keep: bool = _running(
        False,
        "keep the weights of every validation, as step-N.safetensors, for 'bagau average'",
    )
    prepare_only: bool = _running(False, "fill the cache and stop")
    device: str = device_option("the network is trained", LOOP.device, group="running")
    threads: int | None = _running(None, "threads on the CPU", **values.at_least(1))
    validate_every: int = _running(
        LOOP.validate_every,
        "steps from one validation to the next (default: %(default)s)",
        metavar="STEPS",
        type=values.whole_number(1),
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings, loop = settings_of(options)
    _check_output(options)
    origin = _pool_origin(options)
    labelled = labelled_scans(options.data.pairs, options.exclude)
    split = _split_of(options, labelled)
    scans = _prepare(options, (*split.training, *split.validation))
    if options.prepare_only:
        return EXIT_OK
    return _train(options, settings, loop, split, scans, origin)


def settings_of(options: Options) -> tuple[TrainingSettings, LoopSettings]:
    """Return the settings of the training and of the loop.

    Raises
    ------
    UsageError
        If they contradict each other.
    """
    recipe, pool = options.recipe, options.synthetic_pool
    fraction: float | None = recipe.synthetic_fraction
    if fraction is None:
        fraction = 0.5 if pool else 0.0
    if not 0 <= fraction <= 1 or (fraction > 0 and pool is None):
        raise UsageError(
            f"--synthetic-fraction {fraction}: expected 0 to 1, and --synthetic-pool for more "
            "than 0"
        )
    if "flair" not in recipe.inputs or ("t1" in recipe.inputs and fraction > 0):
        raise UsageError(
            f"--inputs {' '.join(recipe.inputs)}: expected flair among them, and t1 only without "
            "--synthetic-pool, whose slices have no T1w"
        )
    for name, value in (
        ("--false-negative-weight", recipe.false_negative_weight),
        ("--synthetic-false-negative-weight", recipe.synthetic_false_negative_weight),
        ("--ema", recipe.ema_decay),
    ):
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{name} {value}: expected at least 0 and less than 1")
    loop = LoopSettings(
        device=options.device,
        validate_every=options.validate_every,
        keep_validated=options.keep,
    )
    return replace(recipe, synthetic_fraction=fraction), loop


def _check_output(options: Options) -> None:
    from bagau_bids.training.checkpoint import refuse_overwriting

    if not (options.resume or options.prepare_only):
        refuse_overwriting(options.output_dir)


def _pool_origin(options: Options) -> dict[str, Any]:
    """From what the synthetic pool was drawn; empty without a pool, or where it does not say."""
    if options.synthetic_pool is None:
        return {}

    from bagau_bids.synthesis.engine import ENGINE_VERSION
    from bagau_bids.synthesis.pool import ORIGIN_FILE, read_origin

    path = options.synthetic_pool / ORIGIN_FILE
    origin = read_origin(options.synthetic_pool)
    if origin is None:
        log.warning("%s: not there, so nothing tells what the pool was drawn from", path)
        return {}
    if origin.get("template") != options.template.template:
        raise UsageError(
            f"{path}: slices with the atlas of {origin.get('template')}, expected "
            f"{options.template.template}, as the scans have; change --template, or draw another "
            "pool"
        )
    if origin.get("engine") != ENGINE_VERSION:
        log.warning(
            "%s: drawn by another version of the engine (%.8s, here %.8s); slices that are drawn "
            "now may differ, draw the pool again if they shall not",
            path,
            origin.get("engine"),
            ENGINE_VERSION,
        )
    return origin


def _split_of(options: Options, labelled: "Sequence[LabelledScan]") -> "Split":
    from bagau_bids.datasets.labelled import split_by_subject

    split = split_by_subject(
        labelled, validation=options.validation, test=options.test, seed=options.recipe.seed
    )
    for name in ("training", "validation", "test"):
        log.info("%s: %s", name, ", ".join(s.scan.stem for s in getattr(split, name)) or "none")
    return split


def _prepare(
    options: Options, labelled: "Sequence[LabelledScan]"
) -> "dict[LabelledScan, TrainingScan]":
    """Preprocess every scan; those that cannot be are named and left out."""
    from bagau_bids.datasets.labelled import prepare_scans

    cache_dir = options.output_dir / "cache"
    cache_dir.mkdir(parents=True, exist_ok=True)
    prepared, _ = prepare_scans(
        labelled,
        options.template.find(cache_dir),
        options.template.registration,
        cache_dir,
        inputs=options.recipe.inputs,
    )
    return prepared


def _train(
    options: Options,
    settings: TrainingSettings,
    loop: LoopSettings,
    split: "Split",
    scans: "dict[LabelledScan, TrainingScan]",
    origin: Mapping[str, Any],
) -> int:
    import torch

    from bagau_bids.synthesis.pool import describe_pool, open_pool
    from bagau_bids.training.card import training_card
    from bagau_bids.training.checkpoint import CHECKPOINT
    from bagau_bids.training.slices import SliceTrainer, TrainingData

    if options.threads:
        torch.set_num_threads(options.threads)
    training = [scans[one] for one in split.training if one in scans]
    validation = [scans[one] for one in split.validation if one in scans]
    if not training or not validation:
        raise ProcessingError(
            f"{len(training)} scans to train on and {len(validation)} to validate on could be "
            "preprocessed; expected at least one of each, see the reasons above"
        )
    pool = open_pool(options.synthetic_pool) if options.synthetic_pool else None
    data = TrainingData.of_scans(training, validation, pool)
    card = training_card(
        settings,
        split,
        [bids_dir for bids_dir, _ in options.data.pairs],
        template=options.template.template,
        registration=options.template.registration,
        licence=options.licence,
        synthetic_pool=None if pool is None else describe_pool(pool, origin),
    )
    trainer = SliceTrainer(settings, loop, data, options.output_dir, card)
    if options.resume and (options.output_dir / CHECKPOINT).is_file():
        trainer.resume([options.init] if options.init else [])
    elif options.init is not None:
        trainer.start_from([options.init])
    log.info(
        "%d real and %d synthetic slices, %s on %s",
        len(data.real or ()),
        len(data.synthetic or ()),
        trainer.position,
        trainer.device,
    )
    trainer.run()
    for score in trainer.best_scores():
        log.info("best: %s Dice %.3f", score.scan, score.dice)
    log.info("weights: %s", options.output_dir / "best.safetensors")
    return EXIT_OK
