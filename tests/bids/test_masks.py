"""Masks of other derivative data sets, told by their names."""

import pytest

from bagau_bids.bids.masks import find_brain_mask
from bagau_bids.errors import InputImageError


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
