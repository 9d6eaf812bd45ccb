"""Memory that runs out for real: the process may have so much and no more."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_fakes import make_dataset, make_template

SUPPORT = Path(__file__).parents[1] / "support"
LIMIT = 24 * 2**30  # of addresses; the libraries alone take some


@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are Linux' own")
def test_a_scan_that_needs_more_memory_than_there_is_fails_alone(tmp_path):
    make_dataset(tmp_path / "data", "sub-01", "sub-02")
    make_template(tmp_path / "store")
    names = [str(tmp_path / name) for name in ("data", "out", "work", "store")]
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    found = subprocess.run(
        [sys.executable, str(SUPPORT / "faked_run.py"), *names, "1", "hungry"],
        env=os.environ | {"PYTHONPATH": path},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stderr
    first, second = found.stdout.splitlines()
    assert first.startswith("sub-01 False ran out of memory")
    assert "fewer steps at once with --nprocs or --mem-gb" in first
    assert second.startswith("sub-02 True")
    assert not list((tmp_path / "out" / "sub-01").rglob("*mask.nii.gz"))
    assert len(list((tmp_path / "out" / "sub-02").rglob("*label-WMH_mask.nii.gz"))) == 1
