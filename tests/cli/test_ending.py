"""How commands end: exit codes, messages, signals, the log, the summary, and the toolbox."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from table_checks import undescribed

from bagau_bids.cli import app, toolbox
from bagau_bids.cli.failure import StopRequest, UnexpectedError, exit_code_of
from bagau_bids.cli.progress import Progress
from bagau_bids.cli.runlog import console_level, run_log
from bagau_bids.cli.summary import DONE, FAILED, NO_FLAIR, Row, summary_text, write_summary
from bagau_bids.config import Config, Execution
from bagau_bids.errors import (
    BagauError,
    InputImageError,
    MissingResourceError,
    ProcessingError,
    UsageError,
)
from bagau_bids.options import option


def raising(error: BaseException):
    def action(stop: StopRequest) -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("what to do"), 2),
        (InputImageError("what to do"), 1),
        (ProcessingError("what to do"), 1),
        (MissingResourceError("what to do"), 127),
        (BagauError("what to do"), 70),
    ],
)
def test_errors_on_purpose_end_in_their_code_and_message(capsys, error, code):
    assert exit_code_of("prog", raising(error)) == code
    assert capsys.readouterr().err == "prog: what to do\n"


@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(2), 2), (SystemExit(None), 0), (SystemExit("text"), 2)]
)
def test_system_exit_is_a_code(error, code):
    assert exit_code_of("prog", raising(error)) == code


def test_a_result_is_the_code():
    assert exit_code_of("prog", lambda stop: 1) == 1


def test_interrupt_says_how_to_go_on(capsys):
    assert exit_code_of("prog", raising(KeyboardInterrupt())) == 130
    assert "prog: interrupted; what is finished is kept" in capsys.readouterr().err


def test_output_that_nobody_reads_is_no_fault_of_the_program():
    code = (
        "import sys\n"
        "from bagau_bids.cli.failure import exit_code_of\n"
        "def action(stop):\n"
        "    sys.stdin.readline()\n"
        "    print('told', flush=True)\n"
        "    return 0\n"
        "sys.exit(exit_code_of('prog', action))\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said.startswith("prog: nobody reads the output any more; what is finished is kept")
    assert len(said.splitlines()) == 1


def test_sigterm_ends_cleanly(capsys):
    closed = []

    def action(stop: StopRequest) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            closed.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code_of("prog", action) == 143
    assert closed == [True]
    assert "asked to end" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_whose_exception_was_swallowed_stops_at_the_next_event(number, code):
    done = []

    def action(stop: StopRequest) -> int:
        progress = Progress(2, ("step",), Console(file=io.StringIO()), stop.check)
        progress.step_started("sub-01", "step")
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            signal.pause()
        done.append("sub-01")
        progress.step_started("sub-02", "step")
        return 0

    assert exit_code_of("prog", action) == code
    assert done == ["sub-01"]


def test_works_outside_the_main_thread():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(exit_code_of("prog", lambda stop: 0)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_fault_of_ours_is_one_line_that_names_the_traceback(capsys):
    assert exit_code_of("prog", raising(KeyError("lost"))) == 70
    text = capsys.readouterr().err
    assert text.startswith("prog: unexpected KeyError: 'lost'. This is a fault of the program")
    assert text.count("\n") == 1
    path = Path(text.split()[-1])
    assert "Traceback" in path.read_text()
    path.unlink()


def test_a_place_that_is_closed_to_us_is_no_fault_of_ours(capsys):
    error = PermissionError(13, "Permission denied", "/closed/out.tsv")
    assert exit_code_of("prog", raising(error)) == 70
    text = capsys.readouterr().err
    assert text.startswith("prog: /closed/out.tsv: Permission denied; expected a place that may")
    assert "fault of the program" not in text


@pytest.fixture
def config(tmp_path):
    return Config(tmp_path / "bids", tmp_path / "out", ("participant",), "20260102-030405_uuid")


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "terminal").open("w") as file:
        yield Console(file=file, width=200)


def shown(tmp_path: Path) -> str:
    return (tmp_path / "terminal").read_text()


def test_log_and_frozen_configuration_lie_in_the_output(config, console, tmp_path):
    with run_log(config, console) as path:
        logging.getLogger("bagau_bids.x").info("step by step")
        logging.getLogger("nipype.workflow").info("from a library")
    assert path == tmp_path / "out" / "logs" / "20260102-030405_uuid" / "bagau-bids.log"
    text = path.read_text()
    assert "bagau-bids 0." in text
    assert "nipype 1." in text
    assert "bagau_bids.x: step by step" in text
    assert "nipype.workflow: from a library" in text
    saved = tomllib.loads((path.parent / "bagau.toml").read_text())
    assert saved["run_uuid"] == config.run_uuid
    assert saved["processing"]["threshold"] == 0.5


def test_logging_is_as_before_afterwards(config, console):
    root, nipype = logging.getLogger(), logging.getLogger("nipype")
    before = root.level, list(root.handlers), list(nipype.handlers)
    with run_log(config, console):
        pass
    assert (root.level, root.handlers, nipype.handlers) == before


@pytest.mark.parametrize(
    ("verbose", "expected"),
    [
        (0, {"warning: ours"}),
        (1, {"warning: ours", "warning: theirs", "info: ours"}),
        (2, {"warning: ours", "warning: theirs", "info: ours", "info: theirs"}),
        (
            3,
            {"warning: ours", "warning: theirs", "info: ours", "info: theirs", "debug: ours"}
            | {"debug: theirs"},
        ),
    ],
)
def test_verbosity(tmp_path, console, verbose, expected):
    config = Config(tmp_path, tmp_path, ("group",), "u", execution=Execution(verbose=verbose))
    with run_log(config, console):
        for name, text in (("bagau_bids.a", "ours"), ("other", "theirs")):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, text)
    lines = set(shown(tmp_path).splitlines())
    assert {line for line in lines if line.endswith(("ours", "theirs"))} == expected


def test_console_levels_are_those_of_fmriprep():
    assert [console_level(n) for n in range(5)] == [25, 20, 15, 10, 10]


def test_fault_of_ours_leaves_its_traceback_in_the_log_only(config, console, tmp_path):
    match = "unexpected ValueError: odd"
    with pytest.raises(UnexpectedError, match=match) as error, run_log(config, console) as path:
        raise ValueError("odd")
    assert str(path) in str(error.value)
    assert "Traceback" in path.read_text()
    assert "Traceback" not in shown(tmp_path)
    assert error.value.exit_code == 70


@pytest.mark.parametrize("error", [UsageError("a reason"), KeyboardInterrupt()])
def test_other_ends_are_logged_and_pass_through(config, console, error):
    with pytest.raises(type(error)), run_log(config, console) as path:
        raise error
    text = path.read_text()
    assert "a reason" in text or "stopped by KeyboardInterrupt" in text


def test_output_folder_that_cannot_be_written(tmp_path, console):
    (tmp_path / "file").write_text("")
    config = Config(tmp_path, tmp_path / "file" / "out", ("participant",), "u")
    match = "file/out cannot be written.*choose another"
    with pytest.raises(UsageError, match=match), run_log(config, console):
        pass


ROWS = (
    Row("sub-02", FAILED, "first line\nsecond line"),
    Row("sub-01_ses-1", DONE, found="WMH 1.20 ml"),
    Row("sub-03", NO_FLAIR, "no FLAIR; its folder has sub-03_T1w.nii.gz"),
)


def test_summary_counts_and_names_what_is_not_done_last():
    assert summary_text(ROWS, Path("/out/log")).splitlines() == [
        "Summary: 1 done, 1 no FLAIR, 1 failed",
        "  sub-01_ses-1  done      WMH 1.20 ml",
        "  sub-03        no FLAIR  no FLAIR; its folder has sub-03_T1w.nii.gz",
        "  sub-02        failed    first line second line",
        "Log: /out/log",
    ]


def test_pages_are_named_at_the_end_but_not_hundreds():
    pages = [Path(f"/out/sub-{number}.html") for number in range(1, 6)]
    assert summary_text(ROWS, Path("/log"), pages).splitlines()[-5:] == [
        "Page: /out/sub-1.html",
        "Page: /out/sub-2.html",
        "Page: /out/sub-3.html",
        "and 2 more pages in that folder",
        "Log: /log",
    ]


def test_summary_table(tmp_path):
    write_summary(ROWS, tmp_path / "summary.tsv")
    assert undescribed(tmp_path) == []
    assert (tmp_path / "summary.tsv").read_text().splitlines() == [
        "scan\tstatus\treason",
        "sub-02\tfailed\tfirst line second line",
        "sub-01_ses-1\tdone\tn/a",
        "sub-03\tno FLAIR\tno FLAIR; its folder has sub-03_T1w.nii.gz",
    ]


@pytest.mark.parametrize("name", toolbox.SUBCOMMANDS)
def test_every_subcommand_has_help_without_heavy_imports(name):
    code = (
        "import sys\n"
        "from bagau_bids.cli.toolbox import main\n"
        f"code = main(['{name}', '--help'])\n"
        "print([name for name in ('torch', 'itk', 'ants', 'nipype') if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: bagau {name}")
    assert ended.stdout.endswith("[]\n")


def test_subcommand_is_run_with_its_arguments(monkeypatch):
    module = ModuleType("fake")
    module.Options = make_dataclass(
        "Options", [("number", int, option(0, "a number"))], frozen=True
    )
    module.run = lambda options: options.number
    monkeypatch.setattr(toolbox, "load_subcommand", lambda name: module)
    assert toolbox.main(["models", "--number", "1"]) == 1


def test_subcommand_errors_end_like_those_of_the_app(monkeypatch, capsys):
    module = ModuleType("fake")
    module.Options = make_dataclass("Options", [], frozen=True)
    module.run = lambda args: raising(MissingResourceError("fetch it"))(StopRequest())
    monkeypatch.setattr(toolbox, "load_subcommand", lambda name: module)
    assert toolbox.main(["models"]) == 127
    assert capsys.readouterr().err == "bagau: fetch it\n"


@pytest.mark.parametrize("argv", [["unknown"], ["--unknown"]])
def test_wrong_use_of_the_toolbox(argv, capsys):
    assert toolbox.main(argv) == 2
    assert "usage: bagau" in capsys.readouterr().err


def test_toolbox_version(capsys):
    assert toolbox.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bagau 0.")


def test_sigint_stops_the_process_without_traceback(tmp_path):
    code = (
        "import sys, time\n"
        "from bagau_bids.cli.failure import exit_code_of\n"
        "def action(stop):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.exit(exit_code_of('prog', action))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith("prog: interrupted")
    assert "Traceback" not in errors


@pytest.mark.parametrize("main", [app.main, toolbox.main])
def test_who_says_nothing_is_told_how_to_begin(main, capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "bagau segment SCAN.nii.gz OUT" in said
    assert "bagau-bids DATA OUT participant" in said


def test_help_of_the_toolbox_lists_every_subcommand_once(capsys):
    assert toolbox.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [listed.count(name) for name in toolbox.SUBCOMMANDS] == [1] * len(toolbox.SUBCOMMANDS)
