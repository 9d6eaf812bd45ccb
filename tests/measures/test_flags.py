"""Flags are raised beyond a limit, and nowhere else; the limits know every figure's name."""

import json
from dataclasses import replace
from importlib.resources import files

import pandas as pd
import pytest

from bagau_bids.measures import flags
from bagau_bids.measures.quality import Figures

GOOD = Figures(
    slice_thickness_mm=3.0,
    brain_volume_ml=1400.0,
    registration_overlap=0.95,
    noise_snr=30.0,
    cut_superior_cm2=0.0,
)


def described(name):
    return json.loads((files("bagau_bids.data") / f"tables/{name}.json").read_text())


def test_a_good_scan_raises_nothing():
    assert flags.raised_flags(GOOD) == ()
    table = flags.quality_table(GOOD).set_index("figure")
    assert table.loc["flags", ["value", "look"]].tolist() == [0.0, "no"]
    assert table.look["brain_volume_ml"] == "no"


@pytest.mark.parametrize("figure", list(flags.limits()))
def test_each_limit_is_met_from_its_side_and_the_limit_itself_passes(figure):
    limit = flags.limits()[figure]
    for end, step in ((limit.lower, -1e-6), (limit.upper, 1e-6)):
        if end is not None:
            assert flags.raised_flags(Figures(**{figure: end})) == ()
            (flag,) = flags.raised_flags(Figures(**{figure: end + step}))
            assert (flag.name, flag.figure, flag.limit) == (limit.flag, figure, end)
            assert flag.words


def test_a_place_is_added_to_what_a_flag_means():
    places = {"largest_bright_ml": "on the left"}
    (flag,) = flags.raised_flags(Figures(largest_bright_ml=9.0), places)
    assert flag.name == "infarct"
    assert flag.words == flags.limits()["largest_bright_ml"].words + "; on the left"


def test_flags_that_share_a_name_count_once():
    bad = replace(GOOD, noise_snr=1.0, registration_overlap=0.5, wm_misfit=0.9)
    assert [flag.name for flag in flags.raised_flags(bad)] == [
        "registration",
        "registration",
        "noise",
    ]
    table = flags.quality_table(bad).set_index("figure")
    assert table.loc["flags", ["value", "look"]].tolist() == [2.0, "yes"]
    assert table.look["noise_snr"] == "yes"
    assert table.look["brain_volume_ml"] == "no"


def test_what_is_not_known_is_missing_and_raises_nothing():
    table = flags.quality_table(GOOD).set_index("figure")
    assert pd.isna(table.look["wmh_entropy"])
    text = flags.quality_table(GOOD).to_csv(sep="\t", na_rep="n/a")
    assert "nan" not in text.lower().replace("n/a", "")


def test_limits_and_columns_are_described():
    figures = described("quality")
    assert set(flags.limits()) <= set(figures)
    assert all(
        limit.lower is not None or limit.upper is not None for limit in flags.limits().values()
    )
    assert list(described("quality_table")) == list(flags.quality_table(GOOD).columns)


@pytest.mark.parametrize(("common", "names"), [(0.84, ["uncertainty"]), (0.86, []), (None, [])])
def test_other_wmh_in_the_mirror_image_raise_uncertainty(common, names):
    found = flags.raised_flags(replace(GOOD, mirrored_dice=common))
    assert [flag.name for flag in found] == names
