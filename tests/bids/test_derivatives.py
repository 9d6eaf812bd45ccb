"""The catalogue of derivatives, and their names."""

import pytest

from bagau_bids.bids.derivatives import (
    bids_uri,
    catalogue,
    derivative_path,
    sidecar_path,
    source_stem,
)
from bagau_bids.bids.tables import column_descriptions

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
    assert {name for name, _ in marks} | FIGURE_NAMES.keys() == catalogue().files.keys()


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


def test_every_row_says_what_an_image_and_a_table_hold():
    rows = [*catalogue().files.values(), *catalogue().group.values()]
    for row in rows:
        assert bool(row.dtype) == (row.kind in ("image", "preview", "template image"))
        assert bool(row.columns) == (row.kind == "table")
        assert row.description.endswith(".")
        assert ".nii" not in row.description
        for table in filter(None, (row.columns, row.figures)):
            assert column_descriptions(table)


def test_sidecar_holds_what_never_changes_and_the_description_last():
    made = catalogue().files["wmh_mask"]
    assert list(made.sidecar) == ["Type", "Manual", "Description"]
    assert made.sidecar["Type"] == "Lesion"
    assert list(catalogue().files["preproc_flair"].sidecar) == ["Description"]
