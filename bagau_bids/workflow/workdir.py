"""The work folder of each scan: its place, kept for one run at a time, emptied or removed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bagau_bids import __version__
from bagau_bids.bids.scans import Scan
from bagau_bids.config import Config
from bagau_bids.errors import UsageError
from bagau_bids.files import one_at_a_time
from bagau_bids.workflow.flair import workflow_name
from bagau_bids.workflow.step import FAILURE_FILE, STEPS_LOCK

LOCK_FILE = ".lock"
STEPS_PATIENCE_S = 10.0  # for steps of a run that was killed to end with it


def top_name() -> str:
    """Name of the work folder of this version: another version computes anew."""
    return "bagau_" + __version__.replace(".", "_").replace("+", "_")


def work_folder(config: Config, scan: Scan) -> Path:
    """Say where a scan's work folder lies."""
    return config.execution.work_dir / top_name() / workflow_name(scan.stem)


@contextmanager
def own_work_folder(config: Config, scan: Scan) -> Iterator[None]:
    """Keep other runs out of a scan's work folder, and empty it first where that was asked for.

    What an earlier run left there to say why a step failed is removed in any case: some steps of
    this run may fail without a word of their own, and begin where it cannot be seen.
    """
    folder = work_folder(config, scan)
    with one_at_a_time(folder / LOCK_FILE, 0) as alone:
        if not alone:
            raise UsageError(
                f"{folder}: another run works on this scan there; wait for it, or choose another "
                "--work-dir"
            )
        with one_at_a_time(folder / STEPS_LOCK, STEPS_PATIENCE_S) as steps_ended:
            if not steps_ended:
                raise UsageError(
                    f"{folder}: a step of an earlier run is still at work there, though that run "
                    "has ended; wait for it, as for a job in a batch system, or choose another "
                    "--work-dir"
                )
        if config.execution.clean_workdir:
            for item in folder.iterdir():
                if item.is_dir():
                    shutil.rmtree(item)
        for stale in list(folder.rglob(FAILURE_FILE)):
            stale.unlink(missing_ok=True)
        yield


def remove_work(config: Config, scan: Scan) -> None:
    """Delete the work folder of a scan, and the scripts by which its steps were submitted."""
    folder = work_folder(config, scan)
    shutil.rmtree(folder, ignore_errors=True)
    for path in folder.with_name("batch").glob(f"*_{folder.parent.name}.{folder.name}_*"):
        path.unlink(missing_ok=True)
