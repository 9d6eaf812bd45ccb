"""The program on tiny FLAIRs with quick stand-ins for the slow steps, as a process to be killed.

``python faked_run.py DATA_FOLDER OUTPUT_FOLDER WORK_FOLDER STORE NPROCS [SLOW_STEP]``: processes
the data set; the slow step waits when it has begun, so that it can be ended there.
"""

import logging
import sys
import time
from pathlib import Path

import pytest
import workflow_fakes as fakes

from bagau_bids.cli.failure import StopRequest, exit_code_of
from bagau_bids.preprocessing.template import Template
from bagau_bids.workflow import preprocessing


class SlowRegistration(fakes.FakedRegistration):
    """Registration that waits when it has begun, and says so in a file."""

    def _process(self, folder):
        (folder / "begun").touch()
        time.sleep(600)
        return super()._process(folder)


class QuickBiasField(fakes._Faked, preprocessing.BiasField):
    """Bias field by its stand-in."""


class Printer(fakes.Listener):
    """A progress that lets signals raise, as that of the program does."""

    def __init__(self, stop):
        super().__init__()
        self._stop = stop

    def step_started(self, scan, step):
        self._stop.check()


def main(data, out, work, store, nprocs, slow=""):
    def action(stop: StopRequest) -> int:
        config = fakes.make_config(Path(data), Path(out), Path(work), nprocs=int(nprocs))
        template = Template("MNI152NLin2009cSym", *sorted_paths(Path(store)))
        results = fakes.process_scans(config, fakes.scans_of(Path(data)), template, Printer(stop))
        for result in results:
            print(result.scan.stem, result.ok, result.reason, flush=True)
        return int(not all(result.ok for result in results))

    logging.disable()  # nipype prints the traceback of a step that was interrupted
    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes.install(monkeypatch, Path(store))
        fakes.install_in_workers(monkeypatch)
        monkeypatch.setattr("bagau_bids.workflow.flair.BiasField", QuickBiasField)
        if slow:
            monkeypatch.setattr("bagau_bids.workflow.flair.Registration", SlowRegistration)
        return exit_code_of("bagau-bids", action)


def sorted_paths(store):
    folder = store / "tpl-MNI152NLin2009cSym"
    names = ("t1w", "wm_probseg", "brain_mask")
    return [folder / f"tpl-MNI152NLin2009cSym_res-1_{name}.nii.gz" for name in names]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
