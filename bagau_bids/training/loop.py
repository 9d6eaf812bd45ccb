"""The loop under every training: resumable to the step, judged on the way, stopped by a signal.

A training is a subclass of :class:`Trainer` that says what it draws, what it loses and how it is
judged. What step number s computes depends on the settings, the data and s alone, so a training
that was stopped goes on as if it had not been.
"""

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.cards import UNCALIBRATED
from bagau_bids.network.weights import architecture_of, load_weights, save_weights
from bagau_bids.training.calibration import note_lost_calibration
from bagau_bids.training.checkpoint import CHECKPOINT, load_state, refuse_changes, save_state
from bagau_bids.training.curves import (
    TRAINING,
    VALIDATION,
    append_rows,
    drop_rows_after,
    rounded,
    save_curves,
)
from bagau_bids.training.optimisation import (
    LARGEST_NORM,
    average_decay,
    cosine_share,
    finite_gradient_norm,
    finite_loss,
    go_on_from,
    move_average,
    stop_on_signal,
)
from bagau_bids.training.settings import LoopSettings
from bagau_bids.training.widening import widen

log = logging.getLogger(__name__)


class Learner:
    """A network under training, its optimiser, and the moving average that is judged.

    Parameters
    ----------
    name : str
        Tells it from others that learn from the same batches.
    model : torch.nn.Module
        On its device.
    optimizer : torch.optim.Optimizer
        Of the model's parameters.
    ema_decay : float
        Share of the average that stays at each step, once it has warmed up; 0: no average.
    ema_start : int
        As in :func:`bagau_bids.training.optimisation.average_decay`.
    clip_norm : float
        Longer gradients are shortened to this.
    patient : bool
        Whether a loss or gradient that is none is told when the log is written, so that nothing
        waits for the device, or before it is learned.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ema_decay: float,
        ema_start: int = 10,
        clip_norm: float = math.inf,
        patient: bool = False,
    ) -> None:
        self.name, self.model, self.optimizer = name, model, optimizer
        self.ema_decay, self.ema_start = ema_decay, ema_start
        self.clip_norm, self.patient = clip_norm, patient
        self.average = copy.deepcopy(model).eval() if ema_decay else None
        self.device = next(model.parameters()).device
        self.best_score = -math.inf
        self.threshold = UNCALIBRATED  # at which volumes fitted when it was last judged
        self.initial: dict[str, str] | None = None  # file and SHA-256 of the first weights
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)

    @property
    def judged(self) -> nn.Module:
        """The average, or the network itself where there is none."""
        return self.model if self.average is None else self.average

    def take_over(self, weights: Path, network: nn.Module, sha256: str, seed: int) -> None:
        """Start from another network, widened where it is narrower.

        Raises
        ------
        ValueError
            If they differ in more than their widths, or these do not divide its own.
        """
        widen(network, self.model, seed)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        self.initial = {"file": weights.name, "sha256": sha256}

    def learn(self, losses: Iterable[Tensor], rate: float, step: int, remedy: str) -> None:
        """Take one step of the optimiser and of the average.

        Parameters
        ----------
        losses : iterable of scalar tensors
            Each is forgotten before the next is asked for; their sum is learned.
        rate : float
            Learning rate.
        step : int
        remedy : str
            What to do where the sum or its gradient is no number.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros_like(self.loss_sum)
        for loss in losses:
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if not self.patient:  # a clip makes any gradient short, also one that is none
            finite_loss(float(total), step, remedy)
            finite_gradient_norm(float(norm), step, remedy)
        self.finite &= (norm <= LARGEST_NORM) & torch.isfinite(total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            decay = average_decay(step, self.ema_decay, self.ema_start)
            move_average(self.average, self.model, decay)
        self.loss_sum += total

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_score": self.best_score,
            "threshold": self.threshold,
            "initial": self.initial,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_score, self.threshold = state["best_score"], state["threshold"]
        self.initial = state["initial"]


@dataclass(frozen=True)
class Judged:
    """What a validation found of one network.

    Parameters
    ----------
    score : float
        The higher, the better.
    text : str
        For the log.
    rows : sequence of dataclasses
        Of ``validation.csv``, without the step.
    facts : mapping
        For the card of weights that are kept, besides the rows.
    """

    score: float
    text: str
    rows: Sequence[Any] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """A training under way; subclasses say what is drawn, lost and judged.

    Parameters
    ----------
    settings : dataclass
        Of what is computed.
    loop : LoopSettings
    learners : sequence of Learner
        All learn from the same batches.
    identity : mapping
        Of the data, by part, as a checkpoint can hold it.
    output_dir : Path
        Gets ``checkpoint.pt``, ``training.csv``, ``validation.csv``, ``curves.png``, and
        ``best`` and ``last`` weights with their cards, and ``step-N`` where validated weights
        are kept.
    card : mapping
        What the cards say besides what the trainer knows (data, licence).
    """

    free_on_resume: ClassVar[tuple[str, ...]] = ("steps",)  # settings that may be others then
    next_try: ClassVar[str]  # what to do otherwise where a training diverged
    settings: Any

    def __init__(
        self,
        settings: Any,
        loop: LoopSettings,
        learners: Sequence[Learner],
        identity: Mapping[str, Any],
        output_dir: Path,
        card: Mapping[str, Any],
    ) -> None:
        self.settings, self.loop, self.learners = settings, loop, list(learners)
        self.identity, self.output_dir, self.card = dict(identity), output_dir, dict(card)
        self.device = self.learners[0].device
        self.total_steps: int | None = settings.steps
        self.warm_up_steps = 0
        self.step, self.elapsed = 0, 0.0
        self.waited = 0.0  # seconds for slices since the last line of the log
        self.stop: list[int] = []  # signals that came
        self._logged = (0, 0.0)  # step and time of the last line of the log

    # --- what a training says of itself

    def draw(self) -> Any:
        """Give the batch of the step."""
        raise NotImplementedError

    def losses(self, learner: Learner, batch: Any) -> Iterable[Tensor]:
        """Give the losses of a batch, or those of its parts, one after another."""
        raise NotImplementedError

    def judge(self, learner: Learner) -> Judged:
        """Measure a network by what it does not learn from."""
        raise NotImplementedError

    def adapt(self, network: nn.Module, learner: Learner) -> nn.Module:
        """Fit a network to be taken over; ValueError where it is another than the learner's."""
        return network

    def recipe(self) -> dict[str, Any]:
        """Say what the cards of weights tell of the recipe besides settings and step."""
        return {"total_steps": self.total_steps}

    def notes(self) -> dict[str, Any]:
        """Further columns of ``training.csv``."""
        return {}

    def feeding(self) -> AbstractContextManager[Any]:
        """Have something beside the loop that batches come from."""
        return nullcontext()

    def due(self, before: float) -> bool:
        """Whether to judge now, after a step that began at a progress of `before`."""
        return self.step % self.loop.validate_every == 0 or self.progress >= 1

    def after_step(self, before: float) -> None:
        """Do what is due besides, after a step that began at a progress of `before`."""

    def state(self) -> dict[str, Any]:
        """Give what a resumed training needs besides learners, step and time."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""

    # --- the loop

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        assert self.total_steps is not None
        return min(1.0, self.step / self.total_steps)

    @property
    def position(self) -> str:
        """Where it is, for messages."""
        return f"step {self.step} of {self.total_steps}"

    def rate(self) -> float:
        """Learning rate: a linear warm-up, then half a cosine down to a hundredth."""
        warm = min(1.0, (self.step + 1) / max(self.warm_up_steps, 1))
        share = cosine_share(self.progress)
        rate: float = self.settings.learning_rate * warm * share
        return rate

    def run(self) -> None:
        """Train to the end, or until SIGTERM or SIGINT.

        Raises
        ------
        ProcessingError
            If a loss or gradient is no longer finite: what was saved before stays. If a signal
            stopped the training, after its state was saved.
        """
        with stop_on_signal() as self.stop, self.feeding():
            self._restart_clock()
            began, saved = time.monotonic() - self.elapsed, time.monotonic()
            while self.progress < 1 and not self.stop:
                before = self.progress
                self.train_step()
                self.elapsed = time.monotonic() - began
                judged = self.due(before)
                if judged or self.step % self.loop.log_every == 0:
                    self.write_log()
                if judged:
                    self.validate()
                self.after_step(before)
                if time.monotonic() - saved > self.loop.checkpoint_seconds or judged:
                    self.save_checkpoint()
                    saved = time.monotonic()
            self.save_checkpoint()
        if self.stop:
            raise ProcessingError(f"stopped by a signal at {self.position}: go on with --resume")
        for learner in self.learners:
            self.export(learner, "last")

    def train_step(self) -> None:
        """Draw a batch and have all networks learn from it."""
        began = time.monotonic()
        batch, rate = self.draw(), self.rate()
        self.waited += time.monotonic() - began
        remedy = go_on_from(self.output_dir / CHECKPOINT, self.next_try)
        for learner in self.learners:
            learner.learn(self.losses(learner, batch), rate, self.step, remedy)
        self.step += 1

    def write_log(self) -> None:
        """Write a line of ``training.csv`` and of the log: what was since the last one."""
        self.check_finite()
        steps = self.step - self._logged[0]
        losses = {one.name: float(one.loss_sum) / steps for one in self.learners}
        for learner in self.learners:
            learner.loss_sum.zero_()
        seconds = time.monotonic() - self._logged[1]
        self.record(losses, seconds / steps, self.waited / max(seconds, 1e-9))
        self._restart_clock()

    def record(
        self, losses: Mapping[str, float], seconds_per_step: float, waiting_share: float
    ) -> None:
        """Put mean losses, and what of the time was spent until slices were there, on record."""
        row = {
            "step": self.step,
            "loss": losses[self.learners[0].name],
            "learning_rate": self.rate(),
            "seconds_per_step": seconds_per_step,
            "waiting_share": round(waiting_share, 4),
            **self.notes(),
            **({f"loss_{k}": v for k, v in losses.items()} if len(losses) > 1 else {}),
        }
        append_rows(self.output_dir / TRAINING, [row])
        shown = (f"{losses[one.name]:.4f} ({one.name})" for one in self.learners)
        log.info(
            "%s: loss %s, %.3f s a step, %.1f %% of it for slices to come",
            self.position,
            ", ".join(shown),
            seconds_per_step,
            100 * waiting_share,
        )

    def _restart_clock(self) -> None:
        self._logged, self.waited = (self.step, time.monotonic()), 0.0

    def check_finite(self) -> None:
        """Make sure that nothing was learned that is no number."""
        for learner in self.learners:
            if not bool(learner.finite):
                remedy = go_on_from(self.output_dir / CHECKPOINT, self.next_try)
                raise ProcessingError(
                    f"a loss or gradient of {learner.name} was no number before step "
                    f"{self.step}: training diverged; {remedy}"
                )

    def validate(self) -> None:
        """Judge all networks, and keep the weights of the best score of each."""
        for learner in self.learners:
            found = self.judge(learner)
            rows = [rounded(asdict(row)) for row in found.rows]
            append_rows(self.output_dir / VALIDATION, [{"step": self.step, **row} for row in rows])
            log.info("step %d: %s", self.step, found.text)
            facts = {**found.facts, "validation": rows}
            if self.loop.keep_validated:
                self.export(learner, f"step-{self.step:06d}", facts)
            if found.score > learner.best_score:
                learner.best_score = found.score
                self.export(learner, "best", facts)
        save_curves(self.output_dir)
        self._restart_clock()

    def weights_path(self, learner: Learner, name: str) -> Path:
        """Where weights of a network are kept."""
        return self.output_dir / f"{name}.safetensors"

    def export(self, learner: Learner, name: str, facts: Mapping[str, Any] | None = None) -> None:
        """Write the weights that are judged, with a card that holds these facts."""
        card = {
            **self.card,
            "initial_weights": learner.initial and learner.initial["file"],
            "initial_weights_sha256": learner.initial and learner.initial["sha256"],
            "recipe": {**asdict(self.settings), "step": self.step, **self.recipe()},
            "validation": [],
            **(facts or {}),
        }
        save_weights(self.weights_path(learner, name), learner.judged, card)

    # --- where it starts

    def start_from(self, weights: Sequence[Path]) -> None:
        """Take over weights, widened where narrower: one file for all networks, or one for each.

        Raises
        ------
        UsageError
            If they are of another architecture, or their widths do not divide these.
        """
        for learner, path in self._paired(weights):
            network = load_weights(path)
            card = network.card
            try:
                adapted = self.adapt(network.model, learner)
                learner.take_over(path, adapted, card.sha256, self.settings.seed)
            except ValueError as error:
                raise UsageError(
                    f"--init {path}: {card.architecture} with {card.config} ({error}); "
                    f"expected {architecture_of(learner.model)} with {learner.model.config}, or "
                    "with widths that divide these: give other weights, or change --width, "
                    "--architecture or --ablation"
                ) from error
            note_lost_calibration(path, network)

    def _paired(self, weights: Sequence[Path]) -> list[tuple[Learner, Path]]:
        if len(weights) not in (1, len(self.learners)):
            raise UsageError(
                f"--init: {len(weights)} files for {len(self.learners)} widths; expected one for "
                "all or one for each"
            )
        return [(one, weights[n % len(weights)]) for n, one in enumerate(self.learners)]

    def save_checkpoint(self) -> None:
        """Write everything that ``--resume`` needs, by an atomic rename."""
        self.check_finite()
        state = {
            "settings": asdict(self.settings),
            "data": self.identity,
            "step": self.step,
            "elapsed": self.elapsed,
            "learners": {one.name: one.state() for one in self.learners},
            **self.state(),
        }
        save_state(self.output_dir / CHECKPOINT, state)

    def resume(self, weights: Sequence[Path] = ()) -> None:
        """Go on where the checkpoint of the output folder was saved.

        Parameters
        ----------
        weights : sequence of Path
            Those that the training is said to have started from; none for those that the
            checkpoint names.

        Raises
        ------
        UsageError
            If it was made with other settings, on other data, from other weights, or by another
            version.
        """
        path = self.output_dir / CHECKPOINT
        state = load_state(path, self.device)
        if "learners" not in state:
            raise UsageError(
                f"{path}: the state of a training of another version, expected one of this; train "
                "into another folder, from its weights with --init where the command has it"
            )
        then = asdict(type(self.settings)()) | state["settings"]  # older ones lack some settings
        refuse_changes(path, "settings", then, asdict(self.settings), self.free_on_resume)
        refuse_changes(path, "data", state["data"], self.identity)
        for learner in self.learners:
            learner.restore(state["learners"][learner.name])
        for learner, given in self._paired(weights) if weights else ():
            was = {"SHA-256": learner.initial and learner.initial["sha256"]}
            now = {"SHA-256": load_weights(given).card.sha256}
            refuse_changes(path, "initial weights", was, now)
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.restore(state)
        for name in (TRAINING, VALIDATION):
            drop_rows_after(self.output_dir / name, self.step)
