"""The derivatives of one scan: what is made of the images of its steps."""

import hashlib

import numpy as np
import pytest

from bagau_bids.workflow.outputs import PutOut, eight_bits


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([0, 50, 100, 200], [0, 64, 128, 255]),  # of 200, which is the brightest
        ([-100, 0, 100, 100], [0, 128, 255, 255]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_images_to_look_at_keep_the_order_of_brightness(values, steps):
    found = eight_bits(np.repeat(values, 1000).reshape(4, 10, 100).astype(np.float32))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found[:, 0, 0], steps, atol=1)


def test_one_glaring_voxel_does_not_darken_the_rest():
    data = np.full((20, 20, 20), 100, np.float32)
    data[0, 0, 0] = 1e6
    assert eight_bits(data)[5, 5, 5] == 255


@pytest.fixture
def put_out(tmp_path):
    """A step whose two files are in the output folder already."""
    contents = {"a.txt": b"one", "sub-1/b.txt": b"two"}
    for folder in ("tree", "out"):
        for name, content in contents.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
    return PutOut(
        tree=tmp_path / "tree",
        files=list(contents),
        digests=[hashlib.sha256(content).hexdigest() for content in contents.values()],
        stale=["sub-1/old.txt"],
        output_dir=tmp_path / "out",
    )


def test_what_is_in_place_is_not_put_out_again(put_out):
    assert not put_out.always_run
    assert PutOut().always_run  # nobody has said yet what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out/a.txt", b"eno"),
        ("out/a.txt", None),
        ("out/sub-1/old.txt", b"of a run with other options"),
        ("tree/sub-1/b.txt", b"tw"),  # the step will say that the work folder is damaged
    ],
)
def test_what_differs_is_put_out(put_out, tmp_path, name, content):
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    assert put_out.always_run


def test_what_cannot_be_read_is_left_to_the_step(put_out, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr("bagau_bids.workflow.outputs.file_digest", refuse)
    assert put_out.always_run
