"""Training of a slice network on pools of slices, validated on whole scans."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import UsageError
from bagau_bids.measures.metrics import case_scores
from bagau_bids.network.cards import T1
from bagau_bids.network.inference import choose_device, segment
from bagau_bids.network.weights import (
    LoadedNetwork,
    architecture_of,
    build_network,
    in_training,
    load_weights,
)
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import (
    Shard,
    SlicePool,
    join_shards,
    pool_digest,
    training_shard,
)
from bagau_bids.training.augmentation import AugmentationSettings, augment, vary_intensity
from bagau_bids.training.loop import Judged, Learner, Trainer
from bagau_bids.training.losses import cross_entropy_loss, tversky_loss
from bagau_bids.training.optimisation import reduced, training_precision
from bagau_bids.training.settings import (
    ABLATIONS,
    INPUTS,
    WIDTHS,
    LoopSettings,
    TrainingSettings,
)

THRESHOLD = 0.5


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained and judged on.

    Parameters
    ----------
    real : SlicePool or None
        Slices of the training scans.
    synthetic : SlicePool or None
    validation : sequence of TrainingScan
        Whole scans of held-out subjects.
    training_keys : sequence of str
        What identifies the scans of `real`, in their order.
    """

    real: SlicePool | None
    synthetic: SlicePool | None
    validation: Sequence[TrainingScan]
    training_keys: Sequence[str] = ()

    @classmethod
    def of_scans(
        cls,
        training: Sequence[TrainingScan],
        validation: Sequence[TrainingScan],
        synthetic: SlicePool | None = None,
    ) -> Self:
        """Take all slices with brain of the scans to train on."""
        real = SlicePool([training_shard(scan.inputs, scan.reference) for scan in training])
        return cls(real, synthetic, validation, [scan.key for scan in training])

    def identity(self) -> dict[str, Any]:
        """Tell these data from others, by part, as a checkpoint can hold it."""
        return {
            "training": list(self.training_keys),
            "validation": [scan.key for scan in self.validation],
            "synthetic_pool": None if self.synthetic is None else pool_digest(self.synthetic),
        }


@dataclass(frozen=True)
class ScanScore:
    """Agreement with the reference of one held-out scan, at native resolution."""

    scan: str
    dice: float
    hausdorff95_mm: float
    volume_difference_percent: float
    lesion_recall: float
    lesion_f1: float
    reference_ml: float
    result_ml: float

    @classmethod
    def measures(cls) -> list[str]:
        """Names of what is measured: all fields but the scan's name."""
        return [field.name for field in fields(cls) if field.name != "scan"]


def network_of(settings: TrainingSettings) -> nn.Module:
    """Make the untrained network that the settings ask for.

    Parameters
    ----------
    settings : TrainingSettings
        Ablations belong to BAGAU-Net, a choice of inputs to the U-Net.

    Raises
    ------
    UsageError
        If ablations or inputs do not belong to the architecture.
    """
    config: dict[str, Any] = {"widths": WIDTHS[settings.width]}
    if settings.architecture == "bagau_net":
        if settings.inputs != TrainingSettings.inputs:
            raise UsageError(
                f"--inputs {' '.join(settings.inputs)}: bagau_net has "
                f"{' and '.join(TrainingSettings.inputs)}; other inputs need --architecture unet"
            )
        config.update({name: name not in settings.ablations for name in ABLATIONS})
    else:
        if settings.ablations:
            raise UsageError(
                f"--ablation {' '.join(settings.ablations)}: expected --architecture bagau_net; "
                "the inputs of the U-Net are chosen with --inputs"
            )
        config["inputs"] = tuple(name for name in INPUTS if name in settings.inputs)
    torch.manual_seed(settings.seed)
    return build_network(settings.architecture, config)


def count_steps(settings: TrainingSettings, data: TrainingData) -> int:
    """Optimiser steps of a training: as given, or from the epochs over the real slices."""
    if settings.steps is not None:
        return settings.steps
    slices = data.real if data.real is not None else data.synthetic
    assert slices is not None
    return settings.epochs * math.ceil(len(slices) / settings.batch_size)


def draw_batch(data: TrainingData, settings: TrainingSettings, step: int) -> Shard:
    """Slices of one step, real and synthetic in random order.

    Each pool is gone through in an order drawn anew for each pass.

    Returns
    -------
    Shard
        Of ``batch_size`` slices.
    """
    before, after = _synthetic_before(settings, step), _synthetic_before(settings, step + 1)
    parts = []
    if data.synthetic is not None and after > before:
        numbers = _in_random_order(len(data.synthetic), before, after, settings.seed + 1)
        parts.append(data.synthetic.read(numbers))
    first, last = step * settings.batch_size - before, (step + 1) * settings.batch_size - after
    if data.real is not None and last > first:
        numbers = _in_random_order(len(data.real), first, last, settings.seed)
        parts.append(data.real.read(numbers))
    return join_shards(parts).take(_batch_order(settings, step))


def draw_weights(settings: TrainingSettings, step: int) -> NDArray[np.float32]:
    """Tversky weight of false negatives for each slice of :func:`draw_batch`, (batch,) array.

    Synthetic slices may have another: what raters leave out differs between data sets, and
    only real masks tell how those of their own scanner are drawn.
    """
    real, synthetic = settings.false_negative_weight, settings.synthetic_false_negative_weight
    count = _synthetic_before(settings, step + 1) - _synthetic_before(settings, step)
    drawn_first = _batch_order(settings, step) < count
    return np.where(drawn_first, real if synthetic is None else synthetic, real).astype(np.float32)


def _synthetic_before(settings: TrainingSettings, step: int) -> int:
    """Count the synthetic slices of all steps before one."""
    return round(step * settings.batch_size * settings.synthetic_fraction)


def _batch_order(settings: TrainingSettings, step: int) -> NDArray[np.int64]:
    """Random order of a step's slices, synthetic ones having the lowest numbers."""
    return np.random.default_rng((settings.seed, step)).permutation(settings.batch_size)


def _in_random_order(length: int, first: int, last: int, seed: int) -> list[int]:
    """Numbers at places `first` to `last` of an endless series of permutations."""
    passes = range(first // length, (last - 1) // length + 1)
    series = [np.random.default_rng((seed, number)).permutation(length) for number in passes]
    start = first - passes.start * length
    return [int(n) for n in np.concatenate(series)[start : start + last - first]]


def validate(
    network: LoadedNetwork,
    scans: Sequence[TrainingScan],
    device: torch.device,
    batch_size: int = 8,
) -> list[ScanScore]:
    """Segment whole scans and compare with their references on the FLAIR's own grid.

    Parameters
    ----------
    network : LoadedNetwork
        Put into evaluation mode.
    scans : sequence of TrainingScan
    device : torch.device
    batch_size : int
    """
    network.model.eval()
    scores = []
    for scan in scans:
        result = segment(
            [network], scan.inputs, scan.brain_mask, device=device, batch_size=batch_size
        )
        found = (result.probability >= THRESHOLD).astype(np.uint8)
        measured = case_scores(Image(scan.reference, scan.affine), found)
        kept = {name: getattr(measured, name) for name in ScanScore.measures()}
        scores.append(ScanScore(scan=scan.name, **kept))
    return scores


class SliceTrainer(Trainer):
    """A training of a slice network under way.

    Parameters
    ----------
    settings : TrainingSettings
    loop : LoopSettings
    data : TrainingData
    output_dir : Path
        See :class:`bagau_bids.training.loop.Trainer`.
    card : mapping
        What the cards say besides what the trainer knows (data, licence).
    """

    free_on_resume = ("epochs", "steps", "precision")
    next_try = "--precision float32; where that diverges too, start again with a lower --lr"
    settings: TrainingSettings

    def __init__(
        self,
        settings: TrainingSettings,
        loop: LoopSettings,
        data: TrainingData,
        output_dir: Path,
        card: Mapping[str, Any],
    ) -> None:
        network: Any = network_of(settings)
        device = choose_device(loop.device)
        model: nn.Module = network.to(device, memory_format=torch.channels_last)
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        learner = Learner(settings.width, model, optimizer, ema_decay=settings.ema_decay)
        super().__init__(settings, loop, [learner], data.identity(), output_dir, card)
        self.data = data
        self.total_steps = count_steps(settings, data)
        self.augmentation = AugmentationSettings()
        deepest = min(settings.crop) // 2 ** (len(WIDTHS[settings.width]) - 1)
        wanted = training_precision(device, model, deepest)
        self.precision = wanted if settings.precision == "auto" else torch.float32

    def rate(self) -> float:
        """Learning rate of the step, which may stay the same."""
        constant = self.settings.schedule == "constant"
        return self.settings.learning_rate if constant else super().rate()

    def draw(self) -> tuple[Shard, Tensor]:
        """Slices, and the weight of what is missed in each."""
        weights = torch.from_numpy(draw_weights(self.settings, self.step))
        return draw_batch(self.data, self.settings, self.step), weights.to(self.device)

    def losses(self, learner: Learner, batch: tuple[Shard, Tensor]) -> Iterator[Tensor]:
        """Losses of micro-batches, whose gradients add up to that of the whole batch."""
        slices, weights = batch
        generator = torch.Generator().manual_seed((self.settings.seed << 32) + self.step)
        size = self.settings.batch_size
        for first in range(0, size, self.settings.micro_batch_size):
            last = min(first + self.settings.micro_batch_size, size)
            given, target = self._varied(slices.take(slice(first, last)), generator)
            loss = self._loss(learner.model, given, target, weights[first:last])
            yield loss * ((last - first) / size)

    def _varied(
        self, slices: Shard, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Named inputs of the network and the target, (N, 1, crop) each, after augmentation."""
        arrays = {**slices.channels, "target": slices.target}
        tensors = {k: torch.from_numpy(of)[:, None].to(self.device) for k, of in arrays.items()}
        flair, guides, target = augment(
            tensors["flair"],
            torch.cat([tensors[name] for name in ("atlas", T1) if name in tensors], dim=1),
            tensors["target"],
            self.settings.crop,
            generator,
            self.augmentation,
        )
        given = {"flair": flair, "atlas": guides[:, :1]}
        if T1 in tensors:
            given[T1] = vary_intensity(guides[:, 1:], generator, self.augmentation)
        return {name: given[name] for name in in_training(self.learners[0].model).inputs}, target

    def _loss(
        self, model: nn.Module, given: Mapping[str, Tensor], target: Tensor, weights: Tensor
    ) -> Tensor:
        with reduced(self.device, self.precision):
            logits = model(
                **{
                    name: tensor.contiguous(memory_format=torch.channels_last)
                    for name, tensor in given.items()
                }
            )
        loss = tversky_loss(logits, target, false_negative_weight=weights)
        if self.settings.loss == "tversky+ce":
            loss = loss + cross_entropy_loss(logits, target)
        return loss

    def judge(self, learner: Learner) -> Judged:
        """Segment the scans to validate on; the score is their mean Dice."""
        scores = validate(in_training(learner.judged), self.data.validation, self.device)
        mean = float(np.mean([score.dice for score in scores]))
        single = ", ".join(f"{score.scan} {score.dice:.3f}" for score in scores)
        return Judged(mean, f"validation Dice {mean:.3f} ({single})", scores)

    def adapt(self, network: nn.Module, learner: Learner) -> nn.Module:
        """Refuse what differs in more than its widths."""
        configs: list[Any] = [network.config, learner.model.config]
        theirs, ours = (asdict(config) | {"widths": ()} for config in configs)
        if architecture_of(network) != self.settings.architecture or theirs != ours:
            raise ValueError("the networks differ in more than their widths")
        return network

    def recipe(self) -> dict[str, Any]:
        """Augmentation and number of steps."""
        return {**super().recipe(), "augmentation": asdict(self.augmentation)}

    def best_scores(self) -> list[ScanScore]:
        """Scores of the weights that are kept as the best."""
        best = load_weights(self.output_dir / "best.safetensors")
        return [ScanScore(**score) for score in best.card.validation]
