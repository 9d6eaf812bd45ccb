"""The process of elastix: it must not outlive the one that waits for it."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = (
    "import time\n"
    "from bagau_bids.preprocessing.elastix import end_with_parent\n"
    "end_with_parent()\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
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
