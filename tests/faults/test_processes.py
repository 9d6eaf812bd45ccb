"""Processes that are ended: nothing outlives them, and the same command continues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faked_run import sorted_paths
from workflow_fakes import (
    Listener,
    install,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
)

from bagau_bids.errors import UsageError
from bagau_bids.files import one_at_a_time, together
from bagau_bids.preprocessing.template import Template
from bagau_bids.workflow.workdir import work_folder

SUPPORT = Path(__file__).parents[1] / "support"
PATIENCE_S = 240  # of machines with much else to do


def environment(**more):
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    return os.environ | {"PYTHONPATH": path, **more}


def command(folder, nprocs, *slow, out="out", work="work"):
    script = str(SUPPORT / "faked_run.py")
    names = [str(folder / name) for name in ("data", out, work, "store")]
    return [sys.executable, script, *names, str(nprocs), *slow]


def prepare(folder):
    make_dataset(folder / "data", "sub-01", "sub-02")
    make_template(folder / "store")
    return folder


@pytest.fixture
def folder(tmp_path):
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of a run that nothing happened to."""
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    subprocess.run(command(folder, 1), env=environment(), capture_output=True, check=True)
    return results(folder / "out")


def results(out):
    """Content of every result but the records, which hold dates, and the logs."""
    return {
        path.relative_to(out): path.read_bytes().replace(str(out.parent).encode(), b"")
        for path in sorted(out.rglob("*"))
        if path.is_file() and "logs" not in path.parts and not path.name.endswith("_record.json")
    }


def processes(group):
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def wait_until(condition):
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def start_and_wait_for_registration(folder, nprocs):
    process = subprocess.Popen(
        command(folder, nprocs, "slow"),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: list((folder / "work").rglob("begun")) or process.poll() is not None)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("nprocs", "number", "to_all", "code"),
    [
        (2, signal.SIGKILL, False, -signal.SIGKILL),
        (2, signal.SIGTERM, True, 143),
        (2, signal.SIGTERM, False, 143),
        (2, signal.SIGINT, True, 130),
        (1, signal.SIGKILL, False, -signal.SIGKILL),
        (1, signal.SIGTERM, True, 143),
    ],
)
def test_no_process_outlives_the_main_one_and_the_same_command_continues(
    folder, undisturbed, nprocs, number, to_all, code
):
    process = start_and_wait_for_registration(folder, nprocs)
    group = os.getpgid(process.pid)
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == code, said
    wait_until(lambda: not processes(group))
    again = subprocess.run(
        command(folder, 1), env=environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Traceback" not in said
    assert results(folder / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "signal", "socket", "struct", "select", "types"])
def test_files_of_the_current_folder_are_not_run(folder, name):
    here = folder / "here"
    here.mkdir()
    (here / f"{name}.py").write_text(f"open({str(folder / 'was run')!r}, 'w')\n")
    ended = subprocess.run(
        command(folder, 2),
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not (folder / "was run").exists()
    assert list(here.iterdir()) == [here / f"{name}.py"]


def test_a_step_of_an_earlier_run_that_is_still_at_work_is_waited_for_and_named(
    folder, monkeypatch
):
    monkeypatch.setattr("bagau_bids.workflow.workdir.STEPS_PATIENCE_S", 0.0)
    calls = install(monkeypatch, folder / "store")
    config = make_config(folder / "data", folder / "out", folder / "work")
    template = Template("MNI152NLin2009cSym", *sorted_paths(folder / "store"))
    scans = scans_of(folder / "data")
    (path,) = {work_folder(config, scan) for scan in scans[:1]}
    path.mkdir(parents=True)
    (path / ".steps.lock").touch()
    with together(path / ".steps.lock"):
        first, second = process_scans(config, scans, template, Listener())
    assert (first.ok, second.ok) == (False, True)
    assert f"{path}: a step of an earlier run is still at work there" in first.reason
    assert "choose another --work-dir" in first.reason
    assert calls.counts["registration"] == 1
    free = []

    def while_at_work(data):
        with one_at_a_time(path / ".steps.lock", 0.0) as alone:
            free.append(alone)
        return False

    calls.fail_on["registration"] = (while_at_work, KeyError())
    assert process_scans(config, scans[:1], template, Listener())[0].ok
    assert free == [False]
    with one_at_a_time(path / ".steps.lock", 0.0) as alone:
        assert alone


def test_more_scans_than_files_may_be_open_are_refused_with_a_way_out(folder, monkeypatch):
    install(monkeypatch, folder / "store")
    monkeypatch.setattr("bagau_bids.workflow.run.may_open", lambda count: count < 2)
    config = make_config(folder / "data", folder / "out", folder / "work", nprocs=2)
    template = Template("MNI152NLin2009cSym", *sorted_paths(folder / "store"))
    with pytest.raises(UsageError, match="2 scans at once .* with --participant-label"):
        process_scans(config, scans_of(folder / "data"), template, Listener())


def test_a_run_leaves_no_files_open_and_no_processes(folder, monkeypatch):
    install(monkeypatch, folder / "store")
    template = Template("MNI152NLin2009cSym", *sorted_paths(folder / "store"))
    scans = scans_of(folder / "data")

    def left():
        children = Path("/proc/self/task").glob("*/children")
        return len(os.listdir("/proc/self/fd")), [c.read_text() for c in children if c.is_file()]

    seen = []
    for number in range(4):
        config = make_config(folder / "data", folder / f"out{number}", folder / f"work{number}")
        assert all(result.ok for result in process_scans(config, scans, template, Listener()))
        seen.append(left())
    assert seen[-1] == seen[0]
    assert not list(folder.rglob("*.tmp"))
