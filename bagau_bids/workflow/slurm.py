"""Steps as jobs of SLURM: one after another is ready, or the whole graph at once.

nipype 1.11 asks squeue for every job at every poll, waits a minute for the result of a job that
was killed, may take the result of an earlier run for that of a job that never ran, reports a
refused submission as an index error, and leaves when a whole graph is submitted. Here a step says
what became of its job, in the words of SLURM.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
from nipype.pipeline.plugins.base import DistributedPluginBase, PluginBase
from nipype.pipeline.plugins.tools import report_crash

from bagau_bids.workflow.slurm_queue import Job, Queue, RefusedError, Settings, leave_failure


class SlurmPlugin(DistributedPluginBase):
    """Submits each step when the steps before it are done."""

    def __init__(self, settings: Settings, status_callback: Callable[[Any, str], None]) -> None:
        arguments: dict[str, Any] = {"status_callback": status_callback}
        if settings.max_jobs is not None:
            arguments["max_jobs"] = settings.max_jobs
        super().__init__(plugin_args=arguments)
        self._queue = Queue(settings)
        self._jobs: dict[int, Job | str] = {}

    def close(self) -> None:
        """Cancel what is still in the queue."""
        self._queue.cancel()

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        try:
            job: Job | str = self._queue.submit(node, updatehash=updatehash)
        except RefusedError as error:
            job = _refusal(node, error)
        self._jobs[len(self._jobs)] = job
        return len(self._jobs) - 1

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        job = self._jobs[taskid]
        reason: str | None
        if isinstance(job, str):
            reason = job
        else:
            reason = self._queue.outcome(job, _patience_s(self._config))
        return None if reason is None else _as_result(reason)

    def _clear_task(self, taskid: int) -> None:
        pass  # the number of a task is never used again


class SlurmGraphPlugin(PluginBase):
    """Submits all steps at once, each to begin when those before it have ended well."""

    def __init__(self, settings: Settings, status_callback: Callable[[Any, str], None]) -> None:
        super().__init__(plugin_args={"status_callback": status_callback})
        self._tell = status_callback
        self._queue = Queue(settings)
        self._waiting: list[Job] = []
        self._started: set[str] = set()
        self._reasons: list[str] = []

    def close(self) -> None:
        """Cancel what is still in the queue."""
        self._queue.cancel()

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Submit a graph and wait for its end.

        Raises
        ------
        RuntimeError
            If a step failed, when all others have ended; at once where nipype is configured so.
        """
        stops = str(config["execution"]["stop_on_first_crash"]).lower() == "true"
        for nodes in list(nx.weakly_connected_components(graph)):
            self._submit(graph.subgraph(nodes), updatehash)
        while self._waiting and not (stops and self._reasons):
            for job in list(self._waiting):
                if job in self._waiting:
                    self._follow(job, _patience_s(config))
            time.sleep(float(config["execution"]["poll_sleep_duration"]))
        if self._reasons:
            raise RuntimeError(self._reasons[0])

    def _submit(self, graph: Any, updatehash: bool) -> None:
        """Submit the steps of one scan, as far as SLURM takes them."""
        jobs: dict[Any, Job] = {}
        for node in nx.topological_sort(graph):
            before = [jobs[other].number for other in graph.predecessors(node) if other in jobs]
            if len(before) < graph.in_degree(node):
                continue  # a step before it was refused
            try:
                jobs[node] = self._queue.submit(node, updatehash=updatehash, after=before)
            except RefusedError as error:
                self._tell(node, "start")
                self._fail(node, _refusal(node, error))
        self._waiting += jobs.values()

    def _follow(self, job: Job, patience_s: float) -> None:
        reason = self._queue.outcome(job, patience_s)
        begun = reason is not None or self._queue.state(job) == "RUNNING"
        if begun and job.number not in self._started:
            self._started.add(job.number)
            self._tell(job.node, "start")
        if reason is None:
            return
        self._waiting.remove(job)
        if reason:
            self._fail(job.node, reason)
            self._forget_after(job)
        else:
            self._tell(job.node, "end")

    def _fail(self, node: Any, reason: str) -> None:
        self._reasons.append(reason)
        self._tell(node, "exception")
        node._traceback = reason
        report_crash(node, traceback=[reason], hostname=socket.gethostname())

    def _forget_after(self, failed: Job) -> None:
        """Cancel the jobs that waited for one that failed; they can never begin."""
        lost = {failed.number}
        jobs = []
        for job in self._waiting:  # in the order of the graph
            if lost.intersection(job.after):
                lost.add(job.number)
                jobs.append(job)
        self._queue.cancel(jobs)
        self._waiting = [job for job in self._waiting if job.number not in lost]


def _refusal(node: Any, error: RefusedError) -> str:
    message = f"SLURM refused the job of step {node.name}: {error}"
    leave_failure(node, message)
    return message


def _as_result(reason: str) -> dict[str, Any]:
    return {
        "result": None,
        "traceback": [reason] if reason else None,
        "hostname": socket.gethostname(),
    }


def _patience_s(config: Any) -> float:
    return float(config["execution"]["job_finished_timeout"])
