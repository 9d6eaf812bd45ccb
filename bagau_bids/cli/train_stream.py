"""``bagau train --stream``: train on a pack, synthetic slices being drawn while it trains."""

import argparse
import logging
import sys
from pathlib import Path

from bagau_bids import values
from bagau_bids.cli.labelled import add_device_option
from bagau_bids.config import available_cpus
from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.training.settings import WIDTHS, StreamSettings

STREAM = StreamSettings()
OUTPUTS = ("wmh", "infarct")
TEACHERS = ("small", "full")  # packaged weights
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "--stream",
        metavar="PACK",
        type=Path,
        required=True,
        help="what 'bagau pack' wrote: scans, slices and heads to train on",
    )
    parser.add_argument(
        "output_dir",
        metavar="OUT",
        type=Path,
        help="folder of the training: logs, checkpoint, best and last weights of each width",
    )
    _add_recipe_options(parser.add_argument_group("recipe"))
    _add_loop_options(parser.add_argument_group("running"))


def _add_recipe_options(group: argparse._ArgumentGroup) -> None:
    ending = group.add_mutually_exclusive_group(required=True)
    ending.add_argument(
        "--steps", metavar="N", type=values.whole_number(1), help="optimiser steps to take"
    )
    ending.add_argument(
        "--seconds",
        metavar="S",
        type=values.whole_number(1),
        help="time to train and validate for, from the first step on, stops not counted",
    )
    group.add_argument(
        "--width",
        choices=tuple(WIDTHS),
        nargs="+",
        default=list(STREAM.widths),
        help="networks that learn from the same batches; the first one labels the slices of "
        "stroke patients anew (default: %(default)s)",
    )
    group.add_argument(
        "--outputs",
        choices=OUTPUTS,
        nargs="+",
        default=list(STREAM.outputs),
        help="what the networks tell (default: wmh infarct)",
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=values.whole_number(1),
        default=STREAM.batch_size,
        help="slices an optimiser step (default: %(default)s)",
    )
    group.add_argument(
        "--crop",
        metavar=("X", "Y"),
        type=values.whole_number(16),
        nargs=2,
        default=STREAM.crop,
        help="train on the central X (left-right) x Y (front-back) mm "
        f"(default: {STREAM.crop[0]} {STREAM.crop[1]})",
    )
    for option, default, text in (
        ("--real-share", STREAM.real_share, "share of slices of labelled scans in a batch"),
        ("--stroke-share", STREAM.stroke_share, "share of slices of stroke patients in a batch"),
        (
            "--false-negative-weight",
            STREAM.real_false_negative_weight,
            "Tversky weight of what is missed in slices that are not synthetic",
        ),
        (
            "--synthetic-false-negative-weight",
            STREAM.synthetic_false_negative_weight,
            "the same in synthetic slices",
        ),
        ("--lesion-weight", STREAM.lesion_weight, "weight of the loss that counts lesions"),
        ("--infarct-weight", STREAM.infarct_weight, "weight of the loss of the infarct output"),
        ("--lr", STREAM.learning_rate, "highest learning rate"),
        ("--weight-decay", STREAM.weight_decay, "of AdamW"),
        ("--ema", STREAM.ema_decay, "decay of the average of the weights that is judged"),
        ("--reuse", STREAM.reuse, "how often a synthetic slice is used, about"),
    ):
        group.add_argument(
            option,
            metavar="X",
            type=_not_negative,
            default=default,
            help=f"{text} (default: %(default)s)",
        )
    group.add_argument(
        "--warm-up-steps",
        metavar="N",
        type=values.whole_number(0),
        default=STREAM.warm_up_steps,
        help="over which the learning rate grows (default: %(default)s)",
    )
    group.add_argument(
        "--random-seed",
        metavar="SEED",
        type=values.whole_number(0),
        default=STREAM.seed,
        help="of weights, batches, augmentation and synthetic scans (default: %(default)s)",
    )


def _add_loop_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--init",
        metavar="WEIGHTS",
        type=Path,
        nargs="+",
        default=[],
        help="start from these weights: one file for all widths, or one for each",
    )
    group.add_argument(
        "--teachers",
        metavar="WEIGHTS",
        nargs="+",
        default=list(TEACHERS),
        help="networks whose mean says at first what is WMH in slices of stroke patients: "
        f"packaged ones by name, or weights files (default: {' '.join(TEACHERS)})",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in OUT, if there is one"
    )
    add_device_option(group, "the networks are trained")
    group.add_argument(
        "--workers",
        metavar="N",
        type=values.whole_number(0),
        help="processes that draw synthetic slices on the CPU; 0: drawn on the device "
        "(default: 0 on a GPU, else 1)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=values.whole_number(1),
        help="threads of the training on the CPU (default: all cores)",
    )
    group.add_argument(
        "--ring",
        metavar="N",
        type=values.whole_number(64),
        default=STREAM.ring_slices,
        help="synthetic slices that are held to be drawn from (default: %(default)s)",
    )
    group.add_argument(
        "--validate-at",
        metavar="SHARE",
        type=_share,
        nargs="+",
        default=list(STREAM.validate_at),
        help="shares of the training after which it is judged "
        f"(default: {' '.join(map(str, STREAM.validate_at))})",
    )
    group.add_argument(
        "--relabel-at",
        metavar="SHARE",
        type=_share,
        nargs="*",
        default=list(STREAM.relabel_at),
        help="shares after which slices of stroke patients are labelled anew by the average "
        f"(default: {' '.join(map(str, STREAM.relabel_at))})",
    )
    group.add_argument(
        "--synthetic-validation",
        metavar="N",
        type=values.whole_number(0),
        default=STREAM.synthetic_validation,
        help="synthetic scans with lesions, and as many without, to judge by "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint-seconds",
        metavar="S",
        type=values.whole_number(1),
        default=900,
        help="from one checkpoint to the next (default: %(default)s)",
    )
    group.add_argument(
        "--licence",
        metavar="TEXT",
        default="not stated",
        help="licence of the weights, for their card (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings = settings_of(args)

    import torch

    from bagau_bids.network.cards import find_weights
    from bagau_bids.network.weights import load_weights
    from bagau_bids.training.checkpoint import CHECKPOINT, refuse_overwriting
    from bagau_bids.training.pack import describe_pack
    from bagau_bids.training.settings import LoopSettings
    from bagau_bids.training.stream import StreamTrainer, device_of, read_stream_data

    if not args.resume:
        refuse_overwriting(args.output_dir)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    workers = args.workers
    if workers is None:
        workers = 0 if device.type == "cuda" else 1
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = read_stream_data(args.stream, settings, device)
    loop = LoopSettings(
        device=args.device,
        log_every=50,
        checkpoint_seconds=args.checkpoint_seconds,
        workers=workers,
    )
    trainer = StreamTrainer(
        settings,
        loop,
        data,
        args.output_dir,
        {**describe_pack(args.stream, args.licence), "teachers": args.teachers},
        device=device,
    )
    if args.resume and (args.output_dir / CHECKPOINT).is_file():
        trainer.resume(args.init)
    else:
        if args.init:
            trainer.start_from(args.init)
        paths = [find_weights(one) if one in TEACHERS else Path(one) for one in args.teachers]
        trainer.label_stroke([load_weights(path) for path in paths])
    log.info(
        "%s on %s, %s, from step %d; %d CPUs",
        " and ".join(settings.widths),
        device,
        f"{workers} drawing processes" if workers else "drawing on the device",
        trainer.step,
        available_cpus(),
    )
    trainer.run()
    for learner in trainer.learners:
        best = trainer.weights_path(learner, "best")
        log.info("%s: best score %.4f, %s", learner.name, learner.best_score, best)
    return EXIT_OK


def settings_of(args: argparse.Namespace) -> StreamSettings:
    """Read the settings of the training from parsed arguments.

    Raises
    ------
    UsageError
        If they contradict each other.
    """
    if args.real_share + args.stroke_share >= 1:
        raise UsageError(
            f"--real-share {args.real_share} and --stroke-share {args.stroke_share}: expected "
            "less than 1 together, the rest being synthetic"
        )
    if args.outputs[0] != OUTPUTS[0] or len(set(args.outputs)) != len(args.outputs):
        raise UsageError(f"--outputs {' '.join(args.outputs)}: expected wmh, or wmh infarct")
    if not args.ema < 1:
        raise UsageError(f"--ema {args.ema}: expected less than 1")
    return StreamSettings(
        widths=tuple(args.width),
        outputs=tuple(args.outputs),
        steps=args.steps,
        seconds=args.seconds,
        batch_size=args.batch_size,
        crop=(args.crop[0], args.crop[1]),
        real_share=args.real_share,
        stroke_share=args.stroke_share,
        real_false_negative_weight=args.false_negative_weight,
        synthetic_false_negative_weight=args.synthetic_false_negative_weight,
        lesion_weight=args.lesion_weight,
        infarct_weight=args.infarct_weight,
        learning_rate=args.lr,
        weight_decay=args.weight_decay,
        warm_up_steps=args.warm_up_steps,
        ema_decay=args.ema,
        relabel_at=tuple(sorted(args.relabel_at)),
        validate_at=tuple(sorted(args.validate_at)),
        reuse=max(args.reuse, 0.1),
        ring_slices=args.ring,
        least_slices=min(STREAM.least_slices, args.ring // 2),
        synthetic_validation=args.synthetic_validation,
        seed=args.random_seed,
    )


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 0")
    return value


def _share(text: str) -> float:
    value = _not_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than 0 and at most 1")
    return value
