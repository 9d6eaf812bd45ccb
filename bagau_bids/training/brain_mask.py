"""Training of the brain-mask network on synthetic heads, resumable to the step."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from bagau_bids.preprocessing.brain_mask import low_resolution
from bagau_bids.spaces import Image, resample
from bagau_bids.synthesis.engine import (
    SynthesisSettings,
    SyntheticScan,
    brain_mask_settings,
    synthesise,
)
from bagau_bids.synthesis.labels import Head
from bagau_bids.training.loop import Judged, Learner, Trainer
from bagau_bids.training.optimisation import reduced, training_precision
from bagau_bids.training.settings import BrainMaskSettings, LoopSettings


@dataclass(frozen=True)
class HeadScore:
    """Agreement with the truth of one synthetic head that was held out."""

    scan: str
    dice: float


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
    low = low_resolution(Image(scan.flair, scan.affine))
    target = resample(Image(scan.brain_mask, scan.affine), low)
    return low.data.astype(np.float16), target.astype(np.float16)


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


class BrainMaskTrainer(Trainer):
    """A training of the brain-mask network under way.

    Parameters
    ----------
    heads, held_out : sequence of Head
        Label maps to learn from, and to validate on (may be empty).
    output_dir : Path
        See :class:`bagau_bids.training.loop.Trainer`; the last weights are ``brain``.
    settings : BrainMaskSettings
    loop : LoopSettings
    """

    next_try = "with the variable ONEDNN_MAX_CPU_ISA set to AVX2, for single precision"
    settings: BrainMaskSettings

    def __init__(
        self,
        heads: Sequence[Head],
        held_out: Sequence[Head],
        output_dir: Path,
        settings: BrainMaskSettings,
        loop: LoopSettings,
    ) -> None:
        device = choose_device(loop.device)
        torch.manual_seed(settings.seed)
        model = BrainUNet(BrainUNetConfig()).to(device)
        for parameter in model.parameters():
            if parameter.ndim == 5:  # the fast memory layout of 3-D kernels
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        learner = Learner(
            "brain",
            model,
            optimizer,
            ema_decay=settings.ema_decay,
            ema_start=11,
            clip_norm=settings.clip_norm,
        )
        identity = {"label maps": _heads_digest(heads), "held out": _heads_digest(held_out)}
        super().__init__(settings, loop, [learner], identity, output_dir, {"name": "brain"})
        self.warm_up_steps = settings.warm_up_steps
        self.heads, self.deepest = heads, model.size_multiple
        self.synthesis = brain_mask_settings()
        self.held_out = held_out_pairs(
            held_out, settings.validation_heads, settings.seed + 1_000_003
        )

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Draw heads, in processes of their own where there are workers."""
        numbers = range(self.step, self.settings.steps)
        stream = SyntheticHeads(
            self.heads, self.settings.seed, numbers, self.synthesis, self.settings.sizes
        )
        workers = 1 if self.loop.workers is None else self.loop.workers
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
        )
        self.samples = iter(loader)
        yield

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and target of one head, (1, 1, D, H, W) float tensors."""
        volume, target = (one.to(self.device).float()[None, None] for one in next(self.samples))
        return volume.to(memory_format=torch.channels_last_3d), target

    def losses(
        self, learner: Learner, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Loss of the head."""
        volume, target = batch
        deepest = min(volume.shape[2:]) // self.deepest
        with reduced(self.device, training_precision(self.device, learner.model, deepest)):
            logits = learner.model(volume)
        yield brain_loss(logits.float(), target)

    def judge(self, learner: Learner) -> Judged:
        """Mask held-out heads; the score is the mean Dice."""
        scores = [
            HeadScore(f"held-out-{number:02d}", dice_at_half(learner.judged, *pair))
            for number, pair in enumerate(self.held_out)
        ]
        dice = [one.dice for one in scores]
        if not dice:
            return Judged(-math.inf, "no head to validate on")
        mean = float(np.mean(dice))
        return Judged(mean, f"validation Dice {mean:.5f}, worst {min(dice):.5f}", scores)

    def weights_path(self, learner: Learner, name: str) -> Path:
        """Where weights are kept; the last ones are those to use."""
        return self.output_dir / f"brain{'' if name == 'last' else f'-{name}'}.safetensors"

    def recipe(self) -> dict[str, Any]:
        """How heads are drawn."""
        return {"synthesis": asdict(self.synthesis)}


def _heads_digest(heads: Sequence[Head]) -> str:
    """SHA-256 of label maps, in hexadecimal."""
    digest = hashlib.sha256()
    for head in heads:
        digest.update(f"{head.labels.shape}".encode())
        digest.update(np.ascontiguousarray(head.labels).tobytes())
        digest.update(np.asarray(head.affine, np.float64).tobytes())
    return digest.hexdigest()


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
