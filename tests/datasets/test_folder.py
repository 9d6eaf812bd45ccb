"""A folder of FLAIRs as they come becomes a BIDS data set, and a table says of each what."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from dicom_study import write_series

from bagau_bids.bids.scans import find_scans
from bagau_bids.cli.toolbox import main
from bagau_bids.config import Selection
from bagau_bids.datasets.folder import find_sources, import_folder
from bagau_bids.errors import UsageError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(np.full((5, 5, 5), len(name), np.uint8), np.eye(4)).to_filename(path)


def places(folder):
    sources, left_out = find_sources(folder)
    found = {one.path.relative_to(folder).as_posix(): one.place.as_posix() for one in sources}
    return found, {row.source: row.reason for row in left_out}


def test_files_of_the_folder_itself_are_a_participant_each(tmp_path):
    touch(tmp_path, "anna_FLAIR.nii.gz", "t2_flair.nii", "T2-dark-fluid_Bo 7.nii", "b_t1.nii")
    found, left_out = places(tmp_path)
    assert found == {
        "anna_FLAIR.nii.gz": "sub-anna/anat/sub-anna_FLAIR",
        "t2_flair.nii": "sub-t2flair/anat/sub-t2flair_FLAIR",
        "T2-dark-fluid_Bo 7.nii": "sub-Bo7/anat/sub-Bo7_FLAIR",
    }
    assert left_out == {"b_t1.nii": "its name does not say FLAIR, those of others do"}


def test_subfolders_are_participants_sessions_and_runs(tmp_path):
    touch(
        tmp_path,
        *("p1/flair.nii.gz", "p1/flair_mask.nii.gz", "p1/.hidden/flair.nii"),
        *("p2/2019/flair.nii.gz", "p2/2021/x/flair.nii.gz"),
        *("p3/a_flair.nii", "p3/b_flair.nii"),
        *("sub-4/ses-1/anat/sub-4_FLAIR.nii.gz", "P-1/FLAIR.nii"),
    )
    found, left_out = places(tmp_path)
    assert found == {
        "p1/flair.nii.gz": "sub-p1n2/anat/sub-p1n2_FLAIR",
        "P-1/FLAIR.nii": "sub-P1n1/anat/sub-P1n1_FLAIR",
        "p2/2019/flair.nii.gz": "sub-p2/ses-2019/anat/sub-p2_ses-2019_FLAIR",
        "p2/2021/x/flair.nii.gz": "sub-p2/ses-2021/anat/sub-p2_ses-2021_FLAIR",
        "p3/a_flair.nii": "sub-p3/anat/sub-p3_run-1_FLAIR",
        "p3/b_flair.nii": "sub-p3/anat/sub-p3_run-2_FLAIR",
        "sub-4/ses-1/anat/sub-4_FLAIR.nii.gz": "sub-4/anat/sub-4_FLAIR",
    }
    assert left_out == {"p1/flair_mask.nii.gz": "by its name made from a scan"}


def test_where_no_name_says_flair_all_images_count(tmp_path):
    touch(tmp_path, "1.nii", "2.nii.gz", "1_seg.nii", "wmh-1.nii", "brain3.nii")
    found, left_out = places(tmp_path)
    assert set(found) == {"1.nii", "2.nii.gz", "brain3.nii"}
    assert set(left_out) == {"1_seg.nii", "wmh-1.nii"}


def test_a_data_set_is_made_and_found_again(tmp_path, capsys):
    touch(tmp_path / "in", "anna_FLAIR.nii.gz", "p2/2019/flair.nii", "p2/2021/flair.nii")
    (tmp_path / "in" / "anna_FLAIR.json").write_text("{}")
    write_series(tmp_path / "in" / "p4" / "s1", 1, "T1", inversion_ms=900, echo_ms=3.0)
    write_series(tmp_path / "in" / "p4" / "s2", 2, "FLAIR", inversion_ms=2400)
    write_series(tmp_path / "in" / "p5", 3, "T1", inversion_ms=900, echo_ms=3.0)
    out = tmp_path / "out"
    assert main(["import", "folder", str(tmp_path / "in"), str(out)]) == 0
    scans = {scan.stem for scan in find_scans(out, Selection())}
    assert scans == {"sub-anna", "sub-p2_ses-2019", "sub-p2_ses-2021", "sub-p4"}
    assert (out / "sub-anna" / "anat" / "sub-anna_FLAIR.json").is_file()
    assert (out / "sub-p4" / "anat" / "sub-p4_FLAIR.json").is_file()
    original = tmp_path / "in" / "p2" / "2019" / "flair.nii"
    assert (out / "sub-p2/ses-2019/anat/sub-p2_ses-2019_FLAIR.nii").samefile(original)
    table = pd.read_csv(out / "sourcedata" / "import.tsv", sep="\t").set_index("source")
    assert table.loc["p4", "became"] == "sub-p4/anat/sub-p4_FLAIR.nii.gz"
    assert "no FLAIR of 1 fit" in table.loc["p5", "reason"]
    people = pd.read_csv(out / "participants.tsv", sep="\t")
    assert people["participant_id"].tolist() == ["sub-anna", "sub-p2", "sub-p4"]
    said = capsys.readouterr().out
    assert "4 FLAIRs, 1 others left out" in said
    others = [f"other{number}.nii" for number in range(12)]
    touch(tmp_path / "in", *others)
    assert main(["import", "folder", str(tmp_path / "in"), str(out)]) == 0
    said = capsys.readouterr().out
    assert "left out: other7.nii: its name does not say FLAIR, those of others do" in said
    assert said.count("left out: other") == 10
    assert f"left out: 2 more, each with its reason in {out}/sourcedata/import.tsv" in said
    touch(tmp_path / "in", "new_FLAIR.nii")
    assert main(["import", "folder", str(tmp_path / "in"), str(out)]) == 0
    assert (out / "sub-new" / "anat" / "sub-new_FLAIR.nii").is_file()


def test_a_folder_that_is_itself_a_study_is_taken(tmp_path):
    write_series(tmp_path / "study", 2, "FLAIR", inversion_ms=2400)
    (row,) = import_folder(tmp_path / "study", tmp_path / "out", how="copy")
    assert row.became == "sub-study/anat/sub-study_FLAIR.nii.gz"


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("none", "out", "none: no such folder; expected one with NIfTI or DICOM files"),
        ("empty", "out", "no FLAIR found (0 other images); expected .nii or .nii.gz files"),
        ("in", "full", "full: is not empty and not of this import; expected a new folder"),
        ("in", "in/out", "all of which is looked through; expected a folder elsewhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, source, out, message):
    touch(tmp_path, "in/flair.nii", "full/x.nii")
    (tmp_path / "empty").mkdir()
    words = ["import", "folder", str(tmp_path / source), str(tmp_path / out)]
    assert main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_another_source_is_refused(tmp_path):
    touch(tmp_path, "a/flair.nii", "b/flair.nii")
    import_folder(tmp_path / "a", tmp_path / "out", how="copy")
    with pytest.raises(UsageError, match="was made with another source"):
        import_folder(tmp_path / "b", tmp_path / "out", how="copy")
