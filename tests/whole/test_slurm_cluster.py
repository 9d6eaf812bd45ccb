"""Steps and participants as jobs of a real SLURM: results, failures, killed jobs, what is left."""

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from slurm_cluster import cluster, python_path, queue, wait_for
from workflow_fakes import (
    Listener,
    head,
    install,
    install_in_workers,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
    write_flair,
)

from bagau_bids.cli import app, toolbox
from bagau_bids.datasets.phantom import make_phantom_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OPTIONS = ("--template", "ICBM152NLin2009aSym", "--offline", "--sloppy")
SUBJECTS = ("01", "02", "03")


@pytest.fixture(scope="module")
def slurm(shared_tools, repository):
    with cluster(shared_tools), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(repository, repository / "tests" / "support"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Phantom of three participants; every other voxel in the plane, to be quick."""
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom_dataset(folder, subjects=len(SUBJECTS), seed=1)
    for path in folder.glob("sub-*/anat/*_FLAIR.nii.gz"):
        image = nib.load(path)
        thick = int(np.argmax(image.header.get_zooms()))
        steps = [slice(None, None, 1 if axis == thick else 2) for axis in range(3)]
        smaller = image.slicer[tuple(steps)]
        nib.Nifti1Image(np.asarray(smaller.dataobj), smaller.affine).to_filename(path)
    return folder


@pytest.fixture(scope="module")
def done_by_array(slurm, phantom, tmp_path_factory):
    """Output of an array job a task of which was killed half done, and of its resubmission."""
    folder = tmp_path_factory.mktemp("array")
    out, script = folder / "out", folder / "job.sh"
    with pytest.MonkeyPatch.context() as patch, script.open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert toolbox.main(["slurm", str(phantom), str(out), "--per-task", "2", *OPTIONS]) == 0
    first = submit(script)
    task = f"{first}_1"
    wait_for((out / "sub-01.html").is_file)
    subprocess.run(["scancel", "--signal=KILL", "--full", task], check=True)
    wait_for(lambda: not queue())
    after_first = {path.name for path in out.glob("*.*") if path.suffix in (".html", ".tsv")}
    lists = set((out / "logs/slurm").glob("list-*"))
    submit(script)
    (again,) = set((out / "logs/slurm").glob("list-*")) - lists
    wait_for(lambda: not queue())
    return out, after_first, again.read_text()


def submit(script):
    """Run a script that submits, and return the number of its array job."""
    done = subprocess.run(["bash", script], check=True, capture_output=True, text=True)
    return done.stdout.split("tasks: job ")[1].split(",")[0]


def test_what_a_killed_task_had_not_done_is_all_that_is_submitted_again(done_by_array):
    out, after_first, again = done_by_array
    assert after_first == {"sub-01.html", "sub-03.html", "descriptions.tsv"}  # no group level
    assert again.split() == ["02"]
    table = pd.read_csv(out / "group_FLAIR.tsv", sep="\t", dtype=str)
    assert list(table["participant_id"]) == [f"sub-{subject}" for subject in SUBJECTS]
    assert set(table["status"]) == {"complete"}


def test_nothing_is_left_when_all_is_done(done_by_array, phantom, capsys):
    out, *_ = done_by_array
    assert toolbox.main(["slurm", str(phantom), str(out), "--list", *OPTIONS]) == 0
    assert capsys.readouterr().out == ""
    other = ["--list", *OPTIONS, "--threshold", "0.4"]
    assert toolbox.main(["slurm", str(phantom), str(out), *other]) == 0
    assert capsys.readouterr().out.split() == list(SUBJECTS)


@pytest.mark.parametrize("plugin", ["SLURM", "SLURMGraph"])
def test_steps_as_jobs_give_what_the_array_gave_and_name_who_failed(
    done_by_array, phantom, tmp_path, capsys, plugin
):
    reference, *_ = done_by_array
    data = tmp_path / "data"
    shutil.copytree(phantom, data)
    write_flair(data, "sub-04", np.zeros_like(head()))
    path = plugin_file(tmp_path, f"plugin: {plugin}\nplugin_args: {{poll_interval: 1}}\n")
    code = app.main(
        [
            *(str(data), str(tmp_path / "out"), "participant", *OPTIONS),
            *("--work-dir", str(tmp_path / "work"), "--use-plugin", str(path)),
            *("--nprocs", "1"),
        ]
    )
    assert code == 1
    assert "sub-04" in capsys.readouterr().err
    images = sorted(reference.glob("sub-*/anat/*.nii.gz"))
    assert sum("label-WMH_mask" in path.name for path in images) == len(SUBJECTS)
    for path in images:
        other = tmp_path / "out" / path.relative_to(reference)
        np.testing.assert_array_equal(nib.load(other).dataobj, nib.load(path).dataobj)
    tables = sorted(reference.glob("sub-*/anat/*.tsv"))
    assert sum("desc-volumes" in path.name for path in tables) == len(SUBJECTS)
    for path in tables:
        assert (tmp_path / "out" / path.relative_to(reference)).read_bytes() == path.read_bytes()


def plugin_file(tmp_path, text):
    path = tmp_path / "plugin.yml"
    path.write_text(text)
    return path


def run_fakes(tmp_path, plugin, name="out"):
    config = make_config(
        tmp_path / "data",
        tmp_path / name,
        tmp_path / f"work-{name}",
        plugin_file=plugin,
        rm_work_on_success=True,
    )
    listener = Listener()
    scans = scans_of(tmp_path / "data")
    return process_scans(config, scans, make_template(tmp_path / f"store-{name}"), listener)


@pytest.mark.parametrize("plugin", ["SLURM", "SLURMGraph"])
def test_one_fails_one_is_killed_one_is_as_without_slurm(slurm, tmp_path, monkeypatch, plugin):
    install(monkeypatch, tmp_path)
    make_dataset(tmp_path / "data", "sub-01")
    (here,) = run_fakes(tmp_path, None, "here")
    assert here.ok
    write_flair(tmp_path / "data", "sub-02", np.zeros_like(head()))
    write_flair(tmp_path / "data", "sub-03", head(lesions=False))
    install_in_workers(monkeypatch)
    path = plugin_file(tmp_path, f"plugin: {plugin}\nplugin_args: {{poll_interval: 1}}\n")
    good, empty, killed = run_fakes(tmp_path, path)
    assert good.ok
    mask = Path("sub-01/anat/sub-01_space-orig_label-WMH_mask.nii.gz")
    assert (tmp_path / "out" / mask).read_bytes() == (tmp_path / "here" / mask).read_bytes()
    assert "sub-02_FLAIR.nii.gz: every voxel is zero" in empty.reason
    assert empty.step == "conform"
    assert "of step bias_field ended without a result: killed by signal 9" in killed.reason
    assert killed.crash_file.is_file()
    assert queue() == {}
    left = {path.name for path in (tmp_path / "work-out").rglob("*")}
    assert any("sub_03_wf" in name for name in left)
    assert sorted(name for name in left if "sub_01_wf" in name) == []


@pytest.mark.parametrize("plugin", ["SLURM", "SLURMGraph"])
def test_refused_submission_is_told_in_the_words_of_sbatch(slurm, tmp_path, monkeypatch, plugin):
    install(monkeypatch, tmp_path)
    make_dataset(tmp_path / "data", "sub-01", "sub-02")
    arguments = "{sbatch_args: -p nowhere, max_tries: 1, retry_timeout: 0}"
    path = plugin_file(tmp_path, f"plugin: {plugin}\nplugin_args: {arguments}\n")
    for result in run_fakes(tmp_path, path):
        assert not result.ok
        assert "refused the job of step conform: sbatch: error: invalid partition" in result.reason
        assert "-p nowhere" in result.reason
