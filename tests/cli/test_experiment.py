"""``bagau experiment``: from a file and data to a table, in parts, again, and with failures."""

import json
import subprocess

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bagau_bids.cli import toolbox
from bagau_bids.datasets import labelled as dataset
from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import InputImageError
from bagau_bids.experiments import schedule
from bagau_bids.network.slices import network_input
from bagau_bids.spaces import Image
from bagau_bids.training import slices

EXPERIMENT = """
title = "Tiny"
source = "nobody"
[[data]]
name = "d"
groups = [["3", "4"]]
[split]
parts = 3
folds = 2
[recipe]
width = "small"
steps = 1
batch_size = 2
crop = [32, 32]
precision = "float32"
[[system]]
name = "net"
label = "Net"
architecture = "unet"
inputs = ["flair", "t1"]
paper = {dice = 80.0}
[[system]]
name = "cut"
label = "Cut"
architecture = "threshold"
[[system]]
name = "rater"
label = "Rater"
architecture = "rater"
"""


THICK_SLICES = np.diag([1.0, 1.0, 5.0, 1.0])


def prepared(labelled, template, registration, cache_dir, *, inputs=()):
    """Stand-in for preprocessing; participant 5 cannot be preprocessed."""
    if labelled.scan.subject == "5":
        raise InputImageError("no brain")
    rng = np.random.default_rng(int(labelled.scan.subject))
    brain = np.zeros((40, 40, 6), bool)
    brain[5:35, 5:35] = True
    reference = np.zeros(brain.shape, np.uint8)
    reference[10:15, 10:15, 1] = 1
    flair = rng.normal(9, 1, brain.shape).astype(np.float32) + 4 * reference
    made = network_input(Image(flair, THICK_SLICES), brain, np.ones_like(flair))
    if "t1" in inputs:
        made = dataset.add_t1(made, Image(-flair, THICK_SLICES), brain)
    return TrainingScan(
        labelled.scan.stem, labelled.scan.subject, 0, made, brain, reference, THICK_SLICES
    )


class HereLauncher:
    """Runs a job in this process instead of one of its own."""

    def __init__(self, command, log_of):
        self.command = command

    def __call__(self, name):
        code = toolbox.main([str(part) for part in self.command(name)[4:]])
        return f"exit code {code}" if code else ""


def one_after_the_other(names, at_once, launch, tell):
    """Stand-in for the threads that wait for jobs: a training must run in the main thread."""
    reasons = {name: launch(name) for name in names}
    for name, reason in reasons.items():
        tell(name, reason)
    return {name: reason for name, reason in reasons.items() if reason}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Six participants with FLAIR, mask and T1w, but participant 6 has no T1w."""
    affine = np.eye(4)
    for number in range(1, 7):
        names = [
            (tmp_path / "bids", f"sub-{number}_FLAIR.nii.gz"),
            (tmp_path / "bids/derivatives/manual", f"sub-{number}_label-WMH_mask.nii.gz"),
        ]
        if number != 6:
            names.append((tmp_path / "bids", f"sub-{number}_T1w.nii.gz"))
        for root, name in names:
            path = root / f"sub-{number}" / "anat" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = np.zeros((40, 40, 6), np.uint8)
            data[10:30, 10:30] = 0 if "mask" in name else 9
            nib.Nifti1Image(data, affine).to_filename(path)
    (tmp_path / "bids/dataset_description.json").write_text(
        json.dumps({"Name": "Tiny", "BIDSVersion": "1.10.0"})
    )
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    monkeypatch.setattr(dataset, "prepare_scan", prepared)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *args, **options: None
    )
    monkeypatch.setattr(schedule, "Launcher", HereLauncher)
    monkeypatch.setattr(schedule, "run_all", one_after_the_other)
    monkeypatch.setitem(slices.WIDTHS, "small", (4, 4, 6, 6, 8))
    return tmp_path


def experiment(folder, *options, data=True):
    arguments = ["experiment", f"{folder / 'e.toml'}", f"{folder / 'out'}", "--device", "cpu"]
    return toolbox.main(
        [*arguments, *(("--data", f"d={folder / 'bids'}") if data else ()), *options]
    )


JOBS = ["net/fold-1", "net/fold-2", "cut/fold-1", "cut/fold-2"]


def test_whole_command_makes_the_table_and_again_does_nothing(tiny, capsys, monkeypatch):
    assert experiment(tiny) == 0
    table = pd.read_csv(tiny / "out/table.tsv", sep="\t", na_values="n/a", index_col="system")
    assert list(table.index) == ["net", "cut", "rater"]
    assert list(table["folds"]) == [2, 2, 0]
    assert table.loc["cut", "dice"] > 50
    assert table.loc["net", "dice_paper"] == 80
    text = (tiny / "out/table.md").read_text()
    assert "sub-6 is in no row: it has no T1w, which one of the systems needs" in text
    assert "scans could not be preprocessed" in text  # participant 5
    assert "d: Tiny, 5 scans of 5 subjects" in text
    stamps = {p: p.stat().st_mtime_ns for p in (tiny / "out").rglob("*") if p.is_file()}
    monkeypatch.setattr(slices.SliceTrainer, "run", None)
    assert experiment(tiny) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tiny / "out").rglob("*") if p.is_file()}
    assert "table.md (4 of 4 jobs)" in capsys.readouterr().out


def test_failing_fold_is_named_and_the_others_are_done(tiny, capsys, monkeypatch):
    run = slices.SliceTrainer.run

    def fail_in_fold_2(self):
        if "fold-2" in str(self.output_dir):
            raise RuntimeError("out of luck")
        return run(self)

    monkeypatch.setattr(slices.SliceTrainer, "run", fail_in_fold_2)
    assert experiment(tiny) == 1
    assert "net/fold-2: unexpected RuntimeError('out of luck')" in capsys.readouterr().out
    text = (tiny / "out/table.md").read_text()
    assert "- net/fold-2: unexpected RuntimeError('out of luck')" in text
    assert "| Net | " in text
    assert "1 of 2" in text
    monkeypatch.setattr(slices.SliceTrainer, "run", run)
    assert experiment(tiny) == 0
    assert "## Not done" not in (tiny / "out/table.md").read_text()
    assert not (tiny / "out/net/fold-2/failure.json").exists()


def test_jobs_may_be_run_one_by_one(tiny, capsys):
    assert experiment(tiny, "--list") == 0
    assert capsys.readouterr().out.split() == JOBS
    assert experiment(tiny, "--only", "cut/fold-2") == 0
    assert (tiny / "out/cut/fold-2/complete.json").is_file()
    assert not (tiny / "out/table.md").exists()
    capsys.readouterr()
    assert experiment(tiny, "--table", data=False) == 0
    assert "(1 of 4 jobs)" in capsys.readouterr().out
    assert experiment(tiny, "--only", "cut/fold-3") == 2
    assert "--only cut/fold-3: no such job; expected some of net/fold-1" in capsys.readouterr().err


def test_slurm_script_is_a_script(tiny, capsys):
    assert experiment(tiny, "--slurm", "--set", "recipe.steps=3") == 0
    script = capsys.readouterr().out
    assert "--list" in script
    assert script.count("--set recipe.steps=3") == 2
    assert "--table" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_second_rater_is_one_more_row(tiny):
    masks = tiny / "bids/derivatives/manual"
    assert experiment(tiny, "--second-rater", f"d={masks}", "--only", "rater/fold-1") == 0
    rows = json.loads((tiny / "out/rater/fold-1/complete.json").read_text())["rows"]
    assert {row["dice"] for row in rows} == {0.0}  # these masks are empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "x=/nowhere"), "--data x: the experiment has the data sets d"),
        (("--second-rater", "x=/nowhere"), "--second-rater x: the experiment has"),
        (("--data", "d=/nowhere"), "--data d=/nowhere: no such folder"),
        (("--masks", "d=/nowhere"), "/nowhere: no mask for any of 6 FLAIRs"),
        (("--set", "split.parts=9"), "4 people (or groups that stay together)"),
        (("--data", "d"), "'d' was given; expected NAME=PATH"),
    ],
)
def test_wrong_data_are_named(tiny, capsys, options, message):
    assert experiment(tiny, *options) == 2
    assert message in capsys.readouterr().err


def test_missing_data_set_is_named(tiny, capsys):
    assert experiment(tiny, data=False) == 2
    assert "the experiment needs d too; expected --data d=BIDS_DIR" in capsys.readouterr().err


def test_folder_of_other_folds_is_refused(tiny, capsys):
    assert experiment(tiny, "--only", "cut/fold-1") == 0
    assert experiment(tiny, "--set", "split.seed=7", "--only", "cut/fold-1") == 2
    assert "the folder holds 'Tiny' with other folds or scans" in capsys.readouterr().err
    assert experiment(tiny, "--set", "split.folds=3", "--only", "cut/fold-3") == 0
    plan = tiny / "out/plan.json"
    assert json.loads(plan.read_text())["changes"] == ["split.folds=3"]
    plan.write_text(plan.read_text().replace('"title": "Tiny"', '"title": 3'))
    assert experiment(tiny, "--only", "cut/fold-1") == 2
    assert "plan.json: Expected `str`, got `int` - at `$.title`" in capsys.readouterr().err
