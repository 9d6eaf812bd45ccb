"""Covariates: which columns are scales, which groups, and which cannot be shown."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from bagau_bids.bids.participants import Participants
from bagau_bids.reports.charts import literal
from bagau_bids.reports.covariates import (
    Covariate,
    draw_covariates,
    drawn_covariates,
    find_covariates,
)
from bagau_bids.reports.figures import figure_image

NAMES = [f"sub-{number:02}" for number in range(20)]
VOLUMES = {name: float(number) for number, name in enumerate(NAMES)}


def participants(**columns):
    values = {
        column: {name: str(text) for name, text in zip(NAMES, texts, strict=False) if text}
        for column, texts in columns.items()
    }
    return Participants("participants.tsv", values, {"age": {"Units": "years"}})


def test_scales_groups_and_order():
    table = participants(
        site=["A", "B"] * 10, sex=["F", "M"] * 10, age=range(50, 70), code=[1, 2, 3, 1] * 5
    )
    covariates, left_out = find_covariates(table, VOLUMES)
    assert [c.name for c in covariates] == ["age (years)", "sex", "site", "code"]
    assert [c.levels for c in covariates] == [(), ("F", "M"), ("A", "B"), ("1", "2", "3")]
    assert left_out == []


def test_few_ages_are_a_scale_and_few_codes_are_not():
    covariates, _ = find_covariates(participants(Age=[50, 60], scanner=[1, 2]), VOLUMES)
    assert [c.levels for c in covariates] == [(), ("1", "2")]


def test_values_meet_the_volume_of_their_participant():
    table = participants(sex=[None, "F", None, "M"])
    ((covariate,), _) = find_covariates(table, {"sub-03": 30.0, "sub-01": 10.0, "sub-00": 5.0})
    assert dict(zip(covariate.texts, covariate.volumes_ml, strict=True)) == {"M": 30.0, "F": 10.0}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([f"patient {n}" for n in range(20)], "20 different texts"),
        (["MS"] * 20, "MS in all"),
        ([None] * 20, "no value of a participant with results"),
        (["nan", "inf", *map(str, range(18))], "20 different texts"),
    ],
)
def test_what_cannot_be_shown_is_said(texts, reason):
    covariates, left_out = find_covariates(participants(column=texts), VOLUMES)
    assert covariates == []
    assert left_out == [f"column ({reason})"]


def test_no_more_than_six_columns():
    table = participants(**{f"c{number}": ["A", "B"] * 10 for number in range(8)})
    covariates, left_out = find_covariates(table, VOLUMES)
    assert len(covariates) == 6
    assert left_out == ["c6 (more than 6 columns)", "c7 (more than 6 columns)"]


def test_charts_bear_zeros_and_few_values():
    volumes = dict.fromkeys(NAMES, 0.0)
    table = participants(age=range(20), sex=["F", "M"] * 10)
    covariates, _ = find_covariates(table, volumes)
    assert np.asarray(draw_covariates(covariates)).std() > 0
    covariates, _ = find_covariates(participants(sex=["F", "M"]), VOLUMES)
    assert draw_covariates(covariates).width > 600


def pixels(*covariates):
    return np.asarray(draw_covariates(covariates))


def test_dollars_of_a_table_are_no_formula():
    """Odd and even numbers of dollars, as a name, a unit and a group."""
    nonsense = "$a^$ & x"
    table = Participants(
        "participants.tsv",
        {nonsense: {name: nonsense if n % 2 else "$" for n, name in enumerate(NAMES)}},
        {nonsense: {"Units": r"$\\frac$"}},
    )
    ((covariate,), _) = find_covariates(table, VOLUMES)
    assert covariate.levels == ("$", nonsense)
    picture, failed = drawn_covariates([covariate])
    assert failed == []
    assert picture.width > 600


@pytest.mark.parametrize("text", ["$b$", "a $", r"\$a$", "$$", "no dollar"])
def test_texts_are_shown_letter_by_letter(text):
    def drawn(words, **options):
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.4, words, **options)
        return np.asarray(figure_image(figure))

    assert (drawn(literal(text)) == drawn(text, parse_math=False)).all()


def test_a_covariate_that_cannot_be_drawn_leaves_the_others():
    good = Covariate("age", ("1", "2"), (1.0, 2.0))
    bad = Covariate("weight", ("1", "nan"), (1.0, float("inf")))
    picture, failed = drawn_covariates([good, bad])
    assert (np.asarray(picture) == pixels(good)).all()
    assert [text.split(" (")[0] for text in failed] == ["weight"]
    assert "cannot be drawn: " in failed[0]
    assert drawn_covariates([bad]) == (None, failed)
    assert drawn_covariates([]) == (None, [])
