"""Whether a scan is a FLAIR: several signs, and which slices are not axial."""

import json
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.measures import flags
from bagau_bids.measures.plausibility import Evidence, contrast_figures, slice_tilt_degrees
from bagau_bids.measures.quality import Figures

SHAPE = (40, 40, 12)
# Brightness of white matter, grey matter and CSF; the template's T1w is the first.
T1W = (100.0, 65.0, 20.0)
CONTRASTS = {
    "FLAIR": (100.0, 108.0, 25.0),
    "FLAIR of a low field": (100.0, 97.0, 60.0),
    "T1w": (100.0, 80.0, 35.0),
    "T2w": (100.0, 130.0, 260.0),
    "DWI b0": (100.0, 120.0, 230.0),
}
NO_FLAIR = ("T1w", "T2w", "DWI b0")


def tissues():
    """White matter within grey matter within CSF, numbered 0, 1, 2; -1 outside the brain."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in SHAPE)]
    radius = np.sqrt(sum(axis**2 for axis in axes[:2])) + 0 * axes[2]
    return np.select([radius < 0.6, radius < 0.85, radius < 0.95], [0, 1, 2], -1)


def painted(levels, seed=0):
    noise = np.random.default_rng(seed).normal(0, 4, SHAPE)
    return np.select([tissues() == i for i in range(3)], levels, 0.0) + noise


def figures(contrast, entropy=0.5, signs=(), csf_known=True):
    white, _, csf = CONTRASTS[contrast]
    evidence = Evidence(csf / white if csf_known else None, entropy, signs)
    wm = (tissues() == 0).astype(np.float32)
    return contrast_figures(
        painted(CONTRASTS[contrast]), tissues() >= 0, wm, painted(T1W, seed=1), evidence
    )


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_only_what_is_no_flair_is_said_to_be_none(contrast):
    found = figures(contrast)
    white, grey, _ = CONTRASTS[contrast]
    assert found["grey_to_white"] == pytest.approx(grey / white, abs=0.02)
    raised = [flag.words for flag in flags.raised_flags(Figures(**found))]
    assert [word.split(":")[0] for word in raised] == (
        ["this is probably no FLAIR"] if contrast in NO_FLAIR else []
    )


def test_t1w_goes_with_the_template_and_flair_does_not():
    assert figures("T1w")["t1w_correlation"] > 0.8
    assert figures("FLAIR")["t1w_correlation"] < 0


@pytest.mark.parametrize(
    ("entropy", "signs", "count"),
    [(None, (), 0), (0.71, (), 1), (0.5, ("a",), 1), (0.71, ("a",), 2), (0.5, ("a", "b", "c"), 2)],
)
def test_other_signs_are_counted(entropy, signs, count):
    assert figures("FLAIR", entropy, signs, csf_known=False)["no_flair_signs"] == count


def test_one_doubtful_sign_raises_nothing_alone():
    assert flags.raised_flags(Figures(**figures("FLAIR", entropy=0.71))) == ()


def test_without_tissue_only_other_signs_count():
    none = np.zeros(SHAPE)
    found = contrast_figures(painted(T1W), none > 0, none, none, Evidence(1.5, None))
    assert found == {"grey_to_white": None, "t1w_correlation": None, "no_flair_signs": 2.0}


@pytest.mark.parametrize(
    ("sizes", "degrees"),
    [
        ((1, 1, 6), 0),
        ((6, 1, 1), 90),
        ((1, 6, 1), 90),
        ((1, 1, 1), None),
        ((1, 1.4, 1), None),
        ((0.8, 0.8, 2.0), None),
    ],
)
def test_direction_of_thick_slices(sizes, degrees):
    assert slice_tilt_degrees(np.diag([*sizes, 1.0])) == degrees


def test_tilt_of_oblique_slices():
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert slice_tilt_degrees(turn @ np.diag([1, 1, 6, 1.0])) == pytest.approx(20)
    assert nib.aff2axcodes(turn) == ("R", "A", "S")


def test_every_figure_is_described():
    described = json.loads((files("bagau_bids.data") / "tables/quality.json").read_text())
    others = {"clipped_share", "head_turn", "slice_tilt_degrees", "mirrored_dice"}
    assert {*figures("FLAIR"), *others} <= described.keys()
