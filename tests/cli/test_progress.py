"""Progress: plain lines where there is no terminal, a display where there is one, time left."""

import io

import pytest
from rich.console import Console

from bagau_bids.cli.progress import Progress, TimeLeft, duration


def plain_run(n_scans=2):
    console = Console(file=io.StringIO(), width=40)
    return Progress(n_scans, ("brain_mask", "segment"), console), console.file


def test_plain_lines():
    progress, file = plain_run()
    with progress:
        progress.scan_started("sub-01")
        progress.step_started("sub-01", "brain_mask")
        progress.step_finished("sub-01", "brain_mask", 3.0)
        progress.step_finished("sub-01", "segment", 70.0)
        progress.scan_finished("sub-01")
        progress.step_started("sub-02", "brain_mask")
        progress.scan_failed("sub-02", "an image without any contrast [/data/x.nii.gz]")
    lines = file.getvalue().splitlines()
    assert lines[0] == "[0/2] sub-01: started"
    assert lines[1] == "[0/2] sub-01: brain mask done in 3.0 s (step 1/2)"
    assert lines[2] == "[0/2] sub-01: segment done in 1 min 10 s (step 2/2)"
    assert lines[3].startswith("[1/2] sub-01: done; about ")
    assert lines[4] == "[1/2] sub-02: started"
    assert lines[5] == "[2/2] sub-02: FAILED: an image without any contrast [/data/x.nii.gz]"
    assert len(lines) == 6


def test_that_work_begins_is_told_once_and_not_of_earlier_results():
    told = []
    console = Console(file=io.StringIO())
    progress = Progress(2, ("a", "b"), console, begun=lambda: told.append("begun"))
    progress.step_finished("sub-01", "a", 0.0)
    assert told == []
    progress.step_started("sub-01", "b")
    progress.step_started("sub-02", "a")
    assert told == ["begun"]


def test_terminal_shows_scan_step_and_count():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = Progress(3, ("brain_mask", "segment"), console)
    with progress:
        progress.step_started("sub-01", "brain_mask")
        progress._live.refresh()
        progress.step_finished("sub-01", "brain_mask", 2.0)
        progress.step_started("sub-01", "segment")
        progress._live.refresh()
        progress.scan_failed("sub-02", "why")
        progress._live.refresh()
    text = console.file.getvalue()
    assert "0/3 scans" in text
    assert "sub-01" in text
    assert "sub-01  0 %" in text
    assert "sub-01  50 %" in text
    assert "brain mask 0.0 s" in text
    assert "segment 0.0 s" in text
    assert "1/3 scans, 1 failed" in text
    assert "[1/3] sub-02: FAILED: why" in text
    assert "mask done" not in text


def test_nothing_is_known_at_first():
    assert TimeLeft(3, ("a", "b")).left_s(10.0) is None


def test_time_left_weighs_steps_by_their_duration():
    estimate = TimeLeft(2, ("short", "long"))
    estimate.step_done("short", 10.0)
    estimate.step_done("long", 90.0)
    assert estimate.left_s(100.0) == pytest.approx(100.0)
    estimate.step_done("short", 10.0)
    assert estimate.left_s(110.0) == pytest.approx(90.0)
    estimate.step_done("long", 90.0)
    assert estimate.left_s(200.0) == 0.0


def test_time_left_is_wall_time_of_scans_in_parallel():
    estimate = TimeLeft(4, ("only",))
    for _ in range(2):
        estimate.step_done("only", 60.0)
    assert estimate.left_s(60.0) == pytest.approx(60.0)


def test_steps_of_an_earlier_run_do_not_count():
    progress, file = plain_run(3)
    progress.step_finished("sub-01", "brain_mask", 0.0)
    assert "[0/3] sub-01: brain mask done in an earlier run (step 1/2)" in file.getvalue()
    estimate = TimeLeft(3, ("only",))
    estimate.step_done("only", 0.0)
    assert estimate.left_s(1.0) is None
    estimate.step_done("only", 30.0)
    assert estimate.left_s(31.0) == pytest.approx(31.0)


def test_failed_scan_leaves_nothing_to_wait_for():
    estimate = TimeLeft(2, ("a", "b"))
    for step in ("a", "b", "a"):
        estimate.step_done(step, 10.0)
    estimate.scan_failed({"a"})
    assert estimate.left_s(30.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
