"""Quality figures on images whose figures are known."""

import json
from importlib.resources import files

import numpy as np
import pytest

from bagau_bids.measures import quality

AFFINE = np.diag([1.0, 2.0, 4.0, 1.0])


def scan(noise_sd=5.0):
    rng = np.random.default_rng(0)
    shape = (40, 40, 20)
    brain = np.zeros(shape, bool)
    brain[5:35, 5:35, 4:16] = True
    wm = np.where(brain, 1.0, 0.0)
    wmh = np.zeros(shape, bool)
    wmh[10:14, 10:14, 8:10] = True
    flair = rng.normal(100, noise_sd, shape)
    flair[wmh] += 60
    return flair, brain, wm, wmh


def test_figures_of_a_known_image():
    flair, brain, wm, wmh = scan()
    figures = quality.scan_quality(flair, AFFINE, brain, wm, wmh)
    assert figures["slice_thickness_mm"] == 4
    assert figures["in_plane_mm"] == 2
    assert figures["brain_volume_ml"] == pytest.approx(30 * 30 * 12 * 8 / 1000)
    assert figures["wm_snr"] == pytest.approx(100 / 5, rel=0.05)
    assert figures["wmh_wm_contrast"] == pytest.approx(1.6, rel=0.02)
    assert [figures[k] for k in figures if k.startswith("cut_")] == [0, 0, 0]


def test_every_figure_is_described_in_order():
    figures = quality.scan_quality(scan()[0], AFFINE, *scan()[1:])
    described = json.loads((files("bagau_bids.data") / "tables/quality.json").read_text())
    assert list(described) == list(figures)
    assert all(entry["Units"] and entry["Description"] for entry in described.values())


def test_lesions_and_their_neighbours_do_not_count_as_white_matter():
    _, brain, wm, wmh = scan()
    region = quality.normal_white_matter(brain, wm, wmh)
    assert not region[9:15, 9:15, 7:11].any()
    assert np.count_nonzero(region) == np.count_nonzero(brain) - 6 * 6 * 4


def test_missing_figures_are_none():
    flair, brain, wm, wmh = scan()
    figures = quality.scan_quality(flair, AFFINE, brain, wm, np.zeros_like(wmh))
    assert figures["wmh_wm_contrast"] is None
    figures = quality.scan_quality(flair, AFFINE, brain, np.zeros_like(wm), wmh)
    assert figures["wm_snr"] is None
    assert quality.signal_to_noise(np.ones((9, 9, 9)), np.ones((9, 9, 9), bool)) is None


@pytest.mark.parametrize(
    ("face", "name", "area_cm2"),
    [
        (np.s_[:, :, -1], "cut_superior_cm2", 6 * 8 * 1 * 2 / 100),
        (np.s_[:, :, 0], "cut_inferior_cm2", 6 * 8 * 1 * 2 / 100),
        (np.s_[0], "cut_sides_cm2", 8 * 4 * 2 * 4 / 100),
        (np.s_[:, -1], "cut_sides_cm2", 6 * 4 * 1 * 4 / 100),
    ],
)
def test_area_of_brain_on_a_face(face, name, area_cm2):
    brain = np.zeros((6, 8, 4), bool)
    brain[face] = True
    assert quality.cut_areas_cm2(brain, AFFINE)[name] >= area_cm2 - 1e-9
    inner = np.zeros_like(brain)
    inner[1:-1, 1:-1, 1:-1] = True
    assert sum(quality.cut_areas_cm2(inner, AFFINE).values()) == 0
