"""A table of FLAIRs and masks is read as cases, each row on its own."""

import json

import challenge_tree
import nibabel as nib
import numpy as np
import pytest

from bagau_bids.datasets.cases import check_cases
from bagau_bids.datasets.pairs import column_descriptions, read_pairs
from bagau_bids.errors import UsageError


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


@pytest.fixture
def images(tmp_path):
    """Three pairs, a.nii.gz with a_mask.nii.gz and so on."""
    for seed, name in enumerate("abc"):
        flair, mask = challenge_tree.small_scan(seed)
        save(flair, tmp_path / f"{name}.nii.gz")
        save(mask, tmp_path / "masks" / f"{name}_mask.nii.gz")
    return tmp_path


def table(folder, *lines, name="pairs.tsv"):
    path = folder / name
    separator = "," if name.endswith(".csv") else "\t"
    path.write_text("\n".join(separator.join(line.split()) for line in lines) + "\n")
    return path


def plain(folder):
    rows = [f"{name}.nii.gz masks/{name}_mask.nii.gz" for name in "abc"]
    return table(folder, "flair mask", *rows)


def reasons(collection):
    return [f"{failure.name}: {failure.reason}" for failure in collection.failures]


def test_participants_are_numbered_where_the_table_names_none(images):
    checked, digests = check_cases(read_pairs(plain(images)))
    assert [case.entities for case in checked.cases] == [
        {"sub": "01"},
        {"sub": "02"},
        {"sub": "03"},
    ]
    assert not checked.failures
    assert len(digests) == 7  # with the table
    assert checked.cases[1].mask.source == images / "masks" / "b_mask.nii.gz"


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv"])
def test_known_columns_name_and_others_describe(images, name):
    (images / "a.json").write_text('{"EchoTime": 0.1}')
    path = table(
        images,
        "participant_id session_id flair mask t1w site age",
        f"sub-P1 ses-1 {images}/a.nii.gz masks/a_mask.nii.gz b.nii.gz here 70",
        "P2 2 b.nii.gz masks/b_mask.nii.gz n/a there n/a",
        name=name,
    )
    first, second = read_pairs(path).cases
    assert first.entities == {"sub": "P1", "ses": "1"}
    assert first.columns == {"site": "here", "age": "70"}
    assert second.columns == {"site": "there", "age": "n/a"}
    assert first.flair.target.as_posix() == "sub-P1/ses-1/anat/sub-P1_ses-1_FLAIR.nii.gz"
    assert [one.target.name for one in first.others] == [
        "sub-P1_ses-1_FLAIR.json",
        "sub-P1_ses-1_T1w.nii.gz",
    ]
    assert second.others == ()


def test_uncompressed_files_keep_their_kind(images):
    flair, mask = challenge_tree.small_scan(5)
    save(flair, images / "d.nii")
    save(mask, images / "d_mask.nii")
    (case,) = read_pairs(table(images, "flair mask", "d.nii d_mask.nii")).cases
    assert case.flair.target.name == "sub-01_FLAIR.nii"
    assert case.mask.target.name == "sub-01_space-orig_label-WMH_mask.nii"


def test_columns_are_described_by_the_file_beside_the_table(images):
    path = table(images, "flair mask age site", "a.nii.gz masks/a_mask.nii.gz 70 x")
    path.with_suffix(".json").write_text(json.dumps({"age": {"Units": "year"}, "other": {}}))
    described = column_descriptions(path)
    assert described == {
        "age": {"Units": "year"},
        "site": {"Description": "Column site of pairs.tsv, as given"},
    }
    assert {one.source.name for one in read_pairs(path).extras} == {"pairs.tsv", "pairs.json"}
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(UsageError, match="holds list; expected a JSON object"):
        column_descriptions(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("01 a.nii.gz n/a", "line 2: .*pairs.tsv: no mask; fill in the cell"),
        ("n/a a.nii.gz m.nii.gz", "line 2: .*no participant_id"),
        ("P_1 a.nii.gz m.nii.gz", "'P_1': is no BIDS label; expected letters and digits"),
        ("01 a.mgz m.nii.gz", "a.mgz: expected a .nii.gz or .nii file as flair: convert it"),
        ("01 gone.nii.gz masks/a_mask.nii.gz", "gone.nii.gz: no such file"),
        ("01 a.nii.gz masks/gone.nii.gz", "masks/gone.nii.gz: no such file"),
        ("01 a.nii.gz masks/c_mask.nii.gz", "the mask of line 4"),
        ("01 c.nii.gz masks/a_mask.nii.gz", "the FLAIR of line 4"),
        ("03 a.nii.gz masks/a_mask.nii.gz", "sub-03 has the name of line 4"),
    ],
)
def test_bad_row_does_not_stop_the_others(images, row, message):
    path = table(
        images,
        "participant_id flair mask",
        row,
        "02 b.nii.gz masks/b_mask.nii.gz",
        "03 c.nii.gz masks/c_mask.nii.gz",
    )
    checked, _ = check_cases(read_pairs(path))
    assert "02" in [case.entities["sub"] for case in checked.cases]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(reasons(checked)))
    assert "01" not in [case.entities["sub"] for case in checked.cases]


def test_mask_must_lie_on_its_flair_in_every_orientation(tmp_path, oriented_image):
    labels = np.zeros(oriented_image.shape, np.uint8)
    labels[4:7, 5:8, 2:4] = 1
    mask = nib.Nifti1Image(labels, oriented_image.affine)
    flipped = mask.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))  # the same in the world
    moved = nib.Nifti1Image(labels, nib.affines.from_matvec(np.eye(3), [0, 0, 4]) @ mask.affine)
    for name, image in (("a", mask), ("b", flipped), ("c", moved)):
        noisy = oriented_image.get_fdata() + ord(name)
        save(nib.Nifti1Image(noisy, oriented_image.affine), tmp_path / f"{name}.nii.gz")
        save(image, tmp_path / f"{name}_mask.nii.gz")
    rows = [f"{name}.nii.gz {name}_mask.nii.gz" for name in "abc"]
    path = table(tmp_path, "flair mask", *rows)
    checked, _ = check_cases(read_pairs(path))
    assert [case.name for case in checked.cases] == ["line 2", "line 3"]
    (reason,) = reasons(checked)
    assert f"grid {moved.shape} with affine {moved.affine.round(3).tolist()}" in reason
    assert f"{mask.shape} with affine {mask.affine.round(3).tolist()}" in reason


@pytest.mark.parametrize("value", [3, 255, 0.5, -1])
def test_labels_are_0_1_and_2(images, value):
    mask = nib.load(images / "masks" / "a_mask.nii.gz")
    labels = mask.get_fdata()
    labels[0, 0, 0] = value
    save(nib.Nifti1Image(labels, mask.affine), images / "masks" / "a_mask.nii.gz")
    checked, _ = check_cases(read_pairs(plain(images)))
    assert len(checked.cases) == 2
    (reason,) = reasons(checked)
    assert "expected 0 (background), 1 (WMH) and 2" in reason


def test_metadata_go_with_their_image(images):
    (images / "t1.nii.gz").write_bytes(b"not an image")
    (images / "t1.json").write_text("{}")
    (images / "a.json").write_text("[1]")
    path = table(images, "flair mask t1w", "a.nii.gz masks/a_mask.nii.gz t1.nii.gz")
    checked, _ = check_cases(read_pairs(path))
    (case,) = checked.cases
    assert case.others == ()
    assert [failure.sources[0].name for failure in checked.failures] == [
        "a.json",
        "t1.nii.gz",
        "t1.json",
    ]
    assert "holds list; expected a JSON object" in checked.failures[0].reason
    assert checked.failures[2].reason == "describes an image that is left out"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pairs.xlsx", "flair\tmask\n", "expected a table whose name ends in .tsv or .csv"),
        ("pairs.tsv", "", "0 rows with columns none"),
        ("pairs.tsv", "flair\tmask\tmask\na\tb\tc\n", "column mask is there twice; leave one"),
        ("pairs.tsv", "flair\tmask\na\n", "line 2 has 1 fields; expected 2"),
        ("pairs.csv", 'flair,mask\na,"b\nc,d\ne,"f\n', "cannot be read as a table"),
        ("pairs.csv", 'flair,mask\na,"b\nc,d"\n', "row 2, which begins with 'a', has 2 fields"),
        ("pairs.tsv", "flair\tmask\n", "0 rows with columns flair, mask; expected at least one"),
        ("pairs.tsv", "image\tmask\na\tb\n", "columns image, mask; expected .*flair and mask"),
        ("pairs.csv", "\xff", "cannot be read as a table"),
    ],
)
def test_table_that_cannot_be_used_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        read_pairs(tmp_path / name)


def test_missing_table_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as a table"):
        read_pairs(tmp_path / "pairs.tsv")


def test_table_as_a_spreadsheet_saves_it(images):
    path = images / "pairs.csv"
    path.write_bytes("﻿flair,mask,site\r\na.nii.gz, masks/a_mask.nii.gz ,\r\n".encode())
    (case,) = check_cases(read_pairs(path))[0].cases
    assert case.columns == {"site": "n/a"}
