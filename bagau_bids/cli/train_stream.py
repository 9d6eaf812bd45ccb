"""``bagau train --stream``: train on a pack, synthetic slices being drawn while it trains."""

import logging
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bagau_bids import values
from bagau_bids.cli.labelled import device_option, licence_option
from bagau_bids.config import available_cpus
from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import REQUIRED, argument, option, part
from bagau_bids.training.settings import OUTPUTS, StreamSettings

TEACHERS = ("small", "full")  # packaged weights
log = logging.getLogger(__name__)


_running = partial(option, group="running")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    stream: Path = option(
        REQUIRED,
        "what 'bagau pack' wrote: scans, slices and heads to train on",
        metavar="PACK",
    )
    output_dir: Path = argument(
        "folder of the training: logs, checkpoint, best and last weights of each width",
        metavar="OUT",
    )
    recipe: StreamSettings = part(StreamSettings, "recipe")
    init: tuple[Path, ...] = _running(
        (),
        "start from these weights: one file for all widths, or one for each",
        metavar="WEIGHTS",
    )
    teachers: tuple[str, ...] = _running(
        TEACHERS,
        "networks whose mean says at first what is WMH in slices of stroke patients: "
        f"packaged ones by name, or weights files (default: {' '.join(TEACHERS)})",
        metavar="WEIGHTS",
    )
    resume: bool = _running(False, "go on from the checkpoint in OUT, if there is one")
    device: str = device_option("the networks are trained", group="running")
    workers: int | None = _running(
        None,
        "processes that draw synthetic slices on the CPU; 0: drawn on the device "
        "(default: 0 on a GPU, else 1)",
        **values.at_least(0),
    )
    threads: int | None = _running(
        None, "threads of the training on the CPU (default: all cores)", **values.at_least(1)
    )
    checkpoint_seconds: int = _running(
        900,
        "from one checkpoint to the next (default: %(default)s)",
        metavar="S",
        type=values.whole_number(1),
    )
    licence: str = licence_option("running")


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings = settings_of(options.recipe)

    import torch

    from bagau_bids.network.cards import find_weights
    from bagau_bids.network.weights import load_weights
    from bagau_bids.training.checkpoint import CHECKPOINT, refuse_overwriting
    from bagau_bids.training.pack import describe_pack
    from bagau_bids.training.settings import LoopSettings
    from bagau_bids.training.stream import StreamTrainer, device_of, read_stream_data

    if not options.resume:
        refuse_overwriting(options.output_dir)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = device_of(options.device)
    workers = options.workers
    if workers is None:
        workers = 0 if device.type == "cuda" else 1
    options.output_dir.mkdir(parents=True, exist_ok=True)
    data = read_stream_data(options.stream, settings, device)
    loop = LoopSettings(
        device=options.device,
        log_every=50,
        checkpoint_seconds=options.checkpoint_seconds,
        workers=workers,
    )
    trainer = StreamTrainer(
        settings,
        loop,
        data,
        options.output_dir,
        {**describe_pack(options.stream, options.licence), "teachers": list(options.teachers)},
        device=device,
    )
    if options.resume and (options.output_dir / CHECKPOINT).is_file():
        trainer.resume(options.init)
    else:
        if options.init:
            trainer.start_from(options.init)
        paths = [find_weights(one) if one in TEACHERS else Path(one) for one in options.teachers]
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


def settings_of(recipe: StreamSettings) -> StreamSettings:
    """Return the settings of the training with what follows from others.

    Raises
    ------
    UsageError
        If they contradict each other.
    """
    if recipe.real_share + recipe.stroke_share >= 1:
        raise UsageError(
            f"--real-share {recipe.real_share} and --stroke-share {recipe.stroke_share}: expected "
            "less than 1 together, the rest being synthetic"
        )
    if recipe.outputs[0] != OUTPUTS[0] or len(set(recipe.outputs)) != len(recipe.outputs):
        raise UsageError(f"--outputs {' '.join(recipe.outputs)}: expected wmh, or wmh infarct")
    if recipe.label_levels[0] < recipe.label_levels[1]:
        raise UsageError(
            f"--label-levels {' '.join(map(str, recipe.label_levels))}: expected the level of WMH "
            "first, and that of doubt no higher"
        )
    if not recipe.ema_decay < 1:
        raise UsageError(f"--ema {recipe.ema_decay}: expected less than 1")
    return replace(
        recipe,
        relabel_at=tuple(sorted(recipe.relabel_at)),
        validate_at=tuple(sorted(recipe.validate_at)),
        reuse=max(recipe.reuse, 0.1),
        least_slices=min(recipe.least_slices, recipe.ring_slices // 2),
    )
