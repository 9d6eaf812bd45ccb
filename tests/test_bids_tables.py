"""Order of rows: numbers in names by their value, whatever else is in the names."""

from bagau_bids.bids.tables import natural_key


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
