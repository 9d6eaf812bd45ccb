"""Hostile and private content of a data set: nothing is run, nothing leaves, nothing is told."""

import ast
import gzip
import json
import os
import socket

import nibabel as nib
import pytest
from browser import OpenedPage, started_browser
from faked_run import sorted_paths
from workflow_fakes import (
    AFFINE,
    Listener,
    head,
    install,
    install_everything,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
)

from bagau_bids.preprocessing.template import Template
from bagau_bids.reports.group import write_group
from bagau_bids.reports.participant import write_participant_report

SECRETS = {
    "PatientName": "Mustermann^Erika",
    "PatientBirthDate": "19440229",
    "PatientID": "KH-4711-0815",
    "AcquisitionDateTime": "2023-11-17T13:37:00",
    "DeviceSerialNumber": "SN-3141592",
    "InstitutionName": "Charite Innere 7b",
    "InstitutionAddress": "Luisenstr 64",
    "ReferringPhysicianName": "Brinkmann^Klaus",
    "StudyInstanceUID": "1.2.840.113619.2.55.3",
}


@pytest.fixture
def processed(tmp_path, monkeypatch):
    """Results of a FLAIR whose JSON and header name the patient, and of hostile descriptions."""
    bids = make_dataset(tmp_path / "data", "sub-01")
    path = bids / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    image = nib.Nifti1Image(head(), AFFINE)
    image.header["descrip"] = "Erika Mustermann 2023-11-17"
    image.header["aux_file"] = "KH-4711-0815"
    image.header["intent_name"] = "SN-3141592"
    image.header["db_name"] = "Mustermann"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Mustermann^Erika"))
    image.to_filename(path)
    path.with_name("sub-01_FLAIR.json").write_text(json.dumps(SECRETS))
    hostile = {"Name": "<script>alert(1)</script>", "BIDSVersion": "1.10.0"}
    hostile |= {"Authors": ["<img src=x onerror=alert(1)>"], "License": "</style><script>"}
    (bids / "dataset_description.json").write_text(json.dumps(hostile))
    (bids / "participants.tsv").write_text(
        "participant_id\t<b>age</b>\tsite\nsub-01\t70\t<script>alert(2)</script>\n"
    )
    make_template(tmp_path / "store")
    install(monkeypatch, tmp_path / "store")
    config = make_config(bids, tmp_path / "out", tmp_path / "work")
    template = Template("MNI152NLin2009cSym", *sorted_paths(tmp_path / "store"))
    (result,) = process_scans(config, scans_of(bids), template, Listener())
    assert result.ok, result.reason
    write_participant_report(tmp_path / "out", "01")
    write_group(tmp_path / "out")
    return tmp_path / "out"


def contents(out):
    """Content of every file, compressed ones also as they are without it."""
    for path in sorted(out.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            yield path, content
            if path.suffix == ".gz":
                yield path, gzip.decompress(content)


def test_nothing_of_the_patient_is_in_any_result(processed):
    words = [*SECRETS.values(), "Mustermann", "Erika", "4711"]
    seen = 0
    for path, content in contents(processed):
        seen += 1
        for word in words:
            assert word.encode() not in content, f"{word} in {path.name}"
    assert seen > 30


def test_pages_hold_no_markup_of_the_data_set(processed):
    pages = list(processed.rglob("*.html"))
    assert len(pages) == 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for markup in ("<script>alert", "<img src=x", "<b>age", "</style><script>"):
            assert markup not in text, page.name


# Each would be run where a page took it for markup; no slash, which a file's name cannot have.
SCHEME = "javascript:window.hacked=1"
HOSTILE = (
    "<img src=x onerror=window.hacked=1>'\"><svg onload=window.hacked=1>"
    "<script>window.hacked=1<\\script>${window.hacked=1}"
)


def quiet(path):
    """Open a page in a real browser, click its links within it, and see that nothing is run."""
    with started_browser() as browser:
        context = browser.new_context(offline=True)
        opened, dialogs = OpenedPage(context, path), []
        opened.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        opened.page.evaluate(
            "document.querySelectorAll(\"a[href^='#'], a[href^='javascript'], summary, button\")"
            ".forEach((one) => one.click())"
        )
        hacked = opened.page.evaluate("window.hacked")
        handlers = opened.page.evaluate(
            "[...document.querySelectorAll('*')].filter((one) => [...one.attributes].some("
            "(it) => /hacked/.test(it.value) && /^(on|src$|srcdoc$|style$)/.test(it.name))).length"
        )
        scheme = opened.page.evaluate(
            "[...document.querySelectorAll('a')].filter((a) => a.protocol == 'javascript:').length"
        )
        found = (hacked, handlers, scheme, opened.outside, opened.complaints, dialogs)
        context.close()
    assert found == (None, 0, 0, [], [], []), path.name


@pytest.mark.slow
def test_a_real_browser_runs_nothing_of_the_data_set(tmp_path, monkeypatch):
    """Hostile words as the name of the folder, in JSON, and as columns and values of tables."""
    words = HOSTILE
    bids = make_dataset(tmp_path / words, "sub-01", "sub-02")
    described = {"Name": words, "BIDSVersion": "1.10.0", "Authors": [words], "License": words}
    described |= {"DatasetDOI": SCHEME, "ReferencesAndLinks": [SCHEME], "HowToAcknowledge": words}
    (bids / "dataset_description.json").write_text(json.dumps(described))
    (bids / "sub-01" / "anat" / "sub-01_FLAIR.json").write_text(
        json.dumps({"SeriesDescription": words, "Manufacturer": words, "InversionTime": words})
    )
    (bids / "participants.tsv").write_text(
        f"participant_id\tage\tsex\t{words}\nsub-01\t70\t{words}\t1\nsub-02\t60\tF\t{words}\n"
    )
    (bids / "participants.json").write_text(json.dumps({"sex": {"Description": words}}))
    make_template(tmp_path / "store")
    install(monkeypatch, tmp_path / "store")
    config = make_config(bids, tmp_path / "out", tmp_path / "work")
    template = Template("MNI152NLin2009cSym", *sorted_paths(tmp_path / "store"))
    assert all(one.ok for one in process_scans(config, scans_of(bids), template, Listener()))
    write_participant_report(tmp_path / "out", "01")
    write_group(tmp_path / "out")
    pages = list((tmp_path / "out").rglob("*.html"))
    assert len(pages) >= 2
    for page in pages:
        quiet(page)


@pytest.mark.slow
def test_a_real_browser_runs_nothing_of_a_files_name(tmp_path, monkeypatch):
    from bagau_bids.cli.toolbox import main

    words = HOSTILE
    install_everything(monkeypatch, tmp_path / "store")
    path = tmp_path / f"{words}.nii.gz"
    nib.Nifti1Image(head(), AFFINE).to_filename(path)
    words_of_run = ["segment", str(path), str(tmp_path / "out"), "--nprocs", "1"]
    assert main([*words_of_run, "--device", "cpu"]) == 0
    (page,) = (tmp_path / "out" / words).glob("*.html")
    quiet(page)


def test_nothing_is_written_outside_the_output_and_work_folders(processed):
    there = {path.name for path in processed.parent.iterdir()}
    assert there == {"data", "out", "work", "store"}
    raw = {path.name for path in (processed.parent / "data").rglob("*")}
    assert raw == {
        "sub-01",
        "anat",
        "sub-01_FLAIR.nii.gz",
        "sub-01_FLAIR.json",
        "dataset_description.json",
        "participants.tsv",
    }


def test_no_connection_is_made(tmp_path, monkeypatch):
    tried = []

    def refuse(own, address):
        tried.append(address)
        raise OSError("no network")

    def resolve(*names, **options):
        tried.append(names)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    make_dataset(tmp_path / "data", "sub-01")
    make_template(tmp_path / "store")
    install(monkeypatch, tmp_path / "store")
    config = make_config(tmp_path / "data", tmp_path / "out", tmp_path / "work")
    template = Template("MNI152NLin2009cSym", *sorted_paths(tmp_path / "store"))
    assert process_scans(config, scans_of(tmp_path / "data"), template, Listener())[0].ok
    write_participant_report(tmp_path / "out", "01")
    write_group(tmp_path / "out")
    assert tried == []


def calls(repository):
    """All calls in the package: the file, the dotted name, and the keywords."""
    for path in sorted((repository / "bagau_bids").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield path.name, ast.unparse(node.func), keywords


def test_no_code_of_user_files_is_run(repository):
    """No pickle, no shell, no evaluated text: the calls that could are not there, or are safe."""
    seen = set()
    for file, name, keywords in calls(repository):
        seen.add(name)
        assert keywords.get("shell", "False") == "False", f"{file}: {name}"
        assert keywords.get("allow_pickle", "False") == "False", f"{file}: {name}"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", file
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen"), file
        assert name.split(".")[0] not in ("pickle", "dill", "joblib", "marshal", "shelve"), file
        assert name not in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"), file
    assert {"torch.load", "np.load", "yaml.safe_load", "subprocess.run"} <= seen


@pytest.mark.parametrize("name", ["../x", "a/b", "x\0y", ".", ".."])
def test_labels_that_would_leave_the_output_folder_are_refused(name, tmp_path, capsys):
    from bagau_bids.cli.app import main

    make_dataset(tmp_path / "data", "sub-01")
    for option in ("--participant-label", "--session-label"):
        words = [str(tmp_path / "data"), str(tmp_path / "out"), "participant", option, name]
        assert main(words) == 2
        assert "is no BIDS label" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["data"]
