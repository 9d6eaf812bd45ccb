"""The order of sessions: dates, then the list, then labels; and tables that cannot be used."""

import pytest

from bagau_bids.bids.sessions import order_sessions


def tables(root, scans=None, sessions=None):
    """Write scans.tsv of sessions (label: rows) and sessions.tsv of sub-1."""
    for label, text in (scans or {}).items():
        folder = root / "sub-1" / f"ses-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"sub-1_ses-{label}_scans.tsv").write_text(text)
    (root / "sub-1").mkdir(exist_ok=True, parents=True)
    if sessions is not None:
        (root / "sub-1" / "sub-1_sessions.tsv").write_text(sessions)
    return root


def image(label):
    return f"anat/sub-1_ses-{label}_FLAIR.nii.gz"


def scan(label, time):
    return f"filename\tacq_time\n{image(label)}\t{time}\nanat/other.nii.gz\t1900-01-01\n"


def order(root, *labels):
    found = order_sessions([root], "1", {label: image(label) for label in labels})
    return found.labels, found.source, found.notes


def test_dates_of_scans_count_before_those_of_sessions(tmp_path):
    dates = "session_id\tacq_time\nses-post\t2018-01-01\nses-pre\t2020-01-01\n"
    scans = {
        "pre": scan("pre", "2019-03-01T10:00:00.5Z"),
        "post": scan("post", "2021-03-01T10:00:00"),
    }
    assert order(tables(tmp_path / "a", scans, dates), "post", "pre")[:2] == (
        ("pre", "post"),
        "acq_time",
    )
    assert order(tables(tmp_path / "b", None, dates), "post", "pre")[:2] == (
        ("post", "pre"),
        "acq_time",
    )


def test_a_date_of_either_table_will_do(tmp_path):
    dates = "session_id\tacq_time\nses-a\t2020-01-01\nses-b\tn/a\n"
    root = tables(tmp_path, {"b": scan("b", "2019-01-01")}, dates)
    assert order(root, "a", "b")[:2] == (("b", "a"), "acq_time")


@pytest.mark.parametrize("time", ["n/a", "", "yesterday", "2020-01-01"])
def test_dates_that_do_not_tell_sessions_apart_leave_it_to_the_list(tmp_path, time):
    dates = f"session_id\tacq_time\nses-2yr\t{time}\nses-baseline\t2020-01-01\n"
    both = ("2yr", "baseline")
    assert order(tables(tmp_path, None, dates), "baseline", "2yr") == (both, "sessions.tsv", ())


def test_labels_are_the_last_resort(tmp_path):
    listed = "session_id\nses-1\nses-10\n"  # ses-2 is not in it
    root = tables(tmp_path, None, listed)
    assert order(root, "1", "10", "2") == (("1", "2", "10"), "labels", ())
    assert order(tmp_path / "nowhere", "10", "9") == (("9", "10"), "labels", ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("session\nses-1\n", "no column session_id"),
        ("session_id\tacq_time\tacq_time\nses-1\t1\t2\n", "columns are there twice"),
        ("session_id\nses-1\nses-1\n", "the same session_id is there twice"),
        ("session_id\nses-\xff\n", "cannot be read"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path, text, words):
    root = tables(tmp_path, None, "")
    path = root / "sub-1" / "sub-1_sessions.tsv"
    path.write_text(text, encoding="latin-1")
    labels, source, (note,) = order(root, "2", "1")
    assert (labels, source) == (("1", "2"), "labels")
    assert note.startswith(f"{path}: {words}")
