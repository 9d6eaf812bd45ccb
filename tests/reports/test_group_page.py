"""The group page: whole, honest about what is missing, and linked to the participants' pages."""

import base64
import io
import json

import pytest
from fake_derivatives import drawn_head, write_failure, write_scan
from page_checks import Page
from PIL import Image

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.reports import group_page, strips
from bagau_bids.reports.group import write_group
from bagau_bids.reports.participant import write_participant_report


def change_record(output_dir, label, **steps):
    """Change steps of a scan's record."""
    path = derivative_path(output_dir, {"sub": label}, "record")
    record = json.loads(path.read_text())
    for name, step in steps.items():
        record["steps"][name] |= step
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def head():
    return drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))


@pytest.fixture
def cohort(tmp_path, head):
    """Twelve whole scans, one of them with a poor registration; a failed and a partial one."""
    for number in range(1, 13):
        overlap = 0.41 if number == 5 else 0.92 + 0.001 * number
        write_scan(tmp_path, {"sub": f"{number:02}"}, head)
        change_record(tmp_path, f"{number:02}", registration={"overlap": overlap})
        (tmp_path / f"sub-{number:02}.html").write_text("page")
    write_failure(tmp_path, {"sub": "20"}, "<b>broken & torn")
    write_scan(tmp_path, {"sub": "21"}, head, leave_out=["wmh_mask"])
    return tmp_path


def test_page_is_whole_and_its_links_lead_somewhere(cohort):
    page = Page(write_group(cohort).page)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith(("https://doi.org", "data:")):
            assert (cohort / link.split("#")[0]).is_file()
    assert "sub-05.html#sub-05" in page.links
    assert "nan" not in page.text.lower()


def test_every_scan_has_its_slice_and_leads_to_its_page(tmp_path, head, monkeypatch):
    for label in ("01", "02", "03"):
        write_scan(tmp_path, {"sub": label}, head)
    change_record(tmp_path, "03", measure={"flags": []})
    for label in ("01", "03"):
        write_participant_report(tmp_path, label)
    path = write_group(tmp_path).page
    page = Page(path)
    small = [one for one in page.pictures if one.startswith("data:image/webp")]
    assert page.alternatives[: len(small)] == ["sub-01", "sub-03"]
    for one in small:
        size = Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))).size
        assert 60 < max(size) <= 150
    assert "Not pictured: sub-02; bagau-bids DATA OUT participant --reports-only" in page.text
    text = path.read_text()
    assert '<a class="look" href="sub-01.html#sub-01" title="sub-01: ' in text
    assert '<a href="sub-03.html#sub-03" title="sub-03: ' in text
    assert "Look at these first: sub-01" in " ".join(page.text.split())
    monkeypatch.setattr(group_page, "MOST_THUMBNAILS", 1)
    assert "Not pictured: sub-02, sub-03;" in Page(write_group(tmp_path).page).text


def test_links_lead_to_the_page_that_shows_the_scan(tmp_path, head):
    scans = [{"sub": "1", "ses": "1", "run": "1"}, {"sub": "1", "ses": "2"}, {"sub": "1"}]
    for entities in scans:
        write_scan(tmp_path, entities, head)
    for name in ("sub-1", "sub-1_ses-1_run-1", "sub-1_ses-2"):
        (tmp_path / f"{name}.html").write_text("page")
    links = [link for link in Page(write_group(tmp_path).page).links if link.startswith("sub-")]
    assert {
        "sub-1_ses-1_run-1.html#sub-1_ses-1_run-1",
        "sub-1_ses-2.html#sub-1_ses-2",
        "sub-1.html#sub-1",
    } == set(links)


def test_outliers_are_named_in_table_and_page(cohort):
    group = write_group(cohort)
    rows = [line.split("\t") for line in group.path.read_text().splitlines()]
    column = rows[0].index("outliers")
    marked = {row[0]: row[column] for row in rows[1:]}
    assert marked.pop("sub-05_FLAIR") == "registration_overlap"
    assert set(marked.values()) == {"n/a"}
    text = group.page.read_text()
    outliers = text.split('<section id="outliers">')[1].split("</section>")[0]
    assert "Registration overlap 0.41" in outliers
    assert "sub-06" not in outliers
    first = text.split('<section id="summary">')[1].split("</section>")[0]
    assert "○ Unlike the others:" in first
    assert "sub-05" in first.split("○ Unlike the others:")[1]


def test_what_is_not_complete_is_listed_and_escaped(cohort):
    page = write_group(cohort).page
    assert "sub-20_FLAIR: &lt;b&gt;broken &amp; torn" in page.read_text()
    words = Page(page).text
    assert "14: 12 complete, 1 failed, 1 incomplete" in words
    assert "2 scans or participants are not complete" in words


def test_page_without_a_complete_scan(tmp_path):
    write_failure(tmp_path, {"sub": "1"}, "broken")
    words = Page(write_group(tmp_path).page).text
    assert "No scan is complete." in words


def test_scans_without_any_difference(tmp_path, head):
    for label in ("1", "2"):
        write_scan(tmp_path, {"sub": label}, head)
    words = Page(write_group(tmp_path).page).text
    assert "All complete scans have the same figures." in words


def test_volumes_are_shown_in_ml_and_nothing_twice(cohort, head):
    other = drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0), n_lesions=3, seed=1)
    write_scan(cohort, {"sub": "02"}, other)
    group = write_group(cohort)
    rows = [line.split("\t") for line in group.path.read_text().splitlines()]
    volume = {row[0]: row[rows[0].index("volume_mm3")] for row in rows[1:]}["sub-02_FLAIR"]
    text = group.page.read_text()
    strip = text.split('aria-label="Distribution of WMH volume"')[1].split("</svg>")[0]
    assert f"<title>sub-02: {float(volume) / 1000:.4g}</title>" in strip
    words = " ".join(Page(group.page).text.split())
    assert "WMH volume (ml)" in words
    assert words.count("Share of all WMH") == 0
    assert "is-brain_mm3" not in text
    assert "Largest lesion volume (mm³)" in words


def test_flags_are_listed_with_spaces(tmp_path, head):
    write_scan(tmp_path, {"sub": "1"}, head)
    flags = [
        {"name": name, "figure": "noise_snr", "value": 1.0, "limit": 2.0, "words": "look"}
        for name in ("resolution", "uncertainty")
    ]
    change_record(tmp_path, "1", measure={"quality": {}, "flags": flags})
    group = write_group(tmp_path)
    assert "resolution, uncertainty" in Page(group.page).text
    assert "resolution,uncertainty" in group.path.read_text()


def test_few_scans_have_no_outliers(tmp_path, head):
    for number in range(3):
        write_scan(tmp_path, {"sub": str(number)}, head)
        change_record(tmp_path, str(number), registration={"overlap": 0.9 - number / 10})
    words = Page(write_group(tmp_path).page).text
    assert "With fewer than 10 scans no outliers are marked" in words


def test_running_again_leaves_the_page_alone(cohort):
    page = write_group(cohort).page
    before = page.stat().st_mtime_ns
    write_group(cohort)
    assert page.stat().st_mtime_ns == before


def values(numbers):
    return [strips.Value(float(number), f"s{number}", "") for number in numbers]


def test_points_keep_the_order_of_values_and_stay_inside():
    for unit in ("mm", "mm^3"):
        drawn = strips.strip(values([5, 0, 1, 900, 27]), unit)
        places = [point.x for point in drawn.points]
        assert sorted(range(5), key=places.__getitem__) == [1, 2, 0, 4, 3]
        assert min(places) == strips.SIDE
        assert max(places) == strips.WIDTH - strips.SIDE
        assert all(0 < point.y < strips.HEIGHT for point in drawn.points)


def test_the_axis_of_volumes_is_a_cube_root():
    drawn = strips.strip(values([0, 1, 8, 1000]), "mm^3")
    places = [(point.x - strips.SIDE) / (strips.WIDTH - 2 * strips.SIDE) for point in drawn.points]
    assert places == pytest.approx([0, 0.1, 0.2, 1], abs=1e-3)
    assert drawn.ticks[0][1] == "0"
    assert drawn.ticks[-1] == (strips.WIDTH - strips.SIDE, "1\N{NARROW NO-BREAK SPACE}000")


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 3, 40], [1, 2], [0, 500, 12000]])
def test_the_axis_of_counts_has_whole_numbers(numbers):
    ticks = [text for _, text in strips.strip(values(numbers), "lesions").ticks]
    assert len(ticks) >= 2
    assert all(text.replace("\N{NARROW NO-BREAK SPACE}", "").isdecimal() for text in ticks)


def test_one_value_and_equal_values_have_a_strip():
    for numbers in ([3], [0, 0], [-2, -2]):
        drawn = strips.strip(values(numbers), "mm^3")
        assert {point.x for point in drawn.points} == {strips.SIDE}
        assert len(drawn.ticks) == 1


def test_covariates_are_drawn_and_those_missing_are_named(cohort):
    lines = [f"sub-{number:02}\t{50 + number}\t{'FM'[number % 2]}" for number in range(2, 13)]
    table = "participant_id\tage\tsex\nsub-77\t40\tF\n" + "\n".join(lines) + "\n"
    (cohort / "participants.tsv").write_text(table)
    page = Page(write_group(cohort).page)
    assert "One point a participant" in page.text
    assert "Not in participants.tsv: sub-01." in page.text
    assert "without any result here: sub-77." in page.text
    assert sum(picture.startswith("data:image/png;base64,") for picture in page.pictures) == 1


def test_a_difficult_table_of_participants_costs_nothing_but_what_is_wrong_with_it(cohort):
    """Formulas that are none, digits that are no numbers, tabs at the end, a row too many."""
    rows = [f"sub-{n:02}\t{50 + n}\t{'$a^$ & x' if n % 2 else 'pat'}\t" for n in range(1, 13)]
    lines = ["participant_id\tage\tgroup", *rows, "sub-99²\t1\tpat\t", "sub-01\t1\tpat\t"]
    (cohort / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = Page(write_group(cohort).page)
    assert "One point a participant" in page.text
    assert "without any result here: sub-99²." in page.text
    assert "participants are there again, the first row counts: sub-01 in line 15;" in page.text
    assert sum(picture.startswith("data:image/png;base64,") for picture in page.pictures) == 1


def test_without_a_table_of_participants_the_page_says_so(cohort):
    page = Page(write_group(cohort).page)
    assert f"No participants.tsv was found in {cohort}." in page.text
    assert page.pictures == []
