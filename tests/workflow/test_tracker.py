"""What is told of scans and their failures, from what nipype says of nodes and leaves behind."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from workflow_fakes import Listener

from bagau_bids.bids.scans import Scan
from bagau_bids.files import write_json
from bagau_bids.workflow import tracker
from bagau_bids.workflow.step import FAILURE_FILE, StepFailure
from bagau_bids.workflow.tracker import _reason, _Trouble

CRASH = "Node: a.b\nTraceback\nValueError: odd\n\n"
WRITTEN = "Node: top.sub_01_wf.{step}\nTraceback:\n  line 3\nRuntimeError: the last line\n\n"


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


@pytest.fixture
def told(tmp_path):
    """A tracker of one scan, what it told, and nodes of the scan's workflow."""
    scan, listener = Scan(Path("sub-01_FLAIR.nii.gz"), {"sub": "01"}), Listener()
    made = tracker.Tracker(listener)
    made.watch({scan: SimpleNamespace(name="sub_01_wf")})
    crashes = tmp_path / "sub-01" / "log"
    crashes.mkdir(parents=True)

    def node(step, ends_scan=False):
        folder = tmp_path / "work" / step
        folder.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(
            name=step,
            fullname=f"top.sub_01_wf.{step}",
            output_dir=lambda: folder,
            config={"execution": {"crashdump_dir": str(crashes)}},
            interface=SimpleNamespace(ends_scan=ends_scan),
        )

    return SimpleNamespace(
        scan=scan, listener=listener, tracker=made, node=node, crashes=crashes, root=tmp_path
    )


def crash_file(told, step, day="20260101", words=WRITTEN):
    path = told.crashes / f"crash-{day}-000000-root-{step}-abc.txt"
    path.write_text(words.format(step=step))
    return path


def failed(told, step="conform"):
    """Let a step of the scan raise; return what is said of it in the end."""
    told.tracker.status(told.node(step), "start")
    told.tracker.status(told.node(step), "exception")
    told.tracker.settle([told.scan])
    return told.tracker.result(told.scan)


def test_a_step_is_timed_and_one_whose_result_was_there_takes_no_time(told, monkeypatch):
    monkeypatch.setattr(tracker.time, "monotonic", iter([10.0, 12.5]).__next__)
    told.tracker.status(told.node("conform"), "start")
    told.tracker.status(told.node("conform"), "end")
    told.tracker.status(told.node("put_out", ends_scan=True), "end")
    stem = told.scan.stem
    assert told.listener.finished == {(stem, "conform"): 2.5, (stem, "put_out"): 0}
    assert told.listener.done == [stem]
    assert told.tracker.result(told.scan).ok
    assert not told.tracker.saw_exception


def test_a_failure_is_told_by_the_newest_crash_file_of_its_node(told):
    crash_file(told, "conform", "20250101", "Node: top.sub_01_wf.conform\nan older one")
    crash_file(told, "conform", "20270101", "Node: top.sub_02_wf.conform\nof another scan")
    path = crash_file(told, "conform")
    result = failed(told)
    assert "unexpectedly: RuntimeError: the last line; details are in" in result.reason
    assert result.crash_file == path


def test_a_scan_that_was_not_reached_says_so(told):
    result = told.tracker.result(told.scan)
    assert (result.ok, result.reason) == (
        False,
        "not processed: the run stopped at another scan's failure",
    )


@pytest.mark.parametrize("others", [True, False])
def test_a_step_that_was_asked_to_stop_leaves_no_crash_file(told, others):
    def stop():
        raise KeyboardInterrupt

    told.tracker.raise_signal = stop
    path = crash_file(told, "conform")
    other = crash_file(told, "t1w") if others else None
    with pytest.raises(KeyboardInterrupt):
        told.tracker.status(told.node("conform"), "exception")
    assert not path.exists()
    assert told.crashes.parent.exists() == others
    assert other is None or other.exists()
    assert not told.tracker.saw_exception


def test_without_a_crash_file_its_folder_goes_all_the_same(told):
    told.tracker.raise_signal = lambda: (_ for _ in ()).throw(SystemExit(3))
    with pytest.raises(SystemExit):
        told.tracker.status(told.node("conform"), "exception")
    assert not told.crashes.exists()


def test_a_killed_worker_is_told_apart_and_taken_once(told):
    crash_file(told, "conform", words=WRITTEN + tracker.KILLED)
    told.tracker.status(told.node("conform"), "exception")
    told.tracker.settle([told.scan])
    assert told.tracker.saw_exception
    assert not told.tracker.failed
    assert told.tracker.take_killed() == [told.scan]
    assert told.tracker.take_killed() == []
