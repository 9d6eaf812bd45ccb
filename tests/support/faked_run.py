"""The program on tiny FLAIRs with quick stand-ins for the slow steps, as a process to be killed.

``python faked_run.py DATA_FOLDER OUTPUT_FOLDER WORK_FOLDER STORE NPROCS [slow | hungry]``:
processes the data set; the slow registration waits when it has begun, so that it can be ended
there, the hungry one takes all the memory there is for the first scan.
"""

import logging
import sys
import time
from pathlib import Path

import numpy as np
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


class HungryRegistration(fakes.FakedRegistration):
    """Registration that asks for more and more memory, 256 GiB at most, and touches none of it."""

    def _process(self, folder):
        if "sub_01_wf" in folder.parts:
            held = []
            for _ in range(256):
                held.append(np.empty(2**30, np.uint8))
        return super()._process(folder)


REGISTRATIONS = {"slow": SlowRegistration, "hungry": HungryRegistration}


class QuickBiasField(fakes._Faked, preprocessing.BiasField):
    """Bias field by its stand-in."""


class Printer(fakes.Listener):
    """A progress that lets signals raise, as that of the program does."""

    def __init__(self, stop):
        super().__init__()
        self._stop = stop

    def step_started(self, scan, step):
        self._stop.check()


def main(data, out, work, store, nprocs, registration=""):
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
        if registration:
            step = REGISTRATIONS[registration]
            monkeypatch.setattr("bagau_bids.workflow.flair.Registration", step)
        return exit_code_of("bagau-bids", action)


def sorted_paths(store):
    folder = store / "tpl-MNI152NLin2009cSym"
    names = ("t1w", "wm_probseg", "brain_mask")
    return [folder / f"tpl-MNI152NLin2009cSym_res-1_{name}.nii.gz" for name in names]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
