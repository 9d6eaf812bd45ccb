"""Disks that are full: telling so, and which one, whatever a library made of it."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
# What libraries say that lose the number of the error: numpy, ITK, HDF5.
FULL_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|Not enough free space to write|"
    r"\d+ requested and \d+ written|errno = 28\b"
)
# Of a scan of 182 x 218 x 182 voxels: its work folder, and what elastix is handed.
WORK_MB, OUTPUT_MB = 130, 40
NEEDED = (
    f"a scan of 1 mm voxels needs {WORK_MB} MB in the work folder and leaves {OUTPUT_MB} MB in "
    "the output folder; free some, or name another work folder with --work-dir"
)


def is_full_disk(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk_message(folders: Iterable[Path]) -> str:
    """Name the folder whose disk has the least free space, how much, and what is needed.

    Parameters
    ----------
    folders
        Those that were written to; those that are not there are passed over.
    """
    free = {folder: shutil.disk_usage(folder).free for folder in folders if folder.is_dir()}
    if not free:
        return f"a disk is full; {NEEDED}"
    fullest = min(free, key=free.__getitem__)
    return (
        f"{fullest}: the disk is full, or the quota used up ({_mb(free[fullest])} free); {NEEDED}"
    )


def nearly_full(folder: Path, needed_mb: float = WORK_MB) -> bool:
    """Tell whether the disk of a folder has less free space than a scan needs."""
    return folder.is_dir() and shutil.disk_usage(folder).free < needed_mb * 1e6


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


@contextmanager
def temporaries_in(folder: Path) -> Iterator[None]:
    """Have temporary files made in a folder, by this process and those it starts.

    ``/tmp`` may be small: 64 MB in an Apptainer container that sees nothing of its host.
    """
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
