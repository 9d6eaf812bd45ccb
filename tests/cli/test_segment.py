"""``bagau segment``: files of any name go through the one pipeline and come out by their names."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import workflow_fakes as fakes
from dicom_study import write_series

from bagau_bids.cli.toolbox import main


@pytest.fixture
def template(tmp_path, monkeypatch):
    return fakes.install_everything(monkeypatch, tmp_path / "store")


@pytest.fixture
def quick_page(monkeypatch):
    fakes.install_quick_page(monkeypatch)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, fakes.AFFINE).to_filename(path)
    return path


def segment(*words):
    return main(["segment", *map(str, words), "--nprocs", "1", "--device", "cpu"])


def values_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def test_help_says_what_else_is_taken(capsys):
    assert segment("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("--dry-run, --work-dir ...")


def test_two_files_without_bids(tmp_path, template, capsys):
    first = write(tmp_path / "p1" / "my scan.nii.gz", fakes.head(1))
    second = write(tmp_path / "p2" / "other.nii", fakes.head(2, lesions=False))
    out = tmp_path / "out"
    assert segment(first, second, out) == 0
    assert {path.name for path in (out / "my scan").iterdir()} >= {
        "wmh_mask.nii.gz",
        "wmh_probability.nii.gz",
        "brain_mask.nii.gz",
        "volumes.tsv",
        "lesions.tsv",
        "quality.tsv",
        "report.html",
    }
    assert not [*(out / ".work").rglob("conform")]
    table = pd.read_csv(out / "volumes.tsv", sep="\t").set_index("scan")
    voxel_mm3 = abs(np.linalg.det(fakes.AFFINE[:3, :3]))
    for name in ("my scan", "other"):
        voxels = values_of(out / name / "wmh_mask.nii.gz").sum()
        assert table.loc[name, "volume_mm3"] == pytest.approx(voxels * voxel_mm3, rel=1e-6)
    assert table.loc["my scan", "volume_mm3"] > 0
    assert set(table.columns) <= json.loads((out / "volumes.json").read_text()).keys()
    told = capsys.readouterr()
    assert "] my scan: conform done in" in told.err
    assert "sub-myscan" not in told.err
    said = told.out
    volume = table.loc["my scan", "volume_mm3"] / 1000
    assert f"my scan: WMH {volume:.2f} ml in" in said
    assert "sub-myscan" not in said
    assert said.count(f"WMH {volume:.2f} ml") == 1
    assert str(out / "my scan" / "report.html") in said


def test_the_page_leads_to_the_files_beside_it_and_to_no_others(tmp_path, template):
    scan = write(tmp_path / "scan.nii.gz", fakes.head(1))
    assert segment(scan, tmp_path / "out") == 0
    folder = tmp_path / "out" / "scan"
    links = re.findall(r'href="([^"]*)"', (folder / "report.html").read_text())
    files = {link for link in links if not link.startswith(("#", "https://", "data:"))}
    assert files >= {"lesions.tsv", "quality.tsv"}
    assert all((folder / name).is_file() for name in files)


def test_options_may_stand_between_the_scans_and_the_folder(tmp_path, template, quick_page):
    first, second = (write(tmp_path / f"{name}.nii", fakes.head()) for name in "ab")
    assert segment(first, "--threshold", "0.4", second, tmp_path / "out") == 0
    assert (tmp_path / "out" / "a").is_dir()
    assert (tmp_path / "out" / "b").is_dir()


def test_masks_are_those_of_the_same_scan_in_bids(tmp_path, template, quick_page):
    scan = write(tmp_path / "any.nii.gz", fakes.head(0))
    assert segment(scan, tmp_path / "out", "--threshold", "0.4") == 0
    data = fakes.make_dataset(tmp_path / "data", "sub-01")
    config = fakes.make_config(data, tmp_path / "bids-out", tmp_path / "work", threshold=0.4)
    fakes.process_scans(config, fakes.scans_of(data), template, fakes.Listener())
    for plain, name in (
        ("wmh_mask", "space-orig_label-WMH_mask"),
        ("wmh_probability", "space-orig_label-WMH_probseg"),
    ):
        expected = values_of(tmp_path / f"bids-out/sub-01/anat/sub-01_{name}.nii.gz")
        found = values_of(tmp_path / "out" / "any" / f"{plain}.nii.gz")
        assert expected.any()
        assert np.array_equal(found, expected)


def test_drawn_masks_are_scored_in_the_order_of_the_scans(tmp_path, template, quick_page, capsys):
    names = ("b", "a")
    scans = [write(tmp_path / f"{name}.nii.gz", fakes.head(n)) for n, name in enumerate(names)]
    assert segment(*scans, tmp_path / "out") == 0
    found = values_of(tmp_path / "out" / "b" / "wmh_mask.nii.gz")
    same = write(tmp_path / "masks" / "1.nii.gz", found)
    none = write(tmp_path / "masks" / "2.nii.gz", np.zeros_like(found))
    assert segment(*scans, tmp_path / "out", "--mask", same, none) == 0
    table = pd.read_csv(tmp_path / "out" / "evaluation.tsv", sep="\t").set_index("case")
    assert table.loc["b", "dice"] == 1
    assert table.loc["a", "dice"] == 0
    said = capsys.readouterr().out
    assert "Dice" in said
    for name in names:
        assert f"Usual for what was found in {name}: " in said


def test_a_scan_that_fails_is_told_and_stops_no_other(tmp_path, template, quick_page, capsys):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    good = write(tmp_path / "good.nii.gz", fakes.head())
    assert segment(bad, good, tmp_path / "out") == 1
    assert (tmp_path / "out" / "good" / "wmh_mask.nii.gz").is_file()
    assert not (tmp_path / "out" / "bad" / "wmh_mask.nii.gz").exists()
    told = capsys.readouterr()
    assert f"bad: failed: {bad}: " in told.out
    assert "good: WMH" in told.out
    assert "sub-bad_FLAIR" not in told.out
    assert f"FAILED: {bad}: " in told.err
    assert "sub-bad_FLAIR" not in told.err
    table = pd.read_csv(tmp_path / "out" / "volumes.tsv", sep="\t").set_index("scan")
    assert table.loc["bad", "status"] == "failed"
    assert table.loc["bad", "problem"].startswith(f"{bad}: ")


def test_scans_none_of_which_can_be_read_are_refused_at_once(tmp_path, capsys):
    bad, worse = tmp_path / "bad.nii.gz", tmp_path / "worse.nii"
    bad.touch()
    worse.write_text("This is a text of more than a header's length. " * 20)
    assert segment(bad, worse, tmp_path / "new" / "out") == 2
    said = capsys.readouterr().err
    assert "no scan can be read; expected FLAIRs as NIfTI files" in said
    assert f"{bad}: the file is empty (0 bytes)" in said
    assert f"{worse}: is not a NIfTI image" in said
    assert not (tmp_path / "new").exists()


def test_a_dry_run_leaves_nothing(tmp_path, template, capsys):
    first, second = (write(tmp_path / x / "a.nii.gz", fakes.head()) for x in "pq")
    out, work = tmp_path / "out", tmp_path / "work"
    assert segment(first, out, "--dry-run", "-w", work) == 0
    assert "a: would be processed" in capsys.readouterr().out
    assert not out.exists()
    assert not work.exists()
    folder = out / "bids"
    folder.mkdir(parents=True)
    (out / ".bagau-segment.json").write_text(json.dumps({"command": "bagau segment"}))
    (folder / "participants.tsv").write_text(f"participant_id\tscan\tsource\nsub-a\ta\t{first}\n")
    there = sorted(out.rglob("*"))
    assert segment(second, out, "--dry-run") == 2  # as the run would
    assert f"{second}: {out} has results of {first} under its name" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == there


def test_a_folder_of_nifti_files_stands_for_its_flairs(tmp_path, template, quick_page, capsys):
    folder = tmp_path / "scans"
    for name in ("p1/flair.nii.gz", "p2/flair.nii.gz", "p1/t1.nii.gz", "p1/flair_mask.nii.gz"):
        write(folder / name, fakes.head())
    assert segment(folder, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "p1_flair: would be processed\np2_flair: would be processed" in said
    assert "left out: p1/t1.nii.gz: its name does not say FLAIR" in said
    assert "left out: p1/flair_mask.nii.gz: by its name made from a scan" in said


def test_a_scan_that_cannot_be_read_is_told_beforehand_and_has_a_row(
    tmp_path, template, quick_page, capsys
):
    good, empty = write(tmp_path / "good.nii.gz", fakes.head()), tmp_path / "empty.nii.gz"
    empty.touch()
    out, why = tmp_path / "out", f"{empty}: an empty file (0 bytes); copy or fetch it again"
    assert segment(good, empty, out, "--dry-run") == 1
    told = f"good: would be processed\nempty: failed: {why}\n"
    assert told in capsys.readouterr().out
    assert segment(good, empty, out) == 1
    assert f"empty: failed: {why}" in capsys.readouterr().out
    table = pd.read_csv(out / "volumes.tsv", sep="\t", na_values="n/a").set_index("scan")
    assert list(table.status) == ["complete", "failed"]
    assert table.problem["empty"] == why
    assert np.isnan(table.volume_mm3["empty"])
    assert not (out / "empty" / "wmh_mask.nii.gz").exists()


def test_a_page_that_cannot_be_written_is_told(tmp_path, template, monkeypatch, capsys):
    scan = write(tmp_path / "scan.nii.gz", fakes.head())

    def refuse(output_dir, label, **options):
        raise ValueError(f"no page of {label} in {output_dir.name}: {sorted(options)}")

    monkeypatch.setattr("bagau_bids.reports.participant.write_participant_report", refuse)
    assert segment(scan, tmp_path / "out") == 1
    assert "its page could not be written: ValueError" in capsys.readouterr().out
    assert not (tmp_path / "out" / "scan" / "report.html").exists()


def test_masks_are_checked_before_the_scans_are_processed(tmp_path, template, capsys):
    scan = write(tmp_path / "scan.nii.gz", fakes.head())
    drawn = np.zeros(fakes.SHAPE, np.uint8)
    others = (2 * (fakes.head() > 150)).astype(np.uint8)
    damaged = tmp_path / "damaged.nii"
    damaged.write_bytes(b"none")
    for mask, message in (
        (write(tmp_path / "values.nii", drawn + np.uint8(7)), "values [7]; expected 0"),
        (write(tmp_path / "others.nii", others), "2 is what is not judged"),
        (write(tmp_path / "shape.nii", drawn[:-1]), "expected that of"),
        (damaged, "damaged.nii"),
        (tmp_path / "none.nii", "no such file"),
    ):
        assert segment(scan, tmp_path / "out", "--mask", mask) == 2
        assert f"--mask {mask}: " in (said := capsys.readouterr().err)
        assert message in said
    assert not (tmp_path / "out").exists()


def test_the_mask_of_a_folder_of_dicom_is_checked_too(tmp_path, template, capsys):
    write_series(tmp_path / "study", 4, "FLAIR", shape=(40, 48, 20), inversion_ms=2400)
    mask = write(tmp_path / "mask.nii", np.zeros((9, 9, 9), np.uint8))
    assert segment(tmp_path / "study", tmp_path / "out", "--mask", mask) == 2
    assert "expected that of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_an_earlier_run_found_is_not_told_of_a_scan_that_fails(
    tmp_path, template, quick_page, capsys, content
):
    scan = write(tmp_path / "scan.nii.gz", fakes.head())
    assert segment(scan, tmp_path / "out") == 0
    scan.write_bytes(content)
    capsys.readouterr()
    assert segment(scan, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    assert told.out.count("scan: failed") == 1
    assert {path.name for path in (tmp_path / "out" / "scan").iterdir()} == {"report.html"}
    (row,) = pd.read_csv(tmp_path / "out" / "volumes.tsv", sep="\t").to_dict("records")
    assert row["status"] == "failed"
    assert np.isnan(row["volume_mm3"])


def test_folders_of_others_are_left_alone(tmp_path, template, quick_page, capsys):
    scan = write(tmp_path / "scan.nii.gz", fakes.head())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "volumes.tsv").write_text("mine")
    for out in (tmp_path, tmp_path / "own"):
        assert segment(scan, out) == 2
        assert "is not empty and holds no results" in capsys.readouterr().err
    assert (tmp_path / "own" / "volumes.tsv").read_text() == "mine"
    assert segment(scan, scan / "below") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_page_of_a_scan_that_fails_names_the_file_of_the_user(tmp_path, template):
    scan = write(tmp_path / "R&D" / "scan.nii.gz", np.zeros(fakes.SHAPE, np.float32))
    out = tmp_path / "A&B"
    assert segment(scan, out) == 1
    page = (out / "scan" / "report.html").read_text()
    assert f"{tmp_path}/R&amp;D/scan.nii.gz: " in page
    assert "sub-scan_FLAIR.nii.gz" not in page


def test_a_work_folder_that_was_named_stays(tmp_path, template, quick_page):
    scan = write(tmp_path / "scan.nii.gz", fakes.head())
    assert segment(scan, tmp_path / "out", "-w", tmp_path / "kept") == 0
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / "out" / ".work").exists()


def test_a_second_run_adds_to_the_table(tmp_path, template, quick_page):
    for name in ("first", "second"):
        assert segment(write(tmp_path / f"{name}.nii", fakes.head()), tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "volumes.tsv", sep="\t")
    assert set(table["scan"]) == {"first", "second"}


def test_folders_of_dicom_are_converted(tmp_path, template, quick_page, capsys):
    shape = (40, 48, 20)
    write_series(tmp_path / "study", 4, "FLAIR", shape=shape, inversion_ms=2400)
    write_series(tmp_path / "study", 5, "FLAIR again", shape=shape)
    assert segment(tmp_path / "study", tmp_path / "out") == 2
    assert "2 series of 2 fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert segment(tmp_path / "study", tmp_path / "out", "--series", "5") in (0, 1)
    made = tmp_path / "out" / "bids" / "sub-study" / "anat" / "sub-study_FLAIR.nii.gz"
    assert nib.load(made).shape == shape
    assert json.loads((made.parent / "sub-study_FLAIR.json").read_text())["SeriesNumber"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.nii", "b.nii"], "b.nii: is a file; expected the folder of the results"),
        (["a.nii", "OUT", "--mask", "b.nii", "a.nii"], "2 masks for 1 scans; expected one for"),
        (["a.nii", "a.nii", "OUT", "--mask", "b.nii", "a.nii"], "2 masks for 1 scans"),
        (["a.nii", "OUT", "--mask", "none.nii"], "none.nii: no such file; expected a mask on"),
        (["bids.nii", "OUT"], "bids are names of the program's own there, and of scans"),
        (["volumes.tsv.nii", "OUT"], "volumes.tsv are names of the program's own"),
        (["none.nii", "OUT"], "none.nii: does not exist; expected a FLAIR"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, monkeypatch, capsys, words, message):
    for name in ("a", "b", "bids", "volumes.tsv"):
        write(tmp_path / f"{name}.nii", fakes.head())
    monkeypatch.chdir(tmp_path)
    assert segment(*words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "OUT").exists()
