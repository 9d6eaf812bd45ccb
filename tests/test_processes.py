"""Processes that are started: they end with this one, and run nothing of the current folder."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from bagau_bids.processes import keep_folder_off_path, may_open, module_command

CHILD = (
    "import sys, time\n"
    "from bagau_bids.processes import end_with_parent\n"
    "end_with_parent(int(sys.argv[1]))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
PARENT = (
    "import os, subprocess, sys\n"
    "command = [sys.executable, '-c', sys.argv[1], str(os.getpid())]\n"
    "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


def has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_child_ends_with_its_parent(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    assert not has_ended(child)
    os.kill(parent.pid, number)
    parent.wait()
    deadline = time.monotonic() + 10
    while not has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for it")
def test_child_of_a_parent_that_has_ended_already_ends_at_once():
    command = [sys.executable, "-c", CHILD, "1"]  # no process of a test is a child of init's
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == ""


def ended(command, folder, **variables):
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, check=False
    ).returncode


def test_children_run_nothing_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "random.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    of_module = [sys.executable, "-m", "json.tool", "--help"]
    of_text = [sys.executable, "-c", "import random"]
    assert ended(of_module, tmp_path) == ended(of_text, tmp_path) == 3  # what is to be prevented
    assert ended(module_command("json.tool", "--help"), tmp_path) == 0
    keep_folder_off_path()
    assert ended(of_text, tmp_path) == 0


def test_a_job_of_an_experiment_is_asked_to_end_with_it(tmp_path):
    code = (
        "import sys, time\n"
        "from bagau_bids.cli.failure import exit_code_of\n"
        "def action(stop):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.exit(exit_code_of('job', action))\n"
    )
    parent = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bagau_bids.experiments.schedule import Launcher\n"
        "job = [sys.executable, '-c', sys.argv[1]]\n"
        "Launcher(lambda name: job, lambda name: Path(sys.argv[2]))('job')\n"
    )
    log = tmp_path / "log.txt"
    process = subprocess.Popen([sys.executable, "-c", parent, code, str(log)])
    deadline = time.monotonic() + 60
    while "ready" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while "job: asked to end" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_files_may_be_open_where_the_system_allows_it():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 300
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
        assert may_open(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == low
        assert may_open(400)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 400
        if before[1] != resource.RLIM_INFINITY:
            assert not may_open(before[1] + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
