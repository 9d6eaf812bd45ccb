"""participants.tsv: where it is looked for, how it is read, and what is said without it."""

import json

import pytest

from bagau_bids.bids.participants import find_participants

TABLE = "participant_id\tage\tsex\nsub-01\t70\tF\n02\tn/a\tM\n"


def describe(output_dir, raw):
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {"Name": "x", "DatasetLinks": {"raw": raw}}
    (output_dir / "dataset_description.json").write_text(json.dumps(content))


def test_the_own_table_comes_first(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    describe(out, raw.as_uri())
    (raw / "participants.tsv").write_text("participant_id\tage\nsub-01\t11\n")
    assert find_participants(out).values == {"age": {"sub-01": "11"}}
    (out / "participants.tsv").write_text(TABLE)
    found = find_participants(out)
    assert found.source == out / "participants.tsv"
    assert found.values == {"age": {"sub-01": "70"}, "sex": {"sub-01": "F", "sub-02": "M"}}
    assert found.listed == ("sub-01", "sub-02")
    assert found.note == ""


@pytest.mark.parametrize("kind", ["relative", "uri"])
def test_links_to_the_raw_data_are_followed(tmp_path, kind):
    raw = tmp_path / "raw data"
    out = raw / "derivatives" / "out"
    describe(out, "../.." if kind == "relative" else raw.as_uri())
    (raw / "participants.tsv").write_text(TABLE)
    (raw / "participants.json").write_text('{"age": {"Units": "years"}, "sex": "broken"}')
    found = find_participants(out)
    assert found.values["age"] == {"sub-01": "70"}
    assert found.descriptions == {"age": {"Units": "years"}}


@pytest.mark.parametrize(
    "description", [None, "{", "[]", '{"DatasetLinks": {"raw": "https://example.org/ds"}}']
)
def test_without_a_table_the_places_are_named(tmp_path, description):
    if description is not None:
        (tmp_path / "dataset_description.json").write_text(description)
    found = find_participants(tmp_path)
    assert found.source is None
    assert found.values == {}
    assert found.note == f"No participants.tsv was found in {tmp_path}."


def test_a_table_that_is_none_is_named(tmp_path):
    (tmp_path / "participants.tsv").write_text("age,sex\n1,2\n")
    note = find_participants(tmp_path).note
    assert str(tmp_path / "participants.tsv") in note
    assert "age,sex" in note
    assert "participant_id" in note


def test_damaged_descriptions_are_passed_over(tmp_path):
    (tmp_path / "participants.tsv").write_text(TABLE)
    for text in ("{", "[1]"):
        (tmp_path / "participants.json").write_text(text)
        assert find_participants(tmp_path).descriptions == {}


def note_of(tmp_path, text):
    path = tmp_path / "participants.tsv"
    path.write_text(text, newline="")
    found = find_participants(tmp_path)
    return found, found.note.removeprefix(f"{path}: ")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\t\n", "\t\t\r\n"])
@pytest.mark.parametrize("header_end", ["", "\t"])
def test_tabs_at_the_end_of_lines_shift_no_column(tmp_path, end, header_end):
    text = f"participant_id\tage\tsex{header_end}\nsub-1\t70\tF{end}sub-2\t\tM{end}"
    found, note = note_of(tmp_path, text)
    assert found.values == {"age": {"sub-1": "70"}, "sex": {"sub-1": "F", "sub-2": "M"}}
    assert note == ""


def test_rows_of_another_length_are_named_and_passed_over(tmp_path):
    text = "participant_id\tage\tsex\nsub-1\t70\n\nsub-2\t71\tM\tx\nsub-3\t72\tF\n"
    found, note = note_of(tmp_path, text)
    assert found.listed == ("sub-3",)
    assert found.values == {"age": {"sub-3": "72"}, "sex": {"sub-3": "F"}}
    assert note == (
        "rows were passed over: line 2 has 2 fields, line 4 has 4 fields; expected 3, as the "
        "header; repair it and run again."
    )


def test_a_participant_that_is_there_again_is_named(tmp_path):
    text = "participant_id\tage\nsub-1\t70\n1\t71\n" + "sub-1\t72\n" * 5
    found, note = note_of(tmp_path, text)
    assert found.values == {"age": {"sub-1": "70"}}
    assert note.startswith(
        "participants are there again, the first row counts: sub-1 in line 3, sub-1 in line 4,"
    )
    assert note.endswith("sub-1 in line 7 and 1 more; repair it and run again.")


def test_an_empty_table_is_named(tmp_path):
    assert "participant_id" in note_of(tmp_path, "")[1]


def test_quotes_that_belong_to_nothing_merge_no_rows(tmp_path):
    text = (
        "participant_id\tcomment\tage\nsub-01\tok\t61\n"
        'sub-02\t"lost keys, late\t70\nsub-03\t5" scar\t80\nsub-04\t"a\ttab"\t75\n'
    )
    found, note = note_of(tmp_path, text)
    assert found.values["age"] == {"sub-01": "61", "sub-02": "70", "sub-03": "80", "sub-04": "75"}
    assert found.values["comment"] == {
        "sub-01": "ok",
        "sub-02": '"lost keys, late',
        "sub-03": '5" scar',
        "sub-04": "a\ttab",
    }
    assert note == ""


def test_columns_that_are_there_twice_are_left_out_and_named(tmp_path):
    found, note = note_of(tmp_path, "participant_id\tage\tsex\tage\nsub-1\t70\tF\t17\n")
    assert found.values == {"sex": {"sub-1": "F"}}
    assert note == "columns that are there twice were left out: age; repair it and run again."
    text = "participant_id\tparticipant_id\nsub-1\tsub-2\n"
    assert "the column participant_id is there twice" in note_of(tmp_path, text)[1]
