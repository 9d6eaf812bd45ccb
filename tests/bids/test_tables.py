"""Order of rows: numbers in names by their value; and reading tables, whatever is in them."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagau_bids.bids.tables import natural_key, read_records, read_tsv, split_fields
from bagau_bids.errors import UsageError


def test_numbers_are_ordered_by_their_value():
    names = ["sub-10", "sub-2", "sub-1_run-10", "sub-1_run-9", "sub-a"]
    expected = ["sub-1_run-9", "sub-1_run-10", "sub-2", "sub-10", "sub-a"]
    assert sorted(names, key=natural_key) == expected


def test_digits_that_are_no_numbers_are_letters():
    """Superscripts and circled digits are digits to Unicode, but not to int."""
    assert sorted(["sub-9²", "sub-②", "sub-9", "sub-٣"], key=natural_key) == [
        "sub-٣",
        "sub-9",
        "sub-9²",
        "sub-②",
    ]


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=("Cs",))),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_line_is_a_row_whatever_is_in_it(rows):
    """The oracle: fields of any text that do not begin and end with quotes, joined by tabs."""
    rows = [[f"x{field}x" for field in row] for row in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "table.tsv")
        text = "\n".join("\t".join(row) for row in [["a", "b", "c"], *rows])
        path.write_text(text, encoding="utf-8", newline="")
        found = read_tsv(path)
    assert found.header == ("a", "b", "c")
    assert [list(row) for row in found.rows.values()] == rows
    assert found.uneven == ()


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('"a\tb"\tc', ["a\tb", "c"]),
        ('"say ""no"""\t', ['say "no"', ""]),
        ('""\t"', ["", '"']),
        ('"a"b\tc"', ['"a"b', 'c"']),
        ("", [""]),
    ],
)
def test_only_quotes_around_a_whole_field_are_quotes(line, fields):
    assert split_fields(line) == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\tb\n1\t2\n", "no column id; it has a, b"),
        ("id\tid\n1\t2\n", "column id is there twice; leave one"),
        ("id\ta\n1\n2\t3\n", "line 2 has 1 fields; expected 2, as the header"),
        ("id\n\xff\n", "cannot be read as a table"),
        ("", "no column id; it has none"),
    ],
)
def test_a_table_that_lacks_what_is_needed_is_refused(tmp_path, text, words):
    path = tmp_path / "table.tsv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        read_records(path, ("id",))
    assert str(path) in str(error.value)
