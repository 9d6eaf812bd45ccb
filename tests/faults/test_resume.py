"""A run that is killed anywhere, even in the middle of a write: the same command finishes it."""

import gzip
import os
import shutil
import signal
import sys

import nibabel as nib
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

from bagau_bids.preprocessing.template import Template

WRITES = os.O_WRONLY | os.O_RDWR
MOMENTS = 12


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Process one FLAIR into a folder, in this process."""
    make_dataset(tmp_path / "data", "sub-01")
    make_template(tmp_path / "store")
    install(monkeypatch, tmp_path / "store")

    def process(name):
        config = make_config(tmp_path / "data", tmp_path / name / "out", tmp_path / name / "work")
        template = Template("MNI152NLin2009cSym", *sorted_paths(tmp_path / "store"))
        return process_scans(config, scans_of(tmp_path / "data"), template, Listener())

    return process


def watch_writes(folder, happen):
    """Call `happen` at all that changes a file below a folder, before it does."""

    def hook(event, arguments):
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if opened or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
            path = arguments[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
                happen()

    sys.addaudithook(hook)


def in_a_child(action):
    """Run something in a fork of this process, and return how that ended."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_writes(run, folder):
    reader, writer = os.pipe()

    def action():
        counted = []
        watch_writes(folder, lambda: counted.append(1))
        run(folder.name)
        os.write(writer, str(len(counted)).encode())

    in_a_child(action)
    os.close(writer)
    return int(os.read(reader, 100))


def run_until(run, folder, moment):
    """Run, and be killed when so many writes have begun."""

    def action():
        left = [moment]

        def happen():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        watch_writes(folder, happen)
        run(folder.name)

    return in_a_child(action)


def contents(out):
    """All files of a folder, dates of records left out, and the place of the folder itself."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and "logs" not in path.parts:
            content = path.read_bytes().replace(str(out.parent).encode(), b"")
            found[path.relative_to(out)] = b"" if path.name.endswith("_record.json") else content
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs to fork")
def test_a_run_killed_at_any_write_is_finished_by_the_same_command(run, tmp_path):
    assert run("undisturbed")[0].ok
    expected = contents(tmp_path / "undisturbed" / "out")
    total = count_writes(run, tmp_path / "counted")
    assert total > 100
    for number in range(MOMENTS):
        folder = tmp_path / f"killed{number}"
        moment = 1 + number * (total - 1) // (MOMENTS - 1)
        assert run_until(run, folder, moment) == -signal.SIGKILL
        for path in (folder / "out").rglob("sub-*"):  # nothing is half there
            if path.name.endswith(".nii.gz") and path.is_file():
                gzip.decompress(path.read_bytes())
                nib.load(path).get_fdata()
        (result,) = run(folder.name)
        assert result.ok, result.reason
        assert contents(folder / "out") == expected, f"killed at write {moment} of {total}"


def damaged(work):
    """Files of a work folder that a step reads, one of each kind in each of some steps."""
    patterns = ("result_*.pklz", "record.json", "*.nii.gz", "*.tsv", "_inputs.pklz", "_0x*.json")
    for step in ("conform", "registration", "segmentation", "derivatives"):
        for pattern in patterns:
            yield from sorted(work.rglob(f"{step}/{pattern}"))[:1]
    for end in ("label-WMH_mask.nii.gz", "probseg.json", "_record.json"):
        yield from sorted(work.rglob(f"derivatives/sub-01/anat/*{end}"))[:1]


@pytest.mark.slow
def test_a_damaged_work_folder_gives_the_same_result_or_a_reason(run, tmp_path):
    assert run("undisturbed")[0].ok
    expected = contents(tmp_path / "undisturbed" / "out")
    names = [
        path.relative_to(tmp_path / "undisturbed")
        for path in damaged(tmp_path / "undisturbed" / "work")
    ]
    assert len({name.name.split("_")[0] for name in names}) >= 4
    for number, name in enumerate(names):
        folder = tmp_path / f"damaged{number}"
        shutil.copytree(tmp_path / "undisturbed" / "work", folder / "work")
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        (result,) = run(folder.name)
        if result.ok:
            assert contents(folder / "out") == expected, name
        else:
            assert str(folder) in result.reason, name
            assert "--clean-workdir" in result.reason, name
            assert not list((folder / "out").rglob("*_mask.nii.gz")), name
        shutil.rmtree(folder)
