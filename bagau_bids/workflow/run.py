"""Running all scans: workflows built, run by a plugin, and results gathered."""

import functools
import gc
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType
from nipype import config as nipype_config
from nipype.pipeline import engine as pe

from bagau_bids import __version__
from bagau_bids.bids.acquisition import json_files
from bagau_bids.bids.belongings import Belongings, find_belongings
from bagau_bids.bids.derivatives import bids_uri, derivative_path
from bagau_bids.bids.description import write_dataset_files
from bagau_bids.bids.records import Failure, Record, Steps
from bagau_bids.bids.scans import Scan
from bagau_bids.config import Config, default_omp_nthreads
from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.files import write_json
from bagau_bids.network.cards import T1, Networks
from bagau_bids.processes import may_open
from bagau_bids.workflow.flair import init_flair_wf, result_options
from bagau_bids.workflow.plugins import (
    choose_plugin,
    close_plugin,
    is_batch_system,
    runs_in_this_process,
    settle_device,
)
from bagau_bids.workflow.tracker import Progress, ScanOutcome, Tracker
from bagau_bids.workflow.workdir import own_work_folder, remove_work, top_name

if TYPE_CHECKING:
    from bagau_bids.preprocessing.template import Template

PATIENCE_S = 5.0  # for workers to end by themselves
# Scans that are worked on together, at least and for each process: so many that few processes are
# idle while the last of them are finished, and so few that the first is begun at once.
GROUP, GROUP_OF_EACH = 100, 16
MEMORY_ADVICE = (
    "was killed while it worked, most likely for lack of memory (the log of the system or of the "
    "batch system says so); give the run more memory, or fewer steps at once with --nprocs or "
    "--mem-gb, then run the same command again: it continues"
)

log = logging.getLogger(__name__)


def run_participants(
    config: Config,
    scans: Sequence[Scan],
    template: "Template",
    networks: Networks,
    progress: Progress,
) -> list[ScanOutcome]:
    """Process scans, each to its end or to its own failure.

    A step whose result is in the work folder already, made from the same content with the same
    options by the same version, is not computed again.

    Parameters
    ----------
    config : Config
        The run. With ``execution.dry_run`` what belongs to the scans is looked for, the workflow
        of one is built, and nothing is run.
    scans : sequence of Scan
        What to process.
    template : Template
        The template of ``config.processing``.
    networks : Networks
        Its weights.
    progress : Progress
        Told what happens.

    Returns
    -------
    list of ScanOutcome
        One a scan, in order; empty for a dry run.

    Raises
    ------
    UsageError
        If the output folder, the plugin file or the device cannot be used.
    """
    for note in write_dataset_files(
        config.output_dir, bids_dir=config.bids_dir, processing=config.processing
    ):
        log.warning(note)
    config = _with_resources(config, len(scans))
    tracker = Tracker(progress)
    with _configured_nipype(config):
        found = _find_belongings(config, scans, networks, tracker)
        build = functools.partial(_build, config, template, networks)
        if found and (config.execution.dry_run or config.execution.write_graph):
            workflow = build(found[0])  # all scans have the same
            if config.execution.write_graph:
                _write_graph(config, workflow)
        if config.execution.dry_run:
            return []
        _run_all(config, found, build, tracker)
    results = [tracker.result(scan) for scan in scans]
    for result in results:
        if result.scan in tracker.failed and not result.elsewhere:
            record_failure(config, result)
    return results


def _with_resources(config: Config, scans: int) -> Config:
    """Settle the device, so that nipype knows whether a GPU is used, and the threads of a step."""
    given = config.resources
    settled = replace(
        given,
        device=settle_device(given),
        omp_nthreads=given.omp_nthreads or default_omp_nthreads(given.nprocs, scans),
    )
    return replace(config, resources=settled)


def _find_belongings(
    config: Config, scans: Sequence[Scan], networks: Networks, tracker: Tracker
) -> list[Belongings]:
    """Find what belongs to each scan; those that lack what they need are told and left out."""
    list_json, found = functools.cache(json_files), []
    for scan in scans:
        try:
            found.append(
                find_belongings(
                    scan,
                    config.bids_dir,
                    config.processing,
                    with_t1w=networks.take(T1),
                    json_files=list_json,
                )
            )
        except InputImageError as error:
            tracker.fail(scan, str(error))
    return found


def _enter_work_folders(
    config: Config, found: Sequence[Belongings], tracker: Tracker, stack: ExitStack
) -> list[Belongings]:
    """Take the work folder of each scan, and return the scans whose folders were free."""
    if not may_open(len(found)):
        raise UsageError(
            f"{len(found)} scans at once need a file open each, which is more than this "
            "system allows a process; raise the limit (ulimit -Hn), or process fewer "
            "participants in one run with --participant-label"
        )
    free = []
    for one in found:
        try:
            stack.enter_context(own_work_folder(config, one.scan))
        except UsageError as error:
            tracker.leave(one.scan, str(error))
        else:
            free.append(one)
    return free


def _build(
    config: Config, template: "Template", networks: Networks, belongings: Belongings
) -> pe.Workflow:
    """Build the workflow of one scan, its crash files going to the participant's folder."""
    workflow = init_flair_wf(
        belongings=belongings,
        template=template,
        networks=networks,
        output_dir=config.output_dir,
        processing=config.processing,
        resources=config.resources,
    )
    for node in _nodes(workflow):
        node.config = {"execution": {"crashdump_dir": str(_crash_folder(config, belongings.scan))}}
        node.inputs.debug = "pdb" in config.execution.debug
    return workflow


def _run_all(
    config: Config,
    found: Sequence[Belongings],
    build: Callable[[Belongings], pe.Workflow],
    tracker: Tracker,
) -> None:
    """Run all scans, a group after another: building takes time and memory, and so does nipype.

    A batch system is given all at once, since its jobs wait in a queue.
    """
    size = max(GROUP, GROUP_OF_EACH * config.resources.nprocs)
    if runs_in_this_process(config.resources, config.execution.debug):
        size = 1
    elif is_batch_system(config.resources):
        size = len(found)
    rest = iter(found)
    while group := list(itertools.islice(rest, size)):
        with ExitStack() as stack:
            free = _enter_work_folders(config, group, tracker, stack)
            _run_group(config, {one.scan: build(one) for one in free}, tracker)
        if config.execution.stop_on_first_crash and tracker.failed:
            return
        for one in group:
            if config.execution.rm_work_on_success and tracker.result(one.scan).ok:
                remove_work(config, one.scan)


def _run_group(config: Config, workflows: Mapping[Scan, pe.Workflow], tracker: Tracker) -> None:
    """Run some scans; those that a killed worker took down are tried again, one by one."""
    tracker.watch(workflows)
    _run(workflows, config, tracker)
    if config.execution.stop_on_first_crash and tracker.failed:
        return
    for scan in tracker.take_killed():
        log.warning("%s: a worker was killed; trying again with nothing beside it", scan.stem)
        _run({scan: workflows[scan]}, config, tracker)
    for scan in tracker.take_killed():
        tracker.fail(scan, f"{scan.path}: {MEMORY_ADVICE}")


def _run(workflows: Mapping[Scan, pe.Workflow], config: Config, tracker: Tracker) -> None:
    """Run some workflows together; what fails is left with the tracker."""
    if not workflows:
        return
    together = pe.Workflow(top_name(), base_dir=config.execution.work_dir)
    together.add_nodes(list(workflows.values()))
    plugin = choose_plugin(config.resources, tracker.status, config.execution.debug)
    children = set(multiprocessing.active_children())
    idle = False
    gc.freeze()  # nipype collects garbage at every poll, a tenth of a second with our libraries
    try:
        with _signals_kept() as raise_again:
            tracker.raise_signal = raise_again
            together.run(plugin=plugin)
        idle = True
    except Exception:
        if not tracker.saw_exception:
            raise
        log.debug("nipype ended with", exc_info=True)
    finally:
        gc.unfreeze()
        close_plugin(plugin)
        _end(set(multiprocessing.active_children()) - children, idle)
        if config.execution.resource_monitor:
            _keep_resource_monitor(config)
    tracker.settle(workflows)


def record_failure(config: Config, result: ScanOutcome) -> None:
    """Leave a processing record that says why a scan failed, for the reports."""
    crash_file: str | UnsetType = UNSET
    if result.crash_file is not None:
        crash_file = result.crash_file.relative_to(config.output_dir).as_posix()
    record = Record(
        status="failed",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        source=bids_uri("raw", result.scan.path.relative_to(config.bids_dir)),
        entities=dict(result.scan.entities),
        options=result_options(config.processing),
        versions={"bagau-bids": __version__},
        failure=Failure(step=result.step, message=result.reason, crash_file=crash_file),
        steps=Steps(),
    )
    try:
        write_json(derivative_path(config.output_dir, result.scan.entities, "record"), record)
    except OSError as error:  # the failure itself is told in any case
        log.warning("%s: its record was not written (%s)", result.scan.stem, error)


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


def _end(processes: Iterable[BaseProcess], idle: bool) -> None:
    """Ask processes to end, and kill those that have not after a few seconds.

    Idle ones, which have nothing to tidy up, are killed at once: by themselves they would unload
    their libraries first, for most of a second.
    """
    for process in processes:
        process.kill() if idle else process.terminate()
    patience_ends = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, patience_ends - time.monotonic()))
        if process.is_alive():
            process.kill()


def _crash_folder(config: Config, scan: Scan) -> Path:
    return config.output_dir / f"sub-{scan.subject}" / "log" / config.run_uuid


def _nodes(workflow: pe.Workflow) -> list[Any]:
    """Return all nodes of a workflow, those of workflows inside it too."""
    return [workflow.get_node(name) for name in workflow.list_node_names()]


@contextmanager
def _configured_nipype(config: Config) -> Iterator[None]:
    """Set nipype up for this run, and back afterwards."""
    os.environ.setdefault("NIPYPE_NO_ET", "1")  # it asks a server for its newest version
    os.environ.setdefault("NO_ET", "1")

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
    measured = config.execution.work_dir / top_name() / "resource_monitor.json"
    if measured.is_file():
        config.log_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(measured, config.log_dir / measured.name)


def _write_graph(config: Config, workflow: pe.Workflow) -> None:
    """Write the graph of a scan beside the log."""
    config.log_dir.mkdir(parents=True, exist_ok=True)
    workflow.write_graph(
        dotfilename=str(config.log_dir / "graph.dot"),
        graph2use="colored",
        format="svg" if shutil.which("dot") else "dot",
    )
