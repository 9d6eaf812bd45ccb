"""What became of each scan: nipype is listened to, the progress told, failures explained."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bagau_bids.bids.scans import Scan
from bagau_bids.disk import FULL_WORDS, full_disk_message, nearly_full
from bagau_bids.errors import UsageError
from bagau_bids.files import read_json
from bagau_bids.workflow.plugins import KILLED
from bagau_bids.workflow.step import FAILURE_FILE, StepFailure

if TYPE_CHECKING:
    from nipype.pipeline import engine as pe


class Progress(Protocol):
    """What is told of the run while it lasts; a scan is named by its stem."""

    def step_started(self, scan: str, step: str) -> None:
        """Say that a step begins."""

    def step_finished(self, scan: str, step: str, seconds: float) -> None:
        """Say that a step is done; one whose result was there already takes 0 s."""

    def scan_finished(self, scan: str) -> None:
        """Say that all outputs of a scan are written."""

    def scan_failed(self, scan: str, reason: str) -> None:
        """Say that a scan failed and why."""


@dataclass(frozen=True)
class ScanOutcome:
    """What became of one scan.

    Attributes
    ----------
    scan
        The scan.
    ok
        Whether all its outputs are written.
    reason
        Why not, in the words of the error; empty if ok.
    step
        The step that failed; empty if none had begun.
    crash_file
        Where the details are, if there are any.
    elsewhere
        Whether another run works on it, whose business its results are.
    """

    scan: Scan
    ok: bool
    reason: str = ""
    step: str = ""
    crash_file: Path | None = None
    elsewhere: bool = False


@dataclass
class _Trouble:
    """A node that raised: where to read why."""

    step: str
    full_name: str
    node_dir: Path
    crash_dir: Path


class Tracker:
    """Listens to nipype, tells the progress, and knows in the end what became of each scan."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._scans: dict[str, Scan] = {}
        self._started: dict[str, float] = {}
        self._troubles: dict[Scan, _Trouble] = {}
        self._killed: list[Scan] = []
        self._done: set[Scan] = set()
        self.failed: dict[Scan, ScanOutcome] = {}
        self.raise_signal: Callable[[], None] = lambda: None

    @property
    def saw_exception(self) -> bool:
        """Whether any node raised."""
        return bool(self._troubles or self._killed or self.failed)

    def watch(self, workflows: Mapping[Scan, "pe.Workflow"]) -> None:
        """Learn which workflow belongs to which scan."""
        self._scans = {workflow.name: scan for scan, workflow in workflows.items()}

    def status(self, node: Any, status: str) -> None:
        """Take note of what nipype says of a node: ``start``, ``end`` or ``exception``."""
        scan = self._scans[node.fullname.split(".")[1]]
        if status == "exception":
            try:
                self.raise_signal()
            except BaseException:
                _forget_crash(_trouble_of(node))
                raise
        if scan in self._troubles or scan in self.failed:
            return  # nipype's Linear plugin reports the end of nodes that it skipped
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            self._progress.step_started(scan.stem, node.name)
        elif status == "end":
            started = self._started.pop(node.fullname, None)
            seconds = 0.0 if started is None else time.monotonic() - started
            self._progress.step_finished(scan.stem, node.name, seconds)
            if node.interface.ends_scan:
                self._done.add(scan)
                self._progress.scan_finished(scan.stem)
        else:
            self._troubles[scan] = _trouble_of(node)

    def settle(self, scans: Iterable[Scan]) -> None:
        """Find out why scans failed, now that their crash files are written."""
        for scan in scans:
            trouble = self._troubles.pop(scan, None)
            if trouble is None:
                continue
            crash_file = _crash_file(trouble)
            text = crash_file.read_text(errors="replace") if crash_file else ""
            if KILLED in text:
                self._killed.append(scan)
                continue
            self.fail(scan, _reason(trouble, text, crash_file), trouble.step, crash_file)

    def take_killed(self) -> list[Scan]:
        """Return the scans that a killed worker took down, and forget them."""
        killed, self._killed = self._killed, []
        return killed

    def fail(
        self, scan: Scan, reason: str, step: str = "", crash_file: Path | None = None
    ) -> None:
        """Count a scan as failed."""
        self.failed[scan] = ScanOutcome(scan, False, reason, step, crash_file)
        self._progress.scan_failed(scan.stem, reason)

    def leave(self, scan: Scan, reason: str) -> None:
        """Leave a scan to another run."""
        self.failed[scan] = ScanOutcome(scan, False, reason, elsewhere=True)
        self._progress.scan_failed(scan.stem, reason)

    def result(self, scan: Scan) -> ScanOutcome:
        """Tell what became of a scan."""
        if scan in self._done:
            return ScanOutcome(scan, True)
        if scan in self.failed:
            return self.failed[scan]
        return ScanOutcome(scan, False, "not processed: the run stopped at another scan's failure")


def _trouble_of(node: Any) -> _Trouble:
    return _Trouble(
        step=node.name,
        full_name=node.fullname,
        node_dir=Path(node.output_dir()),
        crash_dir=Path(node.config["execution"]["crashdump_dir"]),
    )


def _forget_crash(trouble: _Trouble) -> None:
    """Remove the file that nipype leaves of a step that was only asked to stop."""
    crash_file = _crash_file(trouble)
    if crash_file is not None:
        crash_file.unlink(missing_ok=True)
    with suppress(OSError):  # it may hold files of other steps
        trouble.crash_dir.rmdir()
        trouble.crash_dir.parent.rmdir()


def _crash_file(trouble: _Trouble) -> Path | None:
    """Find the newest crash file that nipype wrote for a node."""
    first_line = f"Node: {trouble.full_name}\n"
    found = sorted(trouble.crash_dir.glob(f"crash-*-{trouble.step}-*.txt"), reverse=True)
    for path in found:
        with path.open(errors="replace") as stream:
            if stream.readline() == first_line:
                return path
    return None


def _reason(trouble: _Trouble, crash_text: str, crash_file: Path | None) -> str:
    """Say why a node failed: in its own words where it left some."""
    try:
        failure = read_json(trouble.node_dir / FAILURE_FILE, StepFailure, "of a step that failed")
        if failure.explained:
            return failure.message
        message = failure.message
    except UsageError:
        lines = [line.strip() for line in crash_text.splitlines() if line.strip()]
        message = lines[-1] if lines else "no reason was given"
    if FULL_WORDS.search(crash_text) or nearly_full(trouble.node_dir):
        return full_disk_message([trouble.node_dir, trouble.crash_dir])
    return (
        f"step {trouble.step} failed unexpectedly: {message}; details are in {crash_file}. If "
        "files of the work folder may be damaged, --clean-workdir computes all steps anew"
    )
