"""The settings of a training; importing them loads no numerical library."""

from dataclasses import dataclass

ARCHITECTURES = ("bagau_net", "unet")
WIDTHS = {"full": (64, 96, 128, 256, 512), "small": (16, 24, 32, 64, 128)}
ABLATIONS = ("mam", "afm")  # of BAGAU-Net
INPUTS = ("flair", "t1", "atlas")  # of the U-Net; BAGAU-Net has FLAIR and atlas
LOSSES = ("tversky", "tversky+ce")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("auto", "float32")


@dataclass(frozen=True)
class TrainingSettings:
    """What makes a training; the defaults are the paper's recipe."""

    architecture: str = "bagau_net"
    width: str = "full"
    ablations: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("flair", "atlas")
    loss: str = "tversky"
    false_negative_weight: float = 0.7
    synthetic_false_negative_weight: float | None = None  # None: the same as for real slices
    optimizer: str = "adam"
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 32
    micro_batch_size: int = 8
    epochs: int = 200
    steps: int | None = None  # optimiser steps; given, it replaces the epochs
    synthetic_fraction: float = 0.0
    crop: tuple[int, int] = (200, 200)  # left-right x posterior-anterior, mm
    ema_decay: float = 0.0  # 0: no average of the weights
    seed: int = 0
    precision: str = "auto"


@dataclass(frozen=True)
class LoopSettings:
    """How a training runs; no field changes what it computes."""

    device: str = "auto"
    validate_every: int = 500
    log_every: int = 20
    checkpoint_seconds: float = 120.0
    keep_validated: bool = False  # weights of every validation, beside best and last
    workers: int | None = None  # processes that draw synthetic data


@dataclass(frozen=True)
class StreamSettings:
    """What makes a streaming training; either `steps` or `seconds` says when it ends."""

    widths: tuple[str, ...] = ("small",)
    outputs: tuple[str, ...] = ("wmh", "infarct")
    steps: int | None = None
    seconds: float | None = None  # of training and validation together, filling not counted
    batch_size: int = 32
    crop: tuple[int, int] = (160, 192)
    real_share: float = 0.25
    stroke_share: float = 0.3  # the rest of a batch is synthetic
    real_false_negative_weight: float = 0.5  # also of slices of stroke patients
    synthetic_false_negative_weight: float = 0.6
    lesion_weight: float = 0.0  # of the loss that counts lesions, beside that over pixels
    infarct_weight: float = 0.5  # of the loss of the output for infarcts
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warm_up_steps: int = 200
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    relabel_at: tuple[float, ...] = (0.4, 0.7)  # shares of the training
    validate_at: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0)
    reuse: float = 3.0  # how often a synthetic slice is used, about
    ring_slices: int = 4000
    least_slices: int = 300  # in the ring before the first step
    synthetic_validation: int = 8  # whole scans with lesions, and as many without
    seed: int = 0


@dataclass(frozen=True)
class BrainMaskSettings:
    """What makes a training of the brain-mask network; one synthetic head a step."""

    steps: int = 4200
    seed: int = 0
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
