"""The settings of a training; importing them loads no numerical library."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from bagau_bids import values
from bagau_bids.options import Exclusive, option

ARCHITECTURES = ("bagau_net", "unet")
WIDTHS = {"full": (64, 96, 128, 256, 512), "small": (16, 24, 32, 64, 128)}
ABLATIONS = ("mam", "afm")  # of BAGAU-Net
INPUTS = ("flair", "t1", "atlas")  # of the U-Net; BAGAU-Net has FLAIR and atlas
LOSSES = ("tversky", "tversky+ce")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("auto", "float32")
OUTPUTS = ("wmh", "infarct")


@dataclass(frozen=True)
class TrainingSettings:
    """What makes a training; the defaults are the paper's recipe."""

    architecture: str = option(
        "bagau_net", "network that is trained (default: %(default)s)", choices=ARCHITECTURES
    )
    width: str = option(
        "full",
        "its channels: full as in the paper, small a quarter of them (default: %(default)s)",
        choices=tuple(WIDTHS),
    )
    ablations: tuple[str, ...] = option(
        (), "leave out the MAM or the AFM of BAGAU-Net", "--ablation", choices=ABLATIONS
    )
    inputs: tuple[str, ...] = option(
        ("flair", "atlas"),
        "what the U-Net is given: flair, flair t1 or flair atlas; t1 takes the T1w beside "
        "each FLAIR and leaves out scans without one (default: flair atlas)",
        choices=INPUTS,
    )
    loss: str = option(
        "tversky", "Tversky alone, or with cross-entropy (default: %(default)s)", choices=LOSSES
    )
    false_negative_weight: float = option(
        0.7,
        "Tversky weight of missed lesions, the rest is on invented ones; the paper prints "
        "the two the other way round than its code and Salehi et al. (default: %(default)s)",
        metavar="ALPHA",
    )
    synthetic_false_negative_weight: float | None = option(
        None, "the same for synthetic slices (default: as for real ones)", metavar="ALPHA"
    )
    optimizer: str = option(
        "adam",
        "adamw decays weights apart from the gradient (default: %(default)s)",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(
        2e-4,
        "learning rate, at the start where it falls (default: %(default)s)",
        "--lr",
        metavar="RATE",
    )
    weight_decay: float = option(0.0, "of the optimizer (default: %(default)s)", metavar="W")
    schedule: str = option(
        "constant",
        "of the learning rate; cosine: down to a hundredth (default: %(default)s)",
        choices=SCHEDULES,
    )
    batch_size: int = option(
        32, "slices an optimiser step (default: %(default)s)", **values.at_least(1)
    )
    micro_batch_size: int = option(
        8,
        "slices at once, gradients being accumulated (default: %(default)s)",
        **values.at_least(1),
    )
    epochs: int = option(
        200, "passes over the slices of the scans (default: %(default)s)", **values.at_least(1)
    )
    steps: int | None = option(None, "optimiser steps, not epochs", **values.at_least(1))
    synthetic_fraction: float = option(
        0.0,
        "share of synthetic slices in each batch (default: 0.5 with a pool, else 0)",
        group="data",
        default=None,  # follows from the pool
        metavar="F",
    )
    crop: tuple[int, int] = option(
        (200, 200),
        "train on the central X (left-right) x Y (front-back) mm, e.g. 160 192 for speed "
        "(default: 200 200)",
        metavar=("X", "Y"),
        nargs=2,
        type=values.whole_number(16),
    )
    ema_decay: float = option(
        0.0,
        "judge and export a moving average of the weights, e.g. 0.998 (default: none)",
        "--ema",
        metavar="DECAY",
    )
    seed: int = option(
        0,
        "of the drawn split, first weights, batches and augmentation (default: %(default)s)",
        "--random-seed",
        metavar="SEED",
    )
    precision: str = option(
        "auto",
        "auto: bfloat16 where the device is faster with it (default: %(default)s)",
        choices=PRECISIONS,
    )


@dataclass(frozen=True)
class LoopSettings:
    """How a training runs; no field changes what it computes."""

    device: str = "auto"
    validate_every: int = 500
    log_every: int = 20
    checkpoint_seconds: float = 120.0
    keep_validated: bool = False  # weights of every validation, beside best and last
    workers: int | None = None  # processes that draw synthetic data


_ENDING = Exclusive(required=True)
_running = partial(option, group="running")


def _number(default: float, text: str, *names: str) -> Any:
    said = f"{text} (default: %(default)s)"
    return option(default, said, *names, metavar="X", type=values.not_negative)


@dataclass(frozen=True)
class StreamSettings:
    """What makes a streaming training; either `steps` or `seconds` says when it ends."""

    steps: int | None = option(
        None, "optimiser steps to take", exclusive=_ENDING, **values.at_least(1)
    )
    seconds: float | None = option(  # of training and validation together, filling not counted
        None,
        "time to train and validate for, from the first step on, stops not counted",
        exclusive=_ENDING,
        metavar="S",
        type=values.whole_number(1),
    )
    widths: tuple[str, ...] = option(
        ("small",),
        "networks that learn from the same batches; the first one labels the slices of "
        "stroke patients anew (default: %(default)s)",
        "--width",
        choices=tuple(WIDTHS),
    )
    outputs: tuple[str, ...] = option(
        OUTPUTS, "what the networks tell (default: wmh infarct)", choices=OUTPUTS
    )
    batch_size: int = option(
        32, "slices an optimiser step (default: %(default)s)", **values.at_least(1)
    )
    crop: tuple[int, int] = option(
        (160, 192),
        "train on the central X (left-right) x Y (front-back) mm (default: 160 192)",
        metavar=("X", "Y"),
        nargs=2,
        type=values.whole_number(16),
    )
    real_share: float = _number(0.25, "share of slices of labelled scans in a batch")
    stroke_share: float = _number(0.3, "share of slices of stroke patients in a batch")
    real_false_negative_weight: float = _number(
        0.5,
        "Tversky weight of what is missed in slices that are not synthetic",
        "--false-negative-weight",
    )
    synthetic_false_negative_weight: float = _number(0.6, "the same in synthetic slices")
    lesion_weight: float = _number(0.0, "weight of the loss that counts lesions")
    infarct_weight: float = _number(0.5, "weight of the loss of the infarct output")
    learning_rate: float = _number(5e-4, "highest learning rate", "--lr")
    weight_decay: float = _number(1e-4, "of AdamW")
    ema_decay: float = _number(
        0.998, "decay of the average of the weights that is judged", "--ema"
    )
    reuse: float = _number(3.0, "how often a synthetic slice is used, about")
    warm_up_steps: int = option(
        200, "over which the learning rate grows (default: %(default)s)", **values.at_least(0)
    )
    seed: int = option(
        0,
        "of weights, batches, augmentation and synthetic scans (default: %(default)s)",
        "--random-seed",
        metavar="SEED",
        type=values.whole_number(0),
    )
    clip_norm: float = 5.0
    ring_slices: int = _running(
        4000,
        "synthetic slices that are held to be drawn from (default: %(default)s)",
        "--ring",
        **values.at_least(64),
    )
    least_slices: int = 300  # in the ring before the first step
    validate_at: tuple[float, ...] = _running(
        (0.4, 0.55, 0.7, 0.85, 1.0),
        "shares of the training after which it is judged (default: 0.4 0.55 0.7 0.85 1.0)",
        metavar="SHARE",
        type=values.share,
    )
    relabel_at: tuple[float, ...] = _running(
        (0.4, 0.7),
        "shares after which slices of stroke patients are labelled anew by the average "
        "(default: 0.4 0.7)",
        metavar="SHARE",
        nargs="*",
        type=values.share,
    )
    label_levels: tuple[float, float] = option(
        (0.55, 0.3),
        "probabilities, as the teachers or the average give them, from which a pixel of such a "
        "slice is WMH, and from which it is not judged (default: 0.55 0.3)",
        metavar=("WMH", "DOUBTFUL"),
        nargs=2,
        type=values.share,
    )
    synthetic_validation: int = _running(
        8,
        "synthetic scans with lesions, and as many without, to judge by (default: %(default)s)",
        **values.at_least(0),
    )


@dataclass(frozen=True)
class BrainMaskSettings:
    """What makes a training of the brain-mask network; one synthetic head a step."""

    steps: int = option(4200, "training steps, one head each (%(default)s)")
    seed: int = option(0, "of everything (%(default)s)", "--random-seed", metavar="SEED")
    learning_rate: float = 7e-4
    warm_up_steps: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.995
    clip_norm: float = 1.0
    validation_heads: int = 8
    # A sample takes the first size that holds it; few sizes, as kernels are compiled for each.
    sizes: tuple[tuple[int, int, int], ...] = (
        (64, 80, 48),
        (72, 88, 56),
        (80, 88, 72),
        (80, 104, 80),
    )
