"""Masks edited by hand: measured as the network's are, marked, and ready to train on."""

import fcntl
import io
import json
import logging
import shlex
import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import workflow_fakes as fakes
from page_checks import Page

from bagau_bids.bids.derivatives import derivative_path, sidecar_path
from bagau_bids.bids.edited import kept_masks
from bagau_bids.bids.masks import find_lesion_masks
from bagau_bids.cli import segment as cli_segment
from bagau_bids.cli.remeasure import _known
from bagau_bids.cli.toolbox import main
from bagau_bids.reports.group import write_group
from bagau_bids.reports.participant import write_participant_report
from bagau_bids.workflow import remeasure as workflow_remeasure

TABLES = ("volumes_table", "lesions_table", "fazekas_table")
IMAGES = ("wmh_mask", "lesions_dseg", "regions_dseg")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of two scans, which tests copy."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        template = fakes.install_everything(monkeypatch, folder / "store")
        data = fakes.make_dataset(folder / "data", "sub-01", "sub-02")
        config = fakes.make_config(data, folder / "out", folder / "work")
        done = fakes.process_scans(config, fakes.scans_of(data), template, fakes.Listener())
    assert all(one.ok for one in done)
    return folder / "out"


@pytest.fixture
def out(results, tmp_path, monkeypatch):
    fakes.install_quick_page(monkeypatch)
    folder = tmp_path / "out"
    shutil.copytree(results, folder)
    return folder


def of(out, label, key):
    return derivative_path(out, {"sub": label}, key)


def contents(out, label):
    tables = {key: of(out, label, key).read_text() for key in TABLES}
    images = {key: np.asanyarray(nib.load(of(out, label, key)).dataobj) for key in IMAGES}
    return tables, images


def edited(out, label, path, value=1):
    """Write the mask of a scan with a third lesion; returns its data."""
    image = nib.load(of(out, label, "wmh_mask"))
    data = np.array(image.dataobj)
    data[12:14, 8:10, 6] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image((data * value).astype(np.uint8), image.affine).to_filename(path)
    return data


def remeasure(*words):
    logging.getLogger().handlers.clear()  # of tests before, which hold another stdout
    return main(["remeasure", *map(str, words)])


def record_of(out, label):
    return json.loads(of(out, label, "record").read_text())


@pytest.mark.parametrize("value", [1, 255])
def test_an_edited_mask_is_measured_and_marked(out, tmp_path, value, capsys):
    before = contents(out, "02")
    old_mm3 = pd.read_csv(of(out, "01", "volumes_table"), sep="\t").loc[0, "volume_mm3"]
    data = edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz", value)
    assert remeasure(out, "--masks", tmp_path / "masks") == 0
    tables, images = contents(out, "01")
    assert np.array_equal(images["wmh_mask"], data)
    assert images["lesions_dseg"].max() == 3
    assert ((images["regions_dseg"] > 0) <= (data > 0)).all()
    table = pd.read_csv(of(out, "01", "volumes_table"), sep="\t").set_index("region")
    assert table.loc["all", "volume_voxels"] == data.sum()
    assert table.loc["all", "n_lesions"] == 3
    assert len(tables["lesions_table"].splitlines()) == 4
    said = record_of(out, "01")["edited"]
    assert said["mask"] == "sub-01.nii.gz"
    assert said["network_mm3"] == pytest.approx(old_mm3)
    mask = of(out, "01", "wmh_mask")
    assert json.loads((mask.parent / mask.name.replace(".nii.gz", ".json")).read_text())["Manual"]
    assert "sub-01: measured anew" in capsys.readouterr().out
    after = contents(out, "02")
    assert after[0] == before[0]
    assert "edited" not in record_of(out, "02")
    group = pd.read_csv(write_group(out).path, sep="\t").set_index("participant_id")
    assert group["edited"].to_dict() == {"sub-01": "yes", "sub-02": "no"}
    # Of the network's mask, which is not that of the row.
    assert group["wmh_soft_to_hard"].isna().to_dict() == {"sub-01": True, "sub-02": False}


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        ("example_FLAIR", "example_FLAIR"),  # as `bagau segment` names what has such a name
        ("sub-01", "sub-01"),
        ("sub-01_FLAIR", "sub-01"),
        ("sub-02_FLAIR", None),
        ("example", None),
    ],
)
def test_scans_are_known_by_their_names_and_without_the_suffix(name, scan):
    assert _known(name, {"example_FLAIR": "sub-exampleFLAIR", "sub-01": "sub-01"}) == scan


def test_the_mask_of_the_network_gives_the_measures_of_the_network(out, tmp_path):
    before = contents(out, "01")
    original = tmp_path / "original" / "sub-01.nii.gz"
    original.parent.mkdir()
    shutil.copy(of(out, "01", "wmh_mask"), original)
    edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz")
    assert remeasure(out, "--masks", tmp_path / "masks") == 0
    assert record_of(out, "01")["edited"]["network_mm3"] > 0
    assert remeasure(out, "--masks", original.parent) == 0
    after = contents(out, "01")
    for key in TABLES:
        found, expected = (
            pd.read_csv(io.StringIO(one[0][key]), sep="\t") for one in (after, before)
        )
        pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    for key in IMAGES:
        assert np.array_equal(after[1][key], before[1][key]), key
    assert "edited" not in record_of(out, "01")
    for key in IMAGES:
        assert json.loads(sidecar_path(of(out, "01", key)).read_text())["Manual"] is False
    assert kept_masks(out, {"sub": "01"})  # what was edited is still a person's work


def test_a_mask_saved_over_the_network_s_is_taken(out, capsys):
    data = edited(out, "02", of(out, "02", "wmh_mask"))
    assert remeasure(out) == 0
    table = pd.read_csv(of(out, "02", "volumes_table"), sep="\t").set_index("region")
    assert table.loc["all", "volume_voxels"] == data.sum()
    said = capsys.readouterr().out
    assert "sub-01: nothing to measure" in said
    assert "sub-02: measured anew" in said
    assert "edited" not in record_of(out, "01")


def test_an_edit_that_moves_voxels_only_is_measured(out):
    mask = of(out, "02", "wmh_mask")
    image = nib.load(mask)
    data = np.array(image.dataobj)
    assert data[12, 15, 5]
    data[12, 15, 5], data[13, 15, 5] = 0, 1
    nib.Nifti1Image(data, image.affine).to_filename(mask)
    assert remeasure(out) == 0
    assert np.array_equal(np.asanyarray(nib.load(of(out, "02", "lesions_dseg")).dataobj) > 0, data)


def test_an_edit_that_was_never_measured_is_kept_when_another_mask_is_taken(out, tmp_path):
    data = edited(out, "01", of(out, "01", "wmh_mask"))
    write = tmp_path / "masks" / "sub-01.nii.gz"
    write.parent.mkdir()
    nib.Nifti1Image(0 * data, nib.load(of(out, "01", "wmh_mask")).affine).to_filename(write)
    assert remeasure(out, "--masks", tmp_path / "masks") == 0
    (kept,) = kept_masks(out, {"sub": "01"})
    assert np.array_equal(nib.load(kept).get_fdata(), data)
    assert not nib.load(of(out, "01", "wmh_mask")).get_fdata().any()


def test_any_names_by_a_table_and_labels_to_train_on(out, tmp_path):
    one = edited(out, "01", tmp_path / "drawn" / "a.nii.gz", 255)
    edited(out, "02", tmp_path / "drawn" / "b.nii.gz")
    table = tmp_path / "pairs.tsv"
    table.write_text("scan\tmask\nsub-01_FLAIR\tdrawn/a.nii.gz\nsub-02\tdrawn/b.nii.gz\n")
    labels = tmp_path / "labels"
    assert remeasure(out, "--table", table, "--labels", labels) == 0
    masks = {mask.scan: mask.path for mask in find_lesion_masks(labels)}
    assert masks.keys() == {"sub-01", "sub-02"}
    found = np.asanyarray(nib.as_closest_canonical(nib.load(masks["sub-01"])).dataobj)
    mask = nib.Nifti1Image(one, nib.load(of(out, "01", "wmh_mask")).affine)
    expected = np.asanyarray(nib.as_closest_canonical(mask).dataobj)
    assert np.array_equal(found, expected)
    assert (labels / "dataset_description.json").is_file()


def test_masks_with_names_of_derivatives_are_found(out, tmp_path):
    data = edited(out, "02", tmp_path / "d" / "sub-02" / "anat" / "sub-02_label-WMH_mask.nii.gz")
    assert remeasure(out, "--masks", tmp_path / "d") == 0
    assert contents(out, "02")[1]["wmh_mask"].sum() == data.sum()


def test_what_cannot_be_measured_fails_alone(out, tmp_path, capsys):
    data = edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz")
    wrong = nib.Nifti1Image(data[:-1], fakes.AFFINE)
    wrong.to_filename(tmp_path / "masks" / "sub-02.nii.gz")
    assert remeasure(out, "--masks", tmp_path / "masks", "--labels", tmp_path / "l") == 1
    said = capsys.readouterr().out
    assert "sub-02: failed: " in said
    assert "expected that of" in said
    assert "edited" in record_of(out, "01")
    assert {mask.scan for mask in find_lesion_masks(tmp_path / "l")} == {"sub-01"}


def test_a_voxel_is_not_two_things(out, tmp_path, capsys):
    data = edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz")
    image = nib.Nifti1Image(data, nib.load(of(out, "01", "wmh_mask")).affine)
    image.to_filename(of(out, "01", "infarct_mask"))
    assert remeasure(out, "--masks", tmp_path / "masks") == 1
    assert f"{data.sum()} voxels are also in sub-01_space-orig_label-infarct" in (
        capsys.readouterr().out
    )


def test_results_that_lack_something_are_named(out, tmp_path, capsys):
    edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz")
    of(out, "01", "ventricle_mask").unlink()
    assert remeasure(out, "--masks", tmp_path / "masks") == 1
    said = capsys.readouterr().out
    assert "has no sub-01_space-orig_label-ventricles_mask.nii.gz; expected the complete" in said


@pytest.mark.parametrize(
    ("words", "table", "message"),
    [
        (["none"], None, "none: holds no results of a scan; expected the output folder of"),
        (["out", "--masks", "none"], None, "none: no such folder; expected one of edited"),
        (["out", "--masks", "store"], None, "out; expected names such as sub-01_space-orig"),
        (["out", "--table", "t.tsv"], "sub-9\tx.nii", "out; expected one of sub-01, sub-02"),
        (["out", "--table", "t.tsv"], "sub-01\tx.nii", "x.nii does not exist; check the column"),
    ],
)
def test_what_cannot_be_meant_is_refused(out, monkeypatch, capsys, words, table, message):
    monkeypatch.chdir(out.parent)
    (out.parent / "store").mkdir()
    (out.parent / "t.tsv").write_text(f"scan\tmask\n{table}\n")
    assert remeasure(*words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


class StoppedAt:
    """Stands in for what writes: stops the program at the n-th call of any of its kind."""

    def __init__(self, monkeypatch, number):
        self.left = number
        for name in ("write_table", "write_json", "replacing", "remove_stale"):
            real = getattr(workflow_remeasure, name)
            monkeypatch.setattr(workflow_remeasure, name, partial(self.call, real))

    def call(self, real, *args, **keywords):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return real(*args, **keywords)


@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("back", [False, True])
def test_what_was_stopped_anywhere_is_done_by_the_same_command(
    out, tmp_path, monkeypatch, number, back
):
    original = tmp_path / "original" / "sub-01.nii.gz"
    original.parent.mkdir()
    shutil.copy(of(out, "01", "wmh_mask"), original)
    edited(out, "01", tmp_path / "masks" / "sub-01.nii.gz")
    masks = tmp_path / "masks"
    if back:
        assert remeasure(out, "--masks", masks) == 0
        masks = original.parent
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    assert remeasure(whole, "--masks", masks) == 0
    with pytest.MonkeyPatch.context() as patch:
        stopped = StoppedAt(patch, number)
        code = remeasure(out, "--masks", masks)
    assert code == (130 if stopped.left <= 0 else 0)
    assert remeasure(out, "--masks", masks) == 0
    assert contents(out, "01")[0] == contents(whole, "01")[0]
    for key, image in contents(out, "01")[1].items():
        assert np.array_equal(image, contents(whole, "01")[1][key]), key
        manual = [
            json.loads(sidecar_path(of(folder, "01", key)).read_text()).get("Manual")
            for folder in (out, whole)
        ]
        assert manual[0] == manual[1]
    marks = [record_of(folder, "01").get("edited", {}) for folder in (out, whole)]
    assert [{**mark, "at": ""} for mark in marks][0] == {**marks[1], "at": ""}


def segment(scan, out, *words):
    command = ["segment", scan, out, *words, "--nprocs", "1", "--device", "cpu"]
    return main([*map(str, command)])


def test_a_mask_edited_in_a_folder_of_segment_is_measured_scored_and_never_lost(
    tmp_path, monkeypatch, capsys
):
    fakes.install_everything(monkeypatch, tmp_path / "store")
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    nib.Nifti1Image(fakes.head(), fakes.AFFINE).to_filename(scan)
    drawn = tmp_path / "drawn.nii.gz"
    nib.Nifti1Image((fakes.head() > 150).astype(np.uint8), fakes.AFFINE).to_filename(drawn)
    assert segment(scan, out, "--mask", drawn) == 0
    dice = pd.read_csv(out / "evaluation.tsv", sep="\t").set_index("case").loc["scan", "dice"]
    mask = out / "scan" / "wmh_mask.nii.gz"
    image = nib.load(mask)
    network, data = np.array(image.dataobj), np.array(image.dataobj)
    data[12:14, 8:10, 6] = 1
    nib.Nifti1Image(data, image.affine).to_filename(mask)
    assert remeasure(out) == 0
    table = pd.read_csv(out / "volumes.tsv", sep="\t").set_index("scan")
    assert table.loc["scan", "volume_voxels"] == data.sum()
    assert table.loc["scan", "edited"] == "yes"
    volumes = pd.read_csv(out / "scan" / "volumes.tsv", sep="\t").set_index("region")
    assert volumes.loc["all", "volume_voxels"] == data.sum()
    scores = pd.read_csv(out / "evaluation.tsv", sep="\t").set_index("case")
    assert scores.loc["scan", "dice"] < dice
    assert scores.loc["scan", "reference"] == str(drawn)
    text = Page(out / "scan" / "report.html").text
    assert "The mask was edited by hand" in text
    assert "That of the person who edited the mask." in text
    assert "of the network's result, not of the edited mask" in text

    assert capsys.readouterr().out.count("Usual for what was found") == 1  # not of the edit
    fakes.install_quick_page(monkeypatch)
    for again in (data, np.flip(data, 0)):  # measured, and saved over the network's only
        nib.Nifti1Image(again, image.affine).to_filename(mask)
        assert segment(scan, out) == 0
        said = capsys.readouterr().out
        (line,) = {one for one in said.splitlines() if "its edited mask gave way" in one}
        assert np.array_equal(nib.load(mask).get_fdata(), network)
        logs = [one.read_text() for one in (out / "bids").rglob("bagau-bids.log")]
        assert sum(line in log for log in logs) == 1  # names of one second are in no order
        words = shlex.split(line.partition("To take it again: ")[2])
        assert words[:2] == ["bagau", "remeasure"]
        assert main(words[1:]) == 0
        assert np.array_equal(nib.load(mask).get_fdata(), again)


def test_a_folder_of_segment_is_put_right_where_a_run_stopped_before_it(
    tmp_path, monkeypatch, capsys
):
    fakes.install_everything(monkeypatch, tmp_path / "store")
    fakes.install_quick_page(monkeypatch)
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    nib.Nifti1Image(fakes.head(), fakes.AFFINE).to_filename(scan)
    drawn = tmp_path / "drawn.nii.gz"
    nib.Nifti1Image((fakes.head() > 150).astype(np.uint8), fakes.AFFINE).to_filename(drawn)
    assert segment(scan, out, "--mask", drawn) == 0
    before = pd.read_csv(out / "evaluation.tsv", sep="\t").loc[0, "dice"]
    mask = out / "scan" / "wmh_mask.nii.gz"
    image = nib.load(mask)
    data = np.array(image.dataobj)
    data[12:14, 8:10, 6] = 1
    nib.Nifti1Image(data, image.affine).to_filename(mask)

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_segment, "refresh", stop)
        assert remeasure(out) == 130
    assert remeasure(out) == 0
    table = pd.read_csv(out / "volumes.tsv", sep="\t").set_index("scan")
    assert table.loc["scan", "volume_voxels"] == data.sum()
    volumes = pd.read_csv(out / "scan" / "volumes.tsv", sep="\t").set_index("region")
    assert volumes.loc["all", "volume_voxels"] == data.sum()
    assert pd.read_csv(out / "evaluation.tsv", sep="\t").loc[0, "dice"] < before


def test_a_second_run_leaves_a_scan_to_the_first(tmp_path, monkeypatch, capsys):
    fakes.install_everything(monkeypatch, tmp_path / "store")
    fakes.install_quick_page(monkeypatch)
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    nib.Nifti1Image(fakes.head(), fakes.AFFINE).to_filename(scan)
    work = ("-w", tmp_path / "work")
    assert segment(scan, out, *work) == 0
    files = {path: path.read_bytes() for path in (out / "scan").iterdir()}
    table = pd.read_csv(out / "volumes.tsv", sep="\t")
    (lock,) = (tmp_path / "work").glob("*/*/.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert segment(scan, out, *work) == 1
    assert "scan: left to another run: " in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (out / "scan").iterdir()} == files
    pd.testing.assert_frame_equal(pd.read_csv(out / "volumes.tsv", sep="\t"), table)
    summaries = [path.read_text() for path in (out / "bids").rglob("summary.tsv")]
    (second,) = (text for text in summaries if "in another run" in text)
    assert "another run works on this scan" in second


def test_a_scan_that_is_processed_again_keeps_the_edited_mask_and_its_page_says_so(
    tmp_path, monkeypatch
):
    template = fakes.install_everything(monkeypatch, tmp_path / "store")
    data, out = fakes.make_dataset(tmp_path / "data", "sub-01"), tmp_path / "out"
    config = fakes.make_config(data, out, tmp_path / "work")

    def process():
        (done,) = fakes.process_scans(config, fakes.scans_of(data), template, fakes.Listener())
        assert done.ok

    process()
    network = contents(out, "01")[1]["wmh_mask"]
    changed = edited(out, "01", of(out, "01", "wmh_mask"))
    process()
    assert np.array_equal(contents(out, "01")[1]["wmh_mask"], network)
    (kept,) = kept_masks(out, {"sub": "01"})
    assert np.array_equal(nib.load(kept).get_fdata(), changed)
    (page,) = write_participant_report(out, "01")
    said = Page(page).text
    assert "edited by hand is not shown here" in said
    assert "bagau remeasure OUT --masks OUT/derivatives/edited" in said
    process()  # nothing to do
    assert kept_masks(out, {"sub": "01"}) == (kept,)
    assert remeasure(out, "--masks", out / "derivatives" / "edited") == 0
    assert np.array_equal(contents(out, "01")[1]["wmh_mask"], changed)
    assert "edited by hand is not shown here" not in Page(page).text
