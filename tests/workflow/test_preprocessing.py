"""The steps before the network: where a brain mask comes from."""

import pickle

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.bids.records import BrainMaskRecord
from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.spaces import Image
from bagau_bids.workflow.preprocessing import BrainMask, mask_from_file
from bagau_bids.workflow.step import load_image, read_record, save_image

AFFINE = np.array([[2.0, 0.1, 0, -9], [0, 2, 0, -8], [0, 0, 5, -7], [0, 0, 0, 1]])


def test_mask_from_file_follows_the_orientation(tmp_path):
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:3, 2:5, 3:7] = 1
    image = nib.Nifti1Image(mask, AFFINE)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("LPI")
    )
    image.as_reoriented(change).to_filename(tmp_path / "m.nii.gz")
    found, record = mask_from_file(tmp_path / "m.nii.gz", Image(mask, AFFINE))
    np.testing.assert_array_equal(found, mask > 0)
    assert str(tmp_path / "m.nii.gz") in record.notes[0]


def test_mask_of_another_grid_is_refused(tmp_path):
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[2] = 1
    nib.Nifti1Image(mask, AFFINE).to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(InputImageError, match=r"m\.nii\.gz: the brain mask lies on another grid"):
        mask_from_file(tmp_path / "m.nii.gz", Image(np.zeros((6, 7, 9)), AFFINE))


def test_empty_brain_mask_is_refused(tmp_path, monkeypatch):
    from bagau_bids.preprocessing import brain_mask

    empty = brain_mask.BrainMask(np.zeros((6, 7, 8), bool), stripped=False, notes=())
    monkeypatch.setattr(brain_mask, "brain_mask", lambda flair: empty)
    save_image(tmp_path / "f.nii.gz", Image(np.ones((6, 7, 8)), AFFINE), np.float32)
    step = BrainMask(flair=tmp_path / "f.nii.gz")
    with pytest.raises(ProcessingError, match="the brain mask is empty"):
        step.run(cwd=tmp_path)


@pytest.mark.parametrize(
    ("stripped", "method", "words"),
    [(True, "foreground", "without its skull"), (False, "network", "outlined on the FLAIR by a")],
)
def test_the_record_says_how_the_brain_mask_was_made(
    tmp_path, monkeypatch, stripped, method, words
):
    from bagau_bids.preprocessing import brain_mask

    found = brain_mask.BrainMask(np.ones((6, 7, 8), bool), stripped=stripped, notes=())
    monkeypatch.setattr(brain_mask, "brain_mask", lambda flair: found)
    save_image(tmp_path / "f.nii.gz", Image(np.ones((6, 7, 8)), AFFINE), np.float32)
    outputs = BrainMask(flair=tmp_path / "f.nii.gz").run(cwd=tmp_path).outputs
    record = read_record(outputs.record, BrainMaskRecord)
    assert record.method == method
    assert words in record.description
    assert ("network" in record.description) == (not stripped)


def test_a_worker_takes_the_voxels_of_a_stripped_flair_for_its_brain(tmp_path):
    """No word is the same object in another process, and none is compared as one."""
    flair = np.zeros((6, 7, 8), np.float32)
    flair[1:4, 2:5, 3:6] = -2  # normalised: also what is negative is brain
    flair[4, 2:5, 3:6] = 3
    save_image(tmp_path / "f.nii.gz", Image(flair, AFFINE), np.float32)
    step = BrainMask(flair=tmp_path / "f.nii.gz", skull_strip="skip")
    outputs = pickle.loads(pickle.dumps(step)).run(cwd=tmp_path).outputs
    np.testing.assert_array_equal(load_image(outputs.brain_mask).data, flair != 0)
    record = read_record(outputs.record, BrainMaskRecord)
    assert (record.method, record.stripped) == ("non-zero voxels", True)
    assert record.volume_ml == 0.7  # 36 voxels of 20 mm3
