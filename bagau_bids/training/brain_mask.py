"""Training of the brain-mask network on synthetic heads, resumable to the step."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from bagau_bids.network.brain_unet import BrainUNet, BrainUNetConfig
from bagau_bids.network.inference import choose_device
from bagau_bids.network.weights import save_weights
from bagau_bids.preprocessing.brain_mask import low_resolution, low_resolution_grid
from bagau_bids.spaces import resample
from bagau_bids.synthesis.engine import (
    SynthesisSettings,
    SyntheticScan,
    brain_mask_settings,
    synthesise,
)
from bagau_bids.synthesis.labels import Head
from bagau_bids.training.checkpoint import (
    CHECKPOINT,
    load_state,
    refuse_changes,
    refuse_overwriting,
    save_state,
)
from bagau_bids.training.curves import append_rows, drop_rows_after
from bagau_bids.training.optimisation import (
    cosine_share,
    finite_gradient_norm,
    finite_loss,
    go_on_from,
    move_average,
    training_precision,
)

CURVE_NAME = "curve.csv"
FREE_ON_RESUME = ("steps", "workers", "threads", "device")  # may differ from the run resumed
NEXT_TRY = "with the variable ONEDNN_MAX_CPU_ISA set to AVX2, for single precision"


@dataclass(frozen=True)
class BrainTraining:
    """Hyper-parameters of the training; one synthetic head a step."""

    steps: int = 4200
    seed: int = 0
    learning_rate: float = 7e-4
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    average_decay: float = 0.995  # of the moving average of the weights that is kept
    validate_every: int = 250
    validation_heads: int = 8
    # A sample takes the first size that holds it; few sizes, as kernels are compiled for each.
    sizes: tuple[tuple[int, int, int], ...] = (
        (64, 80, 48),
        (72, 88, 56),
        (80, 88, 72),
        (80, 104, 80),
    )
    workers: int = 1
    threads: int = 2
    device: str = "auto"


class SyntheticHeads(IterableDataset):
    """Endless network inputs and targets; sample ``n`` depends on the seed and ``n`` alone.

    Parameters
    ----------
    heads : sequence of Head
        Label maps drawn from at random.
    seed : int
        Seed of the stream.
    numbers : range
        Which samples to yield.
    settings : SynthesisSettings
        Ranges.
    sizes : sequence of tuples of int
        A sample is padded, at a random place, to the first of these that holds it, or cropped
        to the last; left as it is if there are none.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        seed: int,
        numbers: range,
        settings: SynthesisSettings,
        sizes: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.heads, self.seed, self.settings = list(heads), seed, settings
        self.numbers, self.sizes = numbers, tuple(sizes)

    def __iter__(self) -> Iterator[tuple[NDArray, NDArray]]:
        """Yield (D, H, W) input and soft target, both float16."""
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in self.numbers[first::step]:
            yield self.sample(number)

    def sample(self, number: int) -> tuple[NDArray, NDArray]:
        """Draw the sample of this number."""
        rng = np.random.default_rng((self.seed, number))
        head = self.heads[int(rng.integers(len(self.heads)))]
        scan = synthesise(head, int(rng.integers(2**31)), self.settings)
        volume, target = network_pair(scan)
        if not self.sizes:
            return volume, target
        holding = (s for s in self.sizes if all(np.greater_equal(s, volume.shape)))
        size = next(holding, self.sizes[-1])
        places = rng.random(3)
        return _crop_or_pad(volume, size, places), _crop_or_pad(target, size, places)


def network_pair(scan: SyntheticScan) -> tuple[NDArray, NDArray]:
    """Input and soft target of the network for a scan, both (D, H, W) float16."""
    low = low_resolution(scan.flair, scan.affine)
    shape, grid = low_resolution_grid(scan.flair.shape, scan.affine)
    target = resample(scan.brain_mask, scan.affine, shape, grid, order=1, cval=0.0)
    return low.volume.astype(np.float16), target.astype(np.float16)


def _crop_or_pad(volume: NDArray, shape: tuple[int, ...], places: NDArray) -> NDArray:
    """Cut out or zero-pad to a shape; places in [0, 1] say where along each axis."""
    for axis, (size, place) in enumerate(zip(shape, places, strict=True)):
        excess = volume.shape[axis] - size
        first = round(abs(excess) * float(place))
        if excess > 0:
            volume = volume.take(range(first, first + size), axis=axis)
        elif excess < 0:
            width = [(0, 0)] * 3
            width[axis] = (first, -excess - first)
            volume = np.pad(volume, width)
    return volume


def brain_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss plus cross-entropy, of (N, 1, D, H, W) logits and a target in [0, 1]."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * target).sum() + 1
    dice = overlap / (probability.sum() + target.sum() + 1)
    return 1 - dice + functional.binary_cross_entropy_with_logits(logits, target)


def train_brain_mask(
    heads: Sequence[Head],
    held_out: Sequence[Head],
    out_dir: Path,
    training: BrainTraining,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> BrainUNet:
    """Train the network.

    Parameters
    ----------
    heads, held_out : sequence of Head
        Label maps to learn from, and to validate on (may be empty).
    out_dir : Path
        Gets a checkpoint, ``curve.csv`` and ``brain.safetensors`` with its card.
    training : BrainTraining
        Hyper-parameters.
    resume : bool
        Go on from the checkpoint in ``out_dir``, if there is one; without it a checkpoint there
        is not overwritten.
    report : callable
        Told of the progress, a line at a time.

    Returns
    -------
    BrainUNet
        With the averaged weights.

    Raises
    ------
    UsageError
        If the folder holds a training and `resume` is not asked for, or was made with other
        settings or label maps.
    ProcessingError
        If the loss or the gradient is no longer finite: what was saved before stays.
    """
    if not resume:
        refuse_overwriting(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(training.seed)
    torch.set_num_threads(training.threads)
    identity = {"label maps": _heads_digest(heads), "held out": _heads_digest(held_out)}
    state = _TrainingState(training)
    checkpoint = out_dir / CHECKPOINT
    if resume and checkpoint.exists():
        contents = load_state(checkpoint, state.device)
        if "settings" in contents:
            then = asdict(BrainTraining()) | contents["settings"]
            refuse_changes(checkpoint, "settings", then, asdict(training), FREE_ON_RESUME)
            refuse_changes(checkpoint, "label maps", contents["data"], identity)
        else:  # may be hours of work, and what it was made with cannot be asked any more
            report(f"{checkpoint}: does not say with which settings; taken to be those given now")
        state.take(contents)
        drop_rows_after(out_dir / CURVE_NAME, state.step)
        report(f"resumed at step {state.step}")
    settings = brain_mask_settings()
    validation = held_out_pairs(held_out, training.validation_heads, training.seed + 1_000_003)
    numbers = range(state.step, training.steps)
    stream = SyntheticHeads(heads, training.seed, numbers, settings, training.sizes)
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=training.workers,
        prefetch_factor=8 if training.workers else None,
    )
    losses: list[float] = []
    for volume, target in loader:
        losses.append(state.update(volume, target, go_on_from(checkpoint, NEXT_TRY)))
        if state.step % training.validate_every == 0 or state.step == training.steps:
            scores = [dice_at_half(state.average, *pair) for pair in validation]
            row = {
                "step": state.step,
                "loss": round(float(np.mean(losses)), 5),
                "validation_dice": round(float(np.mean(scores)), 5) if scores else "",
                "validation_worst": round(float(np.min(scores)), 5) if scores else "",
            }
            losses.clear()
            append_rows(out_dir / CURVE_NAME, [row])
            save_state(checkpoint, {**state.contents(), "data": identity})
            report(" ".join(f"{key}={value}" for key, value in row.items()))
    save_weights(
        out_dir / "brain.safetensors",
        state.average,
        {"name": "brain", "training": asdict(training), "synthesis": asdict(settings)},
    )
    return state.average


def _heads_digest(heads: Sequence[Head]) -> str:
    """SHA-256 of label maps, in hexadecimal."""
    digest = hashlib.sha256()
    for head in heads:
        digest.update(f"{head.labels.shape}".encode())
        digest.update(np.ascontiguousarray(head.labels).tobytes())
        digest.update(np.asarray(head.affine, np.float64).tobytes())
    return digest.hexdigest()


class _TrainingState:
    """Network, its moving average, optimiser and step count."""

    def __init__(self, training: BrainTraining) -> None:
        self.training = training
        self.device = choose_device(training.device)
        self.step = 0
        self.model = BrainUNet(BrainUNetConfig()).to(self.device)
        for parameter in self.model.parameters():
            if parameter.ndim == 5:  # the fast memory layout of 3-D kernels
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        self.average = BrainUNet(BrainUNetConfig()).to(self.device).eval()
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
        )

    def update(self, volume: torch.Tensor, target: torch.Tensor, remedy: str) -> float:
        """Take one step and return the loss; `remedy` is what to do where it is no number."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.training)
        image, wanted = (one.to(self.device).float()[None, None] for one in (volume, target))
        deepest = min(volume.shape) // self.model.size_multiple
        precision = training_precision(self.device, self.model, deepest)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            logits = self.model(image.to(memory_format=torch.channels_last_3d))
        loss = brain_loss(logits.float(), wanted)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        value = finite_loss(float(loss.detach()), self.step, remedy)
        finite_gradient_norm(self.model, self.step, remedy)  # the clip would hide it
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.training.average_decay, self.step / (self.step + 10))
        move_average(self.average, self.model, decay)
        return value

    def take(self, contents: Mapping[str, Any]) -> None:
        """Go on from what :meth:`contents` gave."""
        self.step = contents["step"]
        self.model.load_state_dict(contents["model"])
        self.average.load_state_dict(contents["average"])
        self.optimiser.load_state_dict(contents["optimiser"])

    def contents(self) -> dict[str, Any]:
        """Everything that is needed to go on."""
        return {
            "settings": asdict(self.training),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }


def learning_rate(step: int, training: BrainTraining) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / training.warmup_steps)
    return training.learning_rate * warm * cosine_share(min(1.0, step / training.steps))


def dice_at_half(model: nn.Module, volume: NDArray, target: NDArray) -> float:
    """Dice at 0.5 of a prediction and a soft target, both (D, H, W)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(torch.from_numpy(volume.astype(np.float32))[None, None].to(device))
    found, true = (logits[0, 0] > 0).cpu().numpy(), target > 0.5
    return float(2 * (found & true).sum() / max(1, found.sum() + true.sum()))


def held_out_pairs(heads: Sequence[Head], count: int, seed: int) -> list[tuple[NDArray, NDArray]]:
    """Draw network inputs and targets for validation; the same for the same seed.

    Parameters
    ----------
    heads : sequence of Head
        Label maps left out of training; none gives an empty list.
    count : int
        How many to draw.
    seed : int

    Returns
    -------
    list of (volume, target), both (D, H, W) float16 arrays
    """
    if not heads:
        return []
    stream = SyntheticHeads(heads, seed, range(0), brain_mask_settings())
    return [stream.sample(number) for number in range(count)]
