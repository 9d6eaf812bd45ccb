"""Names and places that only some systems have: long, of other bytes, none at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_fakes import make_dataset

from bagau_bids.bids.derivatives import catalogue, derivative_path, longest_name
from bagau_bids.bids.masks import name_entities
from bagau_bids.bids.scans import find_scans, find_too_long
from bagau_bids.cli import failure
from bagau_bids.cli.failure import exit_code_of
from bagau_bids.cli.parser import parse
from bagau_bids.config import Selection
from bagau_bids.files import replacing, write_json, write_text

TEMPLATE = "MNI152NLin2009cSym"
LIMIT = 255  # of most file systems


def stem(length):
    return f"sub-01_acq-{'x' * (length - len('sub-01_acq-'))}"


def test_a_result_may_have_the_longest_name_there_is(tmp_path):
    path = tmp_path / ("x" * LIMIT)
    for text in ("one", "another"):
        assert write_text(path, text)
        assert path.read_text() == text
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_names_that_leave_no_room_for_results_are_refused_before_the_work(tmp_path):
    added = len(longest_name({"sub": "01", "acq": "x"}, TEMPLATE)) - len(stem(12))
    fits, too_long = stem(LIMIT - added), stem(LIMIT - added + 1)
    make_dataset(tmp_path / "data", fits, too_long)
    scans = find_scans(tmp_path / "data", Selection())
    ((scan, reason),) = find_too_long(scans, tmp_path / "not" / "there", TEMPLATE).items()
    assert scan.stem == too_long
    assert f"has {LIMIT + 1} characters, and {tmp_path / 'not' / 'there'} takes {LIMIT}" in reason
    assert "shorten a label of the FLAIR's name" in reason


def test_what_a_killed_process_left_of_a_file_is_removed_by_the_next_that_writes_it(tmp_path):
    path, other = tmp_path / "table.tsv", tmp_path / "other.tsv"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bagau_bids.files import replacing\n"
        "blocks = [replacing(Path(name)) for name in sys.argv[1:]]\n"
        "for block in blocks:\n"
        "    block.__enter__().write_text('half')\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, path, other], check=False)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    with replacing(path) as mine:
        mine.write_text("whole")
        write_text(path, "of another writer")  # leaves what is being written alone
    assert path.read_text() == "whole"
    assert len(list(tmp_path.glob(".*.tmp"))) == 1  # of the other file
    (left,) = tmp_path.glob(".*.tmp")
    elsewhere = left.with_name("-".join([left.name.split("-")[0], "0" * 8, "1-ab.tmp"]))
    left.rename(elsewhere)
    write_text(other, "whole")
    assert elsewhere.exists()  # another machine may be at it
    os.utime(elsewhere, (0, time.time() - 100_000))
    write_text(other, "again")
    assert not elsewhere.exists()


LATIN = os.fsdecode(b"K\xf6ln")


@pytest.mark.parametrize("which", ["data", "out", "work", "here"])
def test_folders_of_other_bytes_than_utf_8_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, which
):
    make_dataset(tmp_path / "data", "sub-01")
    (tmp_path / LATIN).mkdir()
    paths = {name: str(tmp_path / name) for name in ("data", "out", "work")}
    words = [paths["data"], paths["out"], "participant"]
    if which == "here":
        monkeypatch.chdir(tmp_path / LATIN)
    else:
        paths[which] = str(tmp_path / LATIN)
        words = [paths["data"], paths["out"], "participant", "--work-dir", paths["work"]]
    assert exit_code_of("bagau-bids", lambda stop: parse(words) and 0) == 2
    said = capsys.readouterr().err
    assert "K\\udcf6ln" in said
    assert "a name in this path is no UTF-8 text" in said
    assert "by a link of another name" in said


def test_files_of_other_bytes_beside_scans_do_no_harm(tmp_path):
    bids = make_dataset(tmp_path / "data", "sub-01")
    for name in (f"sub-01/anat/{LATIN}_FLAIR.nii.gz", f"sub-{LATIN}/anat/sub-x_FLAIR.nii.gz"):
        (bids / name).parent.mkdir(parents=True, exist_ok=True)
        (bids / name).touch()
    assert [scan.stem for scan in find_scans(bids, Selection())] == ["sub-01"]
    write_json(tmp_path / "names.json", {"name": LATIN})
    assert (tmp_path / "names.json").read_text() == '{\n  "name": "K\\udcf6ln"\n}\n'


def test_no_home_folder_is_needed(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(failure.Path, "home", no_home)
    monkeypatch.setenv("HOME", "")
    assert exit_code_of("bagau-bids", lambda stop: len(os.environ["HOME"])) == len("/nonexistent")


def test_a_user_without_home_and_name_may_look(tmp_path):
    make_dataset(tmp_path / "data", "sub-01")
    environment = {name: text for name, text in os.environ.items() if name != "HOME"}
    code = (
        "import pwd, sys\n"
        "def nobody(number):\n"
        "    raise KeyError(number)\n"
        "pwd.getpwuid = nobody\n"
        "from bagau_bids.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["data", "out", "participant", "--dry-run", "--offline", "--nprocs", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words, "--template", "ICBM152NLin2009aSym"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "sub-01  would be processed" in ended.stdout


LABELS = st.text("abcXYZ0189+", min_size=1, max_size=8)
KEYS = ("ses", "acq", "ce", "rec", "run", "echo", "part", "chunk")
ENTITIES = st.builds(
    lambda subject, others: {"sub": subject, **others},
    LABELS,
    st.dictionaries(st.sampled_from(KEYS), LABELS, max_size=5),
)


@given(ENTITIES)
def test_names_of_results_tell_their_scan_and_stay_in_the_output_folder(entities):
    for name in catalogue().files:
        path = derivative_path("/out", entities, name, template=TEMPLATE)
        found = {key: label for key, label in name_entities(path).items() if key in entities}
        assert found == entities
        assert Path("/out") in Path(os.path.normpath(path)).parents
        assert path.parts[2] == f"sub-{entities['sub']}"


@given(ENTITIES, ENTITIES)
def test_two_scans_never_share_a_result(first, second):
    same = first == second
    for name in catalogue().files:
        paths = {derivative_path("/out", one, name, template=TEMPLATE) for one in (first, second)}
        assert (len(paths) == 1) == same
