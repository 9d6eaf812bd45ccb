"""The BIDS-App around the processing, which is replaced here: what is checked, told, returned."""

import json
import logging
import pdb
import re
import threading
import tomllib
from pathlib import Path

import pytest

from bagau_bids.bids.scans import Scan
from bagau_bids.cli import app
from bagau_bids.cli.app import main
from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.network import cards
from bagau_bids.reports import group, participant
from bagau_bids.workflow import run as workflow_run
from bagau_bids.workflow.run import ScanOutcome


class Calls:
    """What the app asked the other rooms to do, and what they answer."""

    def __init__(self):
        self.scans: list[str] = []
        self.pages: list[str] = []
        self.pages_after: dict[str, list[str]] = {}
        self.groups: list[Path] = []
        self.bad_scans: dict[str, str] = {}
        self.bad_pages: dict[str, Exception] = {}
        self.error: BaseException | None = None

    def run_participants(self, config, scans, template, networks, progress):
        if self.error:
            raise self.error
        self.scans = [scan.stem for scan in scans]
        for scan in scans:
            progress.step_started(scan.stem, "conform")
            progress.step_finished(scan.stem, "conform", 1.0)
            if not (config.execution.dry_run or scan.stem in self.bad_scans):
                progress.scan_finished(scan.stem)
                self.pages_after[scan.stem] = list(self.pages)
        return [] if config.execution.dry_run else [self.result(scan) for scan in scans]

    def result(self, scan: Scan) -> ScanOutcome:
        reason = self.bad_scans.get(scan.stem, "")
        return ScanOutcome(scan, not reason, reason, "conform" if reason else "")

    def write_participant_report(self, output_dir, label, *, aggregate_session_reports):
        if label in self.bad_pages:
            raise self.bad_pages[label]
        self.pages.append(label)
        return (output_dir / f"sub-{label}.html",)

    def write_group(self, output_dir):
        self.groups.append(output_dir)
        return group.GroupTable(output_dir / "group_FLAIR.tsv", len(self.scans), ())


@pytest.fixture
def calls(monkeypatch):
    calls = Calls()
    monkeypatch.setattr(workflow_run, "run_participants", calls.run_participants)
    monkeypatch.setattr(participant, "write_participant_report", calls.write_participant_report)
    monkeypatch.setattr(group, "write_group", calls.write_group)
    monkeypatch.setattr(app, "_check_resources", lambda config, networks: "template")
    return calls


@pytest.fixture
def dataset(tmp_path):
    """A damaged scan, a participant without FLAIR, and one that is fine with two sessions."""
    root = tmp_path / "bids"
    for name in (
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-03/ses-1/anat/sub-03_ses-1_FLAIR.nii.gz",
        "sub-03/ses-2/anat/sub-03_ses-2_FLAIR.nii.gz",
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("x")
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def app_run(dataset, tmp_path, monkeypatch):
    """Run the app on the data set; work and output folders beside it."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, levels: tuple[str, ...] = ("participant",)) -> int:
        arguments = [str(dataset), str(tmp_path / "out"), *levels, *options]
        return main([*arguments, "-w", str(tmp_path / "work")])

    return run


def log_dir(tmp_path: Path) -> Path:
    (folder,) = (path for path in (tmp_path / "out" / "logs").iterdir() if path.is_dir())
    return folder


def test_one_damaged_one_without_flair_one_fine(app_run, calls, tmp_path, capsys):
    calls.bad_scans["sub-01"] = "sub-01_FLAIR.nii.gz: the gzip stream is truncated"
    assert app_run() == 1
    assert calls.scans == ["sub-01", "sub-03_ses-1", "sub-03_ses-2"]
    assert calls.pages == ["03", "01"]  # that of the failure at the end
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Summary: 2 done, 1 no FLAIR, 1 failed"
    assert out[1:5] == [
        "  sub-03_ses-1  done",
        "  sub-03_ses-2  done",
        "  sub-02        no FLAIR  its folder has sub-02_T1w.nii.gz",
        "  sub-01        failed    sub-01_FLAIR.nii.gz: the gzip stream is truncated",
    ]
    folder = log_dir(tmp_path)
    assert out[5:7] == [f"Page: {tmp_path / 'out' / name}.html" for name in ("sub-01", "sub-03")]
    assert out[7] == f"Log: {folder / 'bagau-bids.log'}"
    assert {path.name for path in folder.iterdir()} == {
        "bagau-bids.log",
        "bagau.toml",
        "summary.json",
        "summary.tsv",
    }
    table = (folder / "summary.tsv").read_text()
    assert "sub-01\tfailed\tsub-01_FLAIR.nii.gz: the gzip stream is truncated\n" in table
    assert "Summary: 2 done" in (folder / "bagau-bids.log").read_text()
    saved = tomllib.loads((folder / "bagau.toml").read_text())
    assert saved["analysis_levels"] == ["participant"]
    assert saved["run_uuid"] == folder.name


def test_a_page_is_written_once_its_participant_is_finished(app_run, calls):
    assert app_run() == 0
    assert calls.pages_after == {
        "sub-01": ["01"],
        "sub-03_ses-1": ["01"],
        "sub-03_ses-2": ["01", "03"],
    }
    assert calls.pages == ["01", "03"]


@pytest.mark.parametrize("how", ["processes", "here", "plugin"])
def test_what_draws_pages_is_loaded_while_only_other_processes_work(
    app_run, calls, monkeypatch, tmp_path, how
):
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    options = {
        "processes": ["--nprocs", "2"],
        "here": ["--nprocs", "1"],
        "plugin": ["--nprocs", "2", "--use-plugin", str(plugin)],
    }
    loaded, begun = [], threading.Event()

    def load(module):
        begun.wait(30)  # until the first page is asked for, which waits for this thread
        loaded.append((module, list(calls.pages)))

    monkeypatch.setattr(app, "import_module", load)
    monkeypatch.setattr(app._Pages, "_be_loaded", started(app._Pages._be_loaded, begun))
    assert app_run(*options[how]) == 0
    assert calls.pages == ["01", "03"]
    assert loaded == ([(participant.__name__, [])] if how == "processes" else [])


def started(function, event):
    """The function, and an event set when it is called."""

    def call(*args):
        event.set()
        return function(*args)

    return call


def test_pages_say_what_could_not_be_loaded(app_run, calls, monkeypatch, capsys):
    def refuse(module):
        raise ImportError(f"no {module}")

    monkeypatch.setattr(app, "import_module", refuse)
    calls.bad_pages["01"] = ImportError("no fonts")
    assert app_run("--nprocs", "2") == 1
    told = capsys.readouterr()
    assert re.search(r"page of sub-01 +failed +ImportError\('no fonts'\)", told.out)
    assert "Traceback" not in told.err


def test_a_page_with_a_scan_that_failed_is_written_at_the_end(app_run, calls):
    calls.bad_scans["sub-03_ses-1"] = "damaged"
    assert app_run() == 1
    assert calls.pages_after == {"sub-01": ["01"], "sub-03_ses-2": ["01"]}
    assert calls.pages == ["01", "03"]


def test_participant_without_flair_is_no_failure(app_run, calls, capsys):
    assert app_run() == 0
    assert "sub-02        no FLAIR" in capsys.readouterr().out


def test_participant_without_flair_is_a_failure_when_strict(app_run, calls):
    assert app_run("--strict") == 1


def test_only_what_was_asked_for_is_told(app_run, calls, capsys):
    assert app_run("--participant-label", "03", "--session-label", "ses-2", "--strict") == 0
    assert calls.scans == ["sub-03_ses-2"]
    assert "sub-02" not in capsys.readouterr().out


def test_progress_goes_to_stderr_and_the_summary_to_stdout(app_run, calls, capsys):
    app_run("--participant-label", "01")
    captured = capsys.readouterr()
    assert "[0/1] sub-01: conform done in 1.0 s (step 1/9)" in captured.err
    assert "conform" not in captured.out


def test_several_levels_in_one_call(app_run, calls, tmp_path, capsys):
    assert app_run(levels=("participant", "group")) == 0
    assert calls.pages == ["01", "03"]
    assert calls.groups == [tmp_path / "out"]
    assert "group_FLAIR.tsv (3 scans)" in capsys.readouterr().out


def test_group_level_is_written_also_after_a_failure(app_run, calls):
    calls.bad_scans["sub-01"] = "damaged"
    assert app_run(levels=("participant", "group")) == 1
    assert len(calls.groups) == 1


def test_group_level_alone_processes_nothing(app_run, calls):
    assert app_run(levels=("group",)) == 0
    assert calls.scans == []
    assert len(calls.groups) == 1


def test_group_level_without_results(app_run, tmp_path, capsys):
    assert app_run(levels=("group",)) == 2
    assert f"{tmp_path / 'out'}: holds no results" in capsys.readouterr().err


def test_dry_run_processes_nothing(app_run, calls, capsys):
    assert app_run("--dry-run", levels=("participant", "group")) == 0
    assert calls.pages == []
    assert calls.groups == []
    assert "Summary: 3 would be processed, 1 no FLAIR" in capsys.readouterr().out


def test_page_that_cannot_be_written_is_a_failure(app_run, calls, tmp_path, capsys):
    calls.bad_pages = {"01": ValueError("no figure"), "03": UsageError("no results")}
    assert app_run() == 1
    assert calls.pages == []
    out = capsys.readouterr().out
    assert "page of sub-01  failed    ValueError('no figure')" in out
    assert "page of sub-03  failed    no results" in out
    assert "Traceback" in (log_dir(tmp_path) / "bagau-bids.log").read_text()


def test_reports_only_writes_pages_of_what_is_there(app_run, calls, tmp_path, capsys):
    for name in ("sub-01", "sub-03"):
        (tmp_path / "out" / name).mkdir(parents=True)
    assert app_run("--reports-only", levels=("participant", "group")) == 0
    assert calls.scans == []
    assert calls.pages == ["01", "03"]
    assert len(calls.groups) == 1
    assert "page of sub-01  done" in capsys.readouterr().out
    assert app_run("--reports-only", "--participant-label", "03") == 0
    assert calls.pages == ["01", "03", "03"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), "has no results of any participant"), (("--participant-label", "9"), "results of 9")],
)
def test_reports_only_without_results(app_run, calls, capsys, options, expected):
    assert app_run("--reports-only", *options) == 2
    assert expected in capsys.readouterr().err


def test_boilerplate_only(app_run, calls, tmp_path, capsys):
    assert app_run("--boilerplate-only", levels=("participant", "group")) == 0
    assert (calls.scans, calls.pages, calls.groups) == ([], [], [])
    assert (tmp_path / "out" / "logs" / "CITATION.md").is_file()
    assert (tmp_path / "out" / "logs" / "CITATION.bib").is_file()
    assert "CITATION.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--participant-label", "sub-4"), "has no participant 4"),
        (("--participant-label", "02"), "No FLAIR image to process"),
        (("--session-label", "7"), "has no session 7"),
    ],
)
def test_nothing_to_process_leaves_no_output(app_run, calls, tmp_path, capsys, options, expected):
    assert app_run(*options) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_invalid_data_set(app_run, calls, dataset, capsys):
    (dataset / "dataset_description.json").unlink()
    assert app_run() == 2
    assert "--skip-bids-validation" in capsys.readouterr().err
    assert app_run("--skip-bids-validation") == 0


def test_wrong_option(app_run, capsys):
    assert app_run("--anat-only") == 2
    assert "does not apply here" in capsys.readouterr().err


def unfetched(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    (dataset / name).symlink_to("../../.git/annex/objects/key")


def test_unfetched_scan_is_a_failure_beside_others(app_run, calls, dataset, capsys):
    unfetched(dataset, "sub-01/anat/sub-01_FLAIR.nii.gz")
    assert app_run() == 1
    assert calls.scans == ["sub-03_ses-1", "sub-03_ses-2"]
    assert "run: datalad get" in capsys.readouterr().out


def test_nothing_but_unfetched_scans(app_run, calls, dataset, tmp_path, capsys):
    unfetched(dataset, "sub-01/anat/sub-01_FLAIR.nii.gz")
    assert app_run("--participant-label", "01") == 2
    error = capsys.readouterr().err
    assert "None of the 1 FLAIR images found can be read" in error
    assert "run: datalad get" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MissingResourceError("weights gone"), 127, "bagau-bids: weights gone\n"),
        (UsageError("no such GPU"), 2, "bagau-bids: no such GPU\n"),
        (KeyboardInterrupt(), 130, "bagau-bids: interrupted; what is finished is kept"),
    ],
)
def test_what_ends_a_run_is_told_and_logged(
    app_run, calls, tmp_path, capsys, error, code, expected
):
    calls.error = error
    assert app_run() == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    log = (log_dir(tmp_path) / "bagau-bids.log").read_text()
    assert str(error) in log or "stopped by KeyboardInterrupt" in log


def test_fault_of_ours_names_the_log(app_run, calls, tmp_path, capsys):
    calls.error = ZeroDivisionError("by zero")
    assert app_run() == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bagau-bids: unexpected ZeroDivisionError: by zero.")
    path = log_dir(tmp_path) / "bagau-bids.log"
    assert line.endswith(str(path))
    assert "Traceback" in path.read_text()


def test_debugger_opens_on_a_fault(app_run, calls, monkeypatch):
    opened = []
    monkeypatch.setattr(pdb, "post_mortem", opened.append)
    calls.error = ZeroDivisionError("by zero")
    assert app_run() == 70
    assert opened == []
    assert app_run("--debug", "pdb") == 70
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (("--weights", "nowhere.safetensors"), 127, "nowhere.safetensors: no such"),
        (("--device", "cuda:99"), 2, "--device cuda:99: PyTorch"),
        (
            ("--infarct", "--weights", "nowhere.safetensors"),
            127,
            "nowhere.safetensors: no such weights",
        ),
    ],
)
def test_what_is_missing_stops_before_the_first_scan(
    dataset, tmp_path, monkeypatch, capsys, options, code, expected
):
    def never(*args: object) -> None:
        raise AssertionError("processing was begun")

    monkeypatch.setattr(workflow_run, "run_participants", never)
    monkeypatch.chdir(tmp_path)
    assert main([str(dataset), str(tmp_path / "out"), "participant", *options]) == code
    assert expected in capsys.readouterr().err


def test_missing_template_stops_before_the_first_scan(dataset, tmp_path, monkeypatch, capsys):
    from bagau_bids.network import weights

    monkeypatch.setattr(weights, "load_weights", lambda path, card: None)
    monkeypatch.chdir(tmp_path)
    options = ["--offline", "--templateflow-home", str(tmp_path / "tf")]
    assert main([str(dataset), str(tmp_path / "out"), "participant", *options]) == 127
    error = capsys.readouterr().err
    assert str(tmp_path / "tf") in error
    assert "--offline is set" in error


def test_logging_is_left_as_it_was(app_run, calls):
    before = list(logging.getLogger().handlers)
    app_run()
    assert logging.getLogger().handlers == before


def write_card(folder: Path, name: str, *outputs: str) -> Path:
    path = folder / f"{name}.safetensors"
    config = {"outputs": list(outputs)} if outputs else {}
    card = {"architecture": "bagau_net", "config": config, "sha256": "0"}
    path.with_suffix(".json").write_text(json.dumps(card))
    path.touch()
    return path


@pytest.mark.parametrize(
    ("full", "advice"),
    [
        (("wmh",), "use --weights with such ones, for none of the packaged ones does"),
        (("wmh", "infarct"), "use --model full"),
    ],
)
def test_infarcts_of_weights_that_tell_none_are_refused_before_anything(
    app_run, calls, tmp_path, monkeypatch, capsys, full, advice
):
    packaged = {
        "full": write_card(tmp_path, "full", *full),
        "small": write_card(tmp_path, "small"),
        "stroke": write_card(tmp_path, "stroke"),
        "brain": write_card(tmp_path, "brain"),
    }
    monkeypatch.setattr(cards, "find_weights", packaged.__getitem__)
    assert app_run("--infarct", "--model", "small") == 2
    told = capsys.readouterr().err
    assert "--infarct: small.safetensors tell WMH alone; expected weights whose card names" in told
    assert advice in told
    assert calls.scans == []
    assert not (tmp_path / "out").exists()
    both = write_card(tmp_path, "both", "wmh", "infarct")
    mixed = ["--weights", str(packaged["small"]), str(both)]
    assert app_run("--infarct", *mixed) == 0
    assert len(calls.scans) == 3
