"""The stand-ins of the slow steps: another argument, whichever, gives another result."""

import inspect
import pickle
from dataclasses import replace

import numpy as np
import pytest
import stand_ins
from network_spy import loaded
from workflow_fakes import AFFINE, SHAPE, head, make_template, write_flair

from bagau_bids.network.cards import Card
from bagau_bids.network.slices import network_input
from bagau_bids.spaces import Image

MASK = np.zeros(SHAPE, bool)
MASK[4:-4, 4:-4, 3:-3] = True
OTHER_MASK = np.roll(MASK, 1, axis=0)
OTHER_AFFINE = AFFINE + np.outer([30, 20, 10, 0], [0, 0, 0, 1])


@pytest.fixture
def values(tmp_path):
    """Two values of each argument, by its name."""
    template = make_template(tmp_path / "store")
    other_t1w = write_flair(tmp_path, "sub-02", 2 * head(4))
    return {
        "flair": (Image(head(), AFFINE), Image(np.roll(head(), 1, axis=0), AFFINE)),
        "mask": (MASK, OTHER_MASK),
        "brain_mask": (MASK, OTHER_MASK),
        "excluded": (None, OTHER_MASK),
        "template": (template, replace(template, t1w=other_t1w)),
        "card": (None, Card(architecture="unet", sha256="", config={})),
        "path": (write_flair(tmp_path, "sub-01"), other_t1w),
        "method": ("paper", "robust"),
        "seed": (0, 1),
        "threads": (1, 2),
        "helpers": (1, 2),
        "networks": ([loaded(None)], [loaded(None, threshold=0.4)]),
        "inputs": tuple(
            network_input(Image(head(n), AFFINE), MASK, MASK * np.float32(0.8)) for n in (0, 1)
        ),
        "device": ("cpu", "cuda:0"),
        "batch_size": (1, 2),
        "tta": (False, True),
    }


@pytest.mark.parametrize(
    "name",
    [
        "brain_mask",
        "correct_bias_field",
        "register_template",
        "t1w_on_flair",
        "load_weights",
        "segment",
    ],
)
def test_a_stand_in_depends_on_every_argument(name, values):
    function = getattr(stand_ins, name)
    usual = {argument: values[argument][0] for argument in inspect.signature(function).parameters}
    result = pickle.dumps(function(**usual))
    assert pickle.dumps(function(**usual)) == result
    others = [(argument, values[argument][1]) for argument in usual]
    if "flair" in usual:
        others.append(("flair", Image(head(), OTHER_AFFINE)))
    for argument, value in others:
        other = function(**{**usual, argument: value})
        assert pickle.dumps(other) != result, argument
