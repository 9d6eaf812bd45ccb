"""What is read of the derivatives folder: which scans, their state, plain words."""

import nibabel as nib
import numpy as np
import pytest
from fake_derivatives import write_failure, write_scan

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.errors import ProcessingError
from bagau_bids.reports import results
from bagau_bids.reports.scan_tables import Fazekas
from bagau_bids.spaces import Image


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


@pytest.mark.parametrize(
    ("entities", "title"),
    [
        ({"sub": "1"}, "FLAIR"),
        ({"sub": "1", "ses": "B", "acq": "3D", "run": "2"}, "Session B, acquisition 3D, run 2"),
        ({"sub": "1", "rec": "norm"}, "Reconstruction norm"),
    ],
)
def test_a_scan_is_called_by_what_tells_it_apart(tmp_path, entities, title):
    assert results.ScanResults(tmp_path, entities).title == title


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


def test_a_damaged_record_is_named_with_its_field_beside_what_is_missing(tmp_path):
    write_scan(tmp_path, {"sub": "1"}, leave_out=["wmh_mask"], record={"finished": 3})
    (scan,) = results.find_results(tmp_path)
    assert scan.status == "incomplete"
    assert not scan.judged
    assert (scan.flags, scan.notes) == ((), ())
    missing, said = scan.problem.split("; ", 1)
    assert missing.endswith("sub-1_space-orig_label-WMH_mask.nii.gz")
    path = derivative_path(tmp_path, {"sub": "1"}, "record")
    assert said.startswith(f"{path}: Expected `str`, got `int` - at `$.finished`; ")


def test_a_failure_without_a_reason_says_so(tmp_path):
    write_failure(tmp_path, {"sub": "1"}, "")
    (scan,) = results.find_results(tmp_path)
    assert scan.problem == "no reason was recorded"


def test_template_is_told_by_the_file_where_there_is_no_record(tmp_path):
    write_scan(tmp_path, {"sub": "1"}, leave_out=["record"])
    (scan,) = results.find_results(tmp_path)
    assert scan.template == "MNI152NLin2009cSym"
    assert scan.missing == ()
    assert scan.status == "incomplete"


def test_flags_are_those_that_were_recorded(tmp_path):
    """Limits may change between releases: a page made again says what the tables beside it say."""
    flag = {
        "name": "noise",
        "figure": "noise_snr",
        "value": 4.0,
        "limit": 5.0,
        "words": "the scan is noisy",
    }
    steps = {
        "measure": {"quality": {"noise_snr": 4.0}, "flags": [flag]},
        "regions": {"notes": ["a"]},
    }
    write_scan(tmp_path, {"sub": "1"}, record={"steps": steps})
    write_scan(tmp_path, {"sub": "2"}, leave_out=["quality_table"])
    judged, older = results.find_results(tmp_path)
    assert judged.judged
    assert [(found.name, found.limit) for found in judged.flags] == [("noise", 5.0)]
    assert judged.notes == ("a",)
    assert not older.judged
    assert older.flags == ()


def test_tables_are_read_with_their_missing_values(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("scale\tmeasured_mm\tnewer\tfazekas_estimate\ndeep\t12.5\t7\tn/a\n")
    assert results.read_table(path, Fazekas) == [Fazekas("deep", None, 12.5)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not enough values to unpack"),
        (b"a\tb\n1\n", "shorter"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"scale\tmeasured_mm\ndeep\t1\n", "missing required field `fazekas_estimate`"),
        (b"scale\tfazekas_estimate\tmeasured_mm\ndeep\t1\tfar\n", "at `$.measured_mm`"),
        (b"scale\tfazekas_estimate\tmeasured_mm\ndeep\t1\tinf\n", "at `$.measured_mm`"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content, why):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(ProcessingError, match="cannot be read as a table") as error:
        results.read_table(path, Fazekas)
    assert why in str(error.value)
    assert "process the scan again" in str(error.value)


@pytest.mark.parametrize(("shape", "shift_mm"), [((4, 5, 6), 1.0), ((4, 5, 7), 0.0)])
def test_an_image_of_another_place_or_shape_is_refused(tmp_path, shape, shift_mm):
    flair = Image(np.zeros((4, 5, 6)), np.diag([1.0, 1, 3, 1]))
    path = tmp_path / "mask.nii.gz"
    nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), flair.affine).to_filename(path)
    assert results.load_image_on(path, flair).all()
    affine = flair.affine.copy()
    affine[0, 3] += shift_mm
    nib.Nifti1Image(np.ones(shape, np.uint8), affine).to_filename(path)
    with pytest.raises(ProcessingError, match=r"mask\.nii\.gz: lies on another grid"):
        results.load_image_on(path, flair)
