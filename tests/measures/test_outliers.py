"""Outliers: found where they are, never among few values, the same for every unit of length."""

import numpy as np
import pytest

from bagau_bids.measures.outliers import outlying, usual_range


def test_limits_are_the_quartiles_widened():
    # 1 to 21: quartiles 6 and 16, so 6 - 2.2 * 10 and 16 + 2.2 * 10.
    assert usual_range(range(1, 22), "mm") == pytest.approx((-16, 38))


def test_one_value_far_away_is_found_on_either_side():
    for far in (-40, 60):
        values = [*range(1, 21), far]
        assert outlying(values, "mm").tolist() == [False] * 20 + [True]


def test_skewed_volumes_are_judged_after_their_cube_root():
    volumes = np.arange(1, 31) ** 3
    assert not outlying(volumes, "mm^3").any()
    assert outlying([*volumes, 120**3], "mm^3").tolist() == [False] * 30 + [True]


def test_few_values_have_no_outlier():
    assert usual_range([1.0] * 9, "1") is None
    assert not outlying([1.0] * 8 + [50.0], "1").any()


def test_rounding_errors_are_no_outliers_where_all_is_equal():
    values = [0.9] * 12 + [0.9 + 1e-9]
    assert not outlying(values, "mm").any()
    assert outlying([*values, 0.95], "mm").tolist() == [False] * 13 + [True]
    assert outlying([0.0] * 12 + [3.0], "cm^2")[-1]


def test_no_value_is_no_error():
    assert outlying([], "mm").shape == (0,)
