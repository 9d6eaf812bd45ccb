"""Names of derivatives, and writing that never leaves half a file."""

import json
import threading

import numpy as np
import pandas as pd
import pytest

from bagau_bids.bids import derivatives
from bagau_bids.bids.derivatives import (
    bids_uri,
    claim_origin,
    copy_file,
    derivative_names,
    derivative_path,
    find_brain_mask,
    place_file,
    sidecar_path,
    source_stem,
    write_bytes,
    write_json,
    write_table,
    write_text,
)
from bagau_bids.errors import InputImageError, UsageError

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


def test_only_what_changed_is_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    assert write_text(path, "one")
    stamp = path.stat().st_mtime_ns
    assert not write_text(path, "one")
    assert path.stat().st_mtime_ns == stamp
    assert write_text(path, "two")
    assert path.read_text() == "two"


def test_copy_only_what_differs(tmp_path):
    source, copy = tmp_path / "a", tmp_path / "b" / "c"
    source.write_bytes(b"x" * (derivatives.READ_SIZE_BYTES + 3))
    assert copy_file(source, copy)
    assert not copy_file(source, copy)
    changed = bytearray(source.read_bytes())
    changed[-1] = 0
    source.write_bytes(bytes(changed))
    assert copy_file(source, copy)
    assert copy.read_bytes() == bytes(changed)


@pytest.mark.parametrize("how", ["hard", "symlink", "copy"])
def test_file_is_placed_once_and_anew_when_it_is_another(tmp_path, how):
    source, path = tmp_path / "a", tmp_path / "b" / "c"
    source.write_text("one")
    (tmp_path / "link").symlink_to(source)
    assert place_file(tmp_path / "link", path, how)
    assert not place_file(source, path, how)
    assert path.read_text() == "one"
    assert path.is_symlink() == (how == "symlink")
    assert path.samefile(source) == (how != "copy")
    (tmp_path / "other").write_text("two")
    assert place_file(tmp_path / "other", path, how)
    assert path.read_text() == "two"
    assert source.read_text() == "one"
    assert [item.name for item in path.parent.iterdir()] == ["c"]


def test_symbolic_link_survives_moving_both_folders(tmp_path):
    source, path = tmp_path / "all" / "data" / "a", tmp_path / "all" / "bids" / "sub" / "b"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    place_file(source, path, "symlink")
    (tmp_path / "all").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "bids" / "sub" / "b").read_text() == "one"


def test_folder_is_claimed_for_one_origin(tmp_path):
    path = tmp_path / "new" / "origin.json"
    claim_origin(path, {"seed": 1, "maps": ["a"]})
    claim_origin(path, {"maps": ["a"], "seed": 1})
    with pytest.raises(UsageError, match="origin.json: .* made with another maps, seed, expected"):
        claim_origin(path, {"seed": 2})


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full_disk(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(derivatives.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_json_writes_numpy_and_has_no_nan(tmp_path):
    write_json(
        tmp_path / "a.json",
        {
            "array": np.arange(3),
            "number": np.float32(0.5),
            "nan": float("nan"),
            "path": tmp_path,
            "tuple": (1, np.inf),
            "text": "Ähnlich",
        },
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Ähnlich" in text
    assert json.loads(text) == {
        "array": [0, 1, 2],
        "number": 0.5,
        "nan": None,
        "path": tmp_path.as_posix(),
        "tuple": [1, None],
        "text": "Ähnlich",
    }


def test_table_is_a_bids_table(tmp_path):
    table = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None], "c": [1, 2]})
    write_table(tmp_path / "a.tsv", table)
    assert (tmp_path / "a.tsv").read_bytes() == b"a\tb\tc\n1\tx\t1\nn/a\tn/a\t2\n"


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "shared.json"
    contents = [bytes([65 + number]) * 50_000 for number in range(6)]
    seen = set()

    def write(content):
        for _ in range(20):
            write_bytes(path, content)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert [item.name for item in tmp_path.iterdir()] == ["shared.json"]


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
