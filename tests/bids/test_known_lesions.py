"""Which mask of known lesions belongs to which FLAIR."""

import pytest

from bagau_bids.bids.known_lesions import find_known_lesions
from bagau_bids.bids.masks import name_entities
from bagau_bids.errors import InputImageError

FLAIR = "sub-01_ses-1_acq-3D_run-2_FLAIR.nii.gz"


@pytest.fixture
def data(tmp_path):
    """A FLAIR, and a function that puts files beside it or into a derivative data set."""
    anat = tmp_path / "raw" / "sub-01" / "ses-1" / "anat"

    def put(*names, dataset="raw"):
        folder = tmp_path / dataset / "sub-01" / "ses-1" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).touch()
        return tmp_path / dataset

    put(FLAIR)

    def find(*derivatives, beside=True):
        return find_known_lesions(
            anat / FLAIR, name_entities(anat / FLAIR), derivatives, beside=beside
        )

    return put, find


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-1_label-lesion_roi.nii.gz",
        "sub-01_ses-1_acq-3D_run-2_label-lesion_roi.nii",
        "sub-01_ses-1_T1w_label-lesion_roi.nii.gz",
        "sub-01_ses-1_space-orig_label-lesion_desc-tumour_roi.nii.gz",
    ],
)
def test_lesion_roi_beside_the_flair_is_found(data, name):
    put, find = data
    put(name)
    assert find().path.name == name
    assert find().note == ""
    assert find(beside=False) is None


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-1_acq-2D_label-lesion_roi.nii.gz",  # of another FLAIR
        "sub-02_ses-1_label-lesion_roi.nii.gz",
        "sub-01_ses-1_space-MNI152NLin6Asym_label-lesion_roi.nii.gz",
        "sub-01_ses-1_label-WMH_roi.nii.gz",
        "sub-01_ses-1_label-lesion_mask.nii.gz",  # a mask is a derivative's
        "sub-01_ses-1_label-lesion_roi.json",
    ],
)
def test_what_is_no_lesion_roi_of_this_flair_is_passed_over(data, name):
    put, find = data
    put(name)
    assert find() is None


def test_mask_that_shares_most_with_the_flair_is_taken(data):
    put, find = data
    put("sub-01_ses-1_label-lesion_roi.nii.gz", "sub-01_ses-1_run-2_label-lesion_roi.nii.gz")
    assert find().path.name == "sub-01_ses-1_run-2_label-lesion_roi.nii.gz"


def test_two_that_fit_equally_are_an_error(data):
    put, find = data
    names = ["sub-01_ses-1_T1w_label-lesion_roi.nii.gz", "sub-01_ses-1_label-lesion_roi.nii.gz"]
    put(*names)
    with pytest.raises(InputImageError, match="several masks of known lesions of sub-01_") as told:
        find()
    assert all(name in str(told.value) for name in names)
    chosen = put("sub-01_ses-1_label-tumour_mask.nii.gz", dataset="mine")
    assert find(chosen).path.name == "sub-01_ses-1_label-tumour_mask.nii.gz"


@pytest.mark.parametrize("label", ["lesion", "infarct", "tumour", "tumor", "resection"])
@pytest.mark.parametrize("suffix", ["mask", "roi"])
def test_derivatives_come_before_what_lies_beside_the_flair(data, label, suffix):
    put, find = data
    put("sub-01_ses-1_label-lesion_roi.nii.gz")
    root = put(f"sub-01_ses-1_acq-3D_run-2_label-{label}_{suffix}.nii.gz", dataset="mine")
    found = find(root)
    assert found.path.is_relative_to(root)
    assert found.note.endswith("sub-01_ses-1_label-lesion_roi.nii.gz.")
    assert "not of" in found.note


def test_link_that_was_not_fetched_is_an_error(data, tmp_path):
    put, find = data
    link = tmp_path / "raw/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_roi.nii.gz"
    link.symlink_to("../../.git/annex/objects/xx/content.nii.gz")
    with pytest.raises(InputImageError, match="sub-01_ses-1_label-lesion_roi"):
        find()
