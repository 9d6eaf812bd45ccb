"""Rows of the group table: regions, grades and flags, old versions, and what is damaged."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_derivatives import (
    NEWER,
    TEMPLATE,
    drawn_head,
    write_failure,
    write_later_tables,
    write_scan,
    write_transform,
)
from page_checks import Page
from table_checks import undescribed

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.reports.group import write_group
from bagau_bids.reports.group_table import column_sections, group_columns


def read(group):
    return pd.read_csv(group.path, sep="\t", na_values="n/a").set_index("bids_name")


@pytest.fixture(scope="module")
def head():
    return drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))


def scan(folder, label, head, flags=(), rule="10mm"):
    write_scan(folder, {"sub": label}, head)
    write_later_tables(folder, {"sub": label}, head, flags, rule)
    (folder / f"sub-{label}.html").write_text("page")


def test_regions_and_grades_are_those_of_the_scans_own_tables(tmp_path, head):
    scan(tmp_path, "1", head)
    scan(tmp_path, "2", head, rule="3mm")
    table = read(write_group(tmp_path))
    own = {}
    for label in ("1", "2"):
        path = derivative_path(tmp_path, {"sub": label}, "volumes_table")
        own[label] = pd.read_csv(path, sep="\t").set_index("region").volume_mm3
        row = table.loc[f"sub-{label}_FLAIR"]
        for region in ("periventricular", "deep", "juxtacortical", "infratentorial", "left"):
            assert row[f"{region}_mm3"] == pytest.approx(own[label][region])
        regions = ("periventricular", "deep", "juxtacortical", "infratentorial")
        sum_of_regions = sum(row[f"{region}_mm3"] for region in regions)
        if label == "2":
            sum_of_regions += row.juxtaventricular_mm3
        assert sum_of_regions == pytest.approx(row.volume_mm3)
        assert row.left_mm3 + row.right_mm3 == pytest.approx(row.volume_mm3)
    assert table.periventricular_rule.tolist() == ["10mm", "3mm"]
    assert pd.isna(table.juxtaventricular_mm3.iloc[0])
    grades = pd.read_csv(derivative_path(tmp_path, {"sub": "1"}, "fazekas_table"), sep="\t")
    assert table.fazekas_deep_estimate.iloc[0] == grades.fazekas_estimate[1]
    assert table.fazekas_periventricular_mm.iloc[0] == pytest.approx(grades.measured_mm[0])
    header, line, _ = (tmp_path / "group_FLAIR.tsv").read_text().splitlines()
    cell = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert cell["fazekas_deep_estimate"] in "0123"
    assert cell["n_flags"] == "0"


def test_flagged_scans_are_counted_and_linked(tmp_path, head):
    for number, flags in enumerate([(), ("noise",), ("noise", "movement", "movement")], 1):
        scan(tmp_path, str(number), head, flags)
    group = write_group(tmp_path)
    table = read(group)
    assert table.n_flags.tolist() == [0, 1, 2]
    assert table["flags"].tolist()[1:] == ["noise", "noise,movement"]
    assert pd.isna(table["flags"].iloc[0])
    text = group.page.read_text()
    section = text.split('<section id="flags">')[1].split("</section>")[0]
    assert section.index("sub-3.html#sub-3") < section.index("sub-2.html#sub-2")
    assert "sub-1.html" not in section
    head, body = section.split("<tbody>")[0], section.split("<tbody>")[1].split("</tbody>")[0]
    names = re.findall(r"<th>(\w[^<]*)</th>", head)[1:]
    counts = dict(zip(names, re.findall(r"<td>([^<]*)</td>", body), strict=True))
    assert counts["Noise"] == "2"
    assert counts["Movement"] == "1"
    assert counts["Contrast"] == "–"
    assert "movement!" in section
    assert "<dt>Flagged</dt><dd>2 of 3 scans</dd>" in text


def test_estimates_say_that_they_are_estimates(tmp_path, head):
    scan(tmp_path, "1", head)
    words = Page(write_group(tmp_path).page).text
    assert "Fazekas grades estimates" in words
    assert "no radiologist's rating" in words
    described = group_columns()
    for name in ("fazekas_deep_estimate", "fazekas_periventricular_estimate"):
        assert "estimate" in described[name].long_name
        assert list(described[name].levels) == ["0", "1", "2", "3"]


def test_an_older_version_lacks_columns_and_is_named(tmp_path, head):
    scan(tmp_path, "1", head)
    write_scan(tmp_path, {"sub": "2"}, head, leave_out=NEWER)
    group = write_group(tmp_path)
    table = read(group)
    assert table.status.tolist() == ["complete", "complete"]
    assert table.loc["sub-2_FLAIR", ["n_flags", "deep_mm3", "fazekas_deep_mm"]].isna().all()
    said = [note for note in group.notes if note.startswith("Without ")]
    assert [note.split(":")[0] for note in said] == [
        "Without volumes by region",
        "Without an estimate of the Fazekas grades",
        "Without quality flags",
    ]
    assert all("sub-2_FLAIR" in note and "sub-1" not in note for note in said)
    assert "Without quality flags: sub-2_FLAIR." in Page(group.page).text


def test_averaging_with_the_mirrored_scan_is_in_the_table(tmp_path, head):
    for label, tta in (("1", True), ("2", False)):
        scan(tmp_path, label, head)
        damage_record(
            tmp_path, label, lambda r, tta=tta: r["steps"]["segmentation"].update(tta=tta)
        )
    scan(tmp_path, "3", head)
    damage_record(tmp_path, "3", lambda record: record["steps"].pop("segmentation"))
    table = read(write_group(tmp_path))
    assert table.tta.tolist()[:2] == ["yes", "no"]
    assert pd.isna(table.tta.iloc[2])


def test_every_column_belongs_to_one_heading(tmp_path):
    names = [name for section in column_sections().values() for name in section]
    assert len(names) == len(set(names))
    assert set(names) == set(group_columns())


def test_every_column_has_a_meaning_and_a_unit(tmp_path, head):
    scan(tmp_path, "1", head, ("noise",))
    scan(tmp_path, "2", head, rule="3mm")
    write_group(tmp_path)
    assert [t for t in undescribed(tmp_path) if t.startswith("group_")] == []


def damage_record(folder, label, change):
    path = derivative_path(folder, {"sub": label}, "record")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda record: record.update(options=None), "options"),
        (lambda record: record["steps"]["measure"]["quality"].update(wm_snr="high"), "wm_snr"),
        (lambda record: record["steps"]["measure"].update(flags=[3]), "flags[0]"),
    ],
)
def test_a_record_of_another_shape_makes_one_scan_incomplete(tmp_path, head, change, field):
    scan(tmp_path, "1", head)
    scan(tmp_path, "2", head)
    damage_record(tmp_path, "1", change)
    group = write_group(tmp_path)
    assert read(group).status.tolist() == ["incomplete", "complete"]
    (problem,) = group.problems
    path = derivative_path(tmp_path, {"sub": "1"}, "record")
    assert problem.startswith(f"sub-1_FLAIR: {path}: Expected ")
    assert f"{field}`; expected a record as version" in problem


@pytest.mark.parametrize(
    "text", ["scale\tfazekas_estimate\tmeasured_mm\n", "scale\tx\ndeep\tmany\n", "deep"]
)
def test_a_damaged_table_of_grades_makes_a_scan_incomplete(tmp_path, head, text):
    scan(tmp_path, "1", head)
    derivative_path(tmp_path, {"sub": "1"}, "fazekas_table").write_text(text)
    group = write_group(tmp_path)
    assert group.problems == (
        "sub-1_FLAIR: missing or damaged: sub-1_label-WMH_desc-fazekas_morph.tsv",
    )


def test_a_folder_in_every_state_of_disrepair(tmp_path, head):
    """A removed file, a failure, a cut image, broken JSON, an old version, one whole scan."""
    for number in range(1, 7):
        scan(tmp_path, str(number), head)
        write_transform(tmp_path, {"sub": str(number)}, TemplateTransform(np.eye(4)))
    derivative_path(tmp_path, {"sub": "1"}, "brain_mask").unlink()
    write_failure(tmp_path, {"sub": "2"}, "no brain was found")
    for label, name in (("3", "wmh_mask"), ("6", "preproc_flair")):
        path = derivative_path(tmp_path, {"sub": label}, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    derivative_path(tmp_path, {"sub": "4"}, "record").write_text('{"status": "compl')
    write_scan(tmp_path, {"sub": "5"}, head, leave_out=NEWER)
    (tmp_path / "sub-7").mkdir()
    group = write_group(tmp_path)
    assert read(group).status.tolist() == [
        *("incomplete", "failed", "complete", "incomplete", "complete", "complete")
    ]
    assert [problem.split(":")[0] for problem in group.problems] == [
        *("sub-1_FLAIR", "sub-2_FLAIR", "sub-4_FLAIR", "sub-7")
    ]
    assert any("sub-3_FLAIR is not in the lesion frequency map" in note for note in group.notes)
    described = json.loads(
        (
            tmp_path / f"group_space-{TEMPLATE}_res-2_label-WMH_desc-frequency_probseg.json"
        ).read_text()
    )
    assert described["NumberOfParticipants"] == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    write_group(tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("at", [30, 120])
def test_an_image_with_wrong_bytes_is_named(tmp_path, head, at):
    """Bytes that were changed raise other errors than a file that was cut."""
    scan(tmp_path, "1", head)
    write_transform(tmp_path, {"sub": "1"}, TemplateTransform(np.eye(4)))
    path = derivative_path(tmp_path, {"sub": "1"}, "wmh_mask")
    content = bytearray(path.read_bytes())
    content[at : at + 20] = bytes(20)
    path.write_bytes(bytes(content))
    (note,) = write_group(tmp_path).notes
    assert "expected a NIfTI image of this pipeline" in note
