"""Which result belongs to which reference."""

import pytest

from bagau_bids.errors import UsageError
from bagau_bids.evaluation.pairs import find_pairs


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(pairs):
    return [(pair.case, pair.reference.name, pair.result.name) for pair in pairs]


@pytest.fixture
def trees(tmp_path):
    return tmp_path / "reference", tmp_path / "result"


def test_two_files_are_a_pair(tmp_path):
    touch(tmp_path, "a/truth.nii.gz", "b/found.nii", "sub-1_ses-2_desc-x_label-WMH_mask.nii")
    pairs, unpaired = find_pairs(tmp_path / "a/truth.nii.gz", tmp_path / "b/found.nii")
    assert names(pairs) == [("truth", "truth.nii.gz", "found.nii")]
    assert unpaired == []
    (pair,), _ = find_pairs(
        tmp_path / "sub-1_ses-2_desc-x_label-WMH_mask.nii", tmp_path / "b/found.nii"
    )
    assert (pair.case, pair.entities) == ("sub-1_ses-2", {"sub": "1", "ses": "2"})


def test_bids_masks_are_paired_by_the_entities_of_their_scan(trees):
    touch(
        trees[0],
        "sub-1/anat/sub-1_space-orig_label-WMH_mask.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_run-1_desc-rater1_label-WMH_mask.nii",
        "sub-3/anat/sub-3_label-WMH_mask.nii.gz",
        "sub-3/anat/sub-3_label-brain_mask.nii.gz",
    )
    touch(
        trees[1],
        "anywhere/sub-1_label-WMH_mask.nii.gz",
        "sub-2_ses-a_run-1_space-orig_label-WMH_mask.nii.gz",
        "sub-2_ses-a_run-2_space-orig_label-WMH_mask.nii.gz",
        "sub-3_label-WMH_probseg.nii.gz",
    )
    pairs, unpaired = find_pairs(*trees)
    assert [pair.case for pair in pairs] == ["sub-1", "sub-2_ses-a_run-1"]
    assert pairs[1].entities == {"sub": "2", "ses": "a", "run": "1"}
    assert [one.case for one in unpaired] == ["sub-3", "sub-2_ses-a_run-2"]
    assert "sub-3_label-WMH_mask.nii.gz: the result has no mask" in unpaired[0].problem
    assert "run-2_space-orig_label-WMH_mask.nii.gz: the reference has no" in unpaired[1].problem


def test_copies_in_a_further_space_are_left_alone(trees):
    touch(trees[0], "sub-1_space-orig_label-WMH_mask.nii", "sub-2_label-WMH_mask.nii")
    touch(
        trees[1],
        "sub-1_space-orig_label-WMH_mask.nii.gz",
        "sub-1_space-MNI152NLin2009cSym_res-1_label-WMH_mask.nii.gz",
        "sub-2_space-MNI152NLin2009cSym_res-1_label-WMH_mask.nii.gz",
    )
    pairs, unpaired = find_pairs(*trees)
    assert [pair.case for pair in pairs] == ["sub-1"]
    assert [one.case for one in unpaired] == ["sub-2", "sub-2_space-MNI152NLin2009cSym"]


def test_several_masks_of_one_scan_are_not_a_pair(trees):
    touch(trees[0], "sub-1_label-WMH_mask.nii", "sub-2_label-WMH_mask.nii")
    touch(
        trees[1],
        "sub-1_label-WMH_mask.nii",
        "sub-2_desc-a_label-WMH_mask.nii",
        "sub-2_desc-b_label-WMH_mask.nii",
    )
    pairs, (unclear,) = find_pairs(*trees)
    assert [pair.case for pair in pairs] == ["sub-1"]
    assert "desc-b_label-WMH_mask.nii: 2 masks in the result; expected one" in unclear.problem


def test_plain_folders_are_paired_by_path_below_them(trees):
    touch(trees[0], "a.nii.gz", "Utrecht/0/wmh.nii.gz", "Utrecht/1/wmh.nii.gz", "notes.txt")
    touch(trees[1], "a.nii", "Utrecht/0/wmh.nii.gz", "b.nii", ".hidden.nii", "c.nii.gz.part")
    pairs, unpaired = find_pairs(*trees)
    assert names(pairs) == [
        ("Utrecht/0/wmh", "wmh.nii.gz", "wmh.nii.gz"),
        ("a", "a.nii.gz", "a.nii"),
    ]
    assert [one.case for one in unpaired] == ["Utrecht/1/wmh", "b"]


def test_bids_names_on_one_side_only_are_plain_names(trees):
    touch(trees[0], "sub-1_label-WMH_mask.nii", "x.nii")
    touch(trees[1], "x.nii")
    pairs, unpaired = find_pairs(*trees)
    assert [pair.case for pair in pairs] == ["x"]
    assert [one.case for one in unpaired] == ["sub-1_label-WMH_mask"]


def test_what_cannot_be_paired_is_refused(trees, tmp_path):
    touch(trees[0], "a.nii", "b.nii", "c.nii", "d.nii")
    with pytest.raises(UsageError, match="result: no such file or folder"):
        find_pairs(*trees)
    trees[1].mkdir()
    with pytest.raises(UsageError, match="a file and a folder; expected two files or two"):
        find_pairs(trees[0] / "a.nii", trees[1])
    with pytest.raises(
        UsageError, match=r"no mask of .*\(4 masks: a.nii, b.nii, c.nii, ...\).*\(no mask\)"
    ):
        find_pairs(*trees)
