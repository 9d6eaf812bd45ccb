"""``bagau calibrate`` from masks to moved weights; preprocessing has a stand-in."""

import numpy as np
import pytest
import torch
from labelled_tree import write_labelled_tree

from bagau_bids.cli import toolbox
from bagau_bids.datasets import labelled as dataset
from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import InputImageError
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.cards import find_weights
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights, save_weights
from bagau_bids.spaces import Image

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


@pytest.fixture
def labelled_data(tmp_path, monkeypatch):
    """Two subjects, one that cannot be preprocessed, one without lesions, untrained weights."""
    write_labelled_tree(tmp_path, ("01", "02", "03", "04"))

    def prepared(labelled, template, registration, cache_dir, *, inputs=()):
        if labelled.scan.subject == "03":
            raise InputImageError("no brain")
        rng = np.random.default_rng(int(labelled.scan.subject))
        brain = np.zeros((40, 40, 3), bool)
        brain[5:35, 5:35] = True
        reference = np.zeros(brain.shape, np.uint8)
        if labelled.scan.subject != "04":
            reference[10:20, 10:20, 1] = 1
        flair = rng.normal(9, 1, brain.shape).astype(np.float32) + 3 * reference
        inputs = network_input(Image(flair, AFFINE), brain, np.ones_like(flair))
        name = labelled.scan.stem
        return TrainingScan(name, labelled.scan.subject, 0, inputs, brain, reference, AFFINE)

    monkeypatch.setattr(dataset, "prepare_scan", prepared)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *args, **options: None
    )
    torch.manual_seed(0)
    model = BagauNet(BagauNetConfig(widths=(4, 4, 6, 6, 8))).eval()
    save_weights(tmp_path / "raw.safetensors", model, {"licence": "CC0"})
    return tmp_path


def calibrate(folder, *options, weights=None, output="moved.safetensors"):
    return toolbox.main(
        ["calibrate", f"{weights or folder / 'raw.safetensors'}", f"{folder / 'bids'}"]
        + [f"{folder / output}", "--masks", f"{folder / 'masks'}", "--device", "cpu", *options]
    )


def test_weights_stay_and_the_card_says_which_threshold_becomes_one_half(labelled_data, caplog):
    caplog.set_level("INFO")
    assert calibrate(labelled_data) == 0
    before = load_weights(labelled_data / "raw.safetensors")
    after = load_weights(labelled_data / "moved.safetensors")
    card = after.card.content
    for name, value in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], value), name
    threshold = card["calibration"]["threshold"]
    assert [one.operating_points["wmh"] for one in (before, after)] == [0.5, threshold]
    points = {point["threshold"]: point for point in card["calibration"]["points"]}
    highest = max(point["mean_dice"] for point in points.values())
    assert points[threshold]["mean_dice"] >= highest - 0.0051
    assert card["calibration"]["scans"] == ["sub-01", "sub-02", "sub-04"]
    assert [score["scan"] for score in card["validation"]] == card["calibration"]["scans"]
    assert card["licence"] == "CC0"
    assert "sub-03 is left out: no brain" in caplog.text
    assert "volumes are those of 2 scans; sub-04 without lesions in the reference" in caplog.text
    assert max(point["worst_volume_error"] for point in points.values()) < 100


def test_subjects_may_be_chosen(labelled_data):
    assert calibrate(labelled_data, "--participant-label", "sub-02") == 0
    card = load_weights(labelled_data / "moved.safetensors").card.content
    assert card["calibration"]["scans"] == ["sub-02"]


def test_mistakes_are_named(labelled_data, capsys):
    assert calibrate(labelled_data, "--participant-label", "9") == 2
    assert "no FLAIR with a mask found for 9; expected at least one" in capsys.readouterr().err
    assert calibrate(labelled_data, output="moved.pt") == 2
    assert "expected a name ending in .safetensors" in capsys.readouterr().err
    assert calibrate(labelled_data, weights=find_weights("brain")) == 2
    assert "a network of the brain mask; expected one that finds" in capsys.readouterr().err
    assert calibrate(labelled_data, "--participant-label", "04") == 2
    assert "1 scans to calibrate on, none with a lesion (1) in its" in capsys.readouterr().err
    assert calibrate(labelled_data, "--participant-label", "03") == 1
    assert "no scan could be preprocessed, expected at least one" in capsys.readouterr().err
    assert not (labelled_data / "moved.safetensors").exists()
