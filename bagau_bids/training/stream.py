"""Streaming training: synthetic slices drawn while it trains, everything else on the device.

Networks of several widths may learn from the same batches. A training ends after a number of
steps or of seconds, and is judged by :mod:`bagau_bids.training.judging` on the way.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from bagau_bids.errors import UsageError
from bagau_bids.network.cards import INFARCT, UNCALIBRATED
from bagau_bids.network.inference import choose_device
from bagau_bids.network.weights import LoadedNetwork, build_network, in_training
from bagau_bids.synthesis.heads import load_training_heads
from bagau_bids.synthesis.pool import WMH
from bagau_bids.training.augmentation import (
    STREAM_AUGMENTATION,
    TransplantSettings,
    augment,
    transplant,
)
from bagau_bids.training.drawing import Drawing
from bagau_bids.training.judging import (
    HEALTHY,
    SYNTHETIC,
    InfarctSlices,
    JudgedScan,
    held_out_infarcts,
    judge,
    synthetic_scans,
)
from bagau_bids.training.loop import Judged, Learner, Trainer
from bagau_bids.training.losses import cross_entropy_loss, missed_lesion_loss, tversky_loss
from bagau_bids.training.optimisation import reduced, training_precision
from bagau_bids.training.pack import HEADS, read_pack_file, read_real, read_stroke, read_validation
from bagau_bids.training.settings import WIDTHS, LoopSettings, StreamSettings
from bagau_bids.training.sources import (
    Batch,
    RealSource,
    SliceStore,
    StrokeSettings,
    StrokeSource,
)

SYNTHETIC_SEED = 977  # of the scans to judge by; no scan to train on has it

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
    pack = msgspec.to_builtins(read_pack_file(folder))
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
    wmh, doubtful = settings.label_levels
    stroke = StrokeSettings(wmh=wmh, doubtful=doubtful)
    return StreamData(
        heads_dir=folder / HEADS,
        real=RealSource(real, device) if real else None,
        stroke=None if arrays is None else StrokeSource(arrays, stroke, device),
        scans=scans,
        infarcts=None if arrays is None else held_out_infarcts(arrays, stroke.infarct_pixels),
        identity={key: pack[key] for key in ("heads", "training", "validation", "stroke")},
    )


def learner_of(width: str, settings: StreamSettings, device: torch.device) -> Learner:
    """Make an untrained network of a width that learns."""
    torch.manual_seed(settings.seed)
    config = {"widths": WIDTHS[width], "outputs": settings.outputs}
    channels_last: Any = {"memory_format": torch.channels_last}
    model = build_network("bagau_net", config).to(device, **channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    return Learner(
        width,
        model,
        optimizer,
        ema_decay=settings.ema_decay,
        clip_norm=settings.clip_norm,
        patient=True,
    )


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


def any_sizes() -> AbstractContextManager[Any]:
    """Take the first kernels that will do: trying all out for each new size takes far longer."""
    context: AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False
    )
    return context


class StreamTrainer(Trainer):
    """A streaming training under way.

    Parameters
    ----------
    settings : StreamSettings
    loop : LoopSettings
        With the number of processes that draw synthetic slices; 0 to draw on the device.
    data : StreamData
    output_dir : Path
        See :class:`bagau_bids.training.loop.Trainer`; names of weights begin with their width.
    card : mapping
        What the cards say besides what the trainer knows (data, licence).
    device : torch.device
        Where `data` are.
    """

    free_on_resume = ("steps", "seconds", "validate_at", "ring_slices", "least_slices")
    next_try = "a lower --lr"
    settings: StreamSettings

    def __init__(
        self,
        settings: StreamSettings,
        loop: LoopSettings,
        data: StreamData,
        output_dir: Path,
        card: Mapping[str, Any],
        *,
        device: torch.device,
    ) -> None:
        if (settings.steps is None) == (settings.seconds is None):
            raise UsageError("--steps and --seconds: expected one of them, to say when to end")
        learners = [learner_of(width, settings, device) for width in settings.widths]
        super().__init__(settings, loop, learners, data.identity, output_dir, card)
        self.data, self.warm_up_steps = data, settings.warm_up_steps
        self.precision = training_precision(device, learners[0].model, min(settings.crop) // 16)
        self.ring = SliceStore(settings.ring_slices, device)
        self.generator = torch.Generator(device)
        self.used, self.scans_before = 0.0, 0  # synthetic slices used; scans drawn by earlier runs
        self.drawing: Drawing | None = None

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.settings.seconds is None:
            return super().progress
        return min(1.0, self.elapsed / self.settings.seconds)

    @property
    def position(self) -> str:
        """Where it is, for messages."""
        return f"step {self.step} ({100 * self.progress:.0f} %)"

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
            with reduced(self.device, self.precision):
                found = [one(flair=flair, atlas=atlas)[:, :1].float().sigmoid() for one in placed]
            return torch.stack(found).mean(0)

        with any_sizes():
            self.data.stroke.label_by(probability, 0.0)
        self._tell_labels(f"{len(placed)} networks")

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Draw synthetic slices beside the loop, and begin with some."""
        self.drawing = Drawing(
            self.data.heads_dir,
            self.ring,
            self.settings.seed,
            self.scans_before,
            self.loop.workers or 0,
        )
        self.drawing.permit(self.settings.least_slices + self.settings.batch_size)
        self.drawing.start()
        try:
            self._fill(self.drawing)
            yield
        finally:
            self.drawing.stop()

    def _fill(self, drawing: Drawing) -> None:
        """Wait for the first synthetic slices."""
        began = time.monotonic()
        while len(self.ring) < self.settings.least_slices and not self.stop:
            drawing.check()
            time.sleep(0.05)
        log.info(
            "%d synthetic slices in the ring after %.1f s",
            len(self.ring),
            time.monotonic() - began,
        )

    def after_step(self, before: float) -> None:
        """Label slices of stroke patients anew where it is time, and let more slices be drawn."""
        if self._passed(self.settings.relabel_at, before):
            self._relabel()
        assert self.drawing is not None
        self.drawing.permit(self.settings.ring_slices / 2 + self.used / self.settings.reuse)

    def due(self, before: float) -> bool:
        """Judge at shares of the training."""
        return self._passed(self.settings.validate_at, before)

    def _passed(self, shares: Sequence[float], before: float) -> bool:
        return any(before < share <= self.progress for share in shares)

    def draw(self) -> tuple[Batch, Tensor]:
        """Slices of all sources, augmented, and the weight of what is missed in each."""
        settings, generator = self.settings, self.generator
        generator.manual_seed((settings.seed << 32) + self.step)
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

    def losses(self, learner: Learner, batch: tuple[Batch, Tensor]) -> Iterator[Tensor]:
        """Loss of the batch, over all outputs."""
        slices, weights = batch
        with reduced(self.device, self.precision):
            logits = learner.model(flair=slices.flair, atlas=slices.atlas)
        settings = self.settings
        total = torch.zeros((), device=logits.device)
        for number, output in enumerate(settings.outputs):
            one = logits[:, number : number + 1].float()
            loss = tversky_loss(
                one, slices.target, false_negative_weight=weights, output=output
            ) + cross_entropy_loss(one, slices.target, output=output)
            if output == "wmh":
                total = total + loss
                if settings.lesion_weight:
                    missed = missed_lesion_loss(one, slices.target, slices.lesion_share)
                    total = total + settings.lesion_weight * missed
            else:
                total = total + settings.infarct_weight * loss
        yield total

    def _relabel(self) -> None:
        """Label the stroke slices by the average of the widest network."""
        if self.data.stroke is None:
            return
        learner = self.learners[0]

        def probability(flair: Tensor, atlas: Tensor) -> Tensor:
            with reduced(self.device, self.precision):
                return learner.judged(flair=flair, atlas=atlas)[:, :1].float().sigmoid()

        with any_sizes():
            self.data.stroke.label_by(probability, learner.threshold - UNCALIBRATED)
        self._tell_labels(f"{learner.name} at {learner.threshold:.2f}")

    def _tell_labels(self, by: str) -> None:
        assert self.data.stroke is not None
        share = float((self.data.stroke.target == WMH).float().mean())
        log.info(
            "step %d: slices of stroke patients labelled by %s, %.2f %% of pixels WMH",
            self.step,
            by,
            100 * share,
        )

    def judge(self, learner: Learner) -> Judged:
        """Segment everything that is there to judge by."""
        with any_sizes():
            network = in_training(learner.judged)
            verdict = judge(
                learner.name, network, self.data.scans, self.data.infarcts, self.device
            )
        point = verdict.calibration
        learner.threshold = point.threshold
        told = {"infarct_threshold": point.infarct_threshold} if INFARCT in network.outputs else {}
        calibration = {
            "threshold": point.threshold,
            **told,
            "by": "volumes of all styles of labels that the training was validated on",
        }
        return Judged(
            verdict.score,
            f"{learner.name} scores {verdict.score:.4f} at {point.threshold:.2f}",
            verdict.lines,
            {"score": round(verdict.score, 5), "calibration": calibration},
        )

    def adapt(self, network: nn.Module, learner: Learner) -> nn.Module:
        """Give a network the outputs that it lacks."""
        return with_outputs(network, self.settings.outputs)

    def weights_path(self, learner: Learner, name: str) -> Path:
        """Where weights of a width are kept."""
        return self.output_dir / f"{learner.name}-{name}.safetensors"

    def recipe(self) -> dict[str, Any]:
        """How slices are varied, and what was trained for how long."""
        return {
            "augmentation": asdict(STREAM_AUGMENTATION),
            "transplant": asdict(TransplantSettings()),
            "stroke": None if self.data.stroke is None else asdict(self.data.stroke.settings),
            "elapsed_seconds": round(self.elapsed, 1),
            "slices_seen": self.step * self.settings.batch_size,
            "device": self.device.type,
        }

    def notes(self) -> dict[str, Any]:
        """How many slices were drawn, and how often they were used."""
        assert self.drawing is not None
        self.drawing.check()
        return {
            "synthetic_slices_drawn": self.ring.added,
            "uses_of_a_slice": round(self.used / max(self.ring.added, 1), 2),
        }

    def state(self) -> dict[str, Any]:
        """How many scans were drawn, and the labels of slices of stroke patients."""
        drawn = 0 if self.drawing is None else self.drawing.drawn
        return {
            "scans_drawn": self.scans_before + drawn,
            "stroke_labels": None if self.data.stroke is None else self.data.stroke.target,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Draw synthetic slices on from where they were; their use is counted anew."""
        if self.data.stroke is not None:
            self.data.stroke.restore(state["stroke_labels"].cpu().numpy())
        self.scans_before = state["scans_drawn"]


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
