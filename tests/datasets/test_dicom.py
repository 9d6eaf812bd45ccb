"""Folders of DICOM: which series is the FLAIR, and that its voxels stay where they are."""

import shlex
import sys

import nibabel as nib
import numpy as np
import pytest
from dicom_study import ORIGIN, SPACING, write_series

from bagau_bids.datasets.dicom import convert_folders, take_flair
from bagau_bids.errors import MissingResourceError, UsageError


def take(tmp_path, **options):
    return take_flair(tmp_path / "dicom", tmp_path / "out" / "flair.nii.gz", **options)


def test_voxels_stay_where_the_scanner_had_them(tmp_path):
    data = write_series(
        tmp_path / "dicom" / "deep", 3, "t2_tirm_tra_dark-fluid", inversion_ms=2500
    )
    taken = take(tmp_path)
    image = nib.load(tmp_path / "out" / "flair.nii.gz")
    assert taken.image == tmp_path / "out" / "flair.nii.gz"
    for index in ((0, 0, 0), (23, 0, 0), (3, 17, 5)):
        x, y, z = np.add(ORIGIN, np.multiply(SPACING, index))
        voxel = np.linalg.inv(image.affine) @ (-x, -y, z, 1)  # NIfTI: right, anterior, up
        assert np.allclose(voxel[:3], np.rint(voxel[:3]), atol=1e-3)
        assert image.dataobj[tuple(np.rint(voxel[:3]).astype(int))] == data[index]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("Ax T2 FLAIR", {}),
        ("t2_tirm_tra_dark-fluid", {}),
        ("dark fluid", {"inversion_ms": 2500}),
        ("sequence 7", {"inversion_ms": 1650, "echo_ms": 350}),
    ],
)
def test_a_flair_is_told_by_name_or_times(tmp_path, name, times):
    write_series(tmp_path / "dicom", 2, "t2_tse_tra")
    write_series(tmp_path / "dicom", 3, "t1_mprage", inversion_ms=900, echo_ms=3)
    write_series(tmp_path / "dicom", 4, "T1 FLAIR", inversion_ms=860, echo_ms=20)
    write_series(tmp_path / "dicom", 5, "STIR", inversion_ms=160)
    write_series(tmp_path / "dicom", 6, "FLAIR localiser", shape=(24, 20, 3))
    write_series(tmp_path / "dicom", 9, name, **times)
    assert take(tmp_path).number == 9
    assert (tmp_path / "out" / "flair.json").is_file()


def test_several_flairs_are_listed(tmp_path):
    for number, name in ((2, "t2"), (5, "FLAIR tra"), (7, "FLAIR cor")):
        write_series(tmp_path / "dicom", number, name)
    with pytest.raises(UsageError, match="2 series of 3 fit.* choose one by --series") as told:
        take(tmp_path)
    assert "  series 5: FLAIR tra, TE 90 ms\n  series 7: FLAIR cor" in str(told.value)
    assert not (tmp_path / "out").exists()
    assert take(tmp_path, series=7).number == 7
    assert take(tmp_path, series=2).names.startswith("t2")


def test_of_several_visits_the_command_for_each_is_said(tmp_path):
    study = tmp_path / "dicom"
    for number in (5, 7):
        write_series(study / "in one folder", number, "FLAIR")
    with pytest.raises(UsageError, match="each by itself: ") as told:
        take(tmp_path)
    for number in (5, 7):
        assert f"bagau segment {study} OUT{number} --series {number}" in str(told.value)
    write_series(study / "second visit", 5, "FLAIR", echo_ms=88.0)
    with pytest.raises(UsageError, match="several have one number: put each visit into a folder"):
        take(tmp_path)


def test_of_a_folder_a_visit_these_are_named(tmp_path):
    study = tmp_path / "dicom"
    for number, visit in ((5, "first visit"), (7, "second")):
        write_series(study / visit, number, "FLAIR")
    first, second = (shlex.quote(f"{study}/{name}") for name in ("first visit", "second"))
    with pytest.raises(UsageError) as told:
        take(tmp_path)
    assert f"the folder of each: bagau segment {first} {second} OUT" in str(told.value)


def test_a_folder_of_nifti_files_is_no_study(tmp_path):
    (tmp_path / "dicom").mkdir()
    nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)).to_filename(
        tmp_path / "dicom" / "one.nii.gz"
    )
    with pytest.raises(UsageError, match=r"holds NIfTI files \(one.nii.gz\) and no DICOM images"):
        take(tmp_path)


@pytest.mark.parametrize(
    ("series", "message"), [(None, "no FLAIR of 1 fit"), (8, "no series 8 of 1 fit")]
)
def test_without_a_flair_all_series_are_listed(tmp_path, series, message):
    write_series(tmp_path / "dicom", 2, "t2_tse", echo_ms=101)
    with pytest.raises(UsageError, match=f"{message}.*\n  series 2: t2_tse, TE 101 ms"):
        take(tmp_path, series=series)


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match="no DICOM images could be converted"):
        take(tmp_path)


def test_without_dcm2niix_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(MissingResourceError, match=r"pip install 'bagau-bids\[dicom\]'"):
        take(tmp_path)


def test_folders_among_files_are_replaced_by_their_flairs(tmp_path):
    said = []
    write_series(tmp_path / "dicom", 4, "FLAIR")
    scans = {"a": tmp_path / "a.nii", "b": tmp_path / "dicom"}
    files = convert_folders(scans, tmp_path / "made", progress=said.append)
    assert files == {"a": scans["a"], "b": tmp_path / "made" / "b.nii.gz"}
    assert nib.load(files["b"]).shape == (24, 20, 6)
    assert said == ["b: series 4: FLAIR, TE 90 ms"]
