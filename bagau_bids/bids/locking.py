"""Keeping jobs that write one folder at the same time out of each other's way."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_logger = logging.getLogger(__name__)


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
            _logger.debug("%s: the file system has no locks", path)
        yield
