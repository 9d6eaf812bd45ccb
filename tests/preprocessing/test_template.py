"""Template files: found, fetched, verified; every way in which they can be missing."""

import gzip
import hashlib
import os
import socket
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.cli import toolbox
from bagau_bids.errors import MissingResourceError
from bagau_bids.preprocessing import template as module
from bagau_bids.preprocessing.template import find_template

NAME = "MNI152NLin2009cSym"
ENDS = ("T1w", "label-WM_probseg", "desc-brain_mask")


def make_store(home, resolution="1", ends=ENDS):
    """Write a store of tiny images whose voxels differ from file to file."""
    folder = home / f"tpl-{NAME}"
    folder.mkdir(parents=True)
    for value, end in enumerate(ends, start=1):
        image = nib.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4))
        nib.save(image, folder / f"tpl-{NAME}_res-{resolution}_{end}.nii.gz")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Make any attempt to open a connection fail the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Serve TemplateFlow's downloads from a local store; yields the list of what was asked."""
    import requests

    source = tmp_path / "server"
    make_store(source)
    asked = []

    class Response:
        def __init__(self, url):
            self.body = (source / url.split(".com/", 1)[1]).read_bytes()
            self.status_code = 200
            self.headers = {"content-length": str(len(self.body))}

        def iter_content(self, size):
            return (self.body[i : i + size] for i in range(0, len(self.body), size))

    def get(url, **kwargs):
        asked.append(url.rsplit("/", 1)[1])
        return Response(url)

    monkeypatch.setattr(requests, "get", get)
    return asked


@pytest.mark.parametrize("resolution", ["1", "01"])
def test_finds_the_files_in_either_spelling_of_the_resolution(tmp_path, no_network, resolution):
    folder = make_store(tmp_path, resolution)
    found = find_template(NAME, tmp_path, offline=True)
    assert found.name == NAME
    assert [found.t1w, found.wm_probseg, found.brain_mask] == [
        folder / f"tpl-{NAME}_res-{resolution}_{end}.nii.gz" for end in ENDS
    ]


def test_other_files_of_a_real_store_do_not_confuse(tmp_path, no_network):
    folder = make_store(
        tmp_path, ends=(*ENDS, "label-GM_probseg", "T2w", "desc-head_mask", "desc-brain_T1w")
    )
    (folder / f"tpl-{NAME}_res-2_T1w.nii.gz").write_bytes(b"")
    found = find_template(NAME, tmp_path, offline=True)
    assert found.t1w.name == f"tpl-{NAME}_res-1_T1w.nii.gz"
    assert found.brain_mask.name == f"tpl-{NAME}_res-1_desc-brain_mask.nii.gz"


def test_the_environment_names_the_store_and_an_explicit_one_wins(
    tmp_path, monkeypatch, no_network
):
    make_store(tmp_path / "environment")
    make_store(tmp_path / "explicit")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "environment"))
    assert tmp_path / "environment" in find_template(NAME, offline=True).t1w.parents
    found = find_template(NAME, tmp_path / "explicit", offline=True)
    assert tmp_path / "explicit" in found.t1w.parents
    assert os.environ["TEMPLATEFLOW_HOME"] == str(tmp_path / "environment")


def test_offline_with_an_empty_store_lists_files_place_and_command(tmp_path, no_network):
    home = tmp_path / "empty"
    with pytest.raises(MissingResourceError) as caught:
        find_template(NAME, home, offline=True)
    message = str(caught.value)
    for end in ENDS:
        assert str(home / f"tpl-{NAME}" / f"tpl-{NAME}_res-1_{end}.nii.gz") in message
    assert f"bagau fetch --template {NAME} --dest {home}" in message
    assert "--offline is set" in message
    assert not home.exists()
    assert caught.value.exit_code == 127


def test_offline_lists_only_what_is_missing_or_of_zero_bytes(tmp_path, no_network):
    folder = make_store(tmp_path)
    (folder / f"tpl-{NAME}_res-1_T1w.nii.gz").write_bytes(b"")
    (folder / f"tpl-{NAME}_res-1_desc-brain_mask.nii.gz").unlink()
    with pytest.raises(MissingResourceError, match="2 of 3 files") as caught:
        find_template(NAME, tmp_path, offline=True)
    assert "T1w.nii.gz" in str(caught.value)
    assert "desc-brain_mask.nii.gz" in str(caught.value)
    assert "WM_probseg.nii.gz" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "flipped"])
def test_a_damaged_file_is_refused_by_name(tmp_path, no_network, damage):
    path = make_store(tmp_path) / f"tpl-{NAME}_res-1_label-WM_probseg.nii.gz"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "not gzip":
        path.write_bytes(b"<?xml version='1.0'?><Error>")
    else:
        path.write_bytes(content[:-6] + bytes(6))
    with pytest.raises(MissingResourceError, match="truncated or damaged") as caught:
        find_template(NAME, tmp_path, offline=True)
    assert str(path) in str(caught.value)
    assert "bagau fetch" in str(caught.value)


def test_without_network_the_message_is_the_same_list_and_no_debris_is_left(tmp_path, monkeypatch):
    import requests

    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("Max retries exceeded")

    monkeypatch.setattr(requests, "get", unreachable)
    folder = make_store(tmp_path, ends=("T1w",))
    with pytest.raises(MissingResourceError, match="2 of 3 files") as caught:
        find_template(NAME, tmp_path)
    assert "the download failed (ConnectionError)" in str(caught.value)
    assert f"bagau fetch --template {NAME} --dest {tmp_path}" in str(caught.value)
    assert "ICBM152NLin2009aSym, which needs no download" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name]


def test_a_network_that_never_answers_is_given_up(tmp_path, monkeypatch):
    """A server that takes the connection and says nothing, as behind some firewalls."""
    import requests

    patience, get = [], requests.get
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"

        def ask(_, *, timeout, **options):
            patience.append(timeout)
            return get(url, timeout=0.3, **options)

        monkeypatch.setattr(requests, "get", ask)
        with pytest.raises(MissingResourceError, match=r"the download failed \(ReadTimeout\)"):
            find_template(NAME, tmp_path)
    assert 0 < max(patience) <= 60  # seconds without a byte
    assert list(tmp_path.iterdir()) == []


def test_a_refused_download_is_told(tmp_path, monkeypatch):
    import requests

    monkeypatch.setattr(requests, "get", lambda *_, **__: type("R", (), {"status_code": 404}))
    with pytest.raises(MissingResourceError, match="status code 404"):
        find_template(NAME, tmp_path)


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MissingResourceError, match="the store cannot be written"):
        find_template(NAME, tmp_path / "file" / "store")


def test_what_is_missing_is_downloaded_and_the_rest_kept(tmp_path, downloads):
    home = tmp_path / "home"
    folder = make_store(home, ends=("T1w",))
    kept = folder / f"tpl-{NAME}_res-1_T1w.nii.gz"
    before = kept.stat().st_mtime_ns
    found = find_template(NAME, home)
    assert sorted(downloads) == sorted(f"tpl-{NAME}_res-1_{end}.nii.gz" for end in ENDS[1:])
    assert nib.load(found.brain_mask).get_fdata().max() == 3
    assert kept.stat().st_mtime_ns == before
    assert sorted(p.name for p in home.iterdir()) == [folder.name]
    downloads.clear()
    assert find_template(NAME, home) == found
    assert downloads == []


def test_the_embedded_template_is_nilearns_and_needs_no_network(tmp_path, no_network):
    from nilearn import datasets

    found = find_template("ICBM152NLin2009aSym", cache_dir=tmp_path)
    images = [nib.load(p) for p in (found.t1w, found.wm_probseg, found.brain_mask)]
    oracles = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    for image, oracle in zip(images, oracles, strict=True):
        np.testing.assert_array_equal(image.affine, oracle.affine)
        np.testing.assert_allclose(image.get_fdata(), oracle.get_fdata(), atol=0.005)
    written = found.t1w.stat().st_mtime_ns
    assert find_template("ICBM152NLin2009aSym", cache_dir=tmp_path) == found
    assert found.t1w.stat().st_mtime_ns == written


def test_the_embedded_template_says_that_it_needs_a_folder():
    with pytest.raises(ValueError, match="cache_dir"):
        find_template("ICBM152NLin2009aSym")


def test_an_unknown_template_is_refused_with_the_choice():
    with pytest.raises(MissingResourceError, match=r"'NKI' is not known.*ICBM152NLin2009aSym"):
        find_template("NKI")


def test_the_client_is_imported_without_side_effects(tmp_path):
    make_store(tmp_path / "store")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from bagau_bids.preprocessing.template import find_template\n"
        "assert 'templateflow' not in sys.modules\n"
        "before = dict(os.environ)\n"
        f"find_template({NAME!r}, Path(sys.argv[1]), offline=True)\n"
        "assert dict(os.environ) == before\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TEMPLATEFLOW_HOME"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, str(tmp_path / "store")],
        env=environment,
        check=True,
    )
    assert not (tmp_path / "cache").exists()


def run_fetch(*arguments):
    return toolbox.main(["fetch", *map(str, arguments)])


def test_fetch_downloads_and_writes_a_manifest(tmp_path, downloads, capsys):
    home = tmp_path / "home"
    assert run_fetch("--dest", home) == 0
    assert len(downloads) == 3
    manifest = home / f"tpl-{NAME}" / module.MANIFEST
    listed = dict(line.split()[::-1] for line in manifest.read_text().splitlines())
    assert len(listed) == 3
    for name, digest in listed.items():
        content = (manifest.parent / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert str(manifest) in capsys.readouterr().out
    assert find_template(NAME, home, offline=True).t1w.is_file()


def test_fetch_finds_a_file_that_changed_since_the_manifest(tmp_path, no_network, capsys):
    folder = make_store(tmp_path)
    assert run_fetch("--dest", tmp_path, "--offline") == 0
    with gzip.open(folder / f"tpl-{NAME}_res-1_T1w.nii.gz", "wb") as stream:
        stream.write(b"another image")
    assert run_fetch("--dest", tmp_path, "--offline") == 127
    assert "T1w.nii.gz: found SHA-256" in capsys.readouterr().err


def test_fetch_without_network_ends_with_127(tmp_path, capsys, no_network):
    assert run_fetch("--dest", tmp_path / "new", "--offline") == 127
    assert "3 of 3 files are missing" in capsys.readouterr().err


def test_fetch_uses_the_environment_by_default(tmp_path, monkeypatch, no_network, capsys):
    make_store(tmp_path)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert run_fetch("--offline") == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_the_real_store_of_the_tests_is_complete(templateflow_home, no_network):
    found = find_template(NAME, templateflow_home, offline=True)
    shapes = {nib.load(p).shape for p in (found.t1w, found.wm_probseg, found.brain_mask)}
    assert shapes == {(193, 229, 193)}
