"""``bagau evaluate`` from the command line."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bagau_bids.cli import toolbox

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


def mask_path(root, subject):
    return root / f"sub-{subject}" / "anat" / f"sub-{subject}_space-orig_label-WMH_mask.nii.gz"


@pytest.fixture
def trees(tmp_path):
    """References and results of four participants, and their BIDS data set with two sites."""
    rng = np.random.default_rng(0)
    bids = tmp_path / "bids"
    for number in range(1, 5):
        reference = (rng.random((16, 18, 6)) < 0.1).astype(np.uint8)
        result = reference & (rng.random(reference.shape) < 0.7)
        save(mask_path(tmp_path / "reference", number), reference)
        save(mask_path(tmp_path / "result", number), result.astype(np.uint8))
        flair = rng.uniform(50, 99, reference.shape).astype(np.float32)
        save(bids / f"sub-{number}" / "anat" / f"sub-{number}_FLAIR.nii.gz", flair)
    (bids / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (bids / "participants.tsv").write_text(
        "participant_id\tsite\nsub-1\tA\nsub-2\tB\nsub-3\tB\nsub-4\tn/a\n"
    )
    return tmp_path


def evaluate(folder, *options):
    return toolbox.main(
        ["evaluate", str(folder / "reference"), str(folder / "result"), *map(str, options)]
    )


def test_tables_are_printed_and_nothing_is_written(trees, capsys):
    before = sorted(trees.rglob("*"))
    assert evaluate(trees) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == [
        f"sub-{n}" for n in range(1, 5)
    ]
    assert "all, 4 cases: mean (95 % interval)\n  dice" in shown
    assert sorted(trees.rglob("*")) == before


def test_folder_gets_tables_and_page(trees, capsys):
    out = trees / "new" / "out"
    options = ("--out", out, "--bids-dir", trees / "bids", "--group-by", "site")
    assert evaluate(trees, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "evaluation-summary_FLAIR.json",
        "evaluation-summary_FLAIR.tsv",
        "evaluation_FLAIR.html",
        "evaluation_FLAIR.json",
        "evaluation_FLAIR.tsv",
    ]
    assert str(out / "evaluation_FLAIR.html") in capsys.readouterr().out
    cases = pd.read_csv(out / "evaluation_FLAIR.tsv", sep="\t", na_values="n/a")
    assert cases.group.tolist()[:3] == ["A", "B", "B"]
    assert pd.isna(cases.group[3])
    summary = pd.read_csv(out / "evaluation-summary_FLAIR.tsv", sep="\t")
    assert list(dict.fromkeys(summary.group)) == ["all", "A", "B"]
    page = (out / "evaluation_FLAIR.html").read_text()
    assert "FLAIR only" in page
    content = {path: path.read_bytes() for path in out.iterdir()}
    assert evaluate(trees, *options) == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == content


def test_one_bad_case_leaves_the_others_and_exit_code_1(trees, capsys, caplog):
    mask_path(trees / "result", 1).unlink()
    save(mask_path(trees / "result", 2), np.zeros((16, 18, 7), np.uint8))
    save(mask_path(trees / "result", 3), np.full((16, 18, 6), 0.3, np.float32))
    assert evaluate(trees, "--out", trees / "out") == 1
    assert "all, 1 cases: mean" in capsys.readouterr().out
    for expected in (
        "sub-1 unpaired: ",
        "sub-2 failed: ",
        "grid (16, 18, 7)",
        "sub-3 failed: ",
        "a probability map and not a mask",
        "3 of 4 cases were not scored",
    ):
        assert expected in caplog.text
    cases = pd.read_csv(trees / "out" / "evaluation_FLAIR.tsv", sep="\t")
    assert cases.status.tolist() == ["unpaired", "failed", "failed", "scored"]
    assert "Not scored" in (trees / "out" / "evaluation_FLAIR.html").read_text()


def test_no_case_scored_is_exit_code_1(trees, capsys):
    reference, result = (mask_path(trees / name, 1) for name in ("reference", "result"))
    result.write_bytes(b"")
    assert toolbox.main(["evaluate", str(reference), str(result)]) == 1
    assert capsys.readouterr().out == ""


def test_threshold_makes_masks_of_probability_maps(trees):
    reference = nib.load(mask_path(trees / "reference", 1)).get_fdata()
    save(mask_path(trees / "result", 1), (reference * 0.6 + 0.1).astype(np.float32))
    assert evaluate(trees, "--threshold", "0.5", "--out", trees / "out") == 0
    cases = pd.read_csv(trees / "out" / "evaluation_FLAIR.tsv", sep="\t")
    assert cases.dice[0] == 1


def test_two_files(trees, capsys):
    reference, result = (mask_path(trees / name, 1) for name in ("reference", "result"))
    assert toolbox.main(["evaluate", str(reference), str(result), "--out", str(trees / "o")]) == 0
    shown = capsys.readouterr().out
    assert "all, 1 cases: mean" in shown
    assert "n/a to n/a" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group-by", "site"), "--group-by site: expected --bids-dir as well"),
        (("--bids-dir", "nowhere"), "nowhere: no such folder; expected a BIDS data set"),
        (("--bids-dir", "bids", "--group-by", "age"), "no column age; it has participant_id, s"),
        (("--bids-dir", "reference", "--group-by", "site"), "participants.tsv: no such file"),
        (("--out", "bids/participants.tsv"), "participants.tsv: cannot be made"),
        (("--threshold", "2"), "expected a probability between 0 and 1"),
    ],
)
def test_wrong_use_is_exit_code_2(trees, capsys, monkeypatch, options, message):
    monkeypatch.chdir(trees)
    assert evaluate(trees, *options) == 2
    assert message in capsys.readouterr().err


def test_nothing_that_pairs_is_exit_code_2(trees, capsys):
    (trees / "empty").mkdir()
    assert toolbox.main(["evaluate", str(trees / "reference"), str(trees / "empty")]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_files_of_other_names_are_paired_and_it_is_said_how(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    data = np.zeros((16, 18, 6), np.uint8)
    for number in (1, 2):
        data[number, number, number] = 1
        save(tmp_path / "reference" / f"case{number}.nii", data)
        save(tmp_path / "result" / f"r{number}.nii.gz", data)
    assert evaluate(tmp_path, "--by-order") == 0
    assert "2 pairs, by the order of their names:" in caplog.text
    assert "case2.nii with r2.nii.gz" in caplog.text
    assert "case1 1.000" in " ".join(capsys.readouterr().out.split())
    table = tmp_path / "pairs.tsv"
    table.write_text("reference\tresult\ncase1.nii\tr2.nii.gz\n")
    assert evaluate(tmp_path, "--pairs", table) == 0
    assert f"1 pairs, by the table {table}:" in caplog.text
    assert evaluate(tmp_path, "--pairs", table, "--by-order") == 2
