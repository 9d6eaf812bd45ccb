"""Streaming training: synthetic slices drawn while it trains, everything else on the device.

Networks of several widths may learn from the same batches. A training ends after a number of
steps or of seconds, is judged by :mod:`bagau_bids.training.judging` on the way, keeps the best
weights of each width on disk, and goes on from its checkpoint where it was cut off.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.cards import UNCALIBRATED
from bagau_bids.network.inference import choose_device
from bagau_bids.network.weights import (
    LoadedNetwork,
    build_network,
    in_training,
    load_weights,
    save_weights,
)
from bagau_bids.synthesis.heads import load_training_heads
from bagau_bids.synthesis.pool import WMH
from bagau_bids.training.augmentation import (
    STREAM_AUGMENTATION,
    TransplantSettings,
    augment,
    transplant,
)
from bagau_bids.training.calibration import note_lost_calibration
from bagau_bids.training.checkpoint import CHECKPOINT, load_state, refuse_changes, save_state
from bagau_bids.training.curves import (
    TRAINING,
    VALIDATION,
    append_rows,
    drop_rows_after,
    save_curves,
)
from bagau_bids.training.drawing import Drawing
from bagau_bids.training.judging import (
    HEALTHY,
    SYNTHETIC,
    InfarctSlices,
    JudgedScan,
    Verdict,
    as_rows,
    held_out_infarcts,
    judge,
    synthetic_scans,
)
from bagau_bids.training.losses import cross_entropy_loss, missed_lesion_loss, tversky_loss
from bagau_bids.training.optimisation import (
    LARGEST_NORM,
    cosine_share,
    go_on_from,
    stop_on_signal,
    training_precision,
)
from bagau_bids.training.pack import HEADS, read_pack_file, read_real, read_stroke, read_validation
from bagau_bids.training.settings import WIDTHS, StreamSettings
from bagau_bids.training.sources import (
    Batch,
    RealSource,
    SliceStore,
    StrokeSettings,
    StrokeSource,
)
from bagau_bids.training.widening import widen

FREE_ON_RESUME = ("steps", "seconds", "validate_at", "ring_slices", "least_slices")
SYNTHETIC_SEED = 977  # of the scans to judge by; no scan to train on has it
LOG_EVERY = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamData:
    """What a streaming training learns from and is judged by, but the synthetic slices.

    Parameters
    ----------
    heads_dir : Path
    real : RealSource or None
    stroke : StrokeSource or None
    scans : sequence of JudgedScan
    infarcts : InfarctSlices or None
    identity : dict
        Of the pack, as a checkpoint can hold it.
    """

    heads_dir: Path
    real: RealSource | None
    stroke: StrokeSource | None
    scans: Sequence[JudgedScan]
    infarcts: InfarctSlices | None
    identity: Mapping[str, Any]


def read_stream_data(folder: Path, settings: StreamSettings, device: torch.device) -> StreamData:
    """Read a pack onto the device, and draw the synthetic scans to judge by.

    Raises
    ------
    UsageError
        If the folder holds no pack, or nothing to judge by.
    """
    pack = read_pack_file(folder)
    real = read_real(folder)
    arrays = read_stroke(folder)
    scans = [JudgedScan(scan, scan.subject.partition("-")[0]) for scan in read_validation(folder)]
    if not scans:
        raise UsageError(
            f"{folder}: holds no scan to validate on, expected at least one; make the pack again "
            "with --validation"
        )
    heads = load_training_heads(folder / HEADS)
    for healthy in (False, True):
        drawn = synthetic_scans(
            heads, settings.synthetic_validation, SYNTHETIC_SEED, healthy=healthy
        )
        scans += [JudgedScan(scan, HEALTHY if healthy else SYNTHETIC) for scan in drawn]
    stroke = StrokeSettings()
    return StreamData(
        heads_dir=folder / HEADS,
        real=RealSource(real, device) if real else None,
        stroke=None if arrays is None else StrokeSource(arrays, stroke, device),
        scans=scans,
        infarcts=None if arrays is None else held_out_infarcts(arrays, stroke.infarct_pixels),
        identity={key: pack[key] for key in ("heads", "training", "validation", "stroke")},
    )


class Learner:
    """A network under training, its moving average and its optimiser.

    Parameters
    ----------
    width : str
    settings : StreamSettings
    device : torch.device
    """

    def __init__(self, width: str, settings: StreamSettings, device: torch.device) -> None:
        self.width, self.settings, self.device = width, settings, device
        torch.manual_seed(settings.seed)
        config = {"widths": WIDTHS[width], "outputs": settings.outputs}
        channels_last: Any = {"memory_format": torch.channels_last}
        self.model = build_network("bagau_net", config).to(device, **channels_last)
        self.average = build_network("bagau_net", config).to(device, **channels_last).eval()
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
        self.precision = training_precision(device, self.model, min(settings.crop) // 16)
        self.best_score = -math.inf
        self.threshold = UNCALIBRATED  # at which volumes fitted when it was last judged
        self.initial: dict[str, str] | None = None
        self.losses = torch.zeros((), device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def start_from(self, weights: Path) -> None:
        """Take over weights, widened where they are narrower, with new outputs where they lack.

        Raises
        ------
        UsageError
            If they are of another architecture, or their widths do not divide these.
        """
        network = load_weights(weights)
        card = network.card
        try:
            widen(
                with_outputs(network.model, self.settings.outputs), self.model, self.settings.seed
            )
        except ValueError as error:
            raise UsageError(
                f"--init {weights}: {card.architecture} with {card.config} ({error}); "
                f"expected bagau_net with widths that divide {WIDTHS[self.width]}: give other "
                "weights, or another --width"
            ) from error
        note_lost_calibration(weights, network)
        self.average.load_state_dict(self.model.state_dict())
        self.initial = {"file": weights.name, "sha256": card.sha256}

    def learn(self, batch: Batch, weights: Tensor, rate: float, step: int) -> None:
        """Take one step of the optimiser and of the average; nothing waits for the device."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with reduced(self.device, self.precision):
            logits = self.model(flair=batch.flair, atlas=batch.atlas)
        loss = self._loss(logits, batch, weights)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.clip_norm, foreach=True
        )
        self.finite &= (norm <= LARGEST_NORM) & torch.isfinite(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._move_average(min(self.settings.ema_decay, (1 + step) / (10 + step)))
        self.losses += loss.detach()

    def _loss(self, logits: Tensor, batch: Batch, weights: Tensor) -> Tensor:
        settings = self.settings
        total = torch.zeros((), device=logits.device)
        for number, output in enumerate(settings.outputs):
            one = logits[:, number : number + 1].float()
            loss = tversky_loss(
                one, batch.target, false_negative_weight=weights, output=output
            ) + cross_entropy_loss(one, batch.target, output=output)
            if output == "wmh":
                total = total + loss
                if settings.lesion_weight:
                    missed = missed_lesion_loss(one, batch.target, batch.lesion_share)
                    total = total + settings.lesion_weight * missed
            else:
                total = total + settings.infarct_weight * loss
        return total

    @torch.no_grad()
    def _move_average(self, decay: float) -> None:
        current = self.model.state_dict()
        pairs = [(mine, current[name]) for name, mine in self.average.state_dict().items()]
        floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([m for m, _ in floats], [t for _, t in floats], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_score": self.best_score,
            "threshold": self.threshold,
            "initial": self.initial,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_score, self.threshold = state["best_score"], state["threshold"]
        self.initial = state["initial"]


def with_outputs(model: nn.Module, outputs: Sequence[str]) -> nn.Module:
    """Give a BAGAU-Net the outputs that it lacks; they say no everywhere at first.

    Parameters
    ----------
    model : torch.nn.Module
    outputs : sequence of str
        Of the result, in this order; those that the model has keep their weights.

    Raises
    ------
    ValueError
        If the model is no BAGAU-Net.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "outputs"):
        raise ValueError("the networks differ in more than their widths")
    fields = {**asdict(config), "outputs": tuple(outputs)}
    result = build_network("bagau_net", fields)
    known = config.outputs
    state = dict(model.state_dict())
    weight, bias = state["head.weight"], state["head.bias"]
    new_weight = torch.zeros((len(outputs), *weight.shape[1:]))
    new_bias = torch.full((len(outputs),), _NO)
    for number, output in enumerate(outputs):
        if output in known:
            new_weight[number] = weight[known.index(output)]
            new_bias[number] = bias[known.index(output)]
        else:
            new_weight[number] = 0.01 * torch.randn(
                weight.shape[1:], generator=torch.Generator().manual_seed(number)
            )
    result.load_state_dict({**state, "head.weight": new_weight, "head.bias": new_bias})
    return result.eval()


_NO = -4.0  # logit of a pixel at first: a probability of 0.02


def reduced(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Run the convolutions in this precision."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def any_sizes() -> AbstractContextManager[Any]:
    """Take the first kernels that will do: trying all out for each new size takes far longer."""
    context: AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False
    )
    return context


class StreamTrainer:
    """A streaming training under way.

    Parameters
    ----------
    settings : StreamSettings
    data : StreamData
    output_dir : Path
        Gets ``checkpoint.pt``, ``training.csv``, ``validation.csv``, ``curves.png``, and for each
        width ``<width>-best`` and ``<width>-last`` weights with their cards.
    card : dict
        What the cards say besides what the trainer knows (data, licence).
    device : str
        As ``--device``.
    workers : int
        Processes that draw synthetic slices; 0 to draw on the device.
    checkpoint_seconds : float
    """

    def __init__(
        self,
        settings: StreamSettings,
        data: StreamData,
        output_dir: Path,
        card: Mapping[str, Any],
        *,
        device: torch.device,
        workers: int = 0,
        checkpoint_seconds: float = 900.0,
    ) -> None:
        if (settings.steps is None) == (settings.seconds is None):
            raise UsageError("--steps and --seconds: expected one of them, to say when to end")
        self.settings, self.data, self.output_dir = settings, data, output_dir
        self.card, self.device, self.workers = dict(card), device, workers
        self.checkpoint_seconds = checkpoint_seconds
        self.learners = [Learner(width, settings, device) for width in settings.widths]
        self.ring = SliceStore(settings.ring_slices, device)
        self.generator = torch.Generator(device)
        self.step, self.elapsed = 0, 0.0
        self.used, self.scans_before = 0.0, 0  # synthetic slices used; scans drawn by earlier runs
        self.waited = 0.0
        self._resumed_at = 0.0
        self._started = 0.0

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.settings.steps is not None:
            return min(1.0, self.step / self.settings.steps)
        assert self.settings.seconds is not None
        return min(1.0, self.elapsed / self.settings.seconds)

    def start_from(self, weights: Sequence[Path]) -> None:
        """Take over weights: one file for all widths, or one for each."""
        if len(weights) not in (1, len(self.learners)):
            raise UsageError(
                f"--init: {len(weights)} files for {len(self.learners)} widths; expected one for "
                "all or one for each"
            )
        for number, learner in enumerate(self.learners):
            learner.start_from(weights[number % len(weights)])

    def label_stroke(self, teachers: Sequence[LoadedNetwork]) -> None:
        """Label the slices of stroke patients by the mean probability of networks, as a start.

        Parameters
        ----------
        teachers : sequence of LoadedNetwork
            In evaluation mode.
        """
        if self.data.stroke is None:
            return
        channels_last: Any = {"memory_format": torch.channels_last}
        placed = [one.model.to(self.device, **channels_last) for one in teachers]

        def probability(flair: Tensor, atlas: Tensor) -> Tensor:
            with reduced(self.device, self.learners[0].precision):
                found = [one(flair=flair, atlas=atlas)[:, :1].float().sigmoid() for one in placed]
            return torch.stack(found).mean(0)

        with any_sizes():
            self.data.stroke.label_by(probability, 0.0)
        self._tell_labels(f"{len(placed)} networks")

    def run(self) -> dict[str, float]:
        """Train to the end, or until SIGTERM or SIGINT.

        Returns
        -------
        scores : dict of str to float
            Of the best weights of each width.

        Raises
        ------
        ProcessingError
            If a loss or gradient is not finite, the drawing failed, or a signal stopped the
            training, after its state was saved.
        """
        drawing = Drawing(
            self.data.heads_dir,
            self.ring,
            self.settings.seed,
            self.scans_before,
            self.workers,
        )
        drawing.permit(self.settings.least_slices + self.settings.batch_size)
        drawing.start()
        try:
            with stop_on_signal() as stop:
                self._fill(drawing, stop)
                self._train(drawing, stop)
        finally:
            drawing.stop()
        if stop:
            raise ProcessingError(
                f"stopped by a signal at step {self.step} ({100 * self.progress:.0f} %): go on "
                "with --resume"
            )
        for learner in self.learners:
            self._export(learner, "last", None)
        return {learner.width: learner.best_score for learner in self.learners}

    def _fill(self, drawing: Drawing, stop: list[int]) -> None:
        """Wait for the first synthetic slices."""
        began = time.monotonic()
        while len(self.ring) < self.settings.least_slices and not stop:
            drawing.check()
            time.sleep(0.05)
        log.info(
            "%d synthetic slices in the ring after %.1f s",
            len(self.ring),
            time.monotonic() - began,
        )

    def _train(self, drawing: Drawing, stop: list[int]) -> None:
        settings = self.settings
        relabel = [share for share in settings.relabel_at if share > self.progress]
        validate = [share for share in settings.validate_at if share > self.progress]
        self._started, self._resumed_at = time.monotonic(), self.elapsed
        last_save = time.monotonic()
        mark = (time.monotonic(), self.step)
        while not stop:
            self.elapsed = self._resumed_at + time.monotonic() - self._started
            if validate and self.progress >= validate[0]:
                while validate and self.progress >= validate[0]:
                    validate.pop(0)
                if self.step > mark[1]:
                    mark = self._log(drawing, mark)
                self._validate()
                mark = (time.monotonic(), self.step)
            if relabel and self.progress >= relabel[0]:
                relabel.pop(0)
                self._relabel()
            if self.progress >= 1:
                break
            self._step()
            if self.step % LOG_EVERY == 0:
                mark = self._log(drawing, mark)
            if time.monotonic() - last_save > self.checkpoint_seconds:
                self._check_finite()
                self.save_checkpoint(drawing.drawn)
                last_save = time.monotonic()
            drawing.permit(settings.ring_slices / 2 + self.used / settings.reuse)
        self._check_finite()
        self.save_checkpoint(drawing.drawn)

    def _step(self) -> None:
        settings = self.settings
        self.generator.manual_seed((settings.seed << 32) + self.step)
        batch, weights = self._batch()
        warm = min(1.0, (self.step + 1) / max(settings.warm_up_steps, 1))
        rate = settings.learning_rate * warm * cosine_share(self.progress)
        for learner in self.learners:
            learner.learn(batch, weights, rate, self.step)
        self.step += 1

    def _batch(self) -> tuple[Batch, Tensor]:
        """Slices of all sources, augmented, and the weight of what is missed in each."""
        settings, generator = self.settings, self.generator
        counts = batch_counts(
            settings, self.step, self.data.real is not None, self.data.stroke is not None
        )
        synthetic = self.ring.draw(counts[0], generator)
        self.used += counts[0]
        parts = [synthetic]
        if self.data.real is not None and counts[1]:
            real = self.data.real.draw(counts[1], generator)
            donor = self.ring.draw(counts[1], generator)
            flair, target = transplant(
                real.flair, real.target, donor.target, real.atlas, generator, TransplantSettings()
            )
            share = torch.where(real.target == target, real.lesion_share, donor.lesion_share)
            parts.append(Batch(flair, real.atlas, target, share))
        if self.data.stroke is not None and counts[2]:
            parts.append(self.data.stroke.draw(counts[2], generator))
        joined = Batch.joined(parts)
        flair, guides, target = augment(
            joined.flair,
            torch.cat((joined.atlas, joined.lesion_share), dim=1),
            joined.target,
            settings.crop,
            generator,
            STREAM_AUGMENTATION,
        )
        batch = Batch(
            flair.contiguous(memory_format=torch.channels_last),
            guides[:, :1].contiguous(memory_format=torch.channels_last),
            target,
            guides[:, 1:],
        )
        weights = torch.full((len(batch),), settings.real_false_negative_weight)
        weights[: counts[0]] = settings.synthetic_false_negative_weight
        return batch, weights.to(self.device, non_blocking=True)

    def _relabel(self) -> None:
        """Label the stroke slices by the average of the widest network."""
        if self.data.stroke is None:
            return
        learner = self.learners[0]

        def probability(flair: Tensor, atlas: Tensor) -> Tensor:
            with reduced(self.device, learner.precision):
                return learner.average(flair=flair, atlas=atlas)[:, :1].float().sigmoid()

        with any_sizes():
            self.data.stroke.label_by(probability, learner.threshold - UNCALIBRATED)
        self._tell_labels(f"{learner.width} at {learner.threshold:.2f}")

    def _tell_labels(self, by: str) -> None:
        assert self.data.stroke is not None
        share = float((self.data.stroke.target == WMH).float().mean())
        log.info(
            "step %d: slices of stroke patients labelled by %s, %.2f %% of pixels WMH",
            self.step,
            by,
            100 * share,
        )

    def _judged(self, learner: Learner) -> Verdict:
        with any_sizes():
            average = in_training(learner.average)
            return judge(learner.width, average, self.data.scans, self.data.infarcts, self.device)

    def _validate(self) -> None:
        for learner in self.learners:
            began = time.monotonic()
            verdict = self._judged(learner)
            learner.threshold = verdict.threshold
            append_rows(self.output_dir / VALIDATION, as_rows(self.step, verdict))
            log.info(
                "step %d: %s scores %.4f at %.2f (%.1f s)",
                self.step,
                learner.width,
                verdict.score,
                verdict.threshold,
                time.monotonic() - began,
            )
            if verdict.score > learner.best_score:
                learner.best_score = verdict.score
                self._export(learner, "best", verdict)
        save_curves(self.output_dir)

    def _export(self, learner: Learner, name: str, verdict: Verdict | None) -> None:
        card = {
            **self.card,
            "name": f"{learner.width}-{name}",
            "initial_weights": learner.initial and learner.initial["file"],
            "initial_weights_sha256": learner.initial and learner.initial["sha256"],
            "recipe": {
                **asdict(self.settings),
                "augmentation": asdict(STREAM_AUGMENTATION),
                "transplant": asdict(TransplantSettings()),
                "stroke": asdict(StrokeSettings()),
                "step": self.step,
                "elapsed_seconds": round(self.elapsed, 1),
                "slices_seen": self.step * self.settings.batch_size,
                "device": self.device.type,
            },
        }
        if verdict is not None:
            card["score"] = round(verdict.score, 5)
            card["calibration"] = {
                "threshold": verdict.threshold,
                "by": "volumes of all styles of labels that the training was validated on",
            }
            card["validation"] = as_rows(self.step, verdict)
        path = self.output_dir / f"{learner.width}-{name}.safetensors"
        save_weights(path, learner.average, card)

    def _check_finite(self) -> None:
        for learner in self.learners:
            if not bool(learner.finite):
                remedy = go_on_from(self.output_dir / CHECKPOINT, "a lower --lr")
                raise ProcessingError(
                    f"a loss or gradient of {learner.width} was no number before step "
                    f"{self.step}: training diverged; {remedy}"
                )

    def _log(self, drawing: Drawing, mark: tuple[float, int]) -> tuple[float, int]:
        drawing.check()
        self._check_finite()
        losses = {one.width: float(one.losses) / (self.step - mark[1]) for one in self.learners}
        for learner in self.learners:
            learner.losses.zero_()
        now = time.monotonic()
        seconds = (now - mark[0]) / (self.step - mark[1])
        row = {
            "step": self.step,
            "loss": round(losses[self.learners[0].width], 5),
            "learning_rate": self.learners[0].optimizer.param_groups[0]["lr"],
            "seconds_per_step": round(seconds, 5),
            "synthetic_slices_drawn": self.ring.added,
            "uses_of_a_slice": round(self.used / max(self.ring.added, 1), 2),
            **{f"loss_{width}": round(loss, 5) for width, loss in losses.items()},
        }
        append_rows(self.output_dir / TRAINING, [row])
        log.info(
            "step %d (%.1f %%): %s, %.3f s a step, %d slices drawn, used %.1f times",
            self.step,
            100 * self.progress,
            ", ".join(f"{width} {loss:.4f}" for width, loss in losses.items()),
            seconds,
            self.ring.added,
            row["uses_of_a_slice"],
        )
        return now, self.step

    def save_checkpoint(self, scans_drawn: int) -> None:
        """Write everything that ``--resume`` needs, by an atomic rename."""
        state = {
            "settings": asdict(self.settings),
            "data": dict(self.data.identity),
            "step": self.step,
            "elapsed": self.elapsed,
            "used": self.used,
            "scans_drawn": self.scans_before + scans_drawn,
            "stroke_labels": None if self.data.stroke is None else self.data.stroke.target,
            "learners": {one.width: one.state() for one in self.learners},
        }
        save_state(self.output_dir / CHECKPOINT, state)

    def resume(self) -> None:
        """Go on where the checkpoint of the output folder was saved.

        Synthetic slices are drawn on from where they were.

        Raises
        ------
        UsageError
            If it was made with other settings or on other data.
        """
        path = self.output_dir / CHECKPOINT
        state = load_state(path, self.device)
        refuse_changes(path, "settings", state["settings"], asdict(self.settings), FREE_ON_RESUME)
        refuse_changes(path, "data", state["data"], self.data.identity)
        for learner in self.learners:
            learner.restore(state["learners"][learner.width])
        self.step, self.elapsed = state["step"], state["elapsed"]
        if self.data.stroke is not None:
            self.data.stroke.restore(state["stroke_labels"].cpu().numpy())
        # What is used of new slices is counted anew: the ring is empty.
        self.scans_before = state["scans_drawn"]
        for name in (TRAINING, VALIDATION):
            drop_rows_after(self.output_dir / name, self.step)


def batch_counts(
    settings: StreamSettings, step: int, real: bool, stroke: bool
) -> tuple[int, int, int]:
    """How many slices of a step are synthetic, real and of stroke patients.

    Shares are kept exactly over many steps; what a missing source would give is synthetic.
    """

    def of(share: float, there: bool) -> int:
        per_step = settings.batch_size * share * there
        return math.floor((step + 1) * per_step + 1e-6) - math.floor(step * per_step + 1e-6)

    from_real, from_stroke = of(settings.real_share, real), of(settings.stroke_share, stroke)
    return settings.batch_size - from_real - from_stroke, from_real, from_stroke


def device_of(name: str) -> torch.device:
    """Device of a training, with its faster kernels chosen where sizes stay the same."""
    device = choose_device(name)
    torch.backends.cudnn.benchmark = True
    return device
