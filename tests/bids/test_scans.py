"""Finding scans: what is found, what is not looked at, and what every refusal says."""

import json
import os
import time
from pathlib import Path

import pytest

from bagau_bids.bids.scans import (
    Scan,
    find_missing,
    find_scans,
    find_t1w,
    find_unavailable,
    list_subjects,
)
from bagau_bids.bids.validation import check_dataset
from bagau_bids.config import Selection
from bagau_bids.errors import InputImageError, UsageError


def make_dataset(root: Path, *names: str) -> Path:
    """Write files that are never opened: each holds its own name."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.10.0"}')
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def flair(subject: str, *more: str, session: str | None = None, suffix: str = "FLAIR") -> str:
    parts = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    return "/".join([*parts, "anat", "_".join([*parts, *more, suffix]) + ".nii.gz"])


def found(root: Path, **selection: object) -> list[str]:
    return [scan.path.name for scan in find_scans(root, Selection(**selection))]


def write_filters(root: Path, content: object) -> Path:
    path = root / "filters.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def message(root: Path, **selection: object) -> str:
    with pytest.raises(UsageError) as error:
        find_scans(root, Selection(**selection))
    return str(error.value)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(
        tmp_path / "data",
        flair("01", session="1"),
        flair("01", session="2"),
        flair("02", "acq-3D", "run-01", session="1"),
        flair("02", "acq-3D", "run-02", session="1"),
        flair("02", "acq-2D", "ce-gd", "rec-x", "run-1", session="1"),
        flair("02", session="1", suffix="T1w"),
        flair("03", suffix="T1w"),
        "derivatives/x/" + flair("01", session="1"),
        "sourcedata/" + flair("01", session="1"),
        "code/" + flair("01", session="1"),
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
    )


def test_every_flair_is_found_once_with_all_its_entities(dataset):
    scans = find_scans(dataset, Selection())
    assert [scan.stem for scan in scans] == [
        "sub-01_ses-1",
        "sub-01_ses-2",
        "sub-02_ses-1_acq-2D_ce-gd_rec-x_run-1",
        "sub-02_ses-1_acq-3D_run-01",
        "sub-02_ses-1_acq-3D_run-02",
    ]
    assert scans[3].entities == {"sub": "02", "ses": "1", "acq": "3D", "run": "01"}
    assert scans[0].subject == "01"
    assert all(scan.path.is_file() for scan in scans)


@pytest.mark.parametrize(
    ("selection", "number"),
    [
        ({"participant_labels": ("01",)}, 2),
        ({"participant_labels": ("01", "02")}, 5),
        ({"session_labels": ("2",)}, 1),
        ({"participant_labels": ("01",), "session_labels": ("1", "2")}, 2),
    ],
)
def test_labels_select(dataset, selection, number):
    assert len(found(dataset, **selection)) == number


@pytest.mark.parametrize(
    ("filters", "runs"),
    [
        ({"acquisition": "3D"}, ["01", "02"]),
        ({"acquisition": ["3D", "2D"], "run": 1}, ["1", "01"]),
        ({"run": "01"}, ["1", "01"]),
        ({"run": [2]}, ["02"]),
        ({"ceagent": None}, ["-", "-", "01", "02"]),
        ({"ceagent": "*"}, ["1"]),
        ({"acquisition": [None, "2D"]}, ["-", "-", "1"]),
        ({"session": "ses-2"}, ["-"]),
        ({"subject": "sub-02"}, ["1", "01", "02"]),
        ({"subject": "*"}, ["-", "-", "1", "01", "02"]),
        ({"suffix": "FLAIR", "datatype": "anat"}, ["-", "-", "1", "01", "02"]),
        ({}, ["-", "-", "1", "01", "02"]),
    ],
)
def test_filter_file(dataset, tmp_path, filters, runs):
    path = write_filters(tmp_path, {"flair": filters, "bold": {"task": "x"}, "t1w": {}})
    scans = find_scans(dataset, Selection(bids_filters=path))
    assert [scan.entities.get("run", "-") for scan in scans] == runs


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ([], "no JSON object"),
        ({"flare": {}}, "'flare' is no kind of image.*Did you mean 'flair'"),
        ({"FLAIR": {}}, "'FLAIR' is no kind of image.*Did you mean 'flair'"),
        ({"flair": []}, r"flair holds \[\]"),
        ({"flair": {"acq": "3D"}}, "'acq' is no entity.*Did you mean 'acquisition'"),
        ({"flair": {"sesion": "1"}}, "'sesion' is no entity.*Did you mean 'session'"),
        ({"flair": {"EchoTime": 0.1}}, "'EchoTime' is no entity of a FLAIR; known are subject"),
        ({"flair": {"run": {}}}, "run holds {}; expected"),
        ({"flair": {"run": []}}, r"run holds \[\]; expected"),
        ({"flair": {"suffix": "T2w"}}, "suffix T2w is asked for; this program reads FLAIR only"),
    ],
)
def test_wrong_filter_file(dataset, tmp_path, content, expected):
    path = write_filters(tmp_path, content)
    with pytest.raises(UsageError, match=expected) as error:
        find_scans(dataset, Selection(bids_filters=path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("selection", "entity", "label"),
    [
        ({"session_labels": ("1",)}, "session", "2"),
        ({"participant_labels": ("01",)}, "subject", "02"),
    ],
)
def test_filter_file_and_option_that_contradict(dataset, tmp_path, selection, entity, label):
    path = write_filters(tmp_path, {"flair": {entity: label}})
    assert f"Conflict over {entity}" in message(dataset, bids_filters=path, **selection)


def test_filter_file_and_option_that_agree(dataset, tmp_path):
    path = write_filters(tmp_path, {"flair": {"session": ["ses-1"]}})
    assert len(found(dataset, bids_filters=path, session_labels=("1",))) == 4


def test_phase_images_are_no_scans(tmp_path):
    root = make_dataset(tmp_path, flair("01", "part-mag"), flair("01", "part-phase"))
    assert found(root) == ["sub-01_part-mag_FLAIR.nii.gz"]


def test_unknown_participant_names_the_nearest(dataset):
    text = message(dataset, participant_labels=("1", "02", "zz"))
    assert "no participant 1, zz." in text
    assert "Nearest to 1: 01" in text
    assert "It has 3: 01, 02, 03." in text


def test_unknown_session_names_those_there(dataset):
    text = message(dataset, session_labels=("1", "9"))
    assert "no session 9." in text
    assert "It has 2: 1, 2." in text


def test_unknown_session_in_a_dataset_without_sessions(tmp_path):
    root = make_dataset(tmp_path, flair("01"))
    assert "no session 1. It has none." in message(root, session_labels=("1",))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([flair("01", suffix="flair")], 'suffix is "flair", BIDS spells it "FLAIR"'),
        ([flair("01", suffix="T2FLAIR")], 'suffix is "T2FLAIR", it must be "FLAIR"'),
        ([flair("01", "acq-FLAIR", suffix="T2w")], 'suffix is "T2w", it must be "FLAIR"'),
        (["sub-01/anat/FLAIR.nii.gz"], "must begin with sub-01_, as its folders say"),
        (["sub-01/anat/01_FLAIR.nii"], "must begin with sub-01_"),
        (["sub-01/anat/sub-02_FLAIR.nii.gz"], "must begin with sub-01_"),
        (["sub-01/ses-1/anat/sub-01_FLAIR.nii.gz"], "must begin with sub-01_ses-1_"),
        (["sub-01/ses-1/anat/sub-01_ses-2_FLAIR.nii.gz"], "must begin with sub-01_ses-1_"),
        (["sub-01/sub-01_FLAIR.nii.gz"], 'lies in the folder "sub-01", expected "anat"'),
        (["sub-01/anat/sub-01_FLAIR.json"], "sidecar without its image"),
        (["sub-01/anat/sub-01_FLAIR.mgz"], "no NIfTI file"),
        (["sub-01/anat/sub-01_FLAIR.nii.gz.part"], "no NIfTI file"),
        ([flair("01", "part-phase")], "its part is phase, asked for is mag or none"),
        ([flair("01", suffix="T1w")], "No name contains FLAIR"),
    ],
)
def test_nearest_miss(tmp_path, names, expected):
    text = message(make_dataset(tmp_path, *names))
    assert text.startswith(f"No FLAIR image to process in {tmp_path}.\nQuery: suffix FLAIR")
    assert expected in text
    if not names[0].endswith((".json", ".part")):
        assert f"Images seen: 1: {names[0]}." in text


def test_nearest_miss_by_filter(dataset, tmp_path):
    path = write_filters(tmp_path, {"flair": {"acquisition": "4D", "run": 1}})
    text = message(dataset, bids_filters=path, participant_labels=("02",))
    assert "acquisition 4D, run 1" in text
    assert "acq-2D_ce-gd_rec-x_run-1_FLAIR.nii.gz: its acquisition is 2D, asked for is 4D" in text


def test_nearest_miss_in_another_session(tmp_path):
    root = make_dataset(tmp_path, flair("01", session="1"), flair("01", session="2", suffix="T1w"))
    text = message(root, session_labels=("2",))
    assert "sub-01_ses-1_FLAIR.nii.gz: its session is 1, asked for is 2." in text


def test_no_participant_folder(tmp_path):
    make_dataset(tmp_path, "01/anat/01_FLAIR.nii.gz")
    text = message(tmp_path)
    assert "no folder whose name begins with sub-" in text
    assert "it has 01, dataset_description.json" in text


def test_data_set_one_level_down(tmp_path):
    make_dataset(tmp_path / "inner", flair("01"))
    assert f"{tmp_path / 'inner'} has some: is that the data set?" in message(tmp_path)


def test_empty_participant_folder_may_be_a_subdataset(tmp_path):
    make_dataset(tmp_path)
    (tmp_path / "sub-01").mkdir()
    assert "datalad get" in message(tmp_path)


def test_only_the_files_of_few_participants_are_listed(tmp_path):
    names = [flair(f"{number:03}", suffix="T1w") for number in range(30)]
    text = message(make_dataset(tmp_path, *names))
    assert "Images seen of the first 20 participants: 20: sub-000/" in text
    assert "sub-009_T1w.nii.gz, ..." in text
    assert "sub-010" not in text


def test_participants_without_flair_are_named_with_the_reason(tmp_path):
    root = make_dataset(
        tmp_path, flair("01"), flair("02", suffix="T1w"), flair("03", suffix="flair")
    )
    (root / "sub-04").mkdir()
    (root / "sub-05" / "anat").mkdir(parents=True)
    scans = find_scans(root, Selection())
    missing = find_missing(root, Selection(), scans)
    assert list(missing) == ["02", "03", "04", "05"]
    assert missing["02"] == "its folder has sub-02_T1w.nii.gz"
    assert 'BIDS spells it "FLAIR"' in missing["03"]
    assert "datalad get" in missing["04"]
    selection = Selection(participant_labels=("01", "02"))
    assert list(find_missing(root, selection, scans)) == ["02"]


@pytest.mark.parametrize(
    "above",
    ["func", "sub-projects", "scratch_ses-2", "dwi/sub-9/ses-2/anat", "a_run-7_part-phase"],
)
@pytest.mark.parametrize("kept", [False, True], ids=["no index", "index"])
def test_folders_above_the_data_set_are_no_part_of_it(tmp_path, above, kept):
    root = make_dataset(
        tmp_path / above / "bids", flair("01", session="1"), flair("01", session="2")
    )
    options = {"database_dir": tmp_path / "index"} if kept else {}
    both = ["sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-2_FLAIR.nii.gz"]
    assert found(root, **options) == both
    assert found(root, participant_labels=("01",), **options) == both
    for number in (1, 2):
        assert found(root, session_labels=(str(number),), **options) == both[number - 1 : number]


def test_index_that_read_the_folders_above_is_refused(tmp_path):
    from bids.layout import BIDSLayout

    root = make_dataset(tmp_path / "my_ses-2" / "bids", flair("01", session="1"))
    BIDSLayout(root, validate=False, database_path=tmp_path / "theirs")
    text = message(root, database_dir=tmp_path / "theirs")
    assert f"{tmp_path / 'theirs'}: an index that takes folders above {root}" in text
    assert "(session 2); write it anew: --bids-database-wipe" in text
    assert found(root, database_dir=tmp_path / "theirs", database_wipe=True)
    plain = make_dataset(tmp_path / "plain" / "bids", flair("01", session="1"))
    BIDSLayout(plain, validate=False, database_path=tmp_path / "usable")
    assert found(plain, database_dir=tmp_path / "usable") == ["sub-01_ses-1_FLAIR.nii.gz"]


def test_participant_whose_folder_is_a_link_to_nothing_is_named(tmp_path):
    root = make_dataset(tmp_path, flair("01"))
    (root / "sub-02").symlink_to("/gone/sub-02")
    reason = f"{root / 'sub-02'}: a link to /gone/sub-02, which does not exist"
    scans = find_scans(root, Selection())
    assert find_missing(root, Selection(), scans) == {"02": reason}
    assert reason in message(root, participant_labels=("02",))


def link_to_annex(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")
    return path


def test_annexed_file_that_was_not_fetched(tmp_path):
    root = make_dataset(tmp_path, flair("01"))
    path = link_to_annex(root, flair("02"))
    scans = find_scans(root, Selection())
    assert [scan.subject for scan in scans] == ["01", "02"]
    unavailable = find_unavailable(scans)
    assert list(unavailable.values()) == [
        f"{path}: its content was not fetched; run: datalad get {path}"
    ]


def test_description_that_was_not_fetched(tmp_path):
    path = tmp_path / "dataset_description.json"
    path.symlink_to(".git/annex/objects/x")
    with pytest.raises(UsageError, match=f"run: datalad get {path}"):
        check_dataset(tmp_path)


def test_unfetched_files_of_others_do_not_matter(tmp_path):
    root = make_dataset(tmp_path, flair("01"))
    link_to_annex(root, flair("02"))
    scans = find_scans(root, Selection(participant_labels=("01",)))
    assert find_unavailable(scans) == {}


def test_other_files_that_cannot_be_used(tmp_path):
    root = make_dataset(tmp_path, flair("01"), flair("02", "foo-1"), flair("03"))
    (root / flair("01")).write_text("")
    (root / "sub-03/anat/sub-03_FLAIR.nii").write_text("x")
    (root / "sub-04/anat").mkdir(parents=True)
    (root / flair("04")).symlink_to("nowhere.nii.gz")
    reasons = find_unavailable(find_scans(root, Selection())).values()
    expected = [
        "an empty file (0 bytes)",
        "foo-1 in the name is no BIDS entity",
        "sub-03_FLAIR.nii.gz would have the same results",
        "sub-03_FLAIR.nii would have the same results",
        "a link to nowhere.nii.gz, which does not exist",
    ]
    assert all(text in reason for text, reason in zip(expected, reasons, strict=True))


def test_one_participant_of_a_thousand_is_found_quickly(tmp_path):
    root = make_dataset(tmp_path)
    for number in range(1000):
        folder = root / f"sub-{number:04}" / "ses-1" / "anat"
        folder.mkdir(parents=True)
        os.mkfifo(folder / f"sub-{number:04}_ses-1_FLAIR.nii.gz")  # would block who opens it
    find_scans(root, Selection(participant_labels=("0000",)))  # import pybids
    started = time.monotonic()
    assert found(root, participant_labels=("0777",)) == ["sub-0777_ses-1_FLAIR.nii.gz"]
    assert time.monotonic() - started < 5


def test_index_is_kept_for_other_participants_and_wiped_on_request(tmp_path):
    root = make_dataset(tmp_path / "data", flair("01"), flair("02"))
    index = tmp_path / "index"
    assert len(found(root, participant_labels=("01",), database_dir=index)) == 1
    assert list(index.iterdir())
    assert len(found(root, participant_labels=("02",), database_dir=index)) == 1
    make_dataset(root, flair("03"))
    (root / flair("02")).unlink()
    old = find_scans(root, Selection(database_dir=index))
    assert [scan.subject for scan in old] == ["01", "02"]
    assert "no longer there; write it anew: --bids-database-wipe" in find_unavailable(old)[old[1]]
    assert found(root, database_dir=index, database_wipe=True) == [
        "sub-01_FLAIR.nii.gz",
        "sub-03_FLAIR.nii.gz",
    ]


def test_index_of_another_data_set_is_refused(tmp_path):
    first = make_dataset(tmp_path / "first", flair("01"))
    second = make_dataset(tmp_path / "second", flair("01"))
    index = tmp_path / "index"
    find_scans(first, Selection(database_dir=index))
    text = message(second, database_dir=index)
    assert f"{index}: an index of {first}, not of {second}" in text
    assert "--bids-database-wipe" in text


def test_damaged_index_is_refused(tmp_path):
    root = make_dataset(tmp_path / "data", flair("01"))
    index = tmp_path / "index"
    index.mkdir()
    (index / "layout_index.sqlite").write_text("not a database")
    text = message(root, database_dir=index)
    assert f"{index}: no pybids index that can be used" in text


def test_subjects_are_the_folders(dataset):
    (dataset / "sub-99").write_text("a file")
    assert list_subjects(dataset) == ["01", "02", "03"]


def test_scan_is_known_by_its_path():
    scan = Scan(Path("a"), {"sub": "01"})
    assert {scan: 1}[Scan(Path("a"), {"sub": "01"})] == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is missing; BIDS expects it"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"Name": "x"}', "lacks BIDSVersion"),
        ('{"BIDSVersion": 1}', "lacks Name and BIDSVersion"),
    ],
)
def test_dataset_description_is_checked(tmp_path, content, expected):
    path = tmp_path / "dataset_description.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=expected) as error:
        check_dataset(tmp_path)
    assert str(path) in str(error.value)
    assert "--skip-bids-validation" in str(error.value)


def test_dataset_description_one_level_up_is_named(tmp_path):
    root = make_dataset(tmp_path / "data", flair("01"))
    with pytest.raises(UsageError, match=f"There is one in {root}: is that the data set"):
        check_dataset(root / "sub-01")


def test_valid_dataset_passes(dataset):
    check_dataset(dataset)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_valid_description_scans_are_still_found(tmp_path, content):
    root = make_dataset(tmp_path, flair("01"))
    (root / "dataset_description.json").unlink()
    if content is not None:
        (root / "dataset_description.json").write_text(content)
    assert len(found(root)) == 1


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("_T1w.nii",), "_T1w.nii"),
        (("_ce-gad_T1w.nii.gz", "_run-2_T1w.nii.gz"), "_run-2_T1w.nii.gz"),
        (("_run-1_T1w.nii.gz", "_run-2_T1w.nii.gz"), "_run-2_T1w.nii.gz"),
        (("_acq-mprage_T1w.nii.gz", "_T1w.nii.gz", "_T1w.json"), "_T1w.nii.gz"),
        (("_ce-gad_T1w.nii.gz",), "_ce-gad_T1w.nii.gz"),
    ],
)
def test_t1w_of_a_flair(tmp_path, names, taken):
    folder = "sub-01/ses-1/anat/sub-01_ses-1"
    root = make_dataset(
        tmp_path / "data",
        flair("01", "run-2", session="1"),
        flair("01", session="2", suffix="T1w"),
        *(folder + name for name in names),
    )
    (scan,) = find_scans(root, Selection())
    path, note = find_t1w(scan)
    assert path.name == "sub-01_ses-1" + taken
    images = [name for name in names if not name.endswith("json")]
    assert bool(note) is (len(images) > 1)
    assert all(name in note for name in images if note)


def test_flair_without_t1w(tmp_path):
    root = make_dataset(tmp_path / "data", flair("01"), flair("01", suffix="T2w"))
    (scan,) = find_scans(root, Selection())
    with pytest.raises(InputImageError, match=r"no T1w beside.*found .*sub-01_T2w.nii.gz; add"):
        find_t1w(scan)
