"""The participant's page from a derivatives folder, whole, damaged, partial or empty."""

import base64
import io
import re
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fake_derivatives import NEWER, drawn_head, write_failure, write_scan
from page_checks import Page
from PIL import Image

from bagau_bids import spaces
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.description import write_citation
from bagau_bids.config import Execution, Processing
from bagau_bids.errors import UsageError
from bagau_bids.files import write_table
from bagau_bids.measures import fazekas, flags, lesions, regions
from bagau_bids.measures.quality import Figures
from bagau_bids.reports import participant, scan_pictures
from bagau_bids.reports.fingerprint import pages_in_place
from bagau_bids.reports.group import write_group
from bagau_bids.reports.participant import write_participant_report
from bagau_bids.reports.results import find_results

IMAGES = ("preproc_flair", "brain_mask", "wm_atlas", "wmh_mask", "wmh_probseg")
FIGURES = (
    *("key", "wmh", "wmhprob", "wmhregions", "sizes", "conformafter", "conformbefore"),
    *("brainmask", "regflair", "regtemplate", "atlas", "ventricles"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Output folder with one participant of one scan, and its page."""
    output_dir = tmp_path_factory.mktemp("out")
    write_scan(output_dir, {"sub": "01", "ses": "A", "run": "1"})
    write_citation(output_dir, Processing())
    (path,) = write_participant_report(output_dir, "01")
    return output_dir, path


def test_page_is_whole_and_stands_alone(finished):
    output_dir, path = finished
    assert path == output_dir / "sub-01.html"
    page = Page(path)
    assert len(page.ids) == len(set(page.ids))
    for picture in page.pictures:
        kind, data = picture.split(",")
        assert kind in ("data:image/png;base64", "data:image/webp;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    # Slices of six pictures, two of them compared; layers, one of them twice; the histogram and
    # the slice that the viewer opens with.
    assert sum(picture.startswith("data:image/webp") for picture in page.pictures) == 6 + 2
    assert sum(picture.startswith("data:image/png") for picture in page.pictures) == 8 + 1 + 1 + 1
    assert all(page.alternatives)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith(("https://", "data:")):
            assert (output_dir / link).is_file()
    outside = re.findall(r'(?:src|href)="(?!data:|#|https://|sub-|logs/)[^"]*"', path.read_text())
    assert outside == []


def test_figures_are_kept_beside_the_page(finished):
    output_dir, _ = finished
    folder = output_dir / "sub-01" / "figures"
    expected = [f"sub-01_ses-A_run-1_desc-{name}_FLAIR.png" for name in FIGURES]
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(expected)
    for path in folder.glob("*.png"):
        assert Image.open(path).mode in ("RGB", "RGBA")


def test_page_says_what_was_found_and_how(finished):
    text = " ".join(Page(finished[1]).text.split())
    for words in (
        "Session A, run 1",
        "Share of the brain",
        "Accuracy to expect Not known for these weights: score masks of your own",
        "for this program there are no norms",
        "Files: mask · probability · volumes · lesions · quality figures.",
        "stored in the order LPS, not tilted",
        "Brain overlap".lower(),
        "cpu, float32",
        "small 1, SHA-256 000000000000…",
        "probability 0.5, lesions of any size kept",
        "3 voxels that were not finite were set to 0.",
        "White-matter SNR",
        "Other planes are not shown: slices lie 9.0 mm apart",
        "Periventricular: up to 10 mm from the lateral ventricles",
        "It is no rating by a radiologist",
        "BAGAU-Net",
        "References",
        "No errors to report.",
        "this is not a medical device",
    ):
        assert words in text, words


def test_page_bears_the_mark_of_what_it_was_made_from(finished):
    output_dir, path = finished
    assert pages_in_place(output_dir, "sub-01", Execution.aggregate_session_reports, ()) == (path,)


def test_page_made_again_is_the_same_file(finished):
    output_dir, path = finished
    before = {p: p.stat().st_mtime_ns for p in output_dir.rglob("*") if p.is_file()}
    write_participant_report(output_dir, "01")
    assert {p: p.stat().st_mtime_ns for p in output_dir.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("orientation", ["PSL"])
def test_pictures_do_not_depend_on_the_voxel_order(finished, tmp_path, orientation):
    write_scan(tmp_path, {"sub": "01", "ses": "A", "run": "1"}, orientation=orientation)
    write_participant_report(tmp_path, "01")
    for name in ("wmh", "wmhregions", "conformbefore", "brainmask", "regtemplate", "atlas"):
        file = f"sub-01/figures/sub-01_ses-A_run-1_desc-{name}_FLAIR.png"
        found, expected = (
            np.asarray(Image.open(folder / file)).astype(int) for folder in (tmp_path, finished[0])
        )
        # Sampling positions of flipped axes differ in the last digit.
        assert np.mean(np.abs(found - expected) > 2) < 1e-3


def test_no_lesion_is_a_normal_result(tmp_path):
    write_scan(tmp_path, {"sub": "02"}, drawn_head(n_lesions=0))
    (path,) = write_participant_report(tmp_path, "02")
    text = Page(path).text
    assert "none found" in text
    assert "No lesion was found" in text
    assert "0.00 ml" in text
    assert "0.00 %" in text
    assert "nan" not in text.lower().replace("resonance", "")
    assert not (tmp_path / "sub-02/figures/sub-02_desc-sizes_FLAIR.png").exists()


def write_others(output_dir, **masks):
    """Add masks of what is no WMH to sub-01, and their volumes to its table."""
    scan = {"sub": "01"}
    affine = nib.load(derivative_path(output_dir, scan, "wmh_mask")).affine
    path = derivative_path(output_dir, scan, "volumes_table")
    table = pd.read_csv(path, sep="\t", na_values="n/a")
    for name, column in (
        ("infarct_mask", "infarct_mm3"),
        ("known_lesion_mask", "known_lesion_mm3"),
    ):
        if name in masks:
            image = nib.Nifti1Image(masks[name].astype(np.uint8), affine)
            image.to_filename(derivative_path(output_dir, scan, name))
            table[column] = 1000.0 * int(masks[name].sum())
    write_table(path, table)


def colours_of(path, colour):
    """Pixels of a picture file that have about this colour."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - wanted).max(axis=2) < 30).sum())


def test_infarcts_and_known_lesions_have_outlines_and_volumes_of_their_own(tmp_path):
    flair, *_ = write_scan(tmp_path, {"sub": "01"})
    x, y, z = np.indices(flair.shape)
    infarct = (abs(x - 16) < 3) & (abs(y - 30) < 4) & (z == 8)
    known = (abs(x - 32) < 4) & (abs(y - 24) < 3) & (z == 2)  # in a slice without WMH
    write_participant_report(tmp_path, "01")
    picture = tmp_path / "sub-01/figures/sub-01_desc-wmh_FLAIR.png"
    (blue, _), (green, _) = scan_pictures.OTHER_OUTLINES.values()
    assert colours_of(picture, blue) == colours_of(picture, green) == 0
    plain = Page(tmp_path / "sub-01.html").text
    assert "Infarct volume" not in plain
    assert "Known lesions" not in plain

    write_others(tmp_path, infarct_mask=infarct, known_lesion_mask=known)
    write_participant_report(tmp_path, "01")
    text = Page(tmp_path / "sub-01.html").text
    assert f"Infarct volume {infarct.sum():.2f} ml" in " ".join(text.split())
    assert f"Known lesions {known.sum():.2f} ml" in " ".join(text.split())
    assert "WMH are outlined in red, infarcts in blue, known lesions in light green." in text
    assert colours_of(picture, blue) > 50
    assert colours_of(picture, green) > 50
    assert colours_of(picture, scan_pictures.WMH_COLOUR) > 50

    write_others(tmp_path, infarct_mask=infarct & False)
    write_participant_report(tmp_path, "01")
    text = Page(tmp_path / "sub-01.html").text
    assert "outlined in red, no infarct was found, known lesions in light green." in text
    assert "Infarct volume 0.00 ml" in " ".join(text.split())


def test_failed_scan_shows_its_reason_and_its_crash_file_only(tmp_path):
    write_scan(tmp_path, {"sub": "01", "ses": "A"}, leave_out=IMAGES)
    crash = tmp_path / "sub-01" / "log" / "20260101-000000_x" / "crash-conform.txt"
    for path in (crash, crash.parents[1] / "20250101-000000_y" / "crash-old.txt"):
        path.parent.mkdir(parents=True)
        path.write_text(f"Traceback of {path.name} <module>")
    failure = "ends early <here>"
    write_failure(tmp_path, {"sub": "01", "ses": "B"}, failure, crash.relative_to(tmp_path))
    (path,) = write_participant_report(tmp_path, "01")
    page = Page(path)
    assert "This scan is failed. ends early <here>" in page.text
    assert "Traceback of crash-conform.txt <module>" in page.text
    assert "crash-old" not in page.text
    assert "Session B" in page.text


def test_participant_with_crash_files_alone_has_a_page(tmp_path):
    crash = tmp_path / "sub-03" / "log" / "run" / "crash-1.txt"
    crash.parent.mkdir(parents=True)
    crash.write_text("out of luck")
    (path,) = write_participant_report(tmp_path, "03")
    assert "out of luck" in Page(path).text
    assert "No result of a scan was written" in Page(path).text


@pytest.mark.parametrize(
    "absent",
    [
        ("wmh_probseg",),
        ("wm_atlas", "lesions_table"),
        ("preproc_flair",),
        ("record",),
        ("volumes_table", "wmh_mask"),
    ],
)
def test_partial_results_are_shown_and_named(tmp_path, absent):
    write_scan(tmp_path, {"sub": "04"}, leave_out=absent)
    (path,) = write_participant_report(tmp_path, "04")
    text = Page(path).text
    assert "This scan is incomplete." in text
    for name in absent:
        missing = derivative_path(tmp_path, {"sub": "04"}, name, template="MNI152NLin2009cSym")
        # Without a record and a map nothing tells the template.
        assert missing.name in text or name == "wm_atlas"


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    write_scan(tmp_path, {"sub": "05"})
    image = derivative_path(tmp_path, {"sub": "05"}, "wmh_mask")
    image.write_bytes(image.read_bytes()[:200])
    table = derivative_path(tmp_path, {"sub": "05"}, "lesions_table")
    table.write_text("index\tname\n1\n")
    derivative_path(tmp_path, {"sub": "05"}, "record").write_text("{")
    (path,) = write_participant_report(tmp_path, "05")
    text = Page(path).text
    assert f"{image}: cannot be read" in text
    assert f"{table}: cannot be read as a table" in text
    assert "WMH volume" in text


def test_images_of_another_grid_are_not_drawn(tmp_path):
    write_scan(tmp_path, {"sub": "06"})
    path = derivative_path(tmp_path, {"sub": "06"}, "brain_mask")
    nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_filename(path)
    (page,) = write_participant_report(tmp_path, "06")
    assert "lies on another grid ((4, 4, 4) voxels in RAS order) than the FLAIR" in Page(page).text


def test_many_sessions_get_a_page_each(tmp_path):
    for session in ("1", "2", "10"):
        write_scan(tmp_path, {"sub": "07", "ses": session}, leave_out=IMAGES)
    pages = write_participant_report(tmp_path, "07", aggregate_session_reports=2)
    names = ["sub-07.html", "sub-07_ses-1.html", "sub-07_ses-2.html", "sub-07_ses-10.html"]
    assert [page.name for page in pages] == names
    overview = Page(pages[0])
    assert {f"sub-07_ses-{n}.html#sub-07_ses-{n}" for n in (1, 2, 10)} <= set(overview.links)
    assert not overview.pictures
    assert "Session 2" in Page(pages[2]).text
    assert "Session 10" not in Page(pages[2]).text
    (page,) = write_participant_report(tmp_path, "07", aggregate_session_reports=3)
    assert len(Page(page).pictures) == 3  # a histogram a scan
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["sub-07.html"]


def test_a_page_is_no_larger_than_expected(finished):
    output_dir, path = finished
    (scan,) = find_results(output_dir, "01")
    section = participant._section(scan)
    size = path.stat().st_size
    assert sum(picture.bytes for picture in section.pictures.all) < size
    assert size < participant.page_bytes([section]) < participant.LARGEST_PAGE_BYTES


def test_large_pages_are_split_by_session_and_then_by_scan(tmp_path, monkeypatch):
    for entities in ({"ses": "1", "run": "1"}, {"ses": "1", "run": "2"}, {"ses": "2"}, {}):
        write_scan(tmp_path, {"sub": "08", **entities}, leave_out=IMAGES)

    def pages_below(largest):
        monkeypatch.setattr(participant, "LARGEST_PAGE_BYTES", largest)
        pages = write_participant_report(tmp_path, "08")
        assert sorted(page.name for page in pages) == sorted(
            path.name for path in tmp_path.glob("*.html")
        )
        for page in map(Page, pages):
            for link in (link for link in page.links if ".html#" in link):
                file, anchor = link.split("#")
                assert anchor in Page(tmp_path / file).ids
        return [page.name for page in pages], Page(pages[0])

    sections = [participant._section(scan) for scan in find_results(tmp_path, "08")]
    whole, session = participant.page_bytes(sections), participant.page_bytes(sections[1:3])
    assert pages_below(whole)[0] == ["sub-08.html"]
    names, page = pages_below(session)
    assert names == ["sub-08.html", "sub-08_ses-1.html", "sub-08_ses-2.html"]
    assert {"sub-08", "summary"} <= set(page.ids)  # the scan without a session
    names, page = pages_below(session - 1)
    assert names == [
        *("sub-08.html", "sub-08_ses-1_run-1.html", "sub-08_ses-1_run-2.html"),
        "sub-08_ses-2.html",
    ]
    assert "sub-08_ses-1_run-2.html#sub-08_ses-1_run-2" in page.links


def test_nothing_of_the_participant_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no results of sub-99; .* participant level first"):
        write_participant_report(tmp_path, "99")


def test_a_scan_to_look_at_says_so_first_and_why(finished):
    """The drawn head has slices 9 mm apart, beyond the limit of 8."""
    text = " ".join(Page(finished[1]).text.split())
    reason = (
        "Look at this one: resolution Resolution: slices are so far apart that lesions between "
        "them are missed. Slice spacing 9 mm, above the limit of 8 mm."
    )
    assert reason in text
    assert text.index("Session A, run 1 sub-01") < text.index(reason) < text.index("WMH volume")


def test_limits_on_the_page_are_those_of_the_table_on_disk(tmp_path):
    entities = {"sub": "01"}
    write_scan(tmp_path, entities, leave_out=IMAGES)
    path = derivative_path(tmp_path, entities, "quality_table")
    header, *rows = path.read_text().splitlines()
    changed = [
        "noise_snr\t7.5\t12.25\tn/a\tyes\tnoise" if row.startswith("noise_snr") else row
        for row in rows
    ]
    path.write_text("\n".join([header, *changed]) + "\n")
    (page,) = write_participant_report(tmp_path, "01")
    text = " ".join(Page(page).text.split())
    assert "Signal to noise look 7.5 at least 12.25" in text
    asked = [text.index(name, text.index("Limits Meaning")) for name in ("Signal to", "Stripes")]
    assert asked[0] < asked[1]


def test_a_scan_without_flags_is_called_so_and_one_that_was_not_judged_is_not(tmp_path):
    calm = {"measure": {"notes": [], "quality": {}, "flags": []}}
    write_scan(tmp_path, {"sub": "01"}, record={"steps": calm}, leave_out=IMAGES)
    write_scan(tmp_path, {"sub": "02"}, record={"steps": {}}, leave_out=IMAGES)
    derivative_path(tmp_path, {"sub": "01"}, "quality_table").unlink()
    pages = [Page(write_participant_report(tmp_path, label)[0]) for label in ("01", "02")]
    assert "#sub-01_quality" not in pages[0].links
    texts = [page.text for page in pages]
    assert "No flag was raised." in texts[0]
    for words in ("No flag", "Look at this one"):
        assert words not in texts[1]


def test_several_scans_have_an_overview_and_a_single_one_has_none(finished, tmp_path):
    calm = {"measure": {"notes": [], "quality": {}, "flags": []}}
    for session, record in (("1", {"steps": calm}), ("2", {"steps": {}}), ("3", None)):
        entities = {"sub": "01", "ses": session}
        write_scan(tmp_path, entities, record=record, leave_out=IMAGES)
    page = Page(write_participant_report(tmp_path, "01")[0])
    text = " ".join(page.text.split())
    assert "summary" in page.ids
    overview = text[text.index("Quality sub-01_ses-1") : text.index("For research only")]
    first, rest = overview.split("sub-01_ses-2")
    second, third = rest.split("sub-01_ses-3")
    assert "of the brain)" in first
    assert first.strip().endswith("complete no flag")
    assert second.strip().endswith("complete –")
    assert third.strip().endswith("look at this one: resolution")
    alone = Page(finished[1])
    assert "summary" not in alone.ids
    assert "#summary" not in alone.links


def test_files_are_linked_that_are_there(finished):
    links = {link.rpartition("_")[2] for link in Page(finished[1]).links}
    assert {"mask.nii.gz", "probseg.nii.gz", "morph.tsv", "stat.tsv"} <= links


def test_settings_come_after_what_was_found(finished):
    text = " ".join(Page(finished[1]).text.split())
    assert text.index("Settings and versions") > text.index("Limits Meaning")


def test_regions_lesions_and_grades_are_those_of_the_tables(finished):
    output_dir, path = finished
    text = " ".join(Page(path).text.split())
    entities = {"sub": "01", "ses": "A", "run": "1"}

    def rows(name):
        return pd.read_csv(derivative_path(output_dir, entities, name), sep="\t")

    volumes = rows("volumes_table").set_index("region")
    for region in ("periventricular", "deep"):
        row = volumes.loc[region]
        share = f"{100 * row['fraction_of_wmh']:.0f} %"
        assert f"{region} {row['volume_mm3'] / 1000:.2f} {share} {row['n_lesions']:.0f}" in text
    largest = rows("lesions_table").iloc[0]
    place = ", ".join(f"{largest[f'template_{axis}_mm']:.0f}" for axis in "xyz")
    start = f"1 {largest['side']} {largest['region']} {largest['volume_mm3']:.1f} "
    assert place in text[text.index(start) :][:80]
    for _, row in rows("fazekas_table").iterrows():
        expected = f"{row['scale']} measured {row['measured_mm']:.1f} mm {row['fazekas_estimate']}"
        assert expected in text


def test_three_planes_where_the_resolution_allows(tmp_path):
    head = drawn_head(shape=(44, 52, 40), spacing=(4.0, 4.0, 4.0))
    write_scan(tmp_path, {"sub": "01"}, head)
    (path,) = write_participant_report(tmp_path, "01")
    page = Page(path)
    for plane in ("", "coronal", "sagittal"):
        assert f"sub-01_desc-wmh{plane}" in page.ids
    assert "Other planes are not shown" not in page.text


def test_what_older_runs_did_not_write_is_left_out(tmp_path):
    write_scan(tmp_path, {"sub": "01"}, leave_out=NEWER)
    (path,) = write_participant_report(tmp_path, "01")
    page = Page(path)
    assert "sub-01_registration" in page.ids
    assert not {"sub-01_flair", "sub-01_regions", "sub-01_quality"} & set(page.ids)
    assert "Fazekas" not in page.text
    assert "flag" not in page.text
    assert "incomplete" not in page.text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("flair", "outlined on the FLAIR itself"),
        ("template", "of the registered template, since CSF could not be told from tissue"),
        ("", "Ventricles: the lateral ventricles; distances"),
    ],
)
def test_page_says_where_the_ventricles_come_from_and_what_was_averaged(tmp_path, source, words):
    steps = {"segmentation": {"tta": source == "flair"}}
    if source:
        steps["regions"] = {"ventricles": source}
    small = drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))
    write_scan(tmp_path, {"sub": "01"}, small, record={"steps": steps})
    text = " ".join(Page(write_participant_report(tmp_path, "01")[0]).text.split())
    assert words in text
    assert ("outlined on the FLAIR itself" in text) == (source == "flair")
    assert ("averaged with the mirrored FLAIR" in text) == (source == "flair")


def test_one_slice_and_several_are_counted_in_words():
    mask = np.zeros((5, 6, 7), bool)
    mask[2, 3, 4] = True
    shown = scan_pictures.Shown(None, spaces.Image(mask * 1.0, np.eye(4)), ~mask, (0.0, 1.0))
    assert scan_pictures._lesion_slices(shown, mask, 2, 9) == ("The only slice with lesions", [4])
    mask[2, 3, 1] = True
    words, slices = scan_pictures._lesion_slices(shown, mask, 2, 9)
    assert (words, sorted(slices)) == ("All 2 slices with lesions", [1, 4])
    assert scan_pictures._lesion_slices(shown, mask, 2, 1)[0] == "1 of the 2 slices with lesions"


def test_without_ventricles_pages_say_so_and_nothing_is_zero(tmp_path):
    entities = {"sub": "01"}
    small = drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))
    _, affine, brain, _, probability = write_scan(tmp_path, entities, small)
    mask, nowhere = probability >= 0.5, np.full(brain.shape, np.inf)
    numbers = np.full(brain.shape, regions.region_number("deep", "left"))
    tables = {
        "volumes_table": lesions.volume_table(
            spaces.Image(mask, affine), brain, numbers, ventricles=False
        ),
        "fazekas_table": fazekas.fazekas_table(spaces.Image(mask, affine), nowhere, numbers),
    }
    for name, table in tables.items():
        write_table(derivative_path(tmp_path, entities, name), table)
    text = " ".join(Page(write_participant_report(tmp_path, "01")[0]).text.split())
    assert "periventricular n/a – n/a – – – – – –" in text
    assert "The scan has no lateral ventricles: what follows from the distance" in text
    assert "Fazekas grade, estimate" not in text
    group = write_group(tmp_path)
    row = pd.read_csv(group.path, sep="\t", na_values="n/a").iloc[0]
    assert row.status == "complete"
    assert row[["deep_mm3", "fazekas_deep_estimate", "fazekas_periventricular_mm"]].isna().all()
    assert row.left_mm3 == pytest.approx(row.volume_mm3)
    (said,) = [note for note in group.notes if note.startswith("Without ")]
    assert said.startswith("Without lateral ventricles in the scan: sub-01_FLAIR.")


def test_a_damaged_record_is_named_with_its_field_and_the_rest_is_shown(tmp_path):
    flag = {"name": 3, "figure": "noise_snr", "limit": 1.0, "value": 2.0, "words": "z"}
    steps = {"measure": {"flags": [flag]}}
    write_scan(tmp_path, {"sub": "01"}, record={"steps": steps}, leave_out=IMAGES)
    text = " ".join(Page(write_participant_report(tmp_path, "01")[0]).text.split())
    record = derivative_path(tmp_path, {"sub": "01"}, "record")
    assert f"{record}: Expected `str`, got `int` - at `$.steps.measure.flags[0].name`" in text
    assert "WMH volume" in text
    assert "No flag was raised" not in text
    assert "no flag" not in text


def test_long_lists_of_lesions_end_on_the_page_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("bagau_bids.reports.participant.LONGEST_LESION_LIST", 2)
    write_scan(tmp_path, {"sub": "01"}, leave_out=IMAGES)
    count = len(derivative_path(tmp_path, {"sub": "01"}, "lesions_table").read_text().split("\n"))
    (path,) = write_participant_report(tmp_path, "01")
    assert f"{count - 2 - 2} smaller lesions are in the table on disk only." in Page(path).text


def test_scans_of_one_page_have_a_menu_each(tmp_path):
    for session in "AB":
        write_scan(tmp_path, {"sub": "01", "ses": session}, leave_out=IMAGES)
    (path,) = write_participant_report(tmp_path, "01")
    page = Page(path)
    assert {f"#sub-01_ses-{name}_quality" for name in "AB"} <= set(page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def suspect_record(**changes):
    area = {
        "kind": "bright",
        "volume_ml": 24.06,
        "centre_mm": [30.0, -20.0, 10.0],
        "template_mm": [31.0, -22.0, 8.0],
        "place": "right, cortex and white matter",
        "box": [[28, 34], [20, 28], [6, 9]],
    }
    raised = flags.raised_flags(
        Figures(largest_bright_ml=24.06), {"largest_bright_ml": "on the right"}
    )
    return {
        "steps": {
            "regions": {"rule": "10mm", "ventricles": "flair", "suspects": [area | changes]},
            "measure": {"quality": {}, "flags": [asdict(flag) for flag in raised]},
        },
    }


def test_a_large_area_at_the_cortex_is_named_with_its_place_and_shown(tmp_path):
    write_scan(tmp_path, {"sub": "01"}, record=suspect_record())
    page = Page(write_participant_report(tmp_path, "01")[0])
    text = " ".join(page.text.split())
    assert "Look at this one: infarct" in text
    assert "look for an infarct, a tumour or swelling" in text
    assert "may call WMH; on the right." in text
    assert "#sub-01_suspects" in page.links
    assert "bright, 24.1 ml, right, cortex and white matter" in text
    assert (tmp_path / "sub-01" / "figures" / "sub-01_desc-suspects_FLAIR.png").is_file()


def test_an_area_whose_figure_raised_no_flag_is_not_shown(tmp_path):
    write_scan(tmp_path, {"sub": "01"}, record=suspect_record(kind="dark"), leave_out=IMAGES)
    assert scan_pictures.recorded_areas(find_results(tmp_path, "01")[0]) == []
