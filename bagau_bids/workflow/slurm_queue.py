"""Jobs of SLURM: submitted, watched, and what became of them.

Each job leaves its exit code in a file; squeue is asked once for all jobs, and only now and then.
"""

import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins.tools import create_pyscript

from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.files import write_json
from bagau_bids.workflow.step import FAILURE_FILE, StepFailure

COMMANDS = ("sbatch", "squeue", "scancel")
# What a job is given for what its step declares, and the options by which a user says otherwise.
REQUESTS = {
    "--cpus-per-task": ("-c", "--cpus-per-task"),
    "--mem": ("--mem", "--mem-per-cpu", "--mem-per-gpu"),
    "--gres": ("-G", "--gres", "--gpus", "--gpus-per-node", "--gpus-per-task"),
}
OUTPUT_OPTIONS = ("-o", "--output")
# In these states a job will not write a result any more, however slow the file system is.
DEAD_STATES = ("CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
SIGNALS_FROM = 128
SCRIPT = """\
{template}
{command} && code=0 || code=$?
echo "$code" > {exit_file}
exit "$code"
"""


class RefusedError(Exception):
    """A job that sbatch did not take, in the words of sbatch."""


@dataclass(frozen=True)
class Settings:
    """What ``plugin_args`` of a plugin file may say, under nipype's names.

    Attributes
    ----------
    template
        First lines of every job's script, or a file that holds them.
    sbatch_args
        Options for sbatch.
    max_tries
        How often a submission is tried again.
    retry_timeout
        Seconds between them.
    poll_interval
        Seconds between two questions to squeue.
    max_jobs
        Jobs that may be in the queue at once (``SLURM`` only).
    """

    template: str = "#!/bin/bash"
    sbatch_args: str = ""
    max_tries: int = 2
    retry_timeout: float = 2
    poll_interval: float = 10
    max_jobs: int | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], path: Path | None) -> "Settings":
        """Take them from ``plugin_args``; ``path`` is the file to complain of.

        Raises
        ------
        UsageError
            If one is not known.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(arguments) - known)
        if unknown:
            raise UsageError(
                f"{path}: plugin_args has {', '.join(unknown)}; the SLURM plugins know "
                f"{', '.join(sorted(known))}"
            )
        given = dict(arguments)
        file = Path(str(given.get("template", "")))
        if given.get("template") and "\n" not in str(file) and file.is_file():
            given["template"] = file.read_text(encoding="utf-8")
        return cls(**given)


@dataclass
class Job:
    """One step in the queue.

    Attributes
    ----------
    number
        The job's number, as SLURM writes it.
    node
        The step.
    script
        The job's script; the file of its exit code and its log lie beside it.
    after
        Numbers of the jobs that it waits for.
    """

    number: str
    node: Any
    script: Path
    after: tuple[str, ...] = ()

    @property
    def exit_file(self) -> Path:
        """Where the script leaves the exit code."""
        return self.script.with_suffix(".exit")

    @property
    def log(self) -> Path:
        """What the job printed, unless the user sent it elsewhere."""
        return self.script.with_suffix(".log")

    @property
    def folder(self) -> Path:
        """Work folder of the step."""
        return Path(self.node.output_dir())


class Queue:
    """The jobs of one run: submitted, watched, cancelled.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    MissingResourceError
        If SLURM's commands are not there.
    """

    def __init__(self, settings: Settings) -> None:
        missing = [name for name in COMMANDS if shutil.which(name) is None]
        if missing:
            raise MissingResourceError(
                f"{', '.join(missing)}: not found, and the SLURM plugins submit jobs by them; run "
                "where they are (not inside a container), or submit one job for each participant: "
                "bagau slurm writes the script"
            )
        self._settings = settings
        self._open: dict[str, Job] = {}
        self._states: dict[str, str] = {}
        self._asked_s = -math.inf
        self._gone_s: dict[str, float] = {}

    def submit(self, node: Any, *, updatehash: bool, after: Sequence[str] = ()) -> Job:
        """Hand a step over, to begin when the jobs ``after`` have ended well.

        Raises
        ------
        RefusedError
            If sbatch refuses it, also when asked again.
        """
        script = self._write_script(node, updatehash)
        job = Job("", node, script, tuple(after))
        # What an earlier run left must not be taken for this job's result.
        for stale in (job.exit_file, *job.folder.glob("result_*.pklz")):
            stale.unlink(missing_ok=True)
        command = ["sbatch", "--parsable", *self._options(job), str(script)]
        for _ in range(self._settings.max_tries):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
            time.sleep(self._settings.retry_timeout)
        else:
            done = subprocess.run(command, capture_output=True, text=True)
        number = done.stdout.strip().split(";")[0]
        if done.returncode != 0 or not number.isdigit():
            words = (done.stderr.strip() or done.stdout.strip() or "it said nothing").strip()
            raise RefusedError(f"{words} (the command was: {shlex.join(command)})")
        job.number = number
        self._open[number] = job
        self._states[number] = "PENDING"
        return job

    def _write_script(self, node: Any, updatehash: bool) -> Path:
        python = Path(create_pyscript(node, updatehash=updatehash))
        script = python.with_suffix(".sh")
        text = SCRIPT.format(
            template=self._settings.template.rstrip("\n"),
            command=shlex.join([sys.executable, str(python)]),
            exit_file=shlex.quote(str(script.with_suffix(".exit"))),
        )
        script.write_text(text, encoding="utf-8")
        return script

    def _options(self, job: Job) -> list[str]:
        """Options of sbatch: those of the step first, so that the user's come later and count."""
        node = job.node
        given = self._settings.sbatch_args
        said = f"{given}\n{self._settings.template}"
        wanted = {
            "--cpus-per-task": f"{node.n_procs}",
            "--mem": f"{math.ceil(1024 * node.mem_gb)}M",
        }
        if node.is_gpu_node():
            wanted["--gres"] = "gpu:1"
        options = [f"--job-name={node.fullname.split('.', 1)[-1]}"]
        options += [
            f"{name}={value}" for name, value in wanted.items() if not _says(said, REQUESTS[name])
        ]
        if not _says(said, OUTPUT_OPTIONS):
            options.append(f"--output={job.log}")
        if job.after:
            options += [f"--dependency=afterok:{':'.join(job.after)}", "--kill-on-invalid-dep=yes"]
        return [*options, *shlex.split(given)]

    def state(self, job: Job) -> str:
        """Return the job's state, as squeue last told it; empty if it was not in the queue."""
        if time.monotonic() - self._asked_s >= self._settings.poll_interval:
            self._ask()
        return self._states.get(job.number, "")

    def _ask(self) -> None:
        self._asked_s = time.monotonic()
        asked = set(self._open)
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%A %T"], capture_output=True, text=True
        )
        if done.returncode == 0:  # else the controller is busy: what was known still holds
            lines = [line.split() for line in done.stdout.splitlines()]
            self._states = {line[0]: line[1] for line in lines if line and line[0] in asked}

    def outcome(self, job: Job, patience_s: float) -> str | None:
        """Tell what became of a job.

        Parameters
        ----------
        job : Job
        patience_s : float
            How long a file may take to be seen here that was written on another machine.

        Returns
        -------
        str or None
            Nothing while it waits or runs; an empty text when its step is done, else why not.
        """
        code = _read(job.exit_file)
        results = list(job.folder.glob("result_*.pklz"))
        if code and results:
            self._open.pop(job.number, None)
            return _traceback(results[0])
        if not code and self.state(job):
            self._gone_s.pop(job.number, None)
            return None
        gone_s = self._gone_s.setdefault(job.number, time.monotonic())
        ending, is_final = _ending(job, code)
        if not is_final and time.monotonic() - gone_s < patience_s:
            return None
        self._open.pop(job.number, None)
        message = (
            f"SLURM job {job.number} of step {job.node.name} ended without a result: {ending}"
            f"{_last_words(job)}; give it what it lacks with sbatch_args in the plugin file, then "
            "run the same command again: it continues"
        )
        leave_failure(job.node, message)
        return message

    def cancel(self, jobs: Iterable[Job] | None = None) -> None:
        """Take jobs out of the queue, all of the run's where none are named."""
        numbers = [job.number for job in (self._open.values() if jobs is None else jobs)]
        if numbers:
            subprocess.run(["scancel", *numbers], capture_output=True)
        for number in numbers:
            self._open.pop(number, None)


def leave_failure(node: Any, message: str) -> None:
    """Say in a step's work folder why it failed, as a step itself does."""
    write_json(Path(node.output_dir(), FAILURE_FILE), StepFailure(True, message))


def _says(text: str, options: Iterable[str]) -> bool:
    """Tell whether one of these options stands in options of sbatch or in lines of a script."""
    words = "|".join(
        rf"{option}(?=[=\s]|$)" if option.startswith("--") else rf"{option}(?=[=\s\w/]|$)"
        for option in options
    )
    return re.search(rf"(^|\s)({words})", text) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _traceback(result_file: Path) -> str:
    """Return the traceback in a step's result, and keep such a result out of the way."""
    result = load_resultfile(str(result_file))
    if not isinstance(result, dict):  # what nipype's script leaves where the step raised
        return ""
    result_file.replace(result_file.with_name("crashstore.pklz"))
    return "".join(result["traceback"])


def _ending(job: Job, exit_code: str) -> tuple[str, bool]:
    """Say how a job ended, such as ``TIMEOUT``, and whether a result may still be on its way."""
    if exit_code.isdigit() and int(exit_code) > SIGNALS_FROM:  # as a shell reports a signal
        return f"killed by signal {int(exit_code) - SIGNALS_FROM}", True
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job.number], capture_output=True, text=True
    )
    state = re.search(r"\bJobState=(\S+)", done.stdout)
    signal = re.search(r"\bExitCode=\d+:([1-9]\d*)", done.stdout)
    if state is None:
        return "SLURM does not know it any more", False
    words = f"{state[1]} by signal {signal[1]}" if signal else state[1]
    return words, signal is not None or state[1] in DEAD_STATES


def _last_words(job: Job) -> str:
    lines = _read_log(job.log)
    return f", its last words were: {lines[-1]} (all in {job.log})" if lines else ""


def _read_log(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
