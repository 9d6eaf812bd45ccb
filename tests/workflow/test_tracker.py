"""Why a step failed: in its own words, or in those of its crash file."""

import pytest

from bagau_bids.files import write_json
from bagau_bids.workflow.step import FAILURE_FILE, StepFailure
from bagau_bids.workflow.tracker import _reason, _Trouble

CRASH = "Node: a.b\nTraceback\nValueError: odd\n\n"


@pytest.fixture
def trouble(tmp_path):
    return _Trouble("conform", "a.b", tmp_path, tmp_path)


def test_step_that_explains_itself_is_cited(trouble, tmp_path):
    write_json(tmp_path / FAILURE_FILE, StepFailure(explained=True, message="look here"))
    assert _reason(trouble, CRASH, None) == "look here"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"explained": false, "message": "KeyError: 3"}', "KeyError: 3"),
        (None, "ValueError: odd"),
        ('{"explained": tr', "ValueError: odd"),
        ('{"explained": true}', "ValueError: odd"),
        ('{"explained": "yes", "message": "look here"}', "ValueError: odd"),
    ],
)
def test_what_is_not_explained_is_unexpected(trouble, tmp_path, content, words):
    if content is not None:
        (tmp_path / FAILURE_FILE).write_text(content)
    found = _reason(trouble, CRASH, tmp_path / "crash.txt")
    assert found.startswith(
        f"step conform failed unexpectedly: {words}; details are in {tmp_path}"
    )


def test_crash_without_a_word_has_no_reason(trouble):
    assert "unexpectedly: no reason was given" in _reason(trouble, " \n", None)
