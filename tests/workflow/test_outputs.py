"""The derivatives of one scan: what is made of the images of its steps."""

import numpy as np
import pytest

from bagau_bids.workflow.outputs import eight_bits


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
