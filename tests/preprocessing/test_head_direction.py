"""A head is found to lie as it does, in whatever direction the header puts it."""

import numpy as np
import pytest
from synthetic_heads import affine, labels

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing import registration
from bagau_bids.preprocessing.head_direction import HeadDirection, head_direction, right_angles
from bagau_bids.spaces import Image

CODES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
BRIGHTNESS = {24: 30.0, 3: 60.0, 2: 100.0, 4: 15.0, 43: 15.0, 16: 90.0}


def template():
    found = labels()
    found[14:30, 8:16, 12:20] = np.where(found[14:30, 8:16, 12:20] > 0, 16, 0)  # a cerebellum
    image = np.zeros(found.shape, np.float32)
    for label, brightness in BRIGHTNESS.items():
        image[found == label] = brightness
    return Image(image, affine())


def turned(volume, turn):
    """The same head in a grid whose axes point elsewhere, by a header that does not know."""
    order = [int(np.abs(turn[axis]).argmax()) for axis in range(3)]
    data = np.transpose(volume.data, np.argsort(order))
    for axis, there in enumerate(np.argsort(order)):
        if turn[there, axis] < 0:
            data = np.flip(data, axis)
    return Image(np.ascontiguousarray(data), volume.affine)


def brain(volume):
    return volume.data > 0


def found_in(volume):
    original = template()
    mask = Image(brain(original).astype(np.float32), original.affine)
    return head_direction(volume, brain(volume), original, mask)


def test_there_are_24_directions():
    turns = right_angles()
    assert len({turn.tobytes() for turn in turns}) == 24
    np.testing.assert_array_equal(turns[0], np.eye(3))
    assert all(np.linalg.det(turn) == pytest.approx(1) for turn in turns)


def test_a_head_that_lies_as_the_header_says():
    assert found_in(template()).ratio < 0.95


@pytest.mark.parametrize("number", [3, 7, 12, 20])
def test_a_turned_head_is_found_and_its_axes_are_named(number):
    turn = right_angles()[number]
    found = found_in(turned(template(), turn))
    assert found.ratio > 1.1
    names = []
    for axis in range(3):
        there = int(np.abs(turn[:, axis]).argmax())
        names.append(CODES[there][int(turn[there, axis] > 0)])
    assert [found.right, found.anterior, found.superior] == names


def direction(ratio):
    return HeadDirection(ratio, "left", "anterior", "inferior")


def test_a_turned_head_is_refused_and_a_doubtful_one_is_not():
    registration._refuse_turned(direction(1.1))
    told = "calls right, anterior and superior looks like left, anterior and inferior of the head"
    with pytest.raises(ProcessingError, match=f"the header and the head disagree: .*{told}"):
        registration._refuse_turned(direction(1.5))
