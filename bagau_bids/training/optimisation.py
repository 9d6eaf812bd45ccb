"""What the trainings share of a step of the optimiser."""

import math
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bagau_bids.errors import ProcessingError
from bagau_bids.network.inference import working_precision

LOWEST_RATE = 0.01  # share of the learning rate at the end of the cosine schedule
# Losses here are a few at most and gradients' norms far below a hundred: what lies beyond is no
# gradient, such as memory that a kernel did not write.
LARGEST_NORM = 1e6


def cosine_share(progress: float) -> float:
    """Share of the learning rate: half a cosine from 1 down to :data:`LOWEST_RATE`.

    Parameters
    ----------
    progress : float
        Share of the steps that is done, 0 to 1.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return LOWEST_RATE + (1 - LOWEST_RATE) * cosine


def average_decay(step: int, decay: float, start: int = 10) -> float:
    """Share of a moving average that stays at a step.

    It grows over the first steps from one over `start`, so that the first weights are forgotten.

    Parameters
    ----------
    step : int
        From 0.
    decay : float
        The largest share.
    start : int
    """
    return min(decay, (1 + step) / (start + step))


def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an exponential average of parameters and batch-norm statistics on by a step.

    torch's ``AveragedModel`` counts steps in a tensor that it asks the device for at each step,
    and takes the mean of batch norm's counters; its formula is used here alone.

    Parameters
    ----------
    average : torch.nn.Module
        Changed in place.
    model : torch.nn.Module
        The network under training, of the same architecture.
    decay : float
        Share of the average that stays.
    """
    current = model.state_dict()
    pairs = [(mine, current[name]) for name, mine in average.state_dict().items()]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(decay)([m for m, _ in floats], [t for _, t in floats], None)
    for mine, theirs in pairs:
        if not mine.is_floating_point():
            mine.copy_(theirs)


def finite_loss(loss: float, step: int, remedy: str) -> float:
    """Give a loss back if it is a number; call this before anything is learned from it.

    Parameters
    ----------
    loss : float
    step : int
        Which step it is of, for the message.
    remedy : str
        What to do, for the message: see :func:`go_on_from`.

    Raises
    ------
    ProcessingError
        If it is not finite.
    """
    if math.isfinite(loss):
        return loss
    raise ProcessingError(f"the loss is {loss} at step {step}: training diverged; {remedy}")


def finite_gradient_norm(norm: float, step: int, remedy: str) -> float:
    """Give the norm of a gradient back if it can be one; call this before the gradient is used.

    Parameters
    ----------
    norm : float
        Euclidean, over all parameters, before the gradient is clipped.
    step : int
        Which step it is of, for the message.
    remedy : str
        What to do, for the message: see :func:`go_on_from`.

    Raises
    ------
    ProcessingError
        If it is not finite or beyond :data:`LARGEST_NORM`.
    """
    if norm <= LARGEST_NORM:  # false for what is not a number
        return norm
    raise ProcessingError(
        f"the norm of the gradient is {norm:.4g} at step {step}, expected at most "
        f"{LARGEST_NORM:g}: training diverged, or this processor fails in reduced precision; "
        f"{remedy}"
    )


def go_on_from(checkpoint: Path, change: str) -> str:
    """Say how to go on from the last good state of a training, if there is one.

    Parameters
    ----------
    checkpoint : Path
        Where it is, if one was written.
    change : str
        What to do otherwise this time.
    """
    if checkpoint.is_file():
        return f"go on from {checkpoint} with --resume and {change}"
    return f"start again with {change}"


def training_precision(device: torch.device, model: nn.Module, deepest: int) -> torch.dtype:
    """Floating-point type in which the convolutions of a network are trained.

    oneDNN leaves the bfloat16 weight gradient of a convolution unwritten where the image is
    smaller than the kernel (seen in 3.12 on processors with AVX512-BF16), so such images are
    computed in single precision on a CPU.

    Parameters
    ----------
    device : torch.device
        Where the network is trained.
    model : torch.nn.Module
    deepest : int
        Shortest side of the image, in pixels, at the network's deepest level.

    Returns
    -------
    torch.dtype
        ``bfloat16`` or ``float32``.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    convolutions = (one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Conv3d))
    reach = max(max(one.kernel_size) for one in convolutions)
    return torch.float32 if deepest < reach else working_precision(device)


def reduced(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Run the convolutions in this precision."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list instead of dying of them."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
