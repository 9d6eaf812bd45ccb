"""Keeping jobs that write one folder at the same time out of each other's way."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time into the block, also of several machines with one file system.

    Parameters
    ----------
    path : Path
        Empty file that stands for the lock; it and its folder are made where missing, and stay. On
        a file system without locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            log.debug("%s: the file system has no locks", path)
        yield


@contextmanager
def together(path: Path) -> Iterator[None]:
    """Hold a lock with others, as long as the block lasts, for `others_leave` to wait for.

    Parameters
    ----------
    path : Path
        File that stands for the lock. Where it is missing, or the file system has no locks,
        nothing is held.
    """
    with ExitStack() as stack:
        if path.exists():
            lock = stack.enter_context(path.open())
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
            except OSError:
                log.debug("%s: the file system has no locks", path)
        yield


def others_leave(path: Path, patience_s: float) -> bool:
    """Wait until nobody holds a lock `together`, and return whether that came about.

    Parameters
    ----------
    path : Path
        File that stands for the lock; it is made where missing.
    patience_s : float
        How long to wait at most.
    """
    ends = time.monotonic() + patience_s
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > ends:
                    return False
                time.sleep(0.1)
            except OSError:
                log.debug("%s: the file system has no locks", path)
                return True
            else:
                return True
