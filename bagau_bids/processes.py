"""Processes and threads that this program starts.

Processes end with it, and run no code of the current folder.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
OTHER_FILES = 256  # that a process has open beside those that are counted
PARENT_VARIABLE = "BAGAU_PARENT"  # number of the process that a command is to end with

Given = TypeVar("Given")
Made = TypeVar("Made")
One = TypeVar("One")
Other = TypeVar("Other")


def side_by_side(
    function: Callable[[Given], Made], items: Iterable[Given], threads: int
) -> list[Made]:
    """Call a function for each item, several calls at a time; results in the order of the items.

    Parameters
    ----------
    function
        Spends its time where Python lets other threads work: in NumPy, SciPy, zlib or a wait.
    items
        What it is called with.
    threads
        How many calls go on at a time; with 1 no thread is started.

    Raises
    ------
    Exception
        What the first of the calls that failed has raised, once the others are done.
    """
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def both(
    one: Callable[[], One], other: Callable[[], Other], threads: int = 2
) -> tuple[One, Other]:
    """Call two functions, at a time where there are two threads; see `side_by_side`."""
    if threads < 2:
        return one(), other()
    with ThreadPoolExecutor(1) as beside:
        going = beside.submit(other)
        return one(), going.result()


def keep_folder_off_path() -> None:
    """Have the Python interpreters that this process starts not look into the current folder.

    Python puts that first on the module path of ``python -c`` and ``python -m``, which is how
    multiprocessing and others start one: a user's own ``random.py`` would be run as the library's.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


def module_command(name: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module, with nothing of the current folder."""
    return [sys.executable, "-P", "-m", name, *arguments]


def may_open(count: int) -> bool:
    """Let this process have so many files open at once, where the system allows it.

    Parameters
    ----------
    count
        Files, beside some that any program has open.

    Returns
    -------
    bool
        Whether it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if resource.RLIM_INFINITY != hard < wanted:
        return False
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def end_with_parent(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Have Linux end this process when its parent ends, however that came about.

    Parameters
    ----------
    parent
        Process number of the parent, as the parent knows itself: one that has ended before this
        is called gives no signal, and this process ends at once.
    how
        Signal that this process gets. It also gets it when the thread ends that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)
