"""Digests of the package's own source."""

import inspect
from pathlib import Path

import pytest

import bagau_bids
from bagau_bids.datasets.labelled import prepare_scan
from bagau_bids.evaluation.scoring import read_reference_mask
from bagau_bids.network.brain_unet import BrainUNet
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing.code import ENGINE_CODE, INPUT_CODE, code_digest
from bagau_bids.preprocessing.registration import register_template
from bagau_bids.synthesis.engine import synthesise
from bagau_bids.synthesis.heads import scan_shard
from bagau_bids.synthesis.pool import target_slices, training_shard


def test_every_room_named_is_there():
    rooms = {*ENGINE_CODE, *INPUT_CODE}
    assert [room for room in rooms if code_digest((room,)) == code_digest(())] == []


def test_digest_follows_names_and_contents(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    (tmp_path / "spaces.py").write_text("a = 1")
    first_file = tmp_path / "room" / "one.py"
    first_file.write_text("b = 1")
    monkeypatch.setattr(bagau_bids, "__file__", str(tmp_path / "__init__.py"))
    rooms = ("room", "spaces.py")
    seen = [code_digest(rooms), code_digest(rooms)]
    assert seen[0] == seen[1]
    first_file.write_text("b = 2")
    seen.append(code_digest(rooms))
    first_file.rename(tmp_path / "room" / "two.py")
    seen.append(code_digest(rooms))
    (tmp_path / "room" / "notes.txt").write_text("not code")
    assert code_digest(rooms) == seen[-1]
    assert len(set(seen)) == 3


def test_every_file_of_a_data_folder_counts(tmp_path, monkeypatch):
    (tmp_path / "data" / "registration").mkdir(parents=True)
    parameters = tmp_path / "data" / "registration" / "rigid.txt"
    parameters.write_text("(NumberOfResolutions 3)")
    monkeypatch.setattr(bagau_bids, "__file__", str(tmp_path / "__init__.py"))
    before = code_digest(("data/registration",))
    parameters.write_text("(NumberOfResolutions 4)")
    assert code_digest(("data/registration",)) != before


@pytest.mark.parametrize(
    ("rooms", "function"),
    [
        (INPUT_CODE, network_input),
        (INPUT_CODE, register_template),
        (INPUT_CODE, prepare_scan),
        (INPUT_CODE, read_reference_mask),
        (INPUT_CODE, BrainUNet),
        (ENGINE_CODE, network_input),
        (ENGINE_CODE, register_template),
        (ENGINE_CODE, synthesise),
        (ENGINE_CODE, scan_shard),
        (ENGINE_CODE, training_shard),
        (ENGINE_CODE, target_slices),
    ],
)
def test_what_changes_kept_content_is_named(rooms, function):
    package = Path(bagau_bids.__file__).parent
    module = Path(inspect.getfile(function)).relative_to(package)
    assert any(module.is_relative_to(room) for room in rooms)
