"""Experiments: what their files may say, how people are divided, how jobs run and resume."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from msgspec import structs

from bagau_bids.bids.scans import Scan
from bagau_bids.datasets.labelled import LabelledScan, Split, TrainingScan
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.experiments.definition import (
    DataSource,
    Experiment,
    FoldPlan,
    System,
    read_experiment,
)
from bagau_bids.experiments.folds import Fold, make_folds, read_people
from bagau_bids.experiments.jobs import Job, Shared, is_complete, job_key, list_jobs, run_job
from bagau_bids.experiments.records import COMPLETE
from bagau_bids.experiments.schedule import Launcher, run_all
from bagau_bids.experiments.threshold import IntensityThreshold, choose_threshold
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import training_shard
from bagau_bids.training import slices

MINIMAL = """
title = "T"
source = "S"
[[data]]
name = "d"
[[system]]
name = "net"
label = "Net"
architecture = "bagau_net"
"""


def write(folder, text):
    path = folder / "e.toml"
    path.write_text(text)
    return path


def test_file_with_nothing_more_is_the_recipe_of_the_paper_split_8_1_1(tmp_path):
    experiment = read_experiment(write(tmp_path, MINIMAL))
    settings = experiment.settings(experiment.systems[0], seed=4)
    assert (settings.epochs, settings.batch_size, settings.seed) == (200, 32, 4)
    assert (experiment.plan.parts, experiment.plan.folds) == (10, 1)
    assert experiment.data == (DataSource("d"),)
    assert experiment.inputs == {"flair", "atlas"}


def test_command_line_changes_the_file(tmp_path):
    changes = ["recipe.steps=3", "recipe.width=small", "split.folds=2", "recipe.crop=[32, 48]"]
    experiment = read_experiment(write(tmp_path, MINIMAL), changes)
    settings = experiment.settings(experiment.systems[0], seed=0)
    assert (settings.steps, settings.width, settings.crop) == (3, "small", (32, 48))
    assert experiment.plan.folds == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe.step=3", r"unknown field `step` - at `\$\.recipe`"),
        ("recipe.seed=3", r"unknown field `seed` - at `\$\.recipe`"),
        ("recipe.steps=many", r"Expected `int \| null`, got `str` - at `\$\.recipe\.steps`"),
        ("split.fold=1", r"unknown field `fold` - at `\$\.split`"),
        ("split.folds=11", "expected at least 2 parts"),
        ("checkpoint=middle", "checkpoint 'middle'; expected best or last"),
        ("title=3", r"Expected `str`, got `int` - at `\$\.title`"),
        ("titel=3", "unknown field `titel`"),
        ("data.x=1", "--set data.x=1: expected KEY=VALUE"),
        ("recipe", "--set recipe: expected KEY=VALUE"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        read_experiment(write(tmp_path, MINIMAL), [change])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"bagau_net"', '"vnet"', "architecture vnet; expected some of bagau_net"),
        ('"bagau_net"', '"unet"\ninputs = ["t2"]', "inputs t2; expected some of flair"),
        ('"bagau_net"', '"unet"\npaper = {dsc = 3}', "paper dsc; expected some of dice"),
        ('"bagau_net"', '"unet"\nseeds = [1, 1]', "seeds .1, 1.; expected one or more"),
        ('name = "net"', 'name = "../net"', "names of systems: ../net; expected"),
        ('label = "Net"', "", r"missing required field `label` - at `\$\.system\[0\]`"),
        ('[[data]]\nname = "d"', "", "names of data: none"),
        ('title = "T"', "title = ", "cannot be read as TOML"),
        ('title = "T"', 'title = "T"\n"--set" = ["x=1"]', "unknown field `--set`"),
        ('title = "T"', 'title = "T"\nchanges = ["x=1"]', "unknown field `changes`"),
    ],
)
def test_wrong_files_are_refused(tmp_path, before, after, message):
    with pytest.raises(UsageError, match=message):
        read_experiment(write(tmp_path, MINIMAL.replace(before, after)))


def test_files_of_the_repository_are_the_tables_of_the_paper(repository):
    printed = {
        "table2-wmh-challenge": {
            "unet-flair-t1": [81.39, 16.63, 81.41, 78.12],
            "unet-flair": [80.58, 17.13, 81.72, 76.75],
            "unet-flair-atlas": [80.61, 17.99, 80.27, 76.07],
            "bagau-net": [82.02, 14.19, 82.58, 78.42],
        },
        "table3-abvib": {
            "unet-flair": [77.48, 21.18, 51.50, 56.13],
            "unet-flair-atlas": [76.56, 23.87, 52.12, 56.14],
            "bagau-net": [80.27, 16.17, 58.51, 60.48],
        },
        "table4-ablation": {
            "bagau-net-plain": [80.52, 17.33, 81.64, 74.19],
            "bagau-net-no-mam": [81.29, 15.72, 82.13, 77.31],
            "bagau-net-no-afm": [80.93, 16.19, 81.87, 76.63],
            "bagau-net": [82.02, 14.19, 82.58, 78.42],
        },
    }
    for name, rows in printed.items():
        experiment = read_experiment(repository / "experiments" / f"{name}.toml")
        found = {s.name: list(s.paper.values()) for s in experiment.systems if s.paper}
        assert found == rows
        assert experiment.recipe == {}
    reduced = read_experiment(repository / "experiments" / "tabriz-reduced.toml")
    found = {s.name: list(s.paper.values()) for s in reduced.systems if s.paper}
    assert found == printed["table2-wmh-challenge"] | printed["table4-ablation"]
    for system in reduced.systems:
        if system.trained:
            assert reduced.settings(system, 0).width == "full"
            slices.network_of(replace(reduced.settings(system, 0), width="small"))


def labelled(subject, number=0, dataset=0):
    path = Path(f"sub-{subject}_run-{number}_FLAIR.nii.gz")
    scan = Scan(path, {"sub": subject, "run": str(number)})
    return LabelledScan(scan, Path(f"{subject}.nii"), dataset)


def people(part):
    return {(one.dataset, one.scan.subject) for one in part}


def test_everybody_is_tested_once_and_nobody_is_in_two_parts():
    subjects = [f"{n:02d}" for n in range(13)]
    scans = [labelled(s, run) for s in subjects for run in (1, 2)]
    sources = [DataSource("d", groups=(("03", "07"), ("11", "unknown")))]
    plan = FoldPlan(parts=4, folds=4, seed=3)
    folds = make_folds(scans, plan, sources, {})
    tested = [subject for fold in folds for subject in people(fold.split.test)]
    assert sorted(tested) == [(0, s) for s in subjects]
    for fold in folds:
        parts = [people(p) for p in (fold.split.training, fold.split.validation, fold.split.test)]
        assert sum(len(p) for p in parts) == 13
        assert len(set.union(*parts)) == 13
        assert all(parts)
        assert all(((0, "03") in p) == ((0, "07") in p) for p in parts)
    assert folds == make_folds(scans, plan, sources, {})
    assert folds[:2] == make_folds(scans, structs.replace(plan, folds=2), sources, {})
    assert folds != make_folds(scans, structs.replace(plan, seed=4), sources, {})


def test_sixty_people_of_three_sites_are_divided_8_1_1_with_all_sites_everywhere():
    scans = [labelled(f"{n:02d}") for n in range(60)]
    site = {(0, f"{n:02d}"): "ABC"[n % 3] for n in range(60)}
    for fold in make_folds(scans, FoldPlan(folds=10), [DataSource("d")], site):
        counts = []
        for part in (fold.split.training, fold.split.validation, fold.split.test):
            sites = [site[person] for person in people(part)]
            counts.append([sites.count(s) for s in "ABC"])
        assert counts == [[16] * 3, [2] * 3, [2] * 3]


def test_too_few_people_are_refused():
    with pytest.raises(UsageError, match="2 people .* expected at least 3"):
        make_folds([labelled("a"), labelled("b")], FoldPlan(2), [DataSource("d")], {})


def test_same_label_in_two_data_sets_is_two_people():
    scans = [labelled(s, dataset=d) for s in "ab" for d in (0, 1)]
    (fold, *_) = make_folds(scans, FoldPlan(4, 4), [DataSource("d"), DataSource("e")], {})
    assert len(people(fold.split.test)) == 1


def test_participants_table_says_who_takes_part(tmp_path):
    table = "participant_id\tsite\tsplit\nsub-1\tA\ttraining\nsub-2\tB\ttest\n3\tC\ttraining\n"
    (tmp_path / "participants.tsv").write_text(table)
    source = DataSource("d", balance="site", where={"split": "training"})
    assert read_people(tmp_path, source) == {"1": "A", "3": "C"}
    assert read_people(tmp_path, DataSource("d")) is None
    with pytest.raises(UsageError, match="no column age; it has participant_id, site, split"):
        read_people(tmp_path, DataSource("d", balance="age"))
    with pytest.raises(UsageError, match="no such file; the experiment expects the columns site"):
        read_people(tmp_path / "x", DataSource("d", balance="site"))


def training_scan(one, seed=0, lesion_z=3.0):
    rng = np.random.default_rng(seed)
    brain = np.zeros((40, 44, 5), bool)
    brain[5:35, 4:40, 1:4] = True
    reference = np.zeros(brain.shape, np.uint8)
    reference[15:20, 15:22, 1:4] = 1
    flair = rng.normal(100, 5, brain.shape).astype(np.float32)
    flair += 5 * lesion_z * reference
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    inputs = network_input(Image(flair, affine), brain, brain.astype(np.float32))
    name, subject = one.scan.stem, one.scan.subject
    return TrainingScan(name, subject, 0, inputs, brain, reference, affine)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Three people on disk, one fold, and the experiment around them; networks are tiny."""
    monkeypatch.setitem(slices.WIDTHS, "small", (4, 4, 6, 6, 8))
    scans = {}
    for number, subject in enumerate("abc"):
        folder = tmp_path / "bids" / f"sub-{subject}" / "anat"
        folder.mkdir(parents=True)
        flair, mask = folder / f"sub-{subject}_FLAIR.nii.gz", folder / "mask.nii.gz"
        one = LabelledScan(Scan(flair, {"sub": subject}), mask)
        scans[one] = training_scan(one, number)
        affine = scans[one].affine
        nib.Nifti1Image(np.float32(scans[one].reference), affine).to_filename(flair)
        nib.Nifti1Image(scans[one].reference, affine).to_filename(mask)
    a, b, c = scans
    recipe = {"width": "small", "steps": 2, "batch_size": 2, "crop": (32, 32)}
    experiment = Experiment(
        "T", "S", (DataSource("d"),), (), recipe=recipe | {"precision": "float32"}
    )
    around = Shared(experiment, tmp_path / "out", (tmp_path / "bids",), "T", "robust", "cpu", {})
    return around, Fold(1, Split((a,), (b,), (c,))), scans


def test_job_trains_judges_and_marks_itself(bench):
    around, fold, scans = bench
    job = Job(System("u", "U", "unet", inputs=("flair",), seeds=(0, 5)), fold)
    assert not is_complete(job, around)
    result = run_job(job, around, scans)
    assert is_complete(job, around)
    assert [row.member for row in result.rows] == ["0", "5", "ensemble"]
    assert {row.scan for row in result.rows} == {"sub-c"}
    assert result.rows[0].reference_ml == pytest.approx(0.525)
    assert [cost.steps for cost in result.cost] == [2, 2]
    assert all(cost.seconds_per_step > 0 for cost in result.cost)
    folder = around.output_dir / "u" / "fold-1"
    card = load_weights(folder / "seed-5" / "best.safetensors").card.content
    assert (card["inputs"], card["recipe"]["seed"]) == (["flair"], 5)
    assert card["training_data"][0]["test"] == ["sub-c"]
    mask = nib.load(folder / "masks/sub-c/anat/sub-c_space-orig_label-WMH_mask.nii.gz")
    assert mask.shape == (40, 44, 5)
    assert mask.get_data_dtype() == np.uint8


def test_job_that_was_stopped_goes_on_from_its_checkpoint(bench, monkeypatch):
    around, fold, scans = bench
    job = Job(System("n", "N", "bagau_net"), fold)
    step, done = slices.SliceTrainer.train_step, []

    def stop_at_second(self):
        if len(done) == 1:
            self.save_checkpoint()
            raise ProcessingError("stopped by a signal")
        done.append(self.step)
        return step(self)

    monkeypatch.setattr(slices.SliceTrainer, "train_step", stop_at_second)
    with pytest.raises(ProcessingError, match="stopped by a signal"):
        run_job(job, around, scans)
    assert not (around.folder(job) / COMPLETE).exists()

    def counted(self):
        done.append(self.step)
        return step(self)

    monkeypatch.setattr(slices.SliceTrainer, "train_step", counted)
    run_job(job, around, scans)
    assert done == [0, 1]
    assert is_complete(job, around)


def test_job_done_with_other_settings_is_not_taken_for_done(bench):
    around, fold, scans = bench
    job = Job(System("t", "T", "threshold"), fold)
    run_job(job, around, scans)
    assert is_complete(job, around)
    one = fold.split.training[0]
    other = Fold(1, Split((*fold.split.training, one), fold.split.validation, fold.split.test))
    with pytest.raises(UsageError, match=r"complete.json: made by another version, or with other"):
        is_complete(replace(job, fold=other), around)
    net = Job(System("t", "T", "unet"), fold)
    steps = structs.replace(around.experiment, recipe=around.experiment.recipe | {"steps": 3})
    assert job_key(net, around) != job_key(net, replace(around, experiment=steps))
    assert job_key(net, around) != job_key(job, around)


def test_part_without_any_scan_fails(bench):
    around, fold, scans = bench
    job = Job(System("t", "T", "threshold"), fold)
    del scans[fold.split.test[0]]
    with pytest.raises(ProcessingError, match="none of the 1 test scans could be"):
        run_job(job, around, scans)


def test_second_rater_is_judged_like_a_system(bench, tmp_path):
    around, fold, scans = bench
    one = fold.split.test[0]
    system = System("r", "R", "rater")
    without = structs.replace(around.experiment, systems=(system,))
    assert list_jobs(without, [fold], {}) == []
    data = scans[one].reference.copy()
    data[15, 15:22, 1:4] = 0  # one row of five missed
    nib.Nifti1Image(data, scans[one].affine).to_filename(tmp_path / "second.nii")
    around = replace(around, rater_masks={one: tmp_path / "second.nii"})
    (row,) = run_job(Job(system, fold), around, scans).rows
    assert row.dice == pytest.approx(2 * 4 / 9)
    assert (row.lesion_recall, row.volume_difference_percent) == (1, pytest.approx(20))


def test_threshold_is_chosen_where_it_divides_best(bench):
    _, _, scans = bench
    chosen = choose_threshold(list(scans.values()))
    scan = next(iter(scans.values()))
    shard = training_shard(scan.inputs, scan.reference)
    flair = shard.channels["flair"]
    assert flair[shard.target == 0].mean() + 1 < chosen < flair[shard.target == 1].mean()
    network = IntensityThreshold(1.0)
    flair = torch.tensor([[[[0.5, 2.0, 2.0]]]])
    atlas = torch.tensor([[[[1.0, 1.0, 0.2]]]])
    assert (network(flair, atlas) > 0).flatten().tolist() == [False, True, False]


def test_jobs_run_at_once_and_failures_do_not_stop_the_others():
    from threading import Barrier

    together = Barrier(2, timeout=20)  # two jobs meet only when both are running
    told = []

    def launch(name):
        if name in "ab":
            together.wait()
        return "broke" if name == "b" else ""

    failed = run_all("abc", 2, launch, lambda *what: told.append(what))
    assert failed == {"b": "broke"}
    assert sorted(told) == [("a", ""), ("b", "broke"), ("c", "")]


def test_launcher_keeps_the_words_of_a_job(tmp_path):
    code = "import sys; print('first'); print('why:', sys.argv[1]); sys.exit(int(sys.argv[1]))"
    launch = Launcher(
        lambda name: [sys.executable, "-c", code, name], lambda name: tmp_path / name / "log.txt"
    )
    assert launch("0") == ""
    assert launch("3") == f"exit code 3: why: 3 (all of it in {tmp_path / '3' / 'log.txt'})"
    launch.end()
    assert "the experiment was stopped" in launch("0")


def test_interrupt_ends_running_jobs(tmp_path):
    code = "import time; print('here', flush=True); time.sleep(60)"
    launch = Launcher(
        lambda name: (
            [sys.executable, "-c", code] if name == "long" else [sys.executable, "-c", ""]
        ),
        lambda name: tmp_path / name,
    )

    def tell(name, reason):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(["long", "short"], 2, launch, tell)
    assert not launch._running


def test_complete_file_is_json_without_surprises(bench):
    around, fold, scans = bench
    run_job(Job(System("t", "T", "threshold"), fold), around, scans)
    content = json.loads((around.output_dir / "t/fold-1" / COMPLETE).read_text())
    assert content["scans"] == {"training": ["sub-a"], "validation": ["sub-b"], "test": ["sub-c"]}
    assert content["machine"]["device"] == "cpu"
    assert 0.5 <= content["z_score_threshold"] <= 6
    assert "".join(f"{key} " for key in content) == (
        "key system fold scans rows z_score_threshold machine version finished "
    )


def test_damaged_complete_file_is_named_with_its_field(bench):
    around, fold, scans = bench
    job = Job(System("t", "T", "threshold"), fold)
    run_job(job, around, scans)
    path = around.folder(job) / COMPLETE
    path.write_text(path.read_text().replace('"key"', '"kee"'))
    with pytest.raises(UsageError, match=r"complete.json: .*missing required field `key`"):
        is_complete(job, around)
