"""The lesion frequency map: written where it belongs, and clear about what is not in it."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
from fake_derivatives import TEMPLATE, drawn_head, write_scan, write_transform

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.reports.frequency import write_frequency_maps
from bagau_bids.reports.group import write_group
from bagau_bids.reports.results import find_results

NAME = f"group_space-{TEMPLATE}_res-2_label-WMH_desc-frequency_probseg.nii.gz"


def shifted(millimetres):
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return TemplateTransform(affine)


@pytest.fixture
def cohort(tmp_path):
    """Two participants with one lesion that the transforms bring to one place; one without."""
    flair, affine, brain, white, probability = drawn_head(n_lesions=1)
    for label, shift in (("1", 0.0), ("2", 20.0)):
        moved = affine.copy()
        moved[0, 3] -= shift
        write_scan(tmp_path, {"sub": label}, (flair, moved, brain, white, probability))
        write_transform(tmp_path, {"sub": label}, shifted(shift))
    write_scan(tmp_path, {"sub": "3"}, drawn_head(n_lesions=0), orientation="LPS")
    write_transform(tmp_path, {"sub": "3"}, shifted(0))
    return tmp_path


def test_map_holds_the_shared_place(cohort):
    (one,) = write_frequency_maps(cohort, find_results(cohort))
    assert one.path == cohort / NAME
    assert one.problems == ()
    image = nib.load(one.path)
    data = np.asarray(image.dataobj)
    assert data.max() == pytest.approx(2 / 3)
    place = nib.affines.apply_affine(image.affine, np.argwhere(data > 0.5).mean(axis=0))
    mask = nib.load(derivative_path(cohort, {"sub": "1"}, "wmh_mask"))
    centre = np.argwhere(np.asarray(mask.dataobj)).mean(axis=0)
    np.testing.assert_allclose(place, nib.affines.apply_affine(mask.affine, centre), atol=1.5)
    assert image.header["sform_code"] == 4
    sidecar = json.loads((cohort / NAME.replace(".nii.gz", ".json")).read_text())
    assert sidecar["NumberOfParticipants"] == 3
    assert sidecar["Units"] == "1"
    assert sidecar["Sources"][0] == "bids::sub-1/anat/sub-1_space-orig_label-WMH_mask.nii.gz"


def test_running_again_writes_nothing(cohort):
    (one,) = write_frequency_maps(cohort, find_results(cohort))
    before = one.path.stat().st_mtime_ns
    write_frequency_maps(cohort, find_results(cohort))
    assert one.path.stat().st_mtime_ns == before


def test_scans_without_a_usable_transform_or_mask_are_named(cohort):
    path = derivative_path(cohort, {"sub": "1"}, "template_to_flair_xfm", template=TEMPLATE)
    path.write_bytes(b"broken")
    derivative_path(cohort, {"sub": "2"}, "wmh_mask").write_bytes(b"broken")
    group = write_group(cohort)
    notes = [note for note in group.notes if "not in the lesion frequency map" in note]
    assert [note.split("_")[0] for note in notes] == ["sub-1", "sub-2"]
    assert "cannot be read as an ITK transform" in notes[0]
    assert "expected a NIfTI image of this pipeline" in notes[1]
    text = group.page.read_text()
    assert "2 scans are not in the map" in text
    assert f'href="{NAME}"' in text
    assert nib.load(cohort / NAME).get_fdata().max() == 0


def test_no_transform_at_all_writes_no_map(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    group = write_group(tmp_path)
    assert not (tmp_path / NAME).exists()
    assert "no such file" in group.notes[-1]


def test_a_map_that_no_scan_belongs_to_any_more_is_removed(tmp_path, caplog):
    small = drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))
    write_scan(tmp_path, {"sub": "1"}, small)
    write_transform(tmp_path, {"sub": "1"}, shifted(0))
    other = tmp_path / NAME.replace(TEMPLATE, "Other")
    both = [tmp_path / NAME, tmp_path / NAME.replace(".nii.gz", ".json")]
    other.write_bytes(b"of scans that are gone")
    write_frequency_maps(tmp_path, find_results(tmp_path))
    assert all(path.is_file() for path in both)
    assert not other.exists()
    derivative_path(tmp_path, {"sub": "1"}, "template_to_flair_xfm", template=TEMPLATE).unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        (one,) = write_frequency_maps(tmp_path, find_results(tmp_path))
    assert one.picture is None
    assert not any(path.exists() for path in both)
    assert caplog.messages == [
        f"{path}: removed, since no complete scan is left that belongs to it" for path in both
    ]


def test_the_first_complete_scan_of_a_participant_counts(tmp_path):
    write_scan(tmp_path, {"sub": "1", "ses": "1"}, leave_out=["brain_mask"])
    for session in ("2", "3"):
        write_scan(tmp_path, {"sub": "1", "ses": session})
        write_transform(tmp_path, {"sub": "1", "ses": session}, shifted(0))
    write_group(tmp_path)
    sidecar = json.loads((tmp_path / NAME.replace(".nii.gz", ".json")).read_text())
    assert sidecar["NumberOfParticipants"] == 1
    assert "ses-2" in sidecar["Sources"][0]
