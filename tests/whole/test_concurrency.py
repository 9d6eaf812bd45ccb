"""Twenty jobs at once in one output folder, with one index: nothing is lost or damaged."""

import json
import logging
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_fakes import (
    Listener,
    install,
    make_config,
    make_dataset,
    make_template,
    process_scans,
)

from bagau_bids.bids.description import write_dataset_files
from bagau_bids.bids.scans import find_scans
from bagau_bids.cli.runlog import run_log
from bagau_bids.cli.summary import DONE, Row, write_summary
from bagau_bids.config import Processing, Selection
from bagau_bids.files import one_at_a_time

JOBS = 20
LABELS = [f"{number:02}" for number in range(1, JOBS + 1)]
PATIENCE_S = 300


def at_once(job, arguments):
    """Run a function in processes that begin together; return how they ended."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(arguments))

    def begin(*values):
        start.wait()
        job(*values)

    processes = [context.Process(target=begin, args=values) for values in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    return [process.exitcode for process in processes]


def leftovers(folder):
    return [path for path in folder.rglob("*") if ".tmp" in path.name or ".new-" in path.name]


def described(bids_dir, out, masks):
    """Describe the output of a run that takes brain masks from a folder of its own."""
    for _ in range(3):
        write_dataset_files(
            out, bids_dir=bids_dir, processing=Processing(derivatives=(masks,), offline=True)
        )


def test_descriptions_are_never_torn_and_no_link_is_lost(tmp_path):
    bids_dir, out = make_dataset(tmp_path / "data"), tmp_path / "out"
    masks = [tmp_path / f"masks{label}" for label in LABELS]
    for folder in masks:
        folder.mkdir()
    watch = (
        "import json, sys, time\nfrom pathlib import Path\n"
        "path = Path(sys.argv[1])\nseen = 0\n"
        "while not Path(sys.argv[2]).exists() or seen == 0:\n"
        "    if path.exists():\n        json.loads(path.read_text()); seen += 1\n"
    )
    path, stop = out / "dataset_description.json", tmp_path / "stop"
    reader = subprocess.Popen([sys.executable, "-c", watch, str(path), str(stop)])
    ends = at_once(described, [(bids_dir, out, folder) for folder in masks])
    stop.touch()
    assert reader.wait(PATIENCE_S) == 0
    assert ends == [0] * JOBS
    links = json.loads(path.read_text())["DatasetLinks"]
    assert {f"masks{label}" for label in LABELS} <= set(links)
    assert (out / "logs/CITATION.md").read_text().startswith("#")
    assert leftovers(out) == []


def counted(path):
    with one_at_a_time(path.with_suffix(".lock")):
        path.write_text(str(int(path.read_text()) + 1))


def test_lock_lets_in_one_at_a_time(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    assert at_once(counted, [(path,)] * JOBS) == [0] * JOBS
    assert path.read_text() == str(JOBS)


def indexed(bids_dir, database, wipe):
    selection = Selection(database_dir=database, database_wipe=wipe)
    assert len(find_scans(bids_dir, selection)) == JOBS


@pytest.mark.parametrize("wipe", [False, True])
def test_index_that_is_being_written_is_not_read(tmp_path, wipe):
    bids_dir = make_dataset(tmp_path / "data", *(f"sub-{label}" for label in LABELS))
    database = tmp_path / "index"
    assert at_once(indexed, [(bids_dir, database, wipe)] * JOBS) == [0] * JOBS
    assert leftovers(database) == []


def processed(folder, template, label):
    """What a job of one participant does, but for the pages; in a process of its own."""
    from rich.console import Console

    logging.getLogger("nipype").setLevel(logging.ERROR)
    selection = Selection(participant_labels=(label,), database_dir=folder / "index")
    config = make_config(
        folder / "data",
        folder / "out",
        folder / "work",
        run_uuid=f"20260101-000000_{label}",
        participant_labels=(label,),
        database_dir=folder / "index",
    )
    with run_log(config, Console(quiet=True)):
        scans = find_scans(config.bids_dir, selection)
        (result,) = process_scans(config, scans, template, Listener())
        write_summary([Row(result.scan.stem, DONE)], config.log_dir / "summary.tsv")
    assert result.ok, result.reason


@pytest.mark.slow
def test_twenty_participants_at_once_are_all_complete(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path)
    make_dataset(tmp_path / "data", *(f"sub-{label}" for label in LABELS))
    template = make_template(tmp_path / "store")
    assert at_once(processed, [(tmp_path, template, label) for label in LABELS]) == [0] * JOBS
    out = tmp_path / "out"
    names = set()
    for label in LABELS:
        files = [path for path in (out / f"sub-{label}").rglob("*") if path.is_file()]
        names.add(tuple(sorted(path.name.replace(f"sub-{label}", "sub") for path in files)))
        record = Path(out, f"sub-{label}/anat/sub-{label}_desc-processing_record.json")
        made = json.loads(record.read_text())
        assert made["status"] == "complete"
        assert all((out / name).is_file() for name in made["outputs"])
        logs = out / "logs" / f"20260101-000000_{label}"
        assert f"run 20260101-000000_{label}" in (logs / "bagau-bids.log").read_text()
        assert f"sub-{label}\tdone" in (logs / "summary.tsv").read_text()
        assert (logs / "bagau.toml").is_file()
    assert len(names) == 1
    assert leftovers(out) == []
