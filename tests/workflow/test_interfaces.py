"""What the interfaces add to the functions they call: grids, threads, words for failures."""

import os

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.workflow.interfaces import (
    BrainMask,
    describe_failure,
    limited_threads,
    load_image,
    load_on_grid,
    mask_from_file,
    read_record,
    save_image,
)
from bagau_bids.workflow.outputs import eight_bits

AFFINE = np.array([[2.0, 0.1, 0, -9], [0, 2, 0, -8], [0, 0, 5, -7], [0, 0, 0, 1]])


def test_image_round_trip(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    save_image(tmp_path / "a.nii.gz", data, AFFINE, np.float32)
    loaded, affine = load_image(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(loaded, data)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_image_of_another_grid_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_image(path, np.zeros((5, 6, 7)), AFFINE, np.uint8)
    with pytest.raises(ProcessingError, match="lies on another grid"):
        load_on_grid(str(path), (5, 6, 8), AFFINE)


def test_mask_from_file_follows_the_orientation(tmp_path):
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:3, 2:5, 3:7] = 1
    image = nib.Nifti1Image(mask, AFFINE)
    change = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("LPI")
    )
    image.as_reoriented(change).to_filename(tmp_path / "m.nii.gz")
    found, record = mask_from_file(tmp_path / "m.nii.gz", mask.shape, AFFINE)
    np.testing.assert_array_equal(found, mask > 0)
    assert str(tmp_path / "m.nii.gz") in record["notes"][0]


def test_mask_of_another_grid_is_refused(tmp_path):
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[2] = 1
    nib.Nifti1Image(mask, AFFINE).to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(InputImageError, match=r"m\.nii\.gz: the brain mask lies on another grid"):
        mask_from_file(tmp_path / "m.nii.gz", (6, 7, 9), AFFINE)


def test_empty_brain_mask_is_refused(tmp_path, monkeypatch):
    from bagau_bids.preprocessing import brain_mask

    empty = brain_mask.BrainMask(np.zeros((6, 7, 8), bool), stripped=False, notes=())
    monkeypatch.setattr(brain_mask, "brain_mask", lambda flair, affine: empty)
    save_image(tmp_path / "f.nii.gz", np.ones((6, 7, 8)), AFFINE, np.float32)
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
    monkeypatch.setattr(brain_mask, "brain_mask", lambda flair, affine: found)
    save_image(tmp_path / "f.nii.gz", np.ones((6, 7, 8)), AFFINE, np.float32)
    outputs = BrainMask(flair=tmp_path / "f.nii.gz").run(cwd=tmp_path).outputs
    record = read_record(outputs.record)
    assert record["method"] == method
    assert words in record["description"]
    assert ("network" in record["description"]) == (not stripped)


def test_failures_in_words():
    ours = describe_failure(InputImageError("a.nii: broken"))
    assert ours == {"explained": True, "message": "a.nii: broken"}
    other = describe_failure(KeyError("x"))
    assert other == {"explained": False, "message": "KeyError: 'x'"}
    for error in (MemoryError(), RuntimeError("std::bad_alloc")):
        memory = describe_failure(error)
        assert memory["explained"]
        assert memory["message"].startswith("ran out of memory")


def test_threads_are_set_and_set_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with limited_threads(3):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
        assert os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] == "3"
        blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert {pool["num_threads"] for pool in blas} == {1}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([0, 50, 100, 200], [0, 64, 128, 255]),  # of 200, which is the brightest
        ([-100, 0, 100, 100], [0, 128, 255, 255]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_images_to_look_at_keep_the_order_of_brightness(values, steps):
    found = eight_bits(np.repeat(values, 1000).reshape(4, 10, 100).astype(np.float32))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found[:, 0, 0], steps, atol=1)


def test_one_glaring_voxel_does_not_darken_the_rest():
    data = np.full((20, 20, 20), 100, np.float32)
    data[0, 0, 0] = 1e6
    assert eight_bits(data)[5, 5, 5] == 255
