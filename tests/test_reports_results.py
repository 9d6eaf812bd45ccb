"""What is read of the derivatives folder: which scans, their state, plain words."""

import pytest
from fake_derivatives import write_failure, write_scan

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.errors import ProcessingError
from bagau_bids.reports import results


def test_scans_are_found_by_any_file_in_natural_order(tmp_path):
    for entities in (
        {"sub": "10"},
        {"sub": "2", "ses": "B", "acq": "3D", "run": "02"},
        {"sub": "2", "ses": "B", "run": "1"},
        {"sub": "1", "ses": "x", "ce": "gd"},
    ):
        folder = derivative_path(tmp_path, entities, "wmh_mask").parent
        folder.mkdir(parents=True, exist_ok=True)
        derivative_path(tmp_path, entities, "wmh_mask").touch()
        derivative_path(tmp_path, entities, "flair_to_template_xfm", template="T").touch()
    (tmp_path / "sub-10" / "anat" / "notes.txt").touch()
    (tmp_path / "sub-10" / "figures").mkdir()
    (tmp_path / "sub-10" / "figures" / "sub-10_desc-wmh_FLAIR.png").touch()
    stems = [scan.stem for scan in results.find_results(tmp_path)]
    assert stems == [
        "sub-1_ses-x_ce-gd",
        "sub-2_ses-B_acq-3D_run-02",
        "sub-2_ses-B_run-1",
        "sub-10",
    ]
    assert [scan.stem for scan in results.find_results(tmp_path, "1")] == stems[:1]


def test_state_of_a_scan(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    write_scan(tmp_path, {"sub": "2"}, leave_out=["wmh_mask"])
    write_failure(tmp_path, {"sub": "3"}, "it broke\n badly")
    whole, partial, failed = results.find_results(tmp_path)
    assert (whole.status, whole.problem) == ("complete", "")
    assert partial.status == "incomplete"
    assert partial.problem.endswith("sub-2_space-orig_label-WMH_mask.nii.gz")
    assert (failed.status, failed.problem) == ("failed", "it broke badly")
    assert whole.template == "MNI152NLin2009cSym"


def test_template_is_told_by_the_file_where_there_is_no_record(tmp_path):
    write_scan(tmp_path, {"sub": "1"}, leave_out=["record"])
    (scan,) = results.find_results(tmp_path)
    assert scan.template == "MNI152NLin2009cSym"
    assert scan.missing == ()
    assert scan.status == "incomplete"


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"brain_volume_ml": 2500.0}, "holds 2500 ml"),
        ({"brain_volume_ml": 1400.0}, None),
        ({"cut_superior_cm2": 4.0}, "upper edge of the image (4 cm²)"),
        ({"cut_inferior_cm2": 12.0}, None),
        ({"cut_inferior_cm2": 60.0}, "lower edge of the image (60 cm²)"),
        ({"cut_sides_cm2": 3.0}, "side edges of the image (3 cm²)"),
        ({"brain_volume_ml": None, "cut_superior_cm2": 0.0}, None),
        ({}, None),
    ],
)
def test_quality_in_plain_words(quality, words):
    said = list(results.quality_warnings(quality))
    assert len(said) == (0 if words is None else 1)
    assert words is None or words in said[0]


def test_tables_are_read_with_their_missing_values(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("region\tvolume_mm3\tmean\nall\t12.5\tn/a\n")
    assert results.read_table(path) == [{"region": "all", "volume_mm3": 12.5, "mean": None}]


@pytest.mark.parametrize("content", [b"", b"a\tb\n1\n", b"\xff\xfe\x00"])
def test_damaged_tables_are_refused(tmp_path, content):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(ProcessingError, match="cannot be read as a table"):
        results.read_table(path)
