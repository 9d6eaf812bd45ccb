"""What accuracy a page promises: the figures of the card for such a load, and no others."""

import pytest

from bagau_bids.bids.records import Model
from bagau_bids.network import cards
from bagau_bids.reports import expectation as module
from bagau_bids.reports.expectation import expectation


def model(name="small", sha256="a" * 64):
    return Model(name=name, architecture="bagau_net", version="1", sha256=sha256)


@pytest.fixture
def card(monkeypatch):
    """Packaged weights of every name, with scans of two small loads and of two large ones."""
    rows = [
        {"scan": "sub-1_FLAIR", "dice": 0.2, "reference_ml": 2.0, "result_ml": 3.0},
        {"scan": "sub-2_FLAIR", "dice": 0.4, "reference_ml": 4.0, "result_ml": 4.9},
        {"scan": "sub-3_FLAIR", "dice": 0.75, "reference_ml": 10.0, "result_ml": 9.0},
        {"scan": "sub-4_FLAIR", "dice": 0.7, "reference_ml": 20.0, "result_ml": 25.0},
        {"scan": "synthetic-00", "dice": 0.9, "reference_ml": 20.0, "result_ml": 20.0},
        {"scan": "sub-5_FLAIR", "infarct_called_wmh": 0.1},
    ]

    def read(path):
        kept = [row for row in rows if path.stem == "small" or row["scan"] == "sub-1_FLAIR"]
        return cards.Card(architecture="x", config={}, sha256="a" * 64, validation=kept)

    monkeypatch.setattr(module, "read_card", read)


@pytest.mark.parametrize(
    ("volume_ml", "dice", "words"),
    [
        (0.0, "0.20 to 0.40", "Volume +23 to +50 % beside masks drawn by hand. From 2 scans"),
        (4.99, "0.20 to 0.40", "with volumes below 5 ml"),
        (5.0, "0.70 to 0.75", "Volume -10 to +25 % beside masks drawn by hand. From 2 scans"),
        (90.0, "0.70 to 0.75", "with volumes of 5 ml and more"),
    ],
)
def test_scans_of_such_a_load_count(card, volume_ml, dice, words):
    found = expectation([model()], volume_ml)
    assert found.dice == dice
    assert words in found.words
    assert "a validation, no test (bagau models small)" in found.words


def test_one_scan_has_no_range(card):
    found = expectation([model("full")], 1.0)
    assert found.dice == "0.20"
    assert "Volume +50 % beside" in found.words
    assert "From 1 scan with" in found.words


def test_a_load_that_was_not_measured_has_no_figure(card):
    found = expectation([model("full")], 7.0)
    assert found.dice == ""
    assert found.words.startswith("Not measured for volumes of 5 ml and more (bagau models full)")


@pytest.mark.parametrize(
    "models",
    [[model(sha256="b" * 64)], [model("own")], [model(), model()], []],
    ids=["changed", "of a user", "several", "none"],
)
def test_other_weights_are_not_known(card, models):
    found = expectation(models, 7.0)
    assert found.dice == ""
    assert found.words.startswith("Not known for these weights")


@pytest.mark.parametrize("name", ["small", "full", "stroke"])
def test_every_packaged_card_has_figures_of_usual_loads(name):
    own = cards.read_card(cards.find_weights(name)).sha256
    assert expectation([model(name, own)], 15.0).dice
