"""Several jobs at once, each in a process of its own; one that fails does not stop the others."""

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from bagau_bids.processes import PARENT_VARIABLE

PATIENCE_S = 60.0  # for a job that was asked to end, to save its checkpoint


class Launcher:
    """Starts jobs as processes and ends those still running when asked to.

    Parameters
    ----------
    command : callable
        Command line of a job, by its name.
    log_of : callable
        File that gets what the job prints, by its name.
    """

    def __init__(
        self, command: Callable[[str], Sequence[str]], log_of: Callable[[str], Path]
    ) -> None:
        self._command, self._log_of = command, log_of
        self._running: set[subprocess.Popen] = set()
        self._ended = False

    def __call__(self, name: str) -> str:
        """Run a job to its end; return why it failed, empty where it did not."""
        path = self._log_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            if self._ended:
                return "not started: the experiment was stopped"
            process = subprocess.Popen(
                self._command(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
            )
            self._running.add(process)
            code = process.wait()
        self._running.discard(process)
        if code == 0:
            return ""
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {code}: {lines[-1] if lines else 'no word'} (all of it in {path})"

    def end(self) -> None:
        """Ask all running jobs to end, and kill those that do not."""
        self._ended = True
        for process in list(self._running):
            process.terminate()
        for process in list(self._running):
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def run_all(
    names: Iterable[str],
    at_once: int,
    launch: Callable[[str], str],
    tell: Callable[[str, str], None],
) -> dict[str, str]:
    """Run jobs, several at once.

    Parameters
    ----------
    names : iterable of str
    at_once : int
    launch : callable
        Runs a job by its name and returns why it failed, or an empty text.
    tell : callable
        Told the name and that text when a job has ended.

    Returns
    -------
    dict
        Reasons of the jobs that failed, by name.
    """
    failed = {}
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(launch, name): name for name in names}
        try:
            for future in as_completed(futures):
                name, reason = futures[future], future.result()
                tell(name, reason)
                if reason:
                    failed[name] = reason
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(launch, Launcher):
                launch.end()
            raise
    return failed
