"""``bagau train``: train the segmentation network on BIDS data sets with lesion masks."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.cli.labelled import (
    add_device_option,
    add_mask_options,
    add_registration_option,
    add_template_options,
    datasets,
    labelled_scans,
    template_of,
)
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError
from bagau_bids.training import settings as choices
from bagau_bids.training.settings import LoopSettings, TrainingSettings

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import LabelledScan, Split, TrainingScan

RECIPE = TrainingSettings()
LOOP = LoopSettings()
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="BIDS data set of FLAIRs")
    parser.add_argument(
        "output_dir",
        metavar="OUT",
        type=Path,
        help="folder of the training: cache, logs, checkpoint, best and last weights",
    )
    add_mask_options(parser)
    _add_data_options(parser.add_argument_group("data"))
    _add_recipe_options(parser.add_argument_group("recipe, by default the paper's"))
    _add_loop_options(parser.add_argument_group("running"))


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    label = values.label("sub")
    group.add_argument(
        "--validation",
        metavar="LABEL",
        nargs="+",
        type=label,
        default=[],
        help="subjects to choose the checkpoint by (default: drawn 8:1:1 for training, "
        "validation and test)",
    )
    group.add_argument(
        "--test", metavar="LABEL", nargs="+", type=label, default=[], help="subjects left alone"
    )
    group.add_argument(
        "--exclude", metavar="LABEL", nargs="+", type=label, default=[], help="subjects not read"
    )
    group.add_argument(
        "--synthetic-pool",
        metavar="DIR",
        type=Path,
        help="slices drawn beforehand by the synthesis engine",
    )
    group.add_argument(
        "--synthetic-fraction",
        metavar="F",
        type=float,
        help="share of synthetic slices in each batch (default: 0.5 with a pool, else 0)",
    )
    add_template_options(group)
    add_registration_option(group)
    group.add_argument(
        "--licence",
        metavar="TEXT",
        default="not stated",
        help="licence of the weights, for their card (default: %(default)s)",
    )


def _add_recipe_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--architecture",
        choices=choices.ARCHITECTURES,
        default=RECIPE.architecture,
        help="network that is trained (default: %(default)s)",
    )
    group.add_argument(
        "--width",
        choices=tuple(choices.WIDTHS),
        default=RECIPE.width,
        help="its channels: full as in the paper, small a quarter of them (default: %(default)s)",
    )
    group.add_argument(
        "--ablation",
        choices=choices.ABLATIONS,
        nargs="+",
        default=[],
        help="leave out the MAM or the AFM of BAGAU-Net",
    )
    group.add_argument(
        "--inputs",
        choices=choices.INPUTS,
        nargs="+",
        default=RECIPE.inputs,
        help="what the U-Net is given: flair, flair t1 or flair atlas; t1 takes the T1w beside "
        f"each FLAIR and leaves out scans without one (default: {' '.join(RECIPE.inputs)})",
    )
    group.add_argument(
        "--loss",
        choices=choices.LOSSES,
        default=RECIPE.loss,
        help="Tversky alone, or with cross-entropy (default: %(default)s)",
    )
    group.add_argument(
        "--false-negative-weight",
        metavar="ALPHA",
        type=float,
        default=RECIPE.false_negative_weight,
        help="Tversky weight of missed lesions, the rest is on invented ones; the paper prints "
        "the two the other way round than its code and Salehi et al. (default: %(default)s)",
    )
    group.add_argument(
        "--synthetic-false-negative-weight",
        metavar="ALPHA",
        type=float,
        help="the same for synthetic slices (default: as for real ones)",
    )
    group.add_argument(
        "--optimizer",
        choices=choices.OPTIMIZERS,
        default=RECIPE.optimizer,
        help="adamw decays weights apart from the gradient (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        metavar="RATE",
        type=float,
        default=RECIPE.learning_rate,
        help="learning rate, at the start where it falls (default: %(default)s)",
    )
    group.add_argument(
        "--weight-decay",
        metavar="W",
        type=float,
        default=RECIPE.weight_decay,
        help="of the optimizer (default: %(default)s)",
    )
    group.add_argument(
        "--schedule",
        choices=choices.SCHEDULES,
        default=RECIPE.schedule,
        help="of the learning rate; cosine: down to a hundredth (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=values.whole_number(1),
        default=RECIPE.batch_size,
        help="slices an optimiser step (default: %(default)s)",
    )
    group.add_argument(
        "--micro-batch-size",
        metavar="N",
        type=values.whole_number(1),
        default=RECIPE.micro_batch_size,
        help="slices at once, gradients being accumulated (default: %(default)s)",
    )
    group.add_argument(
        "--epochs",
        metavar="N",
        type=values.whole_number(1),
        default=RECIPE.epochs,
        help="passes over the slices of the scans (default: %(default)s)",
    )
    group.add_argument(
        "--steps", metavar="N", type=values.whole_number(1), help="optimiser steps, not epochs"
    )
    group.add_argument(
        "--crop",
        metavar=("X", "Y"),
        type=values.whole_number(16),
        nargs=2,
        default=RECIPE.crop,
        help="train on the central X (left-right) x Y (front-back) mm, e.g. 160 192 for speed "
        f"(default: {RECIPE.crop[0]} {RECIPE.crop[1]})",
    )
    group.add_argument(
        "--ema",
        metavar="DECAY",
        type=float,
        default=RECIPE.ema_decay,
        help="judge and export a moving average of the weights, e.g. 0.998 (default: none)",
    )
    group.add_argument(
        "--random-seed",
        metavar="SEED",
        type=int,
        default=RECIPE.seed,
        help="of the drawn split, first weights, batches and augmentation (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=choices.PRECISIONS,
        default=RECIPE.precision,
        help="auto: bfloat16 where the device is faster with it (default: %(default)s)",
    )


def _add_loop_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--init", metavar="WEIGHTS", type=Path, help="start from these weights: fine-tuning"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in OUT, if there is one"
    )
    group.add_argument(
        "--keep",
        action="store_true",
        help="keep the weights of every validation, as step-N.safetensors, for 'bagau average'",
    )
    group.add_argument("--prepare-only", action="store_true", help="fill the cache and stop")
    add_device_option(group, "the network is trained", LOOP.device)
    group.add_argument(
        "--threads", metavar="N", type=values.whole_number(1), help="threads on the CPU"
    )
    group.add_argument(
        "--validate-every",
        metavar="STEPS",
        type=values.whole_number(1),
        default=LOOP.validate_every,
        help="steps from one validation to the next (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings, loop = settings_of(args)
    _check_output(args)
    origin = _pool_origin(args)
    labelled = labelled_scans(datasets(args), args.exclude)
    split = _split_of(args, labelled)
    scans = _prepare(args, (*split.training, *split.validation))
    if args.prepare_only:
        return EXIT_OK
    return _train(args, settings, loop, split, scans, origin)


def settings_of(args: argparse.Namespace) -> tuple[TrainingSettings, LoopSettings]:
    """Read the settings of the training and of the loop from parsed arguments.

    Raises
    ------
    UsageError
        If they contradict each other.
    """
    fraction = args.synthetic_fraction
    if fraction is None:
        fraction = 0.5 if args.synthetic_pool else 0.0
    if not 0 <= fraction <= 1 or (fraction > 0 and args.synthetic_pool is None):
        raise UsageError(
            f"--synthetic-fraction {fraction}: expected 0 to 1, and --synthetic-pool for more "
            "than 0"
        )
    if "flair" not in args.inputs or ("t1" in args.inputs and fraction > 0):
        raise UsageError(
            f"--inputs {' '.join(args.inputs)}: expected flair among them, and t1 only without "
            "--synthetic-pool, whose slices have no T1w"
        )
    for option, value in (
        ("--false-negative-weight", args.false_negative_weight),
        ("--synthetic-false-negative-weight", args.synthetic_false_negative_weight),
        ("--ema", args.ema),
    ):
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{option} {value}: expected at least 0 and less than 1")
    settings = TrainingSettings(
        architecture=args.architecture,
        width=args.width,
        ablations=tuple(args.ablation),
        inputs=tuple(args.inputs),
        loss=args.loss,
        false_negative_weight=args.false_negative_weight,
        synthetic_false_negative_weight=args.synthetic_false_negative_weight,
        optimizer=args.optimizer,
        learning_rate=args.lr,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        batch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        epochs=args.epochs,
        steps=args.steps,
        synthetic_fraction=fraction,
        crop=(args.crop[0], args.crop[1]),
        ema_decay=args.ema,
        seed=args.random_seed,
        precision=args.precision,
    )
    loop = LoopSettings(
        device=args.device, validate_every=args.validate_every, keep_validated=args.keep
    )
    return settings, loop


def _check_output(args: argparse.Namespace) -> None:
    from bagau_bids.training.checkpoint import refuse_overwriting

    if not (args.resume or args.prepare_only):
        refuse_overwriting(args.output_dir)


def _pool_origin(args: argparse.Namespace) -> dict[str, Any]:
    """From what the synthetic pool was drawn; empty without a pool, or where it does not say."""
    if args.synthetic_pool is None:
        return {}

    from bagau_bids.synthesis.engine import ENGINE_VERSION
    from bagau_bids.synthesis.pool import ORIGIN_FILE, read_origin

    path = args.synthetic_pool / ORIGIN_FILE
    origin = read_origin(args.synthetic_pool)
    if origin is None:
        log.warning("%s: not there, so nothing tells what the pool was drawn from", path)
        return {}
    if origin.get("template") != args.template:
        raise UsageError(
            f"{path}: slices with the atlas of {origin.get('template')}, expected "
            f"{args.template}, as the scans have; change --template, or draw another pool"
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


def _split_of(args: argparse.Namespace, labelled: "Sequence[LabelledScan]") -> "Split":
    from bagau_bids.datasets.labelled import split_by_subject

    split = split_by_subject(
        labelled, validation=args.validation, test=args.test, seed=args.random_seed
    )
    for part in ("training", "validation", "test"):
        log.info("%s: %s", part, ", ".join(s.scan.stem for s in getattr(split, part)) or "none")
    return split


def _prepare(
    args: argparse.Namespace, labelled: "Sequence[LabelledScan]"
) -> "dict[LabelledScan, TrainingScan]":
    """Preprocess every scan; those that cannot be are named and left out."""
    from bagau_bids.datasets.labelled import prepare_scans

    cache_dir = args.output_dir / "cache"
    cache_dir.mkdir(parents=True, exist_ok=True)
    prepared, _ = prepare_scans(
        labelled,
        template_of(args, cache_dir),
        args.registration,
        cache_dir,
        with_t1="t1" in args.inputs,
    )
    return prepared


def _train(
    args: argparse.Namespace,
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

    if args.threads:
        torch.set_num_threads(args.threads)
    training = [scans[one] for one in split.training if one in scans]
    validation = [scans[one] for one in split.validation if one in scans]
    if not training or not validation:
        raise ProcessingError(
            f"{len(training)} scans to train on and {len(validation)} to validate on could be "
            "preprocessed; expected at least one of each, see the reasons above"
        )
    pool = open_pool(args.synthetic_pool) if args.synthetic_pool else None
    data = TrainingData.of_scans(training, validation, pool)
    card = training_card(
        settings,
        split,
        [bids_dir for bids_dir, _ in datasets(args)],
        template=args.template,
        registration=args.registration,
        licence=args.licence,
        synthetic_pool=None if pool is None else describe_pool(pool, origin),
    )
    trainer = SliceTrainer(settings, loop, data, args.output_dir, card)
    if args.resume and (args.output_dir / CHECKPOINT).is_file():
        trainer.resume([args.init] if args.init else [])
    elif args.init is not None:
        trainer.start_from([args.init])
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
    log.info("weights: %s", args.output_dir / "best.safetensors")
    return EXIT_OK
