"""The phantom is what it says: stored as its layouts say, with truth that fits its images."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bagau_bids.cli import toolbox
from bagau_bids.datasets import phantom
from bagau_bids.datasets.phantom import Layout, compare_volumes, make_phantom_dataset
from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.synthesis.icbm_head import icbm_head

COARSE = (
    Layout("RAS", 2.0, 6.0, tilted=False, header="both", dtype="int16"),
    Layout("LAS", 2.0, 7.0, tilted=True, header="qform", dtype="int16"),
    Layout("LPS", 2.0, 6.0, tilted=True, header="sform", dtype="float32"),
    Layout("PIR", 2.5, 2.5, tilted=False, header="both", dtype="float32"),
)
CODES = {"both": (1, 1), "qform": (0, 1), "sform": (1, 0)}


def make(out, **arguments):
    make_phantom_dataset(out, **{"layouts": COARSE, **arguments})
    return out


@pytest.fixture(scope="module")
def head():
    return icbm_head(2.0)


@pytest.fixture(scope="module", autouse=True)
def coarse_head(head):
    """Every data set here is made from one quick head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "icbm_head", lambda _: head)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("phantom") / "bids", subjects=4, seed=5)


def flair_of(dataset, number):
    subject = f"sub-{number + 1:02d}"
    return nib.load(dataset / subject / "anat" / f"{subject}_FLAIR.nii.gz")


def truth_of(dataset, number, label):
    subject = f"sub-{number + 1:02d}"
    folder = dataset / "derivatives" / "phantom-truth" / subject / "anat"
    return nib.load(folder / f"{subject}_space-orig_label-{label}_mask.nii.gz")


@pytest.mark.parametrize("number", range(len(COARSE)))
def test_scan_is_stored_as_its_layout_says(dataset, number):
    layout, image = COARSE[number], flair_of(dataset, number)
    assert "".join(nib.aff2axcodes(image.affine)) == layout.orientation
    assert (image.header["sform_code"], image.header["qform_code"]) == CODES[layout.header]
    assert image.get_data_dtype() == layout.dtype
    assert sorted(image.header.get_zooms()) == pytest.approx(
        sorted([layout.in_plane_mm, layout.in_plane_mm, layout.slice_mm]), rel=1e-5
    )
    directions = np.abs(image.affine[:3, :3] / image.header.get_zooms())
    assert (directions.max(axis=0).min() < 0.9999) == layout.tilted


@pytest.mark.parametrize("number", range(len(COARSE)))
def test_truth_lies_on_the_scan(dataset, number):
    image = flair_of(dataset, number)
    flair = np.asarray(image.dataobj, dtype=float)
    masks = {}
    for label in ("WMH", "brain"):
        mask = truth_of(dataset, number, label)
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert set(np.unique(mask.dataobj)) <= {0, 1}
        masks[label] = np.asarray(mask.dataobj) > 0
    lesions, brain = masks["WMH"], masks["brain"]
    assert lesions.any()
    assert not (lesions & ~brain).any()
    assert np.median(flair[lesions]) > 1.2 * np.median(flair[brain & ~lesions])


@pytest.mark.parametrize("number", range(len(COARSE)))
def test_anatomy_has_its_right_side_up(dataset, number):
    """Top, front and sides are found again in the world, whatever the voxel order."""
    brain = nib.as_closest_canonical(truth_of(dataset, number, "brain"))
    points = nib.affines.apply_affine(brain.affine, np.argwhere(np.asarray(brain.dataobj)))
    points = points - points.mean(axis=0)
    width, length, height = points.max(axis=0) - points.min(axis=0)
    assert 110 < width < 170
    assert 140 < length < 210
    assert 100 < height < 180
    # The brain is wider in its upper half than at the very bottom.
    low, high = (points[:, 2] < np.percentile(points[:, 2], 3)), np.abs(points[:, 2]) < 5
    assert np.ptp(points[low, 0]) < np.ptp(points[high, 0])


def test_volumes_are_those_of_the_masks(dataset):
    table = pd.read_csv(
        dataset / "derivatives" / "phantom-truth" / "volumes.tsv", sep="\t"
    ).set_index("participant_id")
    for number in range(len(COARSE)):
        for label, column in (("WMH", "wmh_ml"), ("brain", "brain_ml")):
            mask = truth_of(dataset, number, label)
            voxel_ml = np.prod(mask.header.get_zooms()) / 1000
            expected = np.count_nonzero(mask.dataobj) * voxel_ml
            assert table.loc[f"sub-{number + 1:02d}", column] == pytest.approx(expected, rel=1e-4)
    assert table["brain_ml"].between(1000, 1900).all()


def test_same_seed_gives_the_same_voxels_and_another_seed_others(tmp_path):
    first, again, other = (
        flair_of(make(tmp_path / name, subjects=1, seed=seed), 0)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(first.dataobj, again.dataobj)
    assert (
        first.shape != other.shape
        or (np.asarray(first.dataobj) != np.asarray(other.dataobj)).any()
    )


def test_sessions_are_scans_of_their_own(tmp_path):
    out = make(tmp_path / "bids", subjects=1, sessions=2)
    found = sorted(path.name for path in out.glob("sub-*/ses-*/anat/*_FLAIR.nii.gz"))
    assert found == ["sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-2_FLAIR.nii.gz"]
    assert len(list((out / "derivatives").rglob("*label-WMH_mask.nii.gz"))) == 2


@pytest.mark.parametrize("part", [".", "derivatives/phantom-truth"])
def test_validator_finds_no_error(dataset, part):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    result = subprocess.run(
        [validator, "--ignoreWarnings", dataset / part],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"exists and is not an empty folder.*name another"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("arguments", [{"subjects": 0}, {"sessions": 0}])
def test_no_scans_are_refused(tmp_path, arguments):
    with pytest.raises(UsageError, match="at least 1 of each was expected"):
        make(tmp_path / "bids", **arguments)


def test_nothing_is_left_of_a_data_set_that_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no scan today")

    monkeypatch.setattr(phantom, "synthesise", fail)
    with pytest.raises(RuntimeError, match="no scan today"):
        make(tmp_path / "bids")
    assert not list(tmp_path.iterdir())


def perfect_result(dataset, folder):
    """Derivatives whose masks are the true ones."""
    for source in (dataset / "derivatives" / "phantom-truth").rglob("*label-WMH_mask.nii.gz"):
        target = folder / source.parent.parent.name / "anat" / source.name
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
    return folder


def test_comparison_of_a_perfect_result(dataset, tmp_path):
    table = compare_volumes(dataset, perfect_result(dataset, tmp_path))
    assert list(table["bids_name"]) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    np.testing.assert_allclose(table["measured_ml"], table["true_ml"], rtol=1e-5)
    assert (table["dice"] == 1).all()


def test_comparison_shows_what_is_missing(dataset, tmp_path):
    result = perfect_result(dataset, tmp_path)
    (result / "sub-02" / "anat" / "sub-02_space-orig_label-WMH_mask.nii.gz").unlink()
    table = compare_volumes(dataset, result).set_index("bids_name")
    assert table["measured_ml"].isna().to_dict() == {
        "sub-01": False,
        "sub-02": True,
        "sub-03": False,
        "sub-04": False,
    }


def test_comparison_needs_a_phantom(tmp_path):
    with pytest.raises(MissingResourceError, match=r"volumes\.tsv: not found.*bagau phantom"):
        compare_volumes(tmp_path, tmp_path)


def run_command(*arguments):
    return toolbox.main(["phantom", *map(str, arguments)])


def test_command_prints_volumes_side_by_side(dataset, tmp_path, capsys):
    assert run_command(dataset, "--compare", perfect_result(dataset, tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["scan", "true", "ml", "measured", "ml", "Dice"]
    name, true_ml, measured_ml, dice = lines[1].split()
    assert (name, dice) == ("sub-01", "1.00")
    assert float(true_ml) == float(measured_ml) > 0


def test_command_makes_a_data_set(tmp_path, capsys):
    assert run_command(tmp_path / "bids", "--subjects", 1, "--random-seed", 2) == 0
    assert (tmp_path / "bids" / "dataset_description.json").is_file()
    assert "sub-01" in capsys.readouterr().out


def volume_ml(head, *labels):
    voxel_ml = abs(np.linalg.det(head.affine[:3, :3])) / 1000
    return np.isin(head.labels, labels).sum() * voxel_ml


@pytest.mark.parametrize(
    ("labels", "least_ml", "most_ml"),
    [
        ((2, 41), 350, 600),  # cerebral white matter
        ((3, 42), 350, 650),  # cortex
        ((4, 43), 8, 40),  # lateral ventricles
        ((7, 8, 46, 47), 100, 200),  # cerebellum
        ((10, 49), 5, 20),  # thalamus
        ((16,), 15, 40),  # brain stem
        ((515, 516), 300, 900),  # skull
    ],
)
def test_head_has_structures_of_human_size(head, labels, least_ml, most_ml):
    assert least_ml < volume_ml(head, *labels) < most_ml


def test_left_labels_lie_on_the_left(head):
    for left, right in ((2, 41), (4, 43), (8, 47), (10, 49)):
        for label, sign in ((left, -1), (right, 1)):
            points = nib.affines.apply_affine(head.affine, np.argwhere(head.labels == label))
            assert np.sign(points[:, 0].mean()) == sign
    assert volume_ml(head, 2) == pytest.approx(volume_ml(head, 41), rel=0.05)


def test_atlas_of_the_head_is_its_white_matter(head):
    white = np.isin(head.labels, (2, 41, 7, 46))
    likely = head.wm_atlas > 0.5
    assert 2 * (white & likely).sum() / (white.sum() + likely.sum()) > 0.9
