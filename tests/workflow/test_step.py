"""What all steps add to the functions they call: grids, threads, words for failures."""

import os

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.spaces import Image
from bagau_bids.workflow.step import (
    Step,
    StepFailure,
    describe_failure,
    limited_threads,
    load_image,
    load_on_grid,
    save_image,
)

AFFINE = np.array([[2.0, 0.1, 0, -9], [0, 2, 0, -8], [0, 0, 5, -7], [0, 0, 0, 1]])


def test_image_round_trip(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    save_image(tmp_path / "a.nii.gz", Image(data, AFFINE), np.float32)
    loaded = load_image(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(loaded.data, data)
    np.testing.assert_allclose(loaded.affine, AFFINE, atol=1e-5)


def test_image_of_another_grid_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_image(path, Image(np.zeros((5, 6, 7)), AFFINE), np.uint8)
    with pytest.raises(ProcessingError, match="lies on another grid"):
        load_on_grid(str(path), Image(np.zeros((5, 6, 8)), AFFINE))


def test_failures_in_words():
    ours = describe_failure(InputImageError("a.nii: broken"))
    assert ours == StepFailure(explained=True, message="a.nii: broken")
    other = describe_failure(KeyError("x"))
    assert other == StepFailure(explained=False, message="KeyError: 'x'")
    for error in (MemoryError(), RuntimeError("std::bad_alloc")):
        memory = describe_failure(error)
        assert memory.explained
        assert memory.message.startswith("ran out of memory")


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
    ("keys", "right"),
    [(["brain_mask"], True), ([], False), (["brain_mask", "wmh_mask"], False)],
)
def test_step_hands_over_what_the_catalogue_says_of_it(tmp_path, keys, right):
    class Outline(Step):
        name = "brain_mask"

        def _process(self, folder):
            for key in keys:
                self._derive(key, folder, Image(np.full((2, 3, 4), 7.0), AFFINE))

    if not right:
        with pytest.raises(AssertionError, match="brain_mask"):
            Outline().run(cwd=tmp_path)
        return
    (path,) = Outline().run(cwd=tmp_path).outputs.derivatives.values()
    assert nib.load(path).get_data_dtype() == np.uint8  # as the catalogue says
    assert np.all(load_image(path).data == 7)
