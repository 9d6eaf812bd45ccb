"""Which result belongs to which reference."""

import pytest

from bagau_bids.errors import UsageError
from bagau_bids.evaluation.pairs import (
    find_pairs,
    ordered_pairs,
    pairing_in_words,
    table_pairs,
)


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


def test_a_table_pairs_any_names(trees, tmp_path):
    touch(trees[0], "x/a.nii.gz", "b.nii")
    touch(trees[1], "one.nii.gz", "two.nii.gz")
    table = tmp_path / "pairs.tsv"
    table.write_text("reference\tresult\nx/a.nii.gz\ttwo.nii.gz\nb.nii\tone.nii.gz\n")
    pairs = table_pairs(table, *trees)
    assert names(pairs) == [("x/a", "a.nii.gz", "two.nii.gz"), ("b", "b.nii", "one.nii.gz")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.nii\tnone.nii\n", "none.nii is no NIfTI file that is there; expected paths below"),
        ("a.nii\tb.txt\n", "b.txt is no NIfTI file that is there"),
        ("", "has no line below its header; expected one a pair"),
    ],
)
def test_a_table_of_what_is_not_there_is_refused(trees, tmp_path, lines, message):
    touch(trees[0], "a.nii")
    touch(trees[1], "b.txt")
    (tmp_path / "pairs.tsv").write_text(f"reference\tresult\n{lines}")
    with pytest.raises(UsageError, match=message):
        table_pairs(tmp_path / "pairs.tsv", *trees)


def test_order_goes_by_numbers(trees):
    touch(trees[0], "case10.nii", "case2.nii")
    touch(trees[1], "a_2.nii.gz", "a_10.nii.gz", ".hidden.nii", "notes.txt")
    assert names(ordered_pairs(*trees)) == [
        ("case2", "case2.nii", "a_2.nii.gz"),
        ("case10", "case10.nii", "a_10.nii.gz"),
    ]


def test_order_needs_as_many_on_both_sides(trees):
    touch(trees[0], "1.nii", "2.nii")
    touch(trees[1], "1.nii")
    with pytest.raises(UsageError, match=r"2 masks: 1.nii, 2.nii.*1 masks: 1.nii.*as many masks"):
        ordered_pairs(*trees)
    with pytest.raises(UsageError, match="none: no such folder; expected two folders"):
        ordered_pairs(trees[0], trees[1] / "none")


def test_pairs_are_told_and_a_few_named(trees):
    touch(trees[0], *(f"{n}.nii" for n in range(5)))
    touch(trees[1], *(f"r{n}.nii" for n in range(5)))
    told = pairing_in_words(ordered_pairs(*trees), "by order")
    assert told[:2] == ["5 pairs, by order:", "  0.nii with r0.nii"]
    assert told[-1] == "  and 2 more"
    assert len(told) == 5
    assert pairing_in_words(ordered_pairs(*trees)[:2], "x")[-1] == "  1.nii with r1.nii"
