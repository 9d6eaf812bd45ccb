"""Running all scans: work folder, plugin, progress, and what became of each scan."""

import fcntl
import gc
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from bagau_bids import __version__
from bagau_bids.bids.derivatives import bids_uri, derivative_path, find_brain_mask, write_json
from bagau_bids.bids.description import derivative_links, linked_folders, write_dataset_files
from bagau_bids.bids.known_lesions import find_known_lesions
from bagau_bids.bids.locking import others_leave
from bagau_bids.bids.scans import Scan, find_t1w
from bagau_bids.config import Config
from bagau_bids.disk import FULL_WORDS, full_disk_message, nearly_full
from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.processes import may_open

if TYPE_CHECKING:
    from nipype.pipeline import engine as pe

    from bagau_bids.preprocessing.template import Template
    from bagau_bids.workflow.flair import Materials

TEMPLATE_DATASETS = {"MNI152NLin2009cSym": "templateflow", "ICBM152NLin2009aSym": "nilearn"}
LOCK_FILE = ".lock"
PATIENCE_S = 5.0  # for workers to end by themselves
STEPS_PATIENCE_S = 10.0  # for steps of a run that was killed to end with it
MEMORY_ADVICE = (
    "was killed while it worked, most likely for lack of memory (the log of the system or of the "
    "batch system says so); give the run more memory, or fewer steps at once with --nprocs or "
    "--mem-gb, then run the same command again: it continues"
)

log = logging.getLogger(__name__)


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
class ScanResult:
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
    """

    scan: Scan
    ok: bool
    reason: str = ""
    step: str = ""
    crash_file: Path | None = None


def run_participants(
    config: Config, scans: Sequence[Scan], template: "Template", progress: Progress
) -> list[ScanResult]:
    """Process scans, each to its end or to its own failure.

    A step whose result is in the work folder already, made from the same content with the same
    options by the same version, is not computed again.

    Parameters
    ----------
    config : Config
        The run. With ``execution.dry_run`` the workflow is built and nothing is run.
    scans : sequence of Scan
        What to process.
    template : Template
        The template of ``config.processing``.
    progress : Progress
        Told what happens.

    Returns
    -------
    list of ScanResult
        One a scan, in order; empty for a dry run.

    Raises
    ------
    UsageError
        If the output folder, the plugin file or the device cannot be used.
    MissingResourceError
        If the weights are not there.
    """
    for note in write_dataset_files(
        config.output_dir, bids_dir=config.bids_dir, processing=config.processing
    ):
        log.warning(note)
    config = _with_device(config)
    tracker = _Tracker(progress)
    with ExitStack() as stack:
        stack.enter_context(_configured_nipype(config))
        workflows = _build_all(config, scans, template, tracker)
        if config.execution.write_graph and workflows:
            _write_graph(config, workflows)
        if config.execution.dry_run:
            return []
        free = _enter_work_folders(config, workflows, tracker, stack)
        _run_all(config, free, tracker)
    results = [tracker.result(scan) for scan in scans]
    for result in results:
        if result.ok and config.execution.rm_work_on_success:
            _remove_work(config, result.scan)
        if result.scan in tracker.failed:
            try:
                _record_failure(config, result)
            except OSError as error:  # the failure itself is told in any case
                log.warning("%s: its record was not written (%s)", result.scan.stem, error)
    return results


def _with_device(config: Config) -> Config:
    """Settle which device ``auto`` stands for, so that nipype knows whether a GPU is used."""
    from bagau_bids.workflow.plugins import settle_device

    device = settle_device(config.resources)
    return replace(config, resources=replace(config.resources, device=device))


def _build_all(
    config: Config, scans: Sequence[Scan], template: "Template", tracker: "_Tracker"
) -> dict[Scan, "pe.Workflow"]:
    """Build the workflow of each scan for which that is possible."""
    workflows = {}
    for scan in scans:
        try:
            workflows[scan] = _build(config, scan, template)
        except InputImageError as error:
            tracker.fail(scan, str(error))
    tracker.watch(workflows)
    return workflows


def _enter_work_folders(
    config: Config,
    workflows: Mapping[Scan, "pe.Workflow"],
    tracker: "_Tracker",
    stack: ExitStack,
) -> dict[Scan, "pe.Workflow"]:
    """Take the work folder of each scan, and return the workflows of those that were free."""
    if not may_open(len(workflows)):
        raise UsageError(
            f"{len(workflows)} scans at once need a file open each, which is more than this "
            "system allows a process; raise the limit (ulimit -Hn), or process fewer "
            "participants in one run with --participant-label"
        )
    free = {}
    for scan, workflow in workflows.items():
        try:
            stack.enter_context(_own_work_folder(config, scan))
        except UsageError as error:
            tracker.fail(scan, str(error))
        else:
            free[scan] = workflow
    return free


def _build(config: Config, scan: Scan, template: "Template") -> "pe.Workflow":
    """Build the workflow of one scan, its crash files going to the participant's folder."""
    from bagau_bids.workflow.flair import init_flair_wf

    workflow = init_flair_wf(
        scan=scan,
        bids_dir=config.bids_dir,
        output_dir=config.output_dir,
        materials=_materials(config, scan, template),
        processing=config.processing,
        resources=config.resources,
    )
    for node in _nodes(workflow):
        node.config = {"execution": {"crashdump_dir": str(_crash_folder(config, scan))}}
        if "debug" in node.inputs.trait_names():
            node.inputs.debug = "pdb" in config.execution.debug
    return workflow


def _materials(config: Config, scan: Scan, template: "Template") -> "Materials":
    from bagau_bids.network.weights import find_weights, read_card
    from bagau_bids.workflow.flair import Materials, wants_t1w

    processing = config.processing
    t1w, t1w_note = find_t1w(scan) if wants_t1w(processing) else (None, "")
    dataset = TEMPLATE_DATASETS[template.name]
    others = derivative_links(linked_folders(processing))
    own = {name: path for name, path in others.items() if path in processing.derivatives}
    mask = find_brain_mask(own, scan.entities)
    lesions = find_known_lesions(
        scan.path,
        scan.entities,
        processing.known_lesions,
        beside=not processing.ignore_lesion_roi,
    )
    return Materials(
        template=template,
        template_uris={
            part: bids_uri(dataset, f"tpl-{template.name}/{path.name}")
            for part, path in (
                ("t1w", template.t1w),
                ("wm_probseg", template.wm_probseg),
                ("brain_mask", template.brain_mask),
            )
        },
        weights=processing.weights or (find_weights(processing.model),),
        brain_network=read_card(find_weights("brain"))["sha256"],
        brain_mask=mask,
        brain_mask_uri=_uri_in(others, mask) if mask else "",
        t1w=t1w,
        t1w_note=t1w_note,
        known_lesions=lesions.path if lesions else None,
        known_lesions_note=lesions.note if lesions else "",
        known_lesions_uri=_uri_in({**others, "raw": config.bids_dir}, lesions.path)
        if lesions
        else "",
    )


def _uri_in(datasets: Mapping[str, Path], path: Path) -> str:
    name, root = next(item for item in datasets.items() if path.is_relative_to(item[1]))
    return bids_uri(name, path.relative_to(root))


def _run_all(config: Config, workflows: Mapping[Scan, "pe.Workflow"], tracker: "_Tracker") -> None:
    """Run all workflows; scans that a killed worker took down are tried again, one by one."""
    from bagau_bids.workflow.plugins import runs_in_this_process

    serial = runs_in_this_process(config.resources, config.execution.debug)
    groups = [[scan] for scan in workflows] if serial else [list(workflows)]
    for group in groups:
        _run({scan: workflows[scan] for scan in group}, config, tracker)
        if config.execution.stop_on_first_crash and tracker.failed:
            return
    for scan in tracker.take_killed():
        log.warning("%s: a worker was killed; trying again with nothing beside it", scan.stem)
        _run({scan: workflows[scan]}, config, tracker)
    for scan in tracker.take_killed():
        tracker.fail(scan, f"{scan.path}: {MEMORY_ADVICE}")


def _run(workflows: Mapping[Scan, "pe.Workflow"], config: Config, tracker: "_Tracker") -> None:
    """Run some workflows together; what fails is left with the tracker."""
    from nipype.pipeline import engine as pe

    from bagau_bids.workflow.plugins import choose_plugin, close_plugin

    if not workflows:
        return
    together = pe.Workflow(_top_name(), base_dir=config.execution.work_dir)
    together.add_nodes(list(workflows.values()))
    plugin = choose_plugin(config.resources, tracker.status, config.execution.debug)
    children = set(multiprocessing.active_children())
    gc.freeze()  # nipype collects garbage at every poll, a tenth of a second with our libraries
    try:
        with _signals_kept() as raise_again:
            tracker.raise_signal = raise_again
            together.run(plugin=plugin)
    except Exception:
        if not tracker.saw_exception:
            raise
        log.debug("nipype ended with", exc_info=True)
    finally:
        gc.unfreeze()
        close_plugin(plugin)
        _end(set(multiprocessing.active_children()) - children)
        if config.execution.resource_monitor:
            _keep_resource_monitor(config)
    tracker.settle(workflows)


def _record_failure(config: Config, result: ScanResult) -> None:
    """Leave a processing record that says why a scan failed, for the reports."""
    from bagau_bids.workflow.flair import result_options

    failure = {"step": result.step, "message": result.reason}
    if result.crash_file is not None:
        failure["crash_file"] = result.crash_file.relative_to(config.output_dir).as_posix()
    write_json(
        derivative_path(config.output_dir, result.scan.entities, "record"),
        {
            "status": "failed",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": bids_uri("raw", result.scan.path.relative_to(config.bids_dir)),
            "entities": result.scan.entities,
            "options": result_options(config.processing),
            "versions": {"bagau-bids": __version__},
            "failure": failure,
            "steps": {},
        },
    )


@contextmanager
def _signals_kept() -> Iterator[Callable[[], None]]:
    """Remember signals that ask to stop, and yield a function that lets them raise once more.

    What a signal raises while a step is running in this process, nipype takes for a failure of
    that step, and goes on with the next scan.
    """
    heard: list[int] = []
    previous: dict[int, Any] = {}

    def listen(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        previous[number](number, frame)

    def raise_again() -> None:
        if heard:
            previous[heard[0]](heard[0], None)

    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
        if callable(handler := signal.getsignal(number)):
            previous[number] = handler
            signal.signal(number, listen)
    try:
        yield raise_again
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def _end(processes: Iterable[BaseProcess]) -> None:
    """Ask processes to end, and kill those that have not after a few seconds."""
    for process in processes:
        process.terminate()
    patience_ends = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, patience_ends - time.monotonic()))
        if process.is_alive():
            process.kill()


def _top_name() -> str:
    """Name of the work folder of this version: another version computes anew."""
    return "bagau_" + __version__.replace(".", "_").replace("+", "_")


def _work_folder(config: Config, scan: Scan) -> Path:
    from bagau_bids.workflow.flair import workflow_name

    return config.execution.work_dir / _top_name() / workflow_name(scan.stem)


def _remove_work(config: Config, scan: Scan) -> None:
    """Delete the work folder of a scan, and the scripts by which its steps were submitted."""
    folder = _work_folder(config, scan)
    shutil.rmtree(folder, ignore_errors=True)
    for path in folder.with_name("batch").glob(f"*_{folder.parent.name}.{folder.name}.*"):
        path.unlink(missing_ok=True)


def _crash_folder(config: Config, scan: Scan) -> Path:
    return config.output_dir / f"sub-{scan.subject}" / "log" / config.run_uuid


def _nodes(workflow: "pe.Workflow") -> list[Any]:
    """Return all nodes of a workflow, those of workflows inside it too."""
    return [workflow.get_node(name) for name in workflow.list_node_names()]


@contextmanager
def _own_work_folder(config: Config, scan: Scan) -> Iterator[None]:
    """Keep other runs out of a scan's work folder, and empty it first where that was asked for.

    What an earlier run left there to say why a step failed is removed in any case: some steps of
    this run may fail without a word of their own, and begin where it cannot be seen.
    """
    from bagau_bids.workflow.interfaces import FAILURE_FILE, STEPS_LOCK

    folder = _work_folder(config, scan)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another run works on this scan there; wait for it, or choose another "
                "--work-dir"
            ) from error
        except OSError:
            log.debug("%s: the file system has no locks", folder)
        if not others_leave(folder / STEPS_LOCK, STEPS_PATIENCE_S):
            raise UsageError(
                f"{folder}: a step of an earlier run is still at work there, though that run has "
                "ended; wait for it, as for a job in a batch system, or choose another --work-dir"
            )
        if config.execution.clean_workdir:
            for item in folder.iterdir():
                if item.is_dir():
                    shutil.rmtree(item)
        for stale in list(folder.rglob(FAILURE_FILE)):
            stale.unlink(missing_ok=True)
        yield


@contextmanager
def _configured_nipype(config: Config) -> Iterator[None]:
    """Set nipype up for this run, and back afterwards."""
    os.environ.setdefault("NIPYPE_NO_ET", "1")  # it asks a server for its newest version
    os.environ.setdefault("NO_ET", "1")
    from nipype import config as nipype_config

    before = {name: dict(section) for name, section in nipype_config._sections.items()}
    nipype_config.update_config(
        {
            "execution": {
                "check_version": "false",
                "crashfile_format": "txt",
                "create_report": "false",
                "hash_method": "content",
                "job_finished_timeout": "65",
                "poll_sleep_duration": "0.2",
                "remove_unnecessary_outputs": "false",
                "stop_on_first_crash": str(config.execution.stop_on_first_crash).lower(),
                "use_relative_paths": "true",
            }
        }
    )
    monitored = nipype_config.resource_monitor
    nipype_config.resource_monitor = config.execution.resource_monitor
    try:
        yield
    finally:
        nipype_config.update_config(before)
        nipype_config.resource_monitor = monitored


def _keep_resource_monitor(config: Config) -> None:
    """Copy nipype's measurements beside the log."""
    measured = config.execution.work_dir / _top_name() / "resource_monitor.json"
    if measured.is_file():
        config.log_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(measured, config.log_dir / measured.name)


def _write_graph(config: Config, workflows: Mapping[Scan, "pe.Workflow"]) -> None:
    """Write the graph of one scan beside the log; all scans have the same."""
    workflow = next(iter(workflows.values()))
    config.log_dir.mkdir(parents=True, exist_ok=True)
    workflow.write_graph(
        dotfilename=str(config.log_dir / "graph.dot"),
        graph2use="colored",
        format="svg" if shutil.which("dot") else "dot",
    )


@dataclass
class _Trouble:
    """A node that raised: where to read why."""

    step: str
    full_name: str
    node_dir: Path
    crash_dir: Path


class _Tracker:
    """Listens to nipype, tells the progress, and knows in the end what became of each scan."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._scans: dict[str, Scan] = {}
        self._started: dict[str, float] = {}
        self._troubles: dict[Scan, _Trouble] = {}
        self._killed: list[Scan] = []
        self._done: set[Scan] = set()
        self.failed: dict[Scan, ScanResult] = {}
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
        from bagau_bids.workflow.flair import STEPS

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
            if node.name == STEPS[-1]:
                self._done.add(scan)
                self._progress.scan_finished(scan.stem)
        else:
            self._troubles[scan] = _trouble_of(node)

    def settle(self, scans: Iterable[Scan]) -> None:
        """Find out why scans failed, now that their crash files are written."""
        from bagau_bids.workflow.plugins import KILLED

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
        self.failed[scan] = ScanResult(scan, False, reason, step, crash_file)
        self._progress.scan_failed(scan.stem, reason)

    def result(self, scan: Scan) -> ScanResult:
        """Tell what became of a scan."""
        if scan in self._done:
            return ScanResult(scan, True)
        if scan in self.failed:
            return self.failed[scan]
        return ScanResult(scan, False, "not processed: the run stopped at another scan's failure")


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
    from bagau_bids.workflow.interfaces import FAILURE_FILE

    try:
        failure = json.loads((trouble.node_dir / FAILURE_FILE).read_text(encoding="utf-8"))
        if failure["explained"]:
            return str(failure["message"])
        message = str(failure["message"])
    except (OSError, ValueError, KeyError):
        lines = [line.strip() for line in crash_text.splitlines() if line.strip()]
        message = lines[-1] if lines else "no reason was given"
    if FULL_WORDS.search(crash_text) or nearly_full(trouble.node_dir):
        return full_disk_message([trouble.node_dir, trouble.crash_dir])
    return (
        f"step {trouble.step} failed unexpectedly: {message}; details are in {crash_file}. If "
        "files of the work folder may be damaged, --clean-workdir computes all steps anew"
    )
