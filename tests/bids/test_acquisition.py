"""What the metadata say of the sequence, and which files say it."""

import functools
import json

import pytest

from bagau_bids.bids.acquisition import (
    json_files,
    read_sidecars,
    sidecars_of,
    signs_of_another_sequence,
)

FLAIRS = [
    {},
    {"InversionTime": 2.5, "EchoTime": 0.081, "RepetitionTime": 9, "SeriesDescription": "FLAIR"},
    {"InversionTime": 1.65, "EchoTime": 0.33, "RepetitionTime": 4.8, "SequenceName": "*spcir_278"},
    {"InversionTime": 2500, "EchoTime": 81, "RepetitionTime": 9000, "ProtocolName": "t2_tirm_tra"},
    {"SeriesDescription": "T2 FLAIR", "SequenceName": "tse", "InversionTime": 0},
    {"SeriesDescription": "t2_space_dark-fluid_sag", "EchoTime": "0.003"},
    {"InversionTime": None, "EchoTime": [0.09], "SeriesDescription": "AX HEAD"},
]
OTHERS = [
    (
        {
            "EchoTime": 0.00298,
            "RepetitionTime": 2.3,
            "InversionTime": 0.9,
            "SequenceName": "tfl3d",
        },
        4,
    ),
    ({"SeriesDescription": "t1_mprage"}, 1),
    ({"SeriesDescription": "T2w TSE", "EchoTime": 0.1}, 1),
    ({"ProtocolName": "ep2d_diff", "EchoTime": 0.09, "RepetitionTime": 6}, 1),
    ({"InversionTime": 900, "EchoTime": 3}, 1),
]


@pytest.mark.parametrize("metadata", FLAIRS)
def test_flairs_have_no_sign_of_another_sequence(metadata):
    assert signs_of_another_sequence(metadata) == ()


@pytest.mark.parametrize(("metadata", "count"), OTHERS)
def test_other_sequences_are_told(metadata, count):
    signs = signs_of_another_sequence(metadata)
    assert len(signs) == count
    assert not any("mprage" in sign for sign in signs)


def test_numbers_are_told_and_texts_are_not():
    signs = signs_of_another_sequence({"InversionTime": 0.9, "SeriesDescription": "T1 John Doe"})
    assert signs == (
        "InversionTime of 0.9 s (a FLAIR has 1.2 s or more)",
        "its sequence is named otherwise",
    )


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_nearer_file_overrides_and_others_do_not_apply(tmp_path):
    root = tmp_path / "bids"
    image = root / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_acq-a_FLAIR.nii.gz"
    write(tmp_path / "FLAIR.json", {"EchoTime": 9})  # above the data set
    write(root / "dataset_description.json", {})
    first = write(root / "FLAIR.json", {"EchoTime": 1, "RepetitionTime": 1})
    second = write(root / "sub-01" / "sub-01_FLAIR.json", {"EchoTime": 2})
    third = write(image.with_name("sub-01_ses-2_acq-a_FLAIR.json"), {"EchoTime": 3})
    write(root / "acq-b_FLAIR.json", {"EchoTime": 4})
    write(root / "T1w.json", {"EchoTime": 5})
    assert sidecars_of(image) == (first, second, third)
    assert read_sidecars(sidecars_of(image)) == {"EchoTime": 3, "RepetitionTime": 1}


def test_folders_are_gone_through_by_what_may_remember_them(tmp_path):
    write(tmp_path / "dataset_description.json", {})
    shared = write(tmp_path / "FLAIR.json", {})
    asked = []

    @functools.cache
    def remembered(folder):
        asked.append(folder)
        return json_files(folder)

    for name in ("01", "02"):
        image = tmp_path / f"sub-{name}" / "anat" / f"sub-{name}_FLAIR.nii.gz"
        assert sidecars_of(image, remembered) == (shared,)
    assert asked.count(tmp_path) == 1
    assert len(asked) == 5


def test_outside_a_data_set_only_the_folder_counts(tmp_path):
    write(tmp_path / "FLAIR.json", {})
    near = write(tmp_path / "scans" / "sub-01_FLAIR.json", {})
    assert sidecars_of(tmp_path / "scans" / "sub-01_FLAIR.nii.gz") == (near,)


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", ""])
def test_a_file_that_cannot_be_read_says_nothing(tmp_path, content):
    assert read_sidecars([write(tmp_path / "FLAIR.json", content), tmp_path / "none.json"]) == {}
