"""Pages are written again where what they were made from changed, and only there."""

import pytest

from bagau_bids.reports.fingerprint import (
    EMPTY_MARK,
    further_pages,
    made_from,
    marked,
    pages_in_place,
)


@pytest.fixture
def derivatives(tmp_path):
    """Results of a participant and its pages, the first with its mark."""
    for name in ("sub-1/anat/mask.nii.gz", "sub-1/figures/one.svg", "sub-2/anat/mask.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "CITATION.md").write_text("methods")
    (tmp_path / "sub-1_ses-b.html").write_text("b")
    page = f"<!doctype html><head>{EMPTY_MARK}</head>\r\n<p>{EMPTY_MARK} ü \udcf6</p>"
    text = marked(page, made_from(tmp_path, "sub-1", 4, [tmp_path / "sub-1_ses-b.html"]))
    (tmp_path / "sub-1.html").write_bytes(text.encode("utf-8", "backslashreplace"))
    return tmp_path


def in_place(derivatives, most_sessions):
    further = further_pages(derivatives).get("sub-1", ())
    return pages_in_place(derivatives, "sub-1", most_sessions, further)


def test_further_pages_are_found_of_all_participants(derivatives):
    for name in ("sub-1_ses-a.html", "sub-2_run-1.html", "sub-2.html", "group_FLAIR.html"):
        (derivatives / name).touch()
    names = {
        who: [page.name for page in pages] for who, pages in further_pages(derivatives).items()
    }
    assert names == {
        "sub-1": ["sub-1_ses-a.html", "sub-1_ses-b.html"],
        "sub-2": ["sub-2_run-1.html"],
    }


def test_pages_of_what_is_as_it_was_are_in_place(derivatives):
    (derivatives / "sub-2" / "anat" / "mask.nii.gz").write_text("another's")
    (derivatives / "sub-2.html").write_text("another's")
    names = [path.name for path in in_place(derivatives, 4)]
    assert names == ["sub-1.html", "sub-1_ses-b.html"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sub-1/anat/mask.nii.gz", "other"),
        ("sub-1/anat/more.tsv", "new"),
        ("sub-1/figures/one.svg", None),
        ("sub-1/log/x/crash-1.txt", "new"),
        ("sub-1_ses-b.html", "c"),
        ("sub-1_ses-b.html", None),
        ("logs/CITATION.md", "other methods"),
        ("sub-1.html", None),
        ("sub-1.html", "a page without a mark"),
        ("derivatives/edited/sub-1/anat/sub-1_mask.nii.gz", "kept"),
    ],
)
def test_pages_of_what_changed_are_to_be_written(derivatives, name, content):
    path = derivatives / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert in_place(derivatives, 4) == ()


@pytest.mark.parametrize("touch", [lambda page: page[:-4], lambda page: page + b" "])
def test_a_page_that_was_edited_or_cut_short_is_to_be_written(derivatives, touch):
    page = derivatives / "sub-1.html"
    page.write_bytes(touch(page.read_bytes()))
    assert in_place(derivatives, 4) == ()


def test_pages_of_another_option_or_version_are_to_be_written(derivatives, monkeypatch):
    assert in_place(derivatives, 5) == ()
    monkeypatch.setattr("bagau_bids.reports.fingerprint.__version__", "0.0.0")
    assert in_place(derivatives, 4) == ()
