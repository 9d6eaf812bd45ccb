"""A real SLURM of one node for tests, and waiting for what it does."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def cluster(tools):
    """Start SLURM, leave its address in the environment, and stop it; skip where it cannot be."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)} (tools/ci_packages.sh)")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    state = tempfile.mkdtemp(prefix="slurm-")  # munge's socket has no room for a long path
    ports = {"SLURM_CTLPORT": _free_port(), "SLURM_DPORT": _free_port()}
    run = {"check": True, "text": True, "timeout": 120}
    started = subprocess.run(
        ["bash", tools / "slurm_up.sh", state],
        **run,
        stdout=subprocess.PIPE,
        env={**os.environ, **ports, "SLURM_CPUS": "2"},
    )
    words = started.stdout.split()[1:]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (word.split("=", 1) for word in words):
                patch.setenv(name, value)
            yield
    finally:
        subprocess.run(["bash", tools / "slurm_down.sh", state], **run)
        shutil.rmtree(state, ignore_errors=True)


def queue(*options):
    """Ask squeue: lines of ``number state``."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T", *options],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def wait_for(condition, seconds=1200):
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {seconds} s; in the queue: {queue()}")
        time.sleep(0.5)


def python_path(*folders: Path):
    """Value of PYTHONPATH with which jobs import what the test imports."""
    return os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
