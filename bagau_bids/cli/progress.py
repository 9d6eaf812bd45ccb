"""Which scan is at which step and how long it will take: a display on a terminal, else lines."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table


class TimeLeft:
    """Estimate of the time left from the steps that are done.

    Steps take very different times, so each counts by its mean duration so far; one that was
    never finished counts as the mean of the others.

    Parameters
    ----------
    n_scans
        Scans to process.
    steps
        Names of the steps of one scan.
    """

    def __init__(self, n_scans: int, steps: tuple[str, ...]) -> None:
        self._n_scans = n_scans
        self._durations: dict[str, list[float]] = {step: [] for step in steps}
        self._skipped: dict[str, int] = defaultdict(int)

    def step_done(self, step: str, seconds: float) -> None:
        """Count a step as done; one of 0 s was done in an earlier run and says nothing."""
        if seconds > 0:
            self._durations.setdefault(step, []).append(seconds)
        else:
            self._skipped[step] += 1

    def scan_failed(self, done: set[str]) -> None:
        """Count the steps that a failed scan will never reach, all but those in ``done``."""
        for step in self._durations.keys() - done:
            self._skipped[step] += 1

    def left_s(self, elapsed_s: float) -> float | None:
        """Return the seconds left after ``elapsed_s``; None while nothing is known."""
        means = {
            step: sum(seconds) / len(seconds)
            for step, seconds in self._durations.items()
            if seconds
        }
        if not means or sum(means.values()) == 0:
            return None
        typical = sum(means.values()) / len(means)
        done = total = 0.0
        for step, seconds in self._durations.items():
            weight = means.get(step, typical)
            done += weight * len(seconds)
            total += weight * (self._n_scans - self._skipped[step])
        return elapsed_s * max(total - done, 0.0) / done


class Progress(AbstractContextManager["Progress"]):
    """What the workflow tells while it runs, and the lines or display made of it.

    Parameters
    ----------
    n_scans
        Scans to process.
    steps
        Names of the steps of one scan, in order.
    console
        Where to show it; a display if it is a terminal, else one line for each event.
    check
        Called at every event; raises to stop the run.
    begun
        Called once, when the first step begins; not where all results are there already.
    finished
        Called with the stem of a scan once all its outputs are written.
    called
        What a person calls scans, by their stems; by default by these.
    """

    def __init__(
        self,
        n_scans: int,
        steps: tuple[str, ...],
        console: Console,
        check: Callable[[], None] = lambda: None,
        begun: Callable[[], None] = lambda: None,
        finished: Callable[[str], None] = lambda scan: None,
        called: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._n_scans = n_scans
        self._steps = steps
        self._console = console
        self._check = check
        self._begun: Callable[[], None] | None = begun
        self._finished = finished
        self._called = called
        self._estimate = TimeLeft(n_scans, steps)
        self._started_s = time.monotonic()
        self._running: dict[str, dict[str, float]] = {}
        self._done_steps: dict[str, set[str]] = defaultdict(set)
        self._n_ended = 0
        self._n_failed = 0
        self._live = (
            Live(
                console=console, get_renderable=self._display, refresh_per_second=2, transient=True
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        """Begin the display."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display."""
        if self._live:
            self._live.stop()

    def scan_started(self, scan: str) -> None:
        """Say that work on a scan, known by its stem, begins."""
        self._check()
        if scan not in self._running:
            self._running[scan] = {}
            self._line(scan, "started")

    def step_started(self, scan: str, step: str) -> None:
        """Say that a step of a scan begins."""
        self.scan_started(scan)
        if self._begun is not None:
            self._begun()
            self._begun = None
        self._running[scan][step] = time.monotonic()

    def step_finished(self, scan: str, step: str, seconds: float) -> None:
        """Say that a step of a scan is done and how long it took; 0 if it was done before."""
        self.scan_started(scan)
        self._running[scan].pop(step, None)
        self._done_steps[scan].add(step)
        self._estimate.step_done(step, seconds)
        place = f"{len(self._done_steps[scan])}/{len(self._steps)}"
        how = f"done in {duration(seconds)}" if seconds > 0 else "done in an earlier run"
        self._line(scan, f"{_words(step)} {how} (step {place})")

    def scan_finished(self, scan: str) -> None:
        """Say that all outputs of a scan are written."""
        self._end(scan)
        self._line(scan, f"done{self._left()}", always=True)
        self._finished(scan)

    def scan_failed(self, scan: str, reason: str) -> None:
        """Say that a scan failed and why."""
        self._check()
        self._end(scan)
        self._n_failed += 1
        self._estimate.scan_failed(self._done_steps[scan])
        self._line(scan, f"FAILED: {reason}{self._left()}", always=True)

    def _end(self, scan: str) -> None:
        self._running.pop(scan, None)
        self._n_ended += 1

    def _line(self, scan: str, text: str, *, always: bool = False) -> None:
        """Print a line; on a terminal only those that stay worth knowing."""
        if self._live is None or always:
            name = self._called.get(scan, scan)
            counted = f"[{self._n_ended}/{self._n_scans}] {name}: {text}"
            self._console.print(counted, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        if self._n_ended == self._n_scans:
            return ""
        seconds = self._estimate.left_s(time.monotonic() - self._started_s)
        return "" if seconds is None else f"; about {duration(seconds)} left"

    def _display(self) -> Table:
        now = time.monotonic()
        failed = f", {self._n_failed} failed" if self._n_failed else ""
        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"{self._n_ended}/{self._n_scans} scans{failed}",
            duration(now - self._started_s) + self._left(),
        )
        for scan, steps in list(self._running.items()):  # other thread than that of the events
            working = ", ".join(
                f"{_words(step)} {duration(now - begun)}" for step, begun in list(steps.items())
            )
            share = 100 * len(self._done_steps[scan]) // len(self._steps)
            name = self._called.get(scan, scan)
            table.add_row(f"  {name}  {share} %", working or "waiting")
        return table


def _words(step: str) -> str:
    return step.replace("_", " ")


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
