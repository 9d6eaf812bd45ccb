"""States on disk, and what a training that goes on is compared by."""

from pathlib import Path

import pytest
import torch

from bagau_bids.errors import UsageError
from bagau_bids.training.checkpoint import (
    CHECKPOINT,
    load_state,
    refuse_changes,
    refuse_overwriting,
    save_state,
)


def test_state_comes_back_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / CHECKPOINT
    state = {"step": 3, "sizes": ((1, 2), (3, 4)), "model": {"weight": torch.arange(3.0)}}
    save_state(path, state)
    found = load_state(path, torch.device("cpu"))
    assert (found["step"], found["sizes"]) == (3, ((1, 2), (3, 4)))
    assert torch.equal(found["model"]["weight"], torch.arange(3.0))
    assert [one.name for one in path.parent.iterdir()] == [CHECKPOINT]


def test_folder_with_a_checkpoint_is_not_for_a_new_training(tmp_path):
    refuse_overwriting(tmp_path)
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(UsageError, match="checkpoint.pt: the folder holds a training; go on with"):
        refuse_overwriting(tmp_path)


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (1, 2, "a: 1 not 2"),
        (None, "x", "a: None not x"),
        (["p", "q"], ["q", "r", "s"], "a: p not r s"),
        (["p", "q"], ["p"], "a: q not none"),
        (["p"], None, "a: .'p'. not None"),
        (["p", "q"], ["q", "p"], "a: in another order"),
    ],
)
def test_changes_are_named(then, now, message):
    with pytest.raises(UsageError, match=rf"x.pt: made with other data \({message}\); resume"):
        refuse_changes(Path("x.pt"), "data", {"a": then, "b": 0}, {"a": now, "b": 0})


def test_what_is_the_same_or_free_passes():
    refuse_changes(Path("x.pt"), "settings", {"a": 1, "b": 0}, {"a": 2, "b": 0}, free=("a",))
