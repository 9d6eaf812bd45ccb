"""Files that are never seen half-written, read into types, and locked."""

import json
import os
import threading
import time
import zipfile
from contextlib import suppress

import msgspec
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bagau_bids import files
from bagau_bids.errors import InputImageError, MissingResourceError, UsageError
from bagau_bids.files import (
    claim_origin,
    copy_file,
    one_at_a_time,
    place_file,
    read_arrays,
    read_json,
    read_shipped,
    replacing,
    together,
    write_bytes,
    write_json,
    write_table,
    write_text,
)


class Pack(msgspec.Struct):
    format: int
    names: tuple[str, ...] = ()


def test_json_is_read_into_a_type_and_written_from_it(tmp_path):
    path = tmp_path / "pack.json"
    write_json(path, Pack(3, ("a", "b")))
    assert read_json(path, Pack, "pack again") == Pack(3, ("a", "b"))
    assert json.loads(path.read_text()) == {"format": 3, "names": ["a", "b"]}
    assert read_json(path, dict, "pack again")["format"] == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"format": 3', "Input data was truncated"),
        (b'{"format": nonsense}', "JSON is malformed"),
        (b'{"format": 3, "names": ["\xff"]}', "can't decode byte 0xff"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"names": []}', "missing required field `format`"),
        (b'{"format": "3"}', r"Expected `int`, got `str` - at `\$.format`"),
        (b'{"format": 3, "names": ["a", 4]}', r"got `int` - at `\$.names\[1\]`"),
        (None, "cannot be read \\(No such file or directory\\)"),
    ],
)
@pytest.mark.parametrize("kind", [UsageError, InputImageError])
def test_json_that_is_damaged_or_another_names_file_and_field(tmp_path, content, said, kind):
    path = tmp_path / "pack.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=rf"pack\.json: .*{said}.*; pack it again$"):
        read_json(path, Pack, "pack it again", kind)


def broken_in_the_middle(path):
    """Flip one bit of the first array's bytes."""
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": (lambda path: path.unlink(), "No such file or directory"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "File is not a zip file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a zip file"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "not a zip file"),
    "another": (broken_in_the_middle, "Bad CRC-32 for file 'flair.npy'"),
    "no array": (
        lambda path: zipfile.ZipFile(path, "w").writestr("flair.npy", b"text of another kind"),
        "the magic string is not correct",
    ),
    "objects": (lambda path: np.savez(path, flair=np.array([{}])), "Object arrays cannot be"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_arrays_that_are_damaged_are_named_with_a_way_out(tmp_path, damage):
    path = tmp_path / "scan.npz"
    np.savez(path, flair=np.arange(200, dtype=np.uint8), names=np.array(["a", "b"]))
    read = read_arrays(path, ("names",), "make it again")
    assert read["flair"].tolist() == list(range(200))
    assert read["names"].tolist() == ["a", "b"]
    change, said = DAMAGES[damage]
    change(path)
    with pytest.raises(
        UsageError, match=rf"scan\.npz: cannot be read \(.*{said}.*\), make it again$"
    ):
        read_arrays(path, ("names",), "make it again")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_in_arrays_is_an_error_or_changes_nothing(tmp_path, save):
    path = tmp_path / "scan.npz"
    given = {"flair": np.arange(40, dtype=np.uint8), "size": np.array(3.5)}
    save(path, **given)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        with suppress(UsageError):
            read = read_arrays(path, tuple(given), "make it again")
            assert all(np.array_equal(read[name], array) for name, array in given.items())


def test_array_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    np.savez(tmp_path / "scan.npz", flair=np.ones(2), atlas=np.ones(2))
    said = r"found no target, plane in its arrays \(flair, atlas\), make it again$"
    with pytest.raises(UsageError, match=rf"scan\.npz: {said}"):
        read_arrays(tmp_path / "scan.npz", ("flair", "target", "plane"), "make it again")
    np.savez(tmp_path / "scan.npz")
    with pytest.raises(UsageError, match=r"found no flair in its arrays \(none\), make it"):
        read_arrays(tmp_path / "scan.npz", ("flair",), "make it again")


def test_shipped_file_that_is_missing_asks_for_another_installation():
    assert read_shipped("quality_limits.json", dict)
    with pytest.raises(MissingResourceError, match="absent.json: .* install bagau-bids again"):
        read_shipped("absent.json", dict)


def test_temporary_name_of_an_image_tells_the_format(tmp_path):
    image = nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4))
    with replacing(tmp_path / "a.nii.gz") as temporary:
        image.to_filename(temporary)
    assert nib.load(tmp_path / "a.nii.gz").shape == (2, 3, 4)
    assert [item.name for item in tmp_path.iterdir()] == ["a.nii.gz"]


def test_temporary_names_differ_and_fit_however_long_the_name_is(tmp_path):
    path = tmp_path / ("a" * 255)
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert [item.read_text() for item in tmp_path.iterdir()] == ["1"]


def test_only_what_changed_is_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    assert write_text(path, "one")
    stamp = path.stat().st_mtime_ns
    assert not write_text(path, "one")
    assert path.stat().st_mtime_ns == stamp
    assert write_text(path, "two")
    assert path.read_text() == "two"


def test_copy_only_what_differs(tmp_path):
    source, copy = tmp_path / "a", tmp_path / "b" / "c"
    source.write_bytes(b"x" * (files.READ_SIZE_BYTES + 3))
    assert copy_file(source, copy)
    assert not copy_file(source, copy)
    changed = bytearray(source.read_bytes())
    changed[-1] = 0
    source.write_bytes(bytes(changed))
    assert copy_file(source, copy)
    assert copy.read_bytes() == bytes(changed)


@pytest.mark.parametrize("how", ["hard", "symlink", "copy"])
def test_file_is_placed_once_and_anew_when_it_is_another(tmp_path, how):
    source, path = tmp_path / "a", tmp_path / "b" / "c"
    source.write_text("one")
    (tmp_path / "link").symlink_to(source)
    assert place_file(tmp_path / "link", path, how)
    assert not place_file(source, path, how)
    assert path.read_text() == "one"
    assert path.is_symlink() == (how == "symlink")
    assert path.samefile(source) == (how != "copy")
    (tmp_path / "other").write_text("two")
    assert place_file(tmp_path / "other", path, how)
    assert path.read_text() == "two"
    assert source.read_text() == "one"
    assert [item.name for item in path.parent.iterdir()] == ["c"]


def test_symbolic_link_survives_moving_both_folders(tmp_path):
    source, path = tmp_path / "all" / "data" / "a", tmp_path / "all" / "bids" / "sub" / "b"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    place_file(source, path, "symlink")
    (tmp_path / "all").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "bids" / "sub" / "b").read_text() == "one"


def test_folder_is_claimed_for_one_origin(tmp_path):
    path = tmp_path / "new" / "origin.json"
    claim_origin(path, {"seed": 1, "maps": ["a"]})
    claim_origin(path, {"maps": ["a"], "seed": 1})
    with pytest.raises(UsageError, match="origin.json: .* made with another maps, seed, expected"):
        claim_origin(path, {"seed": 2})


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full_disk(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_json_writes_numpy_and_has_no_nan(tmp_path):
    write_json(
        tmp_path / "a.json",
        {
            "array": np.arange(3),
            "number": np.float32(0.5),
            "nan": float("nan"),
            "path": tmp_path,
            "tuple": (1, np.inf),
            "text": "Ähnlich",
        },
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Ähnlich" in text
    assert json.loads(text) == {
        "array": [0, 1, 2],
        "number": 0.5,
        "nan": None,
        "path": tmp_path.as_posix(),
        "tuple": [1, None],
        "text": "Ähnlich",
    }


def test_table_is_a_bids_table(tmp_path):
    table = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None], "c": [1, 2]})
    write_table(tmp_path / "a.tsv", table)
    assert (tmp_path / "a.tsv").read_bytes() == b"a\tb\tc\n1\tx\t1\nn/a\tn/a\t2\n"


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "shared.json"
    contents = [bytes([65 + number]) * 50_000 for number in range(6)]
    seen = set()

    def write(content):
        for _ in range(20):
            write_bytes(path, content)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert [item.name for item in tmp_path.iterdir()] == ["shared.json"]


def answer_of_another_process(path, patience_s):
    """Ask a process of its own whether it is let in, by its exit code."""
    if (child := os.fork()) == 0:
        with one_at_a_time(path, patience_s) as alone:
            os._exit(0 if alone else 1)
    return os.waitpid(child, 0)[1] == 0


def test_lock_keeps_others_out_also_when_a_child_has_ended(tmp_path):
    path = tmp_path / "new" / "lock"
    with one_at_a_time(path) as alone:
        assert alone
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert not answer_of_another_process(path, 0.1)
    assert answer_of_another_process(path, 0)


def test_lock_waits_for_all_who_hold_it_together(tmp_path):
    path = tmp_path / "lock"
    with together(path):
        assert not path.exists()
    path.touch()
    with together(path), together(path):
        assert not answer_of_another_process(path, 0)
    begun = time.monotonic()
    with together(path), one_at_a_time(path, 0.3) as alone:
        assert not alone
    assert time.monotonic() - begun >= 0.3


def test_lock_of_a_process_that_was_killed_is_free(tmp_path):
    path = tmp_path / "lock"
    ready, tell = os.pipe()
    if (child := os.fork()) == 0:
        with one_at_a_time(path):
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(1)
    os.read(ready, 1)
    assert not answer_of_another_process(path, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert answer_of_another_process(path, 0)


@pytest.mark.parametrize("lock", [one_at_a_time, together])
def test_nobody_waits_on_a_file_system_without_locks(tmp_path, monkeypatch, lock):
    def unsupported(fd, operation):
        raise OSError(95, "Operation not supported")

    (tmp_path / "lock").touch()
    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock(tmp_path / "lock") as alone:
        assert alone is not False


def test_lock_in_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError), one_at_a_time(tmp_path / "lock"):
        pass
