"""The folders of the WMH challenge are read as cases, in all the layouts they come in."""

import shutil

import challenge_tree
import nibabel as nib
import pytest

from bagau_bids.datasets.cases import check_cases
from bagau_bids.datasets.challenge import challenge_facts, find_cases
from bagau_bids.errors import UsageError

LABELS = (
    "000Utrecht",
    "050Singapore",
    "100AmsterdamGE3T",
    "020Utrecht",
    "150AmsterdamGE1T5",
    "160AmsterdamPhilips",
)


def scans(count=6):
    return [challenge_tree.small_scan(seed) for seed in range(count)]


@pytest.fixture
def release(tmp_path):
    return challenge_tree.make_release(tmp_path / "wmh", scans())


def by_label(collection):
    return {case.entities["sub"]: case for case in collection.cases}


def names(case):
    return {one.target.name.removeprefix(f"sub-{case.entities['sub']}_") for one in case.others}


def test_release_is_read_with_site_split_and_number(release):
    found = by_label(find_cases(release))
    assert sorted(found) == sorted(LABELS)
    columns = {label: tuple(found[label].columns.values()) for label in LABELS}
    assert columns["000Utrecht"] == ("Utrecht", "Philips Achieva 3 T", "training", "0")
    assert columns["020Utrecht"] == ("Utrecht", "Philips Achieva 3 T", "test", "20")
    assert columns["150AmsterdamGE1T5"] == ("Amsterdam", "GE Signa HDxt 1.5 T", "test", "150")
    assert columns["160AmsterdamPhilips"][:3] == ("Amsterdam", "Philips Ingenuity 3 T", "test")


def test_every_file_of_the_release_is_listed_once(release):
    collection = find_cases(release)
    files = {path for path in release.rglob("*") if path.is_file()}
    assert collection.sources == files
    placed = [one.source for case in collection.cases for one in case.placements]
    assert len(placed) == len(set(placed)) == len(files) - 1  # the readme belongs to no case
    assert [one.target.as_posix() for one in collection.extras] == [
        "sourcedata/wmh-challenge/readme.pdf"
    ]


def test_layout_accounts_for_the_files_of_the_public_release():
    """60 and 110 cases, 70 of them in Amsterdam, and 60 masks of two observers: 1791 files."""
    known = 2 + len(challenge_facts()["files"])  # FLAIR and mask besides
    in_amsterdam = known - challenge_tree.FILES_OF_A_CASE
    assert in_amsterdam == 2
    assert (60 + 110) * challenge_tree.FILES_OF_A_CASE + 70 * in_amsterdam + 2 * 60 + 1 == 1791


def test_files_are_named_for_what_they_are(release):
    case = by_label(find_cases(release))["100AmsterdamGE3T"]
    folder = release / "training" / "Amsterdam" / "GE3T" / "100"
    assert case.flair.source == folder / "orig" / "FLAIR.nii.gz"
    assert case.flair.target.as_posix() == (
        "sub-100AmsterdamGE3T/anat/sub-100AmsterdamGE3T_FLAIR.nii.gz"
    )
    assert case.mask.target.as_posix() == (
        "derivatives/manual/sub-100AmsterdamGE3T/anat/"
        "sub-100AmsterdamGE3T_space-orig_label-WMH_mask.nii.gz"
    )
    assert names(case) == {
        "T1w.nii.gz",
        "space-FLAIR_T1w.nii.gz",
        "desc-pre_FLAIR.nii.gz",
        "desc-pre_T1w.nii.gz",
        "space-FLAIR_desc-pre_T1w.nii.gz",
        "space-T1w_desc-deface_mask.nii.gz",
        "space-FLAIR_desc-deface_mask.nii.gz",
        "space-FLAIR_desc-defaceT1w_mask.nii.gz",
        "from-T1w_to-FLAIR_mode-image_xfm.txt",
        "space-orig_label-WMH_mask.nii.gz",  # of both further observers
    }
    observers = {
        one.target.parts[1]: one.source.relative_to(release).parts[1]
        for one in case.others
        if one.check == "mask"
    }
    assert observers == {"manual-o3": "observer_o3", "manual-o4": "observer_o4"}
    for one in case.others:
        assert not [text for text in (one.sidecar or {}).values() if "{" in str(text)]


def test_corrected_images_can_be_the_raw_ones(release):
    case = by_label(find_cases(release, "pre"))["000Utrecht"]
    sources = {one.target.name: one.source for one in case.placements}
    folder = release / "training" / "Utrecht" / "0"
    assert sources["sub-000Utrecht_FLAIR.nii.gz"] == folder / "pre" / "FLAIR.nii.gz"
    assert sources["sub-000Utrecht_T1w.nii.gz"] == folder / "pre" / "3DT1.nii.gz"
    assert sources["sub-000Utrecht_desc-orig_FLAIR.nii.gz"] == folder / "orig" / "FLAIR.nii.gz"
    assert find_cases(release, "pre").sources == find_cases(release).sources


@pytest.mark.parametrize("below", ["", "dataverse_files/files"])
def test_folders_of_2017_are_training(tmp_path, below):
    for case, (flair, mask) in zip(challenge_tree.HANDED_OUT_2017, scans(), strict=False):
        challenge_tree.write_case(tmp_path / below / case, flair, mask)
    collection = find_cases(tmp_path)
    found = by_label(collection)
    assert sorted(found) == sorted(LABELS[:3])
    assert {case.columns["split"] for case in found.values()} == {"training"}
    (note,) = collection.notes
    assert note.startswith("3 cases, the first")
    assert "taken as training" in note


@pytest.mark.parametrize("name", ["Philips_VU.PETMR_01", "Philips_VU", "philips_vu_.petmr_01_"])
def test_scanner_whose_name_systems_change_is_known(tmp_path, name):
    challenge_tree.write_case(tmp_path / "test" / "Amsterdam" / name / "160", *scans(1)[0])
    assert list(by_label(find_cases(tmp_path))) == ["160AmsterdamPhilips"]


@pytest.mark.parametrize(
    "start", ["training", "training/Amsterdam", "training/Amsterdam/GE3T/100"]
)
def test_part_of_the_release_may_be_given(release, start):
    case = by_label(find_cases(release / start))["100AmsterdamGE3T"]
    assert (case.columns["site"], case.columns["split"]) == ("Amsterdam", "training")


def test_masks_of_observers_without_case_are_kept(release):
    shutil.rmtree(release / "training" / "Utrecht")
    collection = find_cases(release)
    kept = [one.target.name for one in collection.extras]
    assert kept.count("result.nii.gz") == 2
    assert not collection.failures


def test_unknown_files_are_kept_and_those_of_systems_named(release):
    folder = release / "training" / "Utrecht" / "0"
    (folder / "orig" / "T2.nii.gz").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    shutil.copy(folder / "orig" / "FLAIR.nii.gz", folder / "orig" / "FLAIR.nii")
    (release / ".DS_Store").write_bytes(b"x")
    (folder / "._wmh.nii.gz").write_bytes(b"x")
    collection = find_cases(release)
    kept = {
        one.target.as_posix().split("sourcedata/wmh-challenge/")[1] for one in collection.extras
    }
    inside = "training/Utrecht/0"
    assert {f"{inside}/orig/T2.nii.gz", f"{inside}/notes.txt", "readme.pdf"} < kept
    assert len(kept) == 4  # one of the two FLAIRs
    assert {path.name for path in collection.ignored} == {".DS_Store", "._wmh.nii.gz"}
    assert collection.sources == {path for path in release.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("wmh.nii.gz", r"Utrecht/0: wmh.nii.gz not found, expected in every case: copy"),
        ("orig/FLAIR.nii.gz", r"orig/FLAIR.nii.gz not found.*--images pre takes that of pre/"),
    ],
)
def test_incomplete_case_is_named_and_the_others_read(release, lost, message):
    (release / "training" / "Utrecht" / "0" / lost).unlink()
    files = {path for path in release.rglob("*") if path.is_file()}
    collection = find_cases(release)
    (failure,) = collection.failures
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure.reason)
    assert len(failure.sources) == 8 + 2  # with the masks of both observers
    assert len(collection.cases) == 5
    assert collection.sources == files


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("training/Paris/7", "found no site of the challenge.*expected Utrecht, Singapore"),
        ("training/Amsterdam/8", "found no site of the challenge"),
        ("training/Utrecht/copy", "expected a folder that is named by the number"),
    ],
)
def test_folder_that_is_no_case_is_named(release, folder, message):
    challenge_tree.write_case(release / folder, *challenge_tree.small_scan(9))
    collection = find_cases(release)
    (failure,) = collection.failures
    assert failure.name == folder
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure.reason)
    assert len(collection.cases) == 6


def test_links_to_folders_are_named_and_not_followed(release, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    challenge_tree.write_case(elsewhere / "Utrecht" / "2", *challenge_tree.small_scan(9))
    (release / "more").symlink_to(elsewhere)
    collection = find_cases(release)
    (failure,) = collection.failures
    assert failure.name == "more"
    assert "a link to a folder, not followed; import what it points to" in failure.reason
    assert len(collection.cases) == 6


@pytest.mark.parametrize("folder", [".", "missing"])
def test_folder_without_cases_is_refused(tmp_path, folder):
    with pytest.raises(UsageError, match="no such folder|no folder of a case; expected folders"):
        find_cases(tmp_path / folder)


def test_same_number_twice_is_imported_neither_time(release):
    flair, mask = challenge_tree.small_scan(9)
    challenge_tree.write_case(release / "test" / "Utrecht" / "00", flair, mask)
    checked, _ = check_cases(find_cases(release))
    assert sorted(by_label(checked)) == sorted(set(LABELS) - {"000Utrecht"})
    assert {failure.name for failure in checked.failures} == {
        "training/Utrecht/0",
        "test/Utrecht/00",
    }
    assert "the name of test/Utrecht/00" in checked.failures[0].reason + checked.failures[1].reason


def test_same_scan_twice_is_imported_neither_time(release):
    copy = release / "test" / "Singapore" / "51"
    shutil.copytree(release / "training" / "Singapore" / "50", copy)
    checked, _ = check_cases(find_cases(release))
    assert {failure.name for failure in checked.failures} == {
        "training/Singapore/50",
        "test/Singapore/51",
    }
    assert "has the content of the FLAIR of" in checked.failures[0].reason
    assert len(checked.cases) == 5


@pytest.mark.parametrize("name", ["orig/FLAIR.nii.gz", "wmh.nii.gz"])
def test_damaged_flair_or_mask_stops_its_own_case(release, name):
    path = release / "training" / "Utrecht" / "0" / name
    path.write_bytes(path.read_bytes()[:-40])
    checked, _ = check_cases(find_cases(release))
    (failure,) = checked.failures
    assert failure.name == "training/Utrecht/0"
    assert "truncated or damaged" in failure.reason
    assert str(path) in failure.reason
    assert "000Utrecht" not in by_label(checked)
    assert len(checked.cases) == 5


@pytest.mark.parametrize(
    "name", ["orig/3DT1.nii.gz", "pre/FLAIR.nii.gz", "orig/FLAIR_mask.nii.gz"]
)
def test_other_damaged_file_is_left_out_alone(release, name):
    path = release / "training" / "Amsterdam" / "GE3T" / "100" / name
    path.write_bytes(path.read_bytes()[:-40])
    checked, _ = check_cases(find_cases(release))
    (failure,) = checked.failures
    assert failure.name == f"training/Amsterdam/GE3T/100, {path.name}"
    assert failure.sources == (path,)
    assert len(checked.cases) == 6


def test_mask_of_an_observer_on_another_grid_is_left_out_alone(release):
    mask = release / "additional_annotations/observer_o3/training/Utrecht/0/result.nii.gz"
    labels = nib.load(mask)
    shifted = labels.affine.copy()
    shifted[2, 3] += 3
    nib.Nifti1Image(labels.get_fdata(), shifted).to_filename(mask)
    checked, _ = check_cases(find_cases(release))
    (failure,) = checked.failures
    assert failure.sources == (mask,)
    assert f"expected that of {release / 'training/Utrecht/0/orig/FLAIR.nii.gz'}" in failure.reason
    assert len(checked.cases) == 6
