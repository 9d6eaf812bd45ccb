"""Segmenting from Python: the same result as the command's, as images and tables."""

import contextlib
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import workflow_fakes as fakes

import bagau_bids
from bagau_bids import segment_flair
from bagau_bids.errors import InputImageError, UsageError


@pytest.fixture
def template(tmp_path, monkeypatch):
    return fakes.install_everything(monkeypatch, tmp_path / "store")


@pytest.fixture
def quick_page(monkeypatch):
    fakes.install_quick_page(monkeypatch)


@pytest.fixture
def image():
    return nib.Nifti1Image(fakes.head(), fakes.AFFINE)


def test_an_image_or_its_file(tmp_path, template, quick_page, image, capfd):
    path = tmp_path / "any name.nii.gz"
    image.to_filename(path)
    of_file, of_image = segment_flair(path), segment_flair(image)
    assert capfd.readouterr() == ("", "")
    mask = np.asanyarray(of_file.mask.dataobj)
    assert mask.any()
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.asanyarray(of_image.mask.dataobj))
    assert np.array_equal(mask, of_file.probability.get_fdata() >= 0.5)
    assert np.allclose(of_file.mask.affine, fakes.AFFINE)
    assert np.asanyarray(of_file.brain_mask.dataobj).sum() > mask.sum()
    voxel_ml = abs(np.linalg.det(fakes.AFFINE[:3, :3])) / 1000
    assert of_file.volume_ml == pytest.approx(mask.sum() * voxel_ml, rel=1e-6)
    assert of_file.lesions["volume_mm3"].sum() / 1000 == pytest.approx(of_file.volume_ml)
    assert "fov_coverage" in of_file.quality.index
    assert (of_file.name, of_image.name) == ("any name", "flair")


def test_options_reach_the_processing(template, quick_page, image):
    few, many = (segment_flair(image, threshold=limit) for limit in (0.9, 0.1))
    assert few.volume_ml < many.volume_ml
    nothing = segment_flair(image, min_lesion_size_mm3=1e6)
    assert nothing.volume_ml == 0


def test_options_are_those_of_the_command_line(tmp_path, template, quick_page, image):
    store = str(tmp_path / "store")
    plain = segment_flair(image)
    weights = str(tmp_path / "store" / "small.safetensors")
    own = segment_flair(image, weights=weights, templateflow_home=store)
    assert own.volume_ml == plain.volume_ml  # the stand-in's weights are these
    for option in ({"threshold": 2}, {"registration": "x"}, {"min_lesion_size_mm3": -1}):
        with pytest.raises(UsageError, match=r"segment_flair: argument --"):
            segment_flair(image, **option)
    with pytest.raises(UsageError, match="--infarct: .* tell WMH alone"):
        segment_flair(image, infarct=True)


@pytest.mark.parametrize("given", [None, 3, np.zeros((3, 3, 3))])
def test_what_is_no_image_is_refused(given):
    with pytest.raises(UsageError, match="was given; expected a path or a nibabel image"):
        segment_flair(given)


def test_images_of_other_formats_are_taken(template, quick_page, image):
    other = nib.Nifti1Pair(fakes.head(), fakes.AFFINE)
    assert segment_flair(other).volume_ml == segment_flair(image).volume_ml


def test_images_outlast_the_object(template, quick_page, image):
    assert segment_flair(image).mask.get_fdata().any()


def test_calls_from_several_threads_wait_for_each_other(tmp_path, template, quick_page, image):
    image.to_filename(tmp_path / "scan.nii.gz")
    with ThreadPoolExecutor(3) as pool, contextlib.chdir(tmp_path):
        found = list(pool.map(segment_flair, ["scan.nii.gz"] * 3))
    assert len({one.volume_ml for one in found}) == 1


def test_results_are_saved_and_shown(tmp_path, template, image):
    found = segment_flair(image)
    folder = found.save(tmp_path / "new" / "folder")
    assert {"wmh_mask.nii.gz", "volumes.tsv", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    found.show().savefig(tmp_path / "shown.png")
    assert (tmp_path / "shown.png").stat().st_size > 1000


def test_what_asks_for_a_look_is_said_in_sentences(template, quick_page, image):
    assert any("slices" in words for words in segment_flair(image).flags)  # of 14 mm


def test_nipype_speaks_again_afterwards(template, quick_page, image):
    before = [*logging.getLogger("nipype").handlers]
    segment_flair(image)
    assert logging.getLogger("nipype").handlers == before


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "does not exist; expected a FLAIR"),
        (b"no image", InputImageError, r"scan.nii: .*"),
    ],
)
def test_what_cannot_be_segmented_is_an_error(
    tmp_path, template, quick_page, content, error, message
):
    path = tmp_path / "scan.nii"
    if content:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as told:
        segment_flair(path)
    assert str(path) in str(told.value)


def test_unknown_options_are_refused(image):
    with pytest.raises(TypeError, match="thresold"):
        segment_flair(image, thresold=0.4)


def test_importing_is_light():
    code = "import sys, bagau_bids; print('torch' in sys.modules, 'nipype' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["False", "False"]


def test_only_what_is_there_can_be_had():
    name = "segment_t1w"
    with pytest.raises(AttributeError, match=name):
        getattr(bagau_bids, name)
