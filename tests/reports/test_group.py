"""The group table: every scan, in order, whatever became of it."""

import json
import logging

import pandas as pd
import pytest
from fake_derivatives import drawn_head, write_failure, write_scan

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.errors import UsageError
from bagau_bids.reports.group import write_group


def read(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", dtype={"bids_name": str})


@pytest.fixture
def cohort(tmp_path):
    """Two whole scans, one without lesions, a failed and a partial one, and an empty folder."""
    write_scan(tmp_path, {"sub": "10"}, drawn_head(n_lesions=0))
    write_scan(tmp_path, {"sub": "2", "ses": "1"})
    write_scan(tmp_path, {"sub": "2", "ses": "2"}, leave_out=["volumes_table"])
    write_failure(tmp_path, {"sub": "3"}, "truncated\nfile")
    (tmp_path / "sub-4" / "log").mkdir(parents=True)
    return tmp_path


def test_one_row_a_scan_in_order(cohort):
    group = write_group(cohort)
    table = read(group.path)
    assert group.path == cohort / "group_FLAIR.tsv"
    assert group.scans == len(table) == 4
    assert list(table.columns[:4]) == ["bids_name", "participant_id", "session_id", "status"]
    assert table.bids_name.tolist() == [
        "sub-2_ses-1_FLAIR",
        "sub-2_ses-2_FLAIR",
        "sub-3_FLAIR",
        "sub-10_FLAIR",
    ]
    assert table.participant_id.tolist() == ["sub-2", "sub-2", "sub-3", "sub-10"]
    assert table.status.tolist() == ["complete", "incomplete", "failed", "complete"]
    own = pd.read_csv(derivative_path(cohort, {"sub": "2", "ses": "1"}, "volumes_table"), sep="\t")
    assert table.volume_mm3[0] == own.volume_mm3[0]
    assert table.n_lesions[3] == 0
    assert table.volume_mm3[3] == 0
    assert pd.isna(table.mean_lesion_mm3[3])
    assert pd.isna(table.volume_mm3[2])
    assert table.registration_overlap[0] == 0.93
    assert table.wm_snr[0] > 0


def test_problems_are_returned_logged_and_in_the_table(cohort, caplog):
    with caplog.at_level(logging.WARNING):
        group = write_group(cohort)
    missing = derivative_path(cohort, {"sub": "2", "ses": "2"}, "volumes_table").name
    assert group.problems == (
        f"sub-2_ses-2_FLAIR: missing or damaged: {missing}",
        "sub-3_FLAIR: truncated file",
        "sub-4: no result of any scan; see sub-4/log for the reason",
    )
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [*group.problems, *group.notes]
    table = read(group.path)
    assert table.problem[2] == "truncated file"
    assert pd.isna(table.problem[0])


def test_pages_of_sessions_are_no_participants(cohort):
    for name in ("sub-2.html", "sub-2_ses-1.html", "sub-3_run-1.html", "sub-5_ses-1.html"):
        (cohort / name).write_text("page")
    without = [problem.split(":")[0] for problem in write_group(cohort).problems]
    assert without == ["sub-2_ses-2_FLAIR", "sub-3_FLAIR", "sub-4", "sub-5"]


def test_every_column_is_described(cohort):
    path = write_group(cohort).path
    described = json.loads(path.with_suffix(".json").read_text())
    assert list(described) == list(read(path).columns)
    assert all(entry["Description"] for entry in described.values())
    assert described["volume_mm3"]["Units"] == "mm^3"


def test_running_again_changes_nothing(cohort):
    path = write_group(cohort).path
    before = (path.stat().st_mtime_ns, path.read_bytes())
    write_group(cohort)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert "nan" not in path.read_text().lower()


def test_a_damaged_volumes_table_makes_a_scan_incomplete(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    derivative_path(tmp_path, {"sub": "1"}, "volumes_table").write_text("region\tvolume\nall\n")
    group = write_group(tmp_path)
    assert read(group.path).status.tolist() == ["incomplete"]
    assert group.problems == (
        "sub-1_FLAIR: missing or damaged: sub-1_label-WMH_desc-volumes_morph.tsv",
    )


def test_counts_are_whole_numbers(cohort):
    lines = write_group(cohort).path.read_text().splitlines()
    column = lines[0].split("\t").index("n_lesions")
    assert [line.split("\t")[column] for line in lines[2:]] == ["n/a", "n/a", "0"]


def test_nothing_to_gather_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="holds no results .* participant level first"):
        write_group(tmp_path)
