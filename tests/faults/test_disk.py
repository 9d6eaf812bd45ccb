"""Disks that are full: the message names the folder, what is needed, and how to move it."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
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

from bagau_bids import disk
from bagau_bids.cli.failure import exit_code_of
from bagau_bids.disk import full_disk_message, is_full_disk, temporaries_in
from bagau_bids.preprocessing.template import Template
from bagau_bids.workflow.step import describe_failure

WAY_OUT = "free some, or name another work folder with --work-dir"


def usage(monkeypatch, free_mb):
    """Let the disks of folders have so much free space (MB), by the beginning of their paths."""

    def disk_usage(folder):
        free = next(mb for name, mb in free_mb.items() if str(folder).startswith(str(name)))
        return shutil._ntuple_diskusage(10**12, 10**12, int(free * 1e6))

    monkeypatch.setattr(disk.shutil, "disk_usage", disk_usage)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("Not enough free space to write 21440692 bytes after offset 128"),
        OSError("4000 requested and 128 written"),
        RuntimeError("write failed: errno = 28, error message = 'No space left on device'"),
    ],
)
def test_a_full_disk_is_known_whatever_a_library_says(tmp_path, error):
    assert is_full_disk(error)
    outer = ValueError("outer")
    outer.__context__ = error
    assert is_full_disk(outer)
    failure = describe_failure(error, (tmp_path,))
    assert failure.explained
    assert failure.message.startswith(f"{tmp_path}: the disk is full, or the quota used up")
    assert WAY_OUT in failure.message


@pytest.mark.parametrize("error", [None, OSError(errno.EACCES, "Permission denied"), KeyError(28)])
def test_other_errors_are_not_that_of_a_full_disk(error):
    assert not is_full_disk(error)


def test_the_folder_with_the_least_space_is_named(monkeypatch, tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    for folder in (work, out):
        folder.mkdir()
    usage(monkeypatch, {work: 900, out: 3})
    assert full_disk_message([work, out, tmp_path / "none"]).startswith(
        f"{out}: the disk is full, or the quota used up (3 MB free)"
    )
    assert full_disk_message([]).startswith("a disk is full; a scan of 1 mm voxels needs")


def test_temporary_files_of_steps_lie_in_the_work_folder(tmp_path):
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with temporaries_in(tmp_path):
        with tempfile.TemporaryDirectory() as name:
            assert Path(name).parent == tmp_path
        child = subprocess.run(["sh", "-c", "echo $TMPDIR"], capture_output=True, text=True)
        assert child.stdout == f"{tmp_path}\n"
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Run two FLAIRs in this process."""
    make_dataset(tmp_path / "data", "sub-01", "sub-02")
    make_template(tmp_path / "store")
    calls = install(monkeypatch, tmp_path / "store")

    def run():
        config = make_config(tmp_path / "data", tmp_path / "out", tmp_path / "work")
        template = Template("MNI152NLin2009cSym", *sorted_paths(tmp_path / "store"))
        return process_scans(config, scans_of(tmp_path / "data"), template, Listener())

    return run, calls


def test_a_full_work_folder_fails_that_scan_and_is_named(go, tmp_path):
    run, calls = go
    error = OSError("Not enough free space to write 21440692 bytes after offset 128")
    calls.fail_on["registration"] = (lambda data: not calls.counts["registration"] > 1, error)
    first, second = run()
    assert (first.ok, second.ok) == (False, True)
    assert f"{tmp_path / 'work'}" in first.reason
    assert "the disk is full, or the quota used up" in first.reason
    assert WAY_OUT in first.reason
    calls.fail_on.clear()
    assert all(result.ok for result in run())


def test_a_step_that_can_leave_no_word_on_a_full_disk_is_told_by_the_space(
    go, tmp_path, monkeypatch
):
    run, calls = go
    calls.fail_on["registration"] = (None, RuntimeError("to the node could not be found."))
    monkeypatch.setattr("bagau_bids.workflow.step.write_json", _full_for("failure.json"))
    usage(monkeypatch, {tmp_path / "work": 7, tmp_path: 10_000})
    first, _ = run()
    assert "registration: the disk is full, or the quota used up (7 MB free)" in first.reason
    assert WAY_OUT in first.reason


def test_a_full_output_folder_fails_that_scan_and_is_named(go, tmp_path, monkeypatch):
    run, _ = go
    from bagau_bids.workflow import outputs

    copy = outputs.copy_file

    def copy_file(source, path):
        if tmp_path / "out" in path.parents and "sub-01_" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return copy(source, path)

    monkeypatch.setattr(outputs, "copy_file", copy_file)
    usage(monkeypatch, {tmp_path / "out": 1, tmp_path: 10_000})
    first, second = run()
    assert (first.ok, second.ok) == (False, True)
    assert (
        f"{tmp_path / 'out'}: the disk is full, or the quota used up (1 MB free)" in first.reason
    )


def test_a_record_that_cannot_be_written_loses_no_other_result(go, monkeypatch, caplog):
    run, calls = go
    calls.fail_on["registration"] = (lambda data: not calls.counts["registration"] > 1, KeyError())
    monkeypatch.setattr("bagau_bids.workflow.run.write_json", _full_for("_record.json"))
    first, second = run()
    assert (first.ok, second.ok) == (False, True)
    assert "sub-01: its record was not written" in caplog.text


def _full_for(end):
    from bagau_bids.files import write_json

    def write(path, content):
        if path.name.endswith(end):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_json(path, json.loads(json.dumps(content, default=str)))

    return write


def test_a_full_disk_anywhere_else_is_no_fault_of_the_program(capsys, tmp_path, monkeypatch):
    usage(monkeypatch, {tmp_path: 2, "/": 10_000})

    def action(stop):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "summary.tsv"))

    assert exit_code_of("bagau-bids", action) == 70
    said = capsys.readouterr().err
    assert said.startswith(f"bagau-bids: {tmp_path}: the disk is full, or the quota used up (2 MB")
    assert "fault of the program" not in said
