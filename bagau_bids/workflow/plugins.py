"""How nodes are run: one after another, or in parallel processes that may be killed.

When the system kills a worker (out of memory, most often), nipype 1.11 waits for its result for
ever, because the exception of a broken pool is raised in a callback where nobody sees it. Here
the step is reported as failed and a new pool goes on with the others.

Workers are children of this process, which a fork server's would not be: so they end with it,
and what became of one is known. nipype's older LegacyMultiProc promises neither, and is run as
MultiProc.
"""

import io
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import networkx
import yaml
from nipype import config as nipype_config
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bagau_bids.config import Resources
from bagau_bids.errors import UsageError
from bagau_bids.processes import end_with_parent, keep_folder_off_path

KILLED = "a worker process was killed"
LEAVE_S = 2  # that a worker has to tidy up when it is asked to end
LOOK_S = 0.2  # after which to look again whether a step can begin, if none has ended before
LEAST_LOOK_S = 0.01  # between two looks in any case
MEMORY_SHARE = 0.9  # of what there is, used where no amount is given
CGROUPS = Path("/sys/fs/cgroup")
DEVICES = Path("/dev")
# Of the drivers of NVIDIA, of its boards, of AMD, and of the Linux that runs within Windows.
GPU_FILES = ("nvidia*", "nvhost*", "kfd", "dxg")
OWN_CGROUPS = Path("/proc/self/cgroup")

# These run their nodes here; all others hand them to a batch system.
LOCAL = ("Linear", "MultiProc", "LegacyMultiProc")
SLURM = ("SLURM", "SLURMGraph")

StatusCallback = Callable[[Any, str], None]


def runs_in_this_process(resources: Resources, debug: Sequence[str] = ()) -> bool:
    """Tell whether nodes run one after another in the main process."""
    return "pdb" in debug or (resources.plugin_file is None and resources.nprocs == 1)


def is_batch_system(resources: Resources) -> bool:
    """Tell whether nodes are handed to a batch system.

    Raises
    ------
    UsageError
        If the plugin file cannot be read.
    """
    path = resources.plugin_file
    return path is not None and read_plugin_file(path)[0] not in LOCAL


def settle_device(resources: Resources) -> str:
    """Say which device ``auto`` stands for: CUDA if it is usable here.

    A batch system gives a job a GPU only if the job asks for one, and whether it will is not
    known where the jobs are submitted: there ``auto`` is the CPU, and ``cuda`` is not looked for.

    Raises
    ------
    UsageError
        If the device cannot be used, or the plugin file cannot be read.
    """
    if is_batch_system(resources):
        return resources.device.replace("auto", "cpu")
    if resources.device == "cpu" or (resources.device == "auto" and not _may_have_gpu()):
        return "cpu"
    from bagau_bids.network.inference import choose_device

    return str(choose_device(resources.device))


def _may_have_gpu() -> bool:
    """Tell whether there may be a GPU, without PyTorch, which takes seconds to load.

    False only on Linux where no driver has made a device file.
    """
    return sys.platform != "linux" or any(
        file for name in GPU_FILES for file in DEVICES.glob(name)
    )


def choose_plugin(
    resources: Resources, status_callback: StatusCallback, debug: Sequence[str] = ()
) -> Any:
    """Make the nipype plugin that a run asks for.

    Parameters
    ----------
    resources : Resources
        Processes, memory, and the file of ``--use-plugin``.
    status_callback : callable
        Told of each node and ``start``, ``end`` or ``exception``.
    debug : sequence of str
        With ``pdb`` nodes run one after another in this process, whatever else is asked for.

    Returns
    -------
    plugin object, for the argument ``plugin`` of a nipype workflow's ``run``

    Raises
    ------
    UsageError
        If the plugin file cannot be used, or the plugin would let two steps share a GPU.
    MissingResourceError
        If the commands of SLURM are not there.
    """
    name, arguments = "MultiProc", dict[str, Any]()
    if runs_in_this_process(resources, debug):
        name = "Linear"
    elif resources.plugin_file is not None:
        name, arguments = read_plugin_file(resources.plugin_file)
    if name in SLURM:
        return _slurm_plugin(name, arguments, resources.plugin_file, status_callback)
    limits = {
        "n_procs": resources.nprocs,
        "memory_gb": resources.mem_gb or MEMORY_SHARE * available_memory_gb(),
        "raise_insufficient": False,
        "status_callback": status_callback,
    }
    if name in ("MultiProc", "LegacyMultiProc"):
        defaults = {"n_gpu_procs": int(resources.device.startswith("cuda"))}
        return SturdyMultiProcPlugin({**limits, **defaults, **arguments})
    return _nipype_plugin(name, {**limits, **arguments}, resources.plugin_file)


def close_plugin(plugin: Any) -> None:
    """End what a plugin may have left at work after an error."""
    close = getattr(plugin, "close", None)
    if close is not None:
        close()


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a nipype plugin and its arguments from YAML: ``plugin`` and ``plugin_args``.

    Raises
    ------
    UsageError
        If it is no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({error})") from error
    expected = "expected 'plugin: NAME' and, optionally, 'plugin_args:' with names and values"
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"{path}: names no plugin; {expected}")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise UsageError(f"{path}: plugin_args is a {type(arguments).__name__}; {expected}")
    return content["plugin"], arguments


def available_memory_gb() -> float:
    """Memory (GB) that this process may use: that of the machine or of its control groups."""
    from nipype.utils.profiler import get_system_total_memory_gb

    limits = [get_system_total_memory_gb()]
    for path in _memory_limit_files():
        try:
            limits.append(int(path.read_text()) / 1024**3)
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)


def _memory_limit_files() -> Iterator[Path]:
    """Yield the files that may hold a limit: of this process's control group and all above it.

    SLURM sets the limit on the group of the job, a few levels above that of the process. In a
    container the group may be named as the host sees it; then only the topmost is there, which is
    the container's own.
    """
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2, all controllers in one tree
            top, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(group.lstrip("/"))
        yield from (top / level / name for level in (own, *own.parents))


def _slurm_plugin(
    name: str, arguments: dict[str, Any], path: Path | None, status_callback: StatusCallback
) -> Any:
    from bagau_bids.workflow.slurm import SlurmGraphPlugin, SlurmPlugin
    from bagau_bids.workflow.slurm_queue import Settings

    kind = SlurmGraphPlugin if name == "SLURMGraph" else SlurmPlugin
    return kind(Settings.of(arguments, path), status_callback)


def _nipype_plugin(name: str, arguments: dict[str, Any], path: Path | None) -> Any:
    from nipype.pipeline import plugins

    plugin = getattr(plugins, f"{name}Plugin", None)
    known = sorted(item.removesuffix("Plugin") for item in dir(plugins) if item.endswith("Plugin"))
    usable = [item for item in known if item in SLURM or not item.endswith("Graph")]
    if plugin is None or name not in usable:
        why = "hands the graph over and cannot say how it ended" if plugin else "is not known"
        raise UsageError(f"{path}: plugin {name} {why}; expected one of {', '.join(usable)}")
    return plugin(plugin_args=arguments)


class SturdyMultiProcPlugin(MultiProcPlugin):
    """MultiProc whose run goes on when a worker dies.

    The traceback of a task whose worker died is `KILLED`; with several tasks at work nobody can
    say whose worker it was, so all of them have it.
    """

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._step_ended = threading.Event()
        keep_folder_off_path()
        self.pool = self._new_pool()  # the one nipype made has not started any process

    def run(self, graph: Any, config: dict[str, Any], updatehash: bool = False) -> None:
        """Run a graph; the next step begins when one ends, not at nipype's next look.

        Where the number of steps at work is limited besides, nipype alone looks.
        """
        if math.isfinite(self.max_jobs):
            return super().run(graph, config, updatehash)
        often = {**config["execution"], "poll_sleep_duration": str(LEAST_LOOK_S)}
        return super().run(graph, {**config, "execution": often}, updatehash)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        if self.pending_tasks:  # else results were there, and what follows can begin at once
            self._step_ended.wait(LOOK_S)
            self._step_ended.clear()

    def _postrun_check(self) -> None:
        self.close()  # workers are ended by who started the run; it takes a while, too

    def close(self) -> None:
        """Forget what is waiting; tasks at work are not waited for."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _generate_dependency_list(self, graph: Any) -> None:
        super()._generate_dependency_list(graph)
        self._steps_before = [len(networkx.ancestors(graph, node)) for node in self.procs]

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = "tsort") -> list[int]:
        """Put the steps first that most steps went before, whatever scheduler is asked for.

        So a scan that was begun is finished before the next: its results are there early, and
        the work folder holds few that are half done.
        """
        return sorted(jobids, key=lambda job: -self._steps_before[job])

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        taskid = self._taskid
        with _interrupt_held():  # a worker that starts begins with it held, too
            try:
                future = self.pool.submit(run_node, node, updatehash, taskid)
            except BrokenProcessPool:
                self.close()
                self.pool = self._new_pool()
                future = self.pool.submit(run_node, node, updatehash, taskid)
        self._task_obj[taskid] = future
        future.add_done_callback(lambda done: self._keep_result(taskid, done))
        return taskid

    def _keep_result(self, taskid: int, future: Future) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._taskresult[taskid] = future.result()
        else:
            text = KILLED if isinstance(error, BrokenProcessPool) else repr(error)
            self._taskresult[taskid] = {"result": None, "traceback": [text], "taskid": taskid}
        self._step_ended.set()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_prepare_worker,
            initargs=(
                os.getpid(),
                self._cwd,
                _nipype_settings(),
                nipype_config.resource_monitor,
            ),
            mp_context=multiprocessing.get_context("spawn"),
        )


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Let Ctrl-C come after the block: a worker that starts would say it with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nipype_settings() -> dict[str, dict[str, str]]:
    """Return nipype's configuration of this process."""
    return {name: dict(section) for name, section in nipype_config._sections.items()}


def _prepare_worker(
    parent: int, folder: str, settings: dict[str, dict[str, str]], monitor: bool
) -> None:
    """Set up a worker: its folder, nipype as in the main process, and nothing on the terminal.

    It ends with its parent; Ctrl-C in the terminal, which all processes get, is the parent's to
    answer.
    """
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    process_initializer(folder)
    nipype_config.update_config(settings)
    nipype_config.resource_monitor = monitor
    signal.signal(signal.SIGTERM, _leave)
    logging.captureWarnings(True)
    for name in ("nipype", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _leave(number: int, frame: FrameType | None) -> None:
    """End a worker by an exception, so that its own child process and files go with it.

    nipype and the pool take any exception of a step for the step's result, and go on waiting for
    the next step: then the alarm ends the worker, which has nothing left to tidy up. What it
    cannot hand over any more, because the main process has gone before it, is not worth a word.
    """
    sys.stderr = io.StringIO()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVE_S)
    sys.exit(128 + number)
