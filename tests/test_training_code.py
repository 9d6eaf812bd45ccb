"""Digests of the package's own source."""

import bagau_bids
from bagau_bids.training.code import ENGINE_CODE, INPUT_CODE, code_digest


def test_every_room_named_is_there():
    assert [room for room in ENGINE_CODE if code_digest((room,)) == code_digest(())] == []


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


def test_the_engine_includes_the_way_to_the_networks_input():
    assert set(INPUT_CODE) <= set(ENGINE_CODE)
