"""Training of a slice network: resumable to the step, validated on whole scans.

What step number s computes depends on the settings, the data and s alone, so a run that was
stopped goes on as if it had not been.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.measures.metrics import case_scores
from bagau_bids.network.inference import choose_device, segment
from bagau_bids.network.weights import (
    LoadedNetwork,
    build_network,
    in_training,
    load_weights,
    save_weights,
)
from bagau_bids.synthesis.pool import (
    Shard,
    SlicePool,
    join_shards,
    pool_digest,
    take_slices,
    training_shard,
)
from bagau_bids.training.augmentation import AugmentationSettings, augment, vary_intensity
from bagau_bids.training.calibration import note_lost_calibration
from bagau_bids.training.checkpoint import CHECKPOINT, load_state, refuse_changes, save_state
from bagau_bids.training.curves import (
    TRAINING,
    VALIDATION,
    append_rows,
    drop_rows_after,
    save_curves,
)
from bagau_bids.training.losses import cross_entropy_loss, tversky_loss
from bagau_bids.training.optimisation import (
    cosine_share,
    finite_gradient_norm,
    finite_loss,
    go_on_from,
    move_average,
    stop_on_signal,
    training_precision,
)
from bagau_bids.training.settings import (
    ABLATIONS,
    INPUTS,
    WIDTHS,
    LoopSettings,
    TrainingSettings,
)
from bagau_bids.training.widening import widen

FREE_ON_RESUME = ("epochs", "steps", "precision")  # may differ from the run that is resumed
THRESHOLD = 0.5
NEXT_TRY = "--precision float32; where that diverges too, start again with a lower --lr"

log = logging.getLogger(__name__)


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
    return take_slices(join_shards(parts), _batch_order(settings, step))


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
        measured = case_scores(scan.reference, found, scan.affine)
        kept = {name: getattr(measured, name) for name in ScanScore.measures()}
        scores.append(ScanScore(scan=scan.name, **kept))
    return scores


class Trainer:
    """A training under way: its network, optimiser, step, and what is written of it.

    Parameters
    ----------
    settings : TrainingSettings
    loop : LoopSettings
    data : TrainingData
    output_dir : Path
        Gets ``checkpoint.pt``, ``training.csv``, ``validation.csv``, ``curves.png``, and
        ``best`` and ``last`` weights with their cards, and ``step-N`` where validated weights
        are kept.
    card : dict
        What the cards say besides what the trainer knows (data, licence).
    """

    def __init__(
        self,
        settings: TrainingSettings,
        loop: LoopSettings,
        data: TrainingData,
        output_dir: Path,
        card: Mapping[str, Any],
    ) -> None:
        self.settings, self.loop, self.data = settings, loop, data
        self.output_dir, self.card = output_dir, dict(card)
        self.device = choose_device(loop.device)
        self.total_steps = count_steps(settings, data)
        network: Any = network_of(settings)
        self.model: nn.Module = network.to(self.device, memory_format=torch.channels_last)
        self.average = network_of(settings).to(self.device) if settings.ema_decay else None
        self.optimizer = self._make_optimizer()
        self.initial_weights: dict[str, str] | None = None  # file and SHA-256
        self.step = 0
        self.best_dice = -1.0
        self.augmentation = AugmentationSettings()

    def start_from(self, weights: Path) -> None:
        """Take over the weights of a network of the same architecture, widened where narrower.

        Raises
        ------
        UsageError
            If they are of another architecture, or their widths do not divide these.
        """
        network = load_weights(weights)
        other, card = network.model, network.card
        configs: list[Any] = [other.config, self.model.config]
        theirs, ours = (asdict(config) | {"widths": ()} for config in configs)
        try:
            if card.architecture != self.settings.architecture or theirs != ours:
                raise ValueError("the networks differ in more than their widths")
            widen(other, self.model, self.settings.seed)
        except ValueError as error:
            raise UsageError(
                f"--init {weights}: {card.architecture} with {card.config} ({error}); "
                f"expected {self.settings.architecture} with {self.model.config}, or with widths "
                "that divide these: change --width, --architecture or --ablation"
            ) from error
        note_lost_calibration(weights, network)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        self.initial_weights = {"file": weights.name, "sha256": card.sha256}

    def run(self) -> list[ScanScore]:
        """Train to the last step, or until SIGTERM or SIGINT.

        Returns
        -------
        scores : list of ScanScore
            Of the checkpoint with the best mean Dice; empty if none was validated.

        Raises
        ------
        ProcessingError
            If the loss or the gradient is no longer finite: what was saved before stays. If a
            signal stopped the training, after its state was saved.
        """
        last_checkpoint = last_log = time.monotonic()
        losses: list[float] = []
        with stop_on_signal() as stop:
            while self.step < self.total_steps and not stop:
                losses.append(self._train_step())
                self.step += 1
                finished = self.step == self.total_steps
                judged = self.step % self.loop.validate_every == 0 or finished
                if self.step % self.loop.log_every == 0 or judged:
                    now = time.monotonic()
                    self._log_training(losses, (now - last_log) / len(losses))
                    losses, last_log = [], now
                if judged:
                    self._validate()
                    save_curves(self.output_dir)
                if time.monotonic() - last_checkpoint > self.loop.checkpoint_seconds or finished:
                    self.save_checkpoint()
                    last_checkpoint = time.monotonic()
        if stop:
            self.save_checkpoint()
            raise ProcessingError(
                f"stopped by a signal at step {self.step} of {self.total_steps}: go on with "
                "--resume"
            )
        self._export("last")
        return self._best_scores()

    def save_checkpoint(self) -> None:
        """Write everything that ``--resume`` needs, by an atomic rename."""
        state = {
            "settings": asdict(self.settings),
            "data": self.data.identity(),
            "initial_weights": self.initial_weights,
            "step": self.step,
            "best_dice": self.best_dice,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.output_dir / CHECKPOINT, state)

    def resume(self, weights: Path | None = None) -> None:
        """Go on where the checkpoint of the output folder was saved.

        Parameters
        ----------
        weights : Path or None
            Those that the training is said to have started from; None for those that the
            checkpoint names.

        Raises
        ------
        UsageError
            If it was made with other settings, on other data or from other weights.
        """
        path = self.output_dir / CHECKPOINT
        state = load_state(path, self.device)
        then = asdict(TrainingSettings()) | state["settings"]  # older ones lack some settings
        refuse_changes(path, "settings", then, asdict(self.settings), FREE_ON_RESUME)
        self._check_origin(path, state, weights)
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best_dice = state["step"], state["best_dice"]
        for name in (TRAINING, VALIDATION):
            drop_rows_after(self.output_dir / name, self.step)

    def _check_origin(self, path: Path, state: Mapping[str, Any], weights: Path | None) -> None:
        """Compare data and initial weights with those of a checkpoint, and take over the latter.

        A checkpoint from before these were kept is gone on from all the same: it may be days of
        work, and what it was made with cannot be asked any more.
        """
        given = None
        if weights is not None:
            given = {"file": weights.name, "sha256": load_weights(weights).card.sha256}
        if "data" not in state:
            log.warning(
                "%s: from a version that did not keep which data and initial weights it was made "
                "with; they are taken to be those given now",
                path,
            )
            self.initial_weights = given
            return
        refuse_changes(path, "data", state["data"], self.data.identity())
        self.initial_weights = state["initial_weights"]
        if given is not None:
            then = (self.initial_weights or {}).get("sha256")
            refuse_changes(
                path, "initial weights", {"SHA-256": then}, {"SHA-256": given["sha256"]}
            )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        return kind(
            self.model.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )

    def _learning_rate(self) -> float:
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        return self.settings.learning_rate * cosine_share(self.step / self.total_steps)

    def _train_step(self) -> float:
        """One optimiser step over all micro-batches; returns the mean loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        slices = draw_batch(self.data, self.settings, self.step)
        weights = torch.from_numpy(draw_weights(self.settings, self.step)).to(self.device)
        generator = torch.Generator().manual_seed((self.settings.seed << 32) + self.step)
        total = 0.0
        size = self.settings.batch_size
        for first in range(0, size, self.settings.micro_batch_size):
            last = min(first + self.settings.micro_batch_size, size)
            batch = self._varied(take_slices(slices, np.arange(first, last)), generator)
            loss = self._loss(*batch, weights[first:last]) * ((last - first) / size)
            loss.backward()
            total += float(loss.detach())
        remedy = go_on_from(self.output_dir / CHECKPOINT, NEXT_TRY)
        finite_loss(total, self.step, remedy)
        finite_gradient_norm(self.model, self.step, remedy)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            # The decay grows from 0.1 over the first steps, so that the start is forgotten.
            decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
            move_average(self.average, self.model, decay)
        return total

    def _varied(
        self, slices: Shard, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Named inputs of the network and the target, (N, 1, crop) each, after augmentation."""

        def tensor(array: NDArray) -> Tensor:
            return torch.from_numpy(array)[:, None].to(self.device)

        guides = [tensor(array) for array in (slices.atlas, slices.t1) if array is not None]
        flair, guide, target = augment(
            tensor(slices.flair),
            torch.cat(guides, dim=1),
            tensor(slices.target),
            self.settings.crop,
            generator,
            self.augmentation,
        )
        given = {"flair": flair, "atlas": guide[:, :1]}
        if slices.t1 is not None:
            given["t1"] = vary_intensity(guide[:, 1:], generator, self.augmentation)
        return {name: given[name] for name in in_training(self.model).inputs}, target

    def _loss(self, given: Mapping[str, Tensor], target: Tensor, weights: Tensor) -> Tensor:
        levels = len(WIDTHS[self.settings.width])
        deepest = min(self.settings.crop) // 2 ** (levels - 1)
        wanted = training_precision(self.device, self.model, deepest)
        reduced = wanted != torch.float32 and self.settings.precision == "auto"
        with torch.autocast(self.device.type, wanted, enabled=reduced):
            logits = self.model(
                **{
                    name: tensor.contiguous(memory_format=torch.channels_last)
                    for name, tensor in given.items()
                }
            )
        loss = tversky_loss(logits, target, false_negative_weight=weights)
        if self.settings.loss == "tversky+ce":
            loss = loss + cross_entropy_loss(logits, target)
        return loss

    def _judged(self) -> nn.Module:
        return self.average if self.average is not None else self.model

    def _validate(self) -> None:
        scores = validate(in_training(self._judged()), self.data.validation, self.device)
        append_rows(
            self.output_dir / VALIDATION,
            [{"step": self.step, **_rounded(asdict(score))} for score in scores],
        )
        mean = float(np.mean([score.dice for score in scores]))
        log.info(
            "step %d: validation Dice %.3f (%s)",
            self.step,
            mean,
            ", ".join(f"{score.scan} {score.dice:.3f}" for score in scores),
        )
        if self.loop.keep_validated:
            self._export(f"step-{self.step:06d}", scores)
        if mean > self.best_dice:
            self.best_dice = mean
            self._export("best", scores)

    def _export(self, name: str, scores: Sequence[ScanScore] = ()) -> None:
        recipe = {**asdict(self.settings), "step": self.step, "total_steps": self.total_steps}
        card = {
            **self.card,
            "initial_weights": self.initial_weights and self.initial_weights["file"],
            "initial_weights_sha256": self.initial_weights and self.initial_weights["sha256"],
            "recipe": {**recipe, "augmentation": asdict(self.augmentation)},
            "validation": [_rounded(asdict(score)) for score in scores],
        }
        save_weights(self.output_dir / f"{name}.safetensors", self._judged(), card)

    def _best_scores(self) -> list[ScanScore]:
        best = load_weights(self.output_dir / "best.safetensors")
        return [ScanScore(**score) for score in best.card.validation]

    def _log_training(self, losses: Sequence[float], seconds_per_step: float) -> None:
        row = {
            "step": self.step,
            "loss": float(np.mean(losses)),
            "learning_rate": self._learning_rate(),
            "seconds_per_step": seconds_per_step,
        }
        append_rows(self.output_dir / TRAINING, [_rounded(row)])
        log.info(
            "step %d of %d: loss %.4f, %.2f s a step",
            self.step,
            self.total_steps,
            row["loss"],
            seconds_per_step,
        )


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
