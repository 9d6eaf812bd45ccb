"""Names of derivatives, and writing that never leaves half a file."""

import pytest

from bagau_bids.bids.derivatives import (
    bids_uri,
    derivative_names,
    derivative_path,
    find_brain_mask,
    sidecar_path,
    source_stem,
)
from bagau_bids.errors import InputImageError

FULL = {"run": "1", "rec": "a", "ce": "gad", "acq": "3D", "ses": "2", "sub": "01"}


def test_stem_keeps_all_entities_in_the_order_of_the_specification():
    assert source_stem(FULL) == "sub-01_ses-2_acq-3D_ce-gad_rec-a_run-1"


def test_stem_takes_the_long_names_of_pybids_too():
    long = {"subject": "01", "acquisition": "3D", "suffix": "FLAIR", "datatype": "anat"}
    assert source_stem(long) == "sub-01_acq-3D"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wmh_mask", "S_space-orig_label-WMH_mask.nii.gz"),
        ("wmh_probseg", "S_space-orig_label-WMH_probseg.nii.gz"),
        ("lesions_dseg", "S_space-orig_seg-WMHlesions_dseg.nii.gz"),
        ("lesions_table", "S_space-orig_seg-WMHlesions_dseg.tsv"),
        ("regions_dseg", "S_space-orig_seg-WMHregions_dseg.nii.gz"),
        ("regions_table", "S_space-orig_seg-WMHregions_dseg.tsv"),
        ("brain_regions_dseg", "S_space-orig_seg-brainregions_dseg.nii.gz"),
        ("brain_regions_table", "S_space-orig_seg-brainregions_dseg.tsv"),
        ("ventricle_mask", "S_space-orig_label-ventricles_mask.nii.gz"),
        ("quality_table", "S_desc-quality_stat.tsv"),
        ("fazekas_table", "S_label-WMH_desc-fazekas_morph.tsv"),
        ("brain_mask", "S_space-orig_label-brain_mask.nii.gz"),
        ("infarct_mask", "S_space-orig_label-infarct_mask.nii.gz"),
        ("infarct_probseg", "S_space-orig_label-infarct_probseg.nii.gz"),
        ("known_lesion_mask", "S_space-orig_label-lesion_mask.nii.gz"),
        ("preproc_flair", "S_desc-preproc_FLAIR.nii.gz"),
        ("wm_atlas", "S_space-orig_atlas-T_label-WM_probseg.nii.gz"),
        ("template_to_flair_xfm", "S_from-T_to-FLAIR_mode-image_xfm.h5"),
        ("flair_to_template_xfm", "S_from-FLAIR_to-T_mode-image_xfm.h5"),
        ("volumes_table", "S_label-WMH_desc-volumes_morph.tsv"),
        ("template_wmh_mask", "S_space-T_res-1_label-WMH_mask.nii.gz"),
        ("template_wmh_probseg", "S_space-T_res-1_label-WMH_probseg.nii.gz"),
        ("template_flair", "S_space-T_res-1_desc-preproc_FLAIR.nii.gz"),
        ("record", "S_desc-processing_record.json"),
        ("changes_table", "S_label-WMH_desc-changes_morph.tsv"),
        ("changes_record", "S_desc-changes_record.json"),
    ],
)
def test_names(name, expected, tmp_path):
    path = derivative_path(tmp_path, FULL, name, template="T")
    stem = "sub-01_ses-2_acq-3D_ce-gad_rec-a_run-1"
    assert path == tmp_path / "sub-01" / "ses-2" / "anat" / expected.replace("S", stem, 1)


FIGURE_NAMES = {"conformed_flair": "desc-conform_FLAIR", "warped_t1w": "desc-T_T1w"}


@pytest.mark.parametrize(("name", "end"), FIGURE_NAMES.items())
def test_images_to_look_at_lie_with_the_figures_of_all_sessions(name, end, tmp_path):
    path = derivative_path(tmp_path, FULL, name, template="T")
    stem = "sub-01_ses-2_acq-3D_ce-gad_rec-a_run-1"
    assert path == tmp_path / "sub-01" / "figures" / f"{stem}_{end}.nii.gz"


def test_every_name_has_a_test():
    marks = test_names.pytestmark[0].args[1]
    assert {name for name, _ in marks} | FIGURE_NAMES.keys() == set(derivative_names())


def test_folder_without_session(tmp_path):
    assert derivative_path(tmp_path, {"sub": "x"}, "wmh_mask").parent == tmp_path / "sub-x/anat"


def test_unknown_name_and_missing_template_are_our_own_errors(tmp_path):
    with pytest.raises(KeyError):
        derivative_path(tmp_path, FULL, "wmh")
    with pytest.raises(ValueError, match="holds a template"):
        derivative_path(tmp_path, FULL, "wm_atlas")


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".h5", ".txt", ".tsv"])
def test_sidecar_lies_beside(tmp_path, extension):
    assert sidecar_path(tmp_path / f"a_b{extension}") == tmp_path / "a_b.json"


def test_no_sidecar_for_other_files(tmp_path):
    with pytest.raises(ValueError, match="no sidecar"):
        sidecar_path(tmp_path / "a.html")


def test_bids_uri():
    assert bids_uri("raw", "sub-01/anat/a.nii.gz") == "bids:raw:sub-01/anat/a.nii.gz"
    assert bids_uri("", "sub-01/a") == "bids::sub-01/a"


class TestFindBrainMask:
    def put(self, root, name):
        folder = root / "sub-01" / "ses-2" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        return folder / name

    @pytest.mark.parametrize(
        "ending",
        [
            "space-orig_label-brain_mask.nii.gz",
            "label-brain_mask.nii",
            "desc-brain_mask.nii.gz",
            "space-orig_desc-brain_mask.nii.gz",
        ],
    )
    def test_spellings(self, tmp_path, ending):
        path = self.put(tmp_path, f"sub-01_ses-2_{ending}")
        assert find_brain_mask({"a": tmp_path}, {"sub": "01", "ses": "2"}) == path

    def test_mask_of_another_run_or_space_is_not_taken(self, tmp_path):
        self.put(tmp_path, "sub-01_ses-2_run-2_desc-brain_mask.nii.gz")
        self.put(tmp_path, "sub-01_ses-2_space-T1w_desc-brain_mask.nii.gz")
        entities = {"sub": "01", "ses": "2", "run": "1"}
        assert find_brain_mask({"a": tmp_path}, entities) is None

    def test_first_data_set_wins(self, tmp_path):
        paths = [self.put(tmp_path / name, "sub-01_ses-2_desc-brain_mask.nii.gz") for name in "ab"]
        roots = {name: tmp_path / name for name in "ba"}
        assert find_brain_mask(roots, {"sub": "01", "ses": "2"}) == paths[1]

    def test_mask_that_was_not_fetched_is_not_taken_for_none(self, tmp_path):
        path = self.put(tmp_path, "sub-01_ses-2_desc-brain_mask.nii.gz")
        path.unlink()
        path.symlink_to("../../../.git/annex/objects/x")
        with pytest.raises(InputImageError, match=f"run: datalad get {path}"):
            find_brain_mask({"a": tmp_path}, {"sub": "01", "ses": "2"})
        assert find_brain_mask({"a": tmp_path}, {"sub": "02", "ses": "2"}) is None

    def test_several_are_refused(self, tmp_path):
        for kind in ("desc", "label"):
            self.put(tmp_path, f"sub-01_ses-2_{kind}-brain_mask.nii.gz")
        with pytest.raises(InputImageError, match="several brain masks of sub-01_ses-2"):
            find_brain_mask({"a": tmp_path}, {"sub": "01", "ses": "2"})
