"""The viewer's HTML: all slices inside, nothing from elsewhere, only what there is to see."""

import json
import re

import numpy as np
from block_head import SHAPE, volumes_of
from fake_derivatives import drawn_head, write_scan

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.reports import viewer
from bagau_bids.reports.results import find_results


def content_of(fragment):
    return json.loads(re.search(r'application/json">(.*?)</script>', fragment, re.DOTALL)[1])


def test_fragment_holds_all_slices_and_nothing_from_elsewhere():
    fragment = viewer.viewer_fragment("here", volumes_of())
    content = content_of(fragment)
    assert content["media_type"] == "image/png"
    assert [plane["axes"] for plane in content["planes"]] == [[0, 1], [0, 2], [1, 2]]
    assert "https:" not in fragment + viewer.viewer_code()
    assert 'id="here"' in fragment
    for words in ("outline", "filled", "probability", "FLAIR only", "all planes", "coronal"):
        assert f">{words}</button>" in fragment


def test_fragment_offers_only_what_there_is():
    plain = viewer.viewer_fragment("x", volumes_of(mask=None, probability=None))
    assert "data-jump" not in plain
    assert "data-show=" not in plain
    assert content_of(plain)["planes"][0]["paths"] == []
    empty = viewer.viewer_fragment("x", volumes_of(mask=np.zeros(SHAPE, bool)))
    assert empty.count('data-jump="1" disabled') == 1
    assert 'class="bars"' not in empty


def test_viewer_comes_from_the_derivatives(tmp_path):
    write_scan(tmp_path, {"sub": "1"})
    (scan,) = find_results(tmp_path, "1")
    content = content_of(viewer.scan_viewer(scan))
    assert len(content["planes"][0]["pictures"]) == drawn_head()[0].shape[2]
    brain = derivative_path(tmp_path, {"sub": "1"}, "brain_mask")
    brain.write_bytes(brain.read_bytes()[:200])
    assert f"{brain}: cannot be read" in viewer.scan_viewer(scan)
    brain.unlink()
    assert viewer.scan_viewer(scan) == ""


def test_scans_on_one_page_share_its_room(tmp_path, monkeypatch):
    write_scan(tmp_path, {"sub": "1"})
    (scan,) = find_results(tmp_path, "1")
    whole = viewer.scan_viewer(scan)
    monkeypatch.setattr(viewer, "PAGE_BYTES", 2 * len(whole))
    assert viewer.scan_viewer(scan, sharing=2) == whole
    assert content_of(viewer.scan_viewer(scan, sharing=4))["media_type"] == "image/jpeg"
