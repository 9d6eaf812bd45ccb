"""Changes between sessions, from the derivatives folder to its tables."""

import json
import logging

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fake_derivatives import drawn_head, write_scan, write_transform
from matplotlib.figure import Figure
from page_checks import Page
from scipy import ndimage
from table_checks import undescribed

from bagau_bids import spaces
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.measures.changes import lesion_changes
from bagau_bids.preprocessing import rigid
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.reports import changes
from bagau_bids.reports.changes import (
    Session,
    changes_between,
    session_orders,
    session_pairs,
    write_changes,
)
from bagau_bids.reports.group import write_group
from bagau_bids.reports.results import find_results
from bagau_bids.spaces import Image

MOVED = np.eye(4)
MOVED[:3, 3] = 8, -4, 0
FIRST, SECOND = {"sub": "1", "ses": "1"}, {"sub": "1", "ses": "2"}


def balls(affine, shape, *places):
    """A mask of balls: (centre, radius) in mm."""
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.any([((world - c) ** 2).sum(-1) < r**2 for c, r in places], axis=0)


def tilted(affine, degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def session(affine, shape, *places):
    mask = balls(affine, shape, *places)
    flair = Image(np.zeros(shape, np.float32), affine)
    return Session(flair, np.ones(shape, bool), mask, TemplateTransform(np.eye(4)))


def test_known_changes_are_found_across_slices_tilts_and_movements(oriented_image):
    """A head moves, its slices are tilted and thicker: only what changed may count as changed."""
    sizes = np.linalg.norm(oriented_image.affine[:3, :3], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = oriented_image.affine[:3, :3] / sizes @ np.diag([0.9, 0.9, 3.0])
    shape = (110, 110, 34)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    old = [((0, 0, 0), 9), ((25, 0, 5), 7), ((-25, 5, 0), 7), ((0, 28, -5), 6)]
    new = [((0, 0, 0), 9), ((25, 0, 5), 9.5), ((-25, 5, 0), 5), ((0, -28, 5), 6)]
    moved = tilted(np.eye(4), 7)
    moved[:3, 3] = 4, -3, 2
    later = tilted(affine, -6) @ np.diag([1, 1, 4 / 3, 1])
    later[:3, 3] = -later[:3, :3] @ ((np.array(shape) - 1) / 2)
    places = [(moved[:3, :3] @ centre + moved[:3, 3], radius) for centre, radius in new]
    table = changes_between(session(affine, shape, *old), session(later, shape, *places), moved)
    found = {
        change: np.round([x, y, z])
        for change, x, y, z in table[
            ["change", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm"]
        ].itertuples(index=False)
    }
    assert set(found) == {"stable", "growing", "shrinking", "gone", "new"}
    for change, place in zip(
        ("stable", "growing", "shrinking", "gone", "new"),
        ((0, 0, 0), (25, 0, 5), (-25, 5, 0), (0, 28, -5), (0, -28, 5)),
        strict=True,
    ):
        np.testing.assert_allclose(found[change], place, atol=1.5)
    stable = table[table.change == "stable"].iloc[0]
    volume = 4 / 3 * np.pi * 9**3
    assert stable.volume_before_mm3 == pytest.approx(volume, rel=0.1)
    assert stable.volume_after_mm3 == pytest.approx(volume, rel=0.1)


def test_what_one_scan_does_not_cover_is_not_compared():
    affine = np.diag([1.0, 1, 2, 1])
    low, high = ((20, 20, 10), 5), ((20, 20, 70), 5)
    whole, cut = (40, 40, 45), (40, 40, 20)
    table = changes_between(
        session(affine, whole, low, high), session(affine, cut, low), np.eye(4)
    )
    assert table.change.tolist() == ["stable"]


def whole_grid_changes(before, after, matrix):
    """Changes by resampling onto every voxel of the grid half-way, nothing cut away."""
    half = rigid.half_way(matrix)
    first = half @ before.flair.affine
    second = np.linalg.inv(half) @ after.flair.affine
    grid = spaces.isotropic_grid(spaces.Grid(before.lesions.shape, first), 1.0)
    seen = np.ones(grid.shape, bool)
    masks = []
    for one, affine in ((before, first), (after, second)):
        masks.append(spaces.resample(Image(one.lesions, affine), grid) >= 0.5)
        seen &= spaces.resample(Image(np.ones(one.lesions.shape), affine), grid) > 0.5
    masks = [mask & seen for mask in masks]
    return lesion_changes(Image(masks[0], np.linalg.inv(half) @ grid.affine), masks[1])


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_by_looking_only_where_lesions_are(oriented_image, seed):
    """Lesions at the edge of the image too: the same table as from the whole grid."""
    rng = np.random.default_rng(seed)
    sizes = np.linalg.norm(oriented_image.affine[:3, :3], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = oriented_image.affine[:3, :3] / sizes @ np.diag([1.5, 1.5, 4.0])
    shape = (40, 44, 14)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    moved = tilted(np.eye(4), 5)
    moved[:3, 3] = 3, -2, 4
    sessions = []
    for place in (affine, moved @ affine):
        mask = ndimage.binary_dilation(rng.random(shape) > 0.9995, iterations=2)
        mask[0, :3, 0] = seed == 0
        flair = Image(np.zeros(shape, np.float32), place)
        sessions.append(Session(flair, mask, mask, TemplateTransform(np.eye(4))))
    expected = whole_grid_changes(*sessions, moved)
    assert len(expected) > 2
    pd.testing.assert_frame_equal(changes_between(*sessions, moved), expected)


def test_sessions_without_a_lesion_have_no_changes():
    nothing = np.zeros((20, 20, 10), bool)
    flair = Image(nothing.astype(np.float32), np.diag([1.0, 1, 2, 1]))
    empty = Session(flair, nothing, nothing, TemplateTransform(np.eye(4)))
    assert changes_between(empty, empty, np.eye(4)).empty


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Two sessions, the later one moved and with a new lesion; elastix is told the movement."""
    head = drawn_head(n_lesions=2)
    flair, affine, brain, white, probability = head
    write_scan(tmp_path, FIRST, head)
    more = probability.copy()
    more[40:43, 26:29, 8] = 0.9
    write_scan(tmp_path, SECOND, (flair, MOVED @ affine, brain, white, more))
    write_scan(tmp_path, {"sub": "2", "ses": "1"}, head)
    for entities, matrix in ((FIRST, np.eye(4)), (SECOND, np.linalg.inv(MOVED))):
        write_transform(tmp_path, entities, TemplateTransform(matrix))
    calls = []

    def align(before, after, **options):
        calls.append((before, after))
        return MOVED, 0.97

    monkeypatch.setattr(changes, "align_sessions", align)
    return tmp_path, calls


def read(path):
    return pd.read_csv(path, sep="\t", na_values="n/a")


def test_tables_say_what_changed(cohort):
    folder, _ = cohort
    found = write_changes(folder, find_results(folder))
    table = read(folder / "group_changes.tsv")
    described = json.loads((folder / "group_changes.json").read_text())
    assert list(table.columns) == list(described)
    (row,) = table.to_dict("records")
    assert (row["before"], row["after"]) == ("sub-1_ses-1_FLAIR", "sub-1_ses-2_FLAIR")
    assert row["status"] == "compared"
    assert (row["n_new"], row["n_gone"], row["n_growing"], row["n_shrinking"]) == (1, 0, 0, 0)
    assert row["lost_mm3"] == 0
    assert row["shift_mm"] == pytest.approx(np.hypot(8, 4))
    assert found.picture is not None
    assert found.problems == ()
    assert [t for t in undescribed(folder) if "changes" in t.split(":")[0]] == []
    own = derivative_path(folder, SECOND, "changes_table")
    assert list(read(own).columns) == list(json.loads(own.with_suffix(".json").read_text()))
    assert read(own).change.tolist().count("new") == 1


def test_a_second_run_aligns_nothing_and_changes_nothing(cohort):
    folder, calls = cohort
    write_changes(folder, find_results(folder))
    before = (folder / "group_changes.tsv").stat().st_mtime_ns
    write_changes(folder, find_results(folder))
    assert len(calls) == 1
    assert (folder / "group_changes.tsv").stat().st_mtime_ns == before
    derivative_path(folder, SECOND, "changes_record").write_text("{")
    write_changes(folder, find_results(folder))
    assert len(calls) == 2


def test_a_result_made_again_is_compared_again(cohort):
    folder, calls = cohort
    write_changes(folder, find_results(folder))
    path = derivative_path(folder, FIRST, "wmh_mask")
    image = nib.load(path)
    nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(path)
    write_changes(folder, find_results(folder))
    assert len(calls) == 2
    assert read(folder / "group_changes.tsv").volume_before_mm3[0] == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("template_to_flair_xfm", "cannot be read as an ITK transform"),
        ("wmh_mask", "expected a NIfTI image of this pipeline"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_named(cohort, name, problem):
    folder, _ = cohort
    path = derivative_path(folder, FIRST, name, template="MNI152NLin2009cSym")
    path.write_bytes(b"broken")
    group = write_group(folder)
    row = read(folder / "group_changes.tsv").iloc[0]
    assert row.status == "failed"
    assert problem in row.problem
    assert pd.isna(row.n_new)
    assert any("was not compared with sub-1_ses-1_FLAIR" in note for note in group.notes)
    assert "not compared" in Page(group.page).text


def test_a_missing_transform_or_a_mask_of_another_grid_is_named(cohort):
    folder, _ = cohort
    path = derivative_path(folder, FIRST, "wmh_mask")
    nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)).to_filename(path)
    (problem,) = write_changes(folder, find_results(folder)).problems
    assert "lies on another grid ((5, 5, 5) voxels in RAS order)" in problem
    derivative_path(
        folder, SECOND, "template_to_flair_xfm", template="MNI152NLin2009cSym"
    ).unlink()
    (problem,) = write_changes(folder, find_results(folder)).problems
    assert "process the scan again" in problem


def test_no_participant_with_two_sessions_writes_nothing(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    write_scan(tmp_path, {"sub": "2", "ses": "1"})
    assert write_changes(tmp_path, find_results(tmp_path)).rows == ()
    assert not (tmp_path / "group_changes.tsv").exists()


def test_what_an_earlier_run_left_of_pairs_that_are_gone_is_removed(cohort, caplog):
    folder, _ = cohort
    write_changes(folder, find_results(folder))
    table = derivative_path(folder, SECOND, "changes_table")
    beside = [table, table.with_suffix(".json"), derivative_path(folder, SECOND, "changes_record")]
    group = [folder / "group_changes.tsv", folder / "group_changes.json"]
    other = derivative_path(folder, {"sub": "2", "ses": "1"}, "changes_record")
    other.write_text("{}")  # beside a scan that is in no pair
    assert all(path.is_file() for path in (*beside, *group))
    with caplog.at_level(logging.INFO):
        write_changes(folder, find_results(folder))
    assert all(path.is_file() for path in (*beside, *group))
    (said,) = [text for text in caplog.messages if "removed" in text]
    assert said == f"{other}: removed, since the pair of sessions is not compared any more"
    derivative_path(folder, FIRST, "wmh_mask").unlink()
    complete = [scan for scan in find_results(folder) if scan.status == "complete"]
    assert write_changes(folder, complete).rows == ()
    assert not any(path.exists() for path in (*beside, *group))
    assert derivative_path(folder, SECOND, "wmh_mask").is_file()


def test_a_pair_that_fails_now_leaves_no_table_of_an_earlier_run(cohort):
    folder, _ = cohort
    write_changes(folder, find_results(folder))
    derivative_path(folder, FIRST, "wmh_mask").write_bytes(b"broken")
    write_changes(folder, find_results(folder))
    assert not derivative_path(folder, SECOND, "changes_table").exists()
    assert (folder / "group_changes.tsv").is_file()


def test_counts_of_lesions_have_whole_numbers_at_their_axis(cohort):
    folder, _ = cohort
    (row,) = write_changes(folder, find_results(folder)).rows
    axes = Figure().subplots()
    changes._draw_states(axes, {row.after: row.figures})
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_each_session_is_paired_with_the_one_before(tmp_path):
    for entities in (
        {"sub": "1", "ses": "2"},
        {"sub": "1", "ses": "10", "run": "1"},
        {"sub": "1", "ses": "10", "run": "2"},
        {"sub": "1", "ses": "11"},
        {"sub": "2", "ses": "1"},
        {"sub": "3"},
    ):
        path = derivative_path(tmp_path, entities, "record")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    scans = find_results(tmp_path)
    pairs = session_pairs(scans, session_orders(tmp_path, scans))
    assert [(a.stem, b.stem) for a, b in pairs] == [
        ("sub-1_ses-2", "sub-1_ses-10_run-1"),
        ("sub-1_ses-10_run-1", "sub-1_ses-11"),
    ]


def describe_sessions(folder, *, times=("", ""), listed=()):
    """A raw data set beside the derivatives: dates of sub-1's sessions 1 and 2, or their order."""
    raw = folder / "raw"
    (folder / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "DatasetLinks": {"raw": raw.as_uri()}})
    )
    for session, time in zip("12", times, strict=True):
        own = raw / "sub-1" / f"ses-{session}"
        own.mkdir(parents=True)
        if time:
            image = f"anat/sub-1_ses-{session}_FLAIR.nii.gz"
            (own / f"sub-1_ses-{session}_scans.tsv").write_text(
                f"filename\tacq_time\n{image}\t{time}\n"
            )
    if listed:
        lines = "\n".join(["session_id", *listed])
        (raw / "sub-1" / "sub-1_sessions.tsv").write_text(lines + "\n")
    for session in "12":
        entities = {"sub": "1", "ses": session}
        path = derivative_path(folder, entities, "record")
        record = json.loads(path.read_text())
        record["source"] = f"bids:raw:sub-1/ses-{session}/anat/sub-1_ses-{session}_FLAIR.nii.gz"
        path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("told", "after", "source"),
    [
        ({"times": ("2021-03-01T10:00:00", "2019-03-01T10:00:00")}, "1", "acq_time"),
        (
            {"times": ("2021-03-01T10:00:00", ""), "listed": ("ses-2", "ses-1")},
            "1",
            "sessions.tsv",
        ),
        ({}, "2", "labels"),
    ],
    ids=["dates", "list", "nothing"],
)
def test_the_data_set_says_which_session_came_first(cohort, told, after, source):
    folder, calls = cohort
    describe_sessions(folder, **told)
    found = write_changes(folder, find_results(folder))
    (row,) = read(folder / "group_changes.tsv").to_dict("records")
    before = "2" if after == "1" else "1"
    assert (row["before"], row["after"]) == (
        f"sub-1_ses-{before}_FLAIR",
        f"sub-1_ses-{after}_FLAIR",
    )
    assert row["ordered_by"] == source
    assert any("order of their labels" in note for note in found.notes) == (source == "labels")
    page = write_group(folder)
    assert any("order of their labels" in note for note in page.notes) == (source == "labels")
    text = page.page.read_text()
    assert ("sub-1 are compared in the order of their labels" in text) == (source == "labels")
