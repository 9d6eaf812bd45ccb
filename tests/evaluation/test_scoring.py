"""Masks read, checked against each other and scored; damaged ones described."""

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.errors import InputImageError
from bagau_bids.evaluation.pairs import MaskPair
from bagau_bids.evaluation.scoring import (
    evaluate_pairs,
    read_pair,
    read_reference_mask,
    read_result_mask,
)
from bagau_bids.measures.metrics import case_scores
from bagau_bids.spaces import Image

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def save(path, data, affine=AFFINE):
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def masks(seed=0, shape=(11, 13, 7)):
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 1, 2], size=shape, p=[0.8, 0.15, 0.05]).astype(np.uint8)
    result = ((reference == 1) & (rng.random(shape) < 0.7)) | (rng.random(shape) < 0.1)
    return reference, result.astype(np.uint8)


def test_scores_do_not_depend_on_how_either_file_is_stored(tmp_path, oriented_image):
    reference, result = masks(shape=oriented_image.shape)
    truth = save(tmp_path / "truth.nii", reference, oriented_image.affine)
    on_disk = nib.load(truth)  # the header rounds the affine
    canonical, found = (
        nib.as_closest_canonical(nib.Nifti1Image(data, on_disk.affine))
        for data in (reference, result)
    )
    expected = case_scores(Image(canonical.get_fdata(), canonical.affine), found.get_fdata())
    turned = nib.Nifti1Image(result, oriented_image.affine).as_reoriented(
        np.array([[2, -1], [0, 1], [1, -1]])
    )
    assert turned.shape != oriented_image.shape
    turned.to_filename(tmp_path / "found.nii.gz")
    (case,) = evaluate_pairs([MaskPair("x", truth, tmp_path / "found.nii.gz")])
    assert case.problem == ""
    assert case.scores == expected


def test_one_bad_case_does_not_stop_the_others(tmp_path):
    reference, result = masks()
    truth, found = save(tmp_path / "t.nii", reference), save(tmp_path / "f.nii.gz", result)
    damaged = tmp_path / "d.nii.gz"
    damaged.write_bytes(found.read_bytes()[:-20])
    seen = []
    cases = evaluate_pairs(
        [MaskPair("a", truth, damaged), MaskPair("b", truth, found)], progress=seen.append
    )
    assert seen == cases
    assert [case.scores is None for case in cases] == [True, False]
    assert "d.nii.gz: the gzip stream is truncated" in cases[0].problem


@pytest.mark.parametrize(
    ("affine", "shape", "message"),
    [
        (AFFINE, (11, 13, 8), r"f.nii: grid \(11, 13, 8\) with affine .*; expected that of"),
        (np.diag([1, 2, 3.5, 1]), (11, 13, 7), r"3.5, 0.0\], .*, 3.0 mm away at a corner; exp"),
        (np.diag([-1, 2, 3, 1]), (11, 13, 7), r"10.0 mm away at a corner; expected that of .*t.n"),
    ],
)
def test_result_on_another_grid_is_refused(tmp_path, affine, shape, message):
    pair = MaskPair(
        "x",
        save(tmp_path / "t.nii", masks()[0]),
        save(tmp_path / "f.nii", np.zeros(shape, np.uint8), affine),
    )
    with pytest.raises(InputImageError, match=message):
        read_pair(pair)


def test_headers_that_differ_by_rounding_are_one_grid(tmp_path):
    reference, result = masks()
    shifted = AFFINE.copy()
    shifted[:3, 3] = 0.01
    read_pair(
        MaskPair(
            "x", save(tmp_path / "t.nii", reference), save(tmp_path / "f.nii", result, shifted)
        )
    )


@pytest.mark.parametrize("values", [[0, 3], [255], [0, 1, 255], [0, 2, 255], [0, 1, 0.4], [-1]])
def test_reference_with_other_labels_is_refused(tmp_path, values):
    data = np.resize(np.array(values, np.float32), (5, 6, 7))
    with pytest.raises(InputImageError, match=r"t.nii: values \[.*; expected 0 .*, 1 .* and 2 "):
        read_reference_mask(save(tmp_path / "t.nii", data))


def test_result_that_is_no_mask_is_told_from_a_probability_map(tmp_path):
    shape = (5, 6, 7)
    lesions = save(tmp_path / "l.nii", np.resize(np.arange(9, dtype=np.int16), shape))
    with pytest.raises(
        InputImageError, match=r"\[0, 1, 2, 3, 4, 5, ... 8 \(9 in all\)\], not a binary mask"
    ):
        read_result_mask(lesions)
    for values in ([0, 2], [-1, 1], [0, 0.5, 7], [0, 1, 255]):
        path = save(tmp_path / "o.nii", np.resize(np.array(values, np.float32), shape))
        with pytest.raises(InputImageError, match="not a binary mask"):
            read_result_mask(path, threshold=0.5)
    probabilities = np.resize(np.array([0, 0.25, 0.5, 1], np.float32), shape)
    probability = save(tmp_path / "p.nii", probabilities)
    with pytest.raises(InputImageError, match=r"a probability map and not .* --threshold 0.5"):
        read_result_mask(probability)
    mask = read_result_mask(probability, threshold=0.5)
    np.testing.assert_array_equal(mask.data, probabilities >= 0.5)


def test_masks_may_be_empty_scaled_or_of_255(tmp_path):
    result = masks()[1]
    image = nib.Nifti1Image(result * 255, AFFINE)
    image.header.set_slope_inter(1 / 255, 0)
    image.to_filename(tmp_path / "scaled.nii")
    for path in (tmp_path / "scaled.nii", save(tmp_path / "255.nii", result * 255)):
        np.testing.assert_array_equal(read_result_mask(path).data, result)
        np.testing.assert_array_equal(read_reference_mask(path).data, result)
    assert not read_result_mask(save(tmp_path / "empty.nii", result * 0), threshold=0.5).data.any()


def test_voxels_that_are_not_numbers_are_refused(tmp_path):
    data = np.zeros((5, 6, 7), np.float32)
    data[1, 2, 3] = np.nan
    path = save(tmp_path / "n.nii", data)
    for read in (read_result_mask, read_reference_mask):
        with pytest.raises(InputImageError, match="1 voxels are NaN or infinite"):
            read(path)


def test_missing_file_is_named(tmp_path):
    (case,) = evaluate_pairs([MaskPair("x", tmp_path / "t.nii", tmp_path / "f.nii")])
    assert "t.nii: no such file" in case.problem
