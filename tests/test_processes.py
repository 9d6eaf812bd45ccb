"""Processes that are started end with this one and run nothing of the folder; and threads."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from bagau_bids.processes import (
    both,
    keep_folder_off_path,
    may_open,
    module_command,
    side_by_side,
)

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


def test_calls_go_on_side_by_side_and_results_keep_their_order():
    meeting = threading.Barrier(2, timeout=30)

    def meet(number):
        meeting.wait()  # for the other call
        return 10 * number

    assert side_by_side(meet, [1, 2, 3, 4], 2) == [10, 20, 30, 40]
    assert side_by_side(meet, [], 2) == []


def test_one_thread_is_the_one_that_asks():
    assert side_by_side(lambda _: threading.get_ident(), "ab", 1) == [threading.get_ident()] * 2
    assert threading.get_ident() not in side_by_side(lambda _: threading.get_ident(), "ab", 2)


def test_two_calls_go_on_at_a_time():
    meeting = threading.Barrier(2, timeout=30)
    first, second = both(lambda: ("one", meeting.wait()), lambda: ("other", meeting.wait()))
    assert (first[0], second[0]) == ("one", "other")
    idents = both(threading.get_ident, threading.get_ident, 1)
    assert idents == (threading.get_ident(), threading.get_ident())


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_call_raises_is_raised(threads):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 / number, [2, 0, 1], threads)
    for calls in ((lambda: 1, lambda: 1 / 0), (lambda: 1 / 0, lambda: 1)):
        with pytest.raises(ZeroDivisionError):
            both(*calls, threads)
