"""What a card says of the data that weights were trained on."""

import json

import pytest

from bagau_bids.errors import UsageError
from bagau_bids.training.card import describe_dataset

STATED = {
    "Name": "T",
    "License": "CC0",
    "Authors": ["A", "B"],
    "ReferencesAndLinks": [{"doi": "10.1/x"}],
    "DatasetDOI": None,
}


def describe(folder, content):
    (folder / "dataset_description.json").write_bytes(content)
    return describe_dataset(folder)


def test_what_a_data_set_states_is_repeated_as_it_is_and_in_order(tmp_path):
    more = {"DatasetDOI": None, "BIDSVersion": "1.10.0", **STATED, "Funding": ["F"]}
    described = describe(tmp_path, json.dumps(more).encode())
    assert list(described.items()) == list(STATED.items())
    assert describe(tmp_path, b'{"Name": 5, "License": ""}') == {"Name": 5, "License": ""}
    assert describe(tmp_path, b'{"Authors": "A"}') == {"Authors": "A"}


def test_data_set_that_states_nothing_has_the_name_of_its_folder(tmp_path):
    assert describe_dataset(tmp_path) == {"Name": tmp_path.name}
    assert describe(tmp_path, b'{"BIDSVersion": "1.10.0"}') == {"Name": tmp_path.name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Input data was truncated"),
        (b'{"Name": "T"', "Input data was truncated"),
        (b'\xef\xbb\xbf{"Name": "T"}', "JSON is malformed: invalid character"),
        (b"null", "Expected `object`, got `null`"),
        (b'[{"Name": "T"}]', "Expected `object`, got `array`"),
        (b'{"Name": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_damaged_description_is_named(tmp_path, content, said):
    way_out = "expected a JSON object in UTF-8 without byte order mark, as BIDS has it; correct it"
    with pytest.raises(UsageError, match=rf"dataset_description\.json: {said}.*; {way_out}$"):
        describe(tmp_path, content)
