"""The mean of several weights files, and its subcommand."""

import json

import pytest
import torch

from bagau_bids.cli import toolbox
from bagau_bids.errors import UsageError
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.weights import load_weights, save_weights
from bagau_bids.training.averaging import average_weights

WIDTHS = (4, 4, 6, 6, 8)


def write(folder, name, seed, widths=WIDTHS, threshold=0.5, outputs=("wmh",)):
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    card = {"name": name, "calibration": {"threshold": threshold}}
    save_weights(path, BagauNet(BagauNetConfig(widths=widths, outputs=outputs)), card)
    return path


def test_every_tensor_is_the_mean_of_its_like(tmp_path):
    paths = [write(tmp_path, f"step-{seed}", seed) for seed in range(3)]
    output = tmp_path / "mean.safetensors"
    assert toolbox.main(["average", *map(str, paths), str(output)]) == 0
    states = [load_weights(path).model.state_dict() for path in paths]
    loaded = load_weights(output)
    mean, card = loaded.model, loaded.card.content
    for name, value in mean.state_dict().items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value.double(), expected, atol=1e-3, rtol=1e-3)  # half stored
    assert card["name"] == "step-0"
    assert card["averaged_of"] == [load_weights(path).card.sha256 for path in paths]
    assert card["validation"] == []


def test_card_that_names_no_outputs_is_of_the_kind_that_tells_wmh(tmp_path):
    paths = [write(tmp_path, "new", 0), write(tmp_path, "old", 1)]
    card = json.loads(paths[1].with_suffix(".json").read_text())
    assert card["config"].pop("outputs") == ["wmh"]
    paths[1].with_suffix(".json").write_text(json.dumps(card))
    average_weights(paths)
    other = write(tmp_path, "infarct", 2, outputs=("wmh", "infarct"))
    with pytest.raises(UsageError, match="infarct.safetensors: bagau_net with"):
        average_weights([*paths, other])


def test_calibrations_are_not_averaged_and_this_is_told(tmp_path, caplog):
    paths = [write(tmp_path, f"step-{n}", n, threshold=t) for n, t in enumerate((0.8, 0.5, 0.6))]
    output = tmp_path / "mean.safetensors"
    assert "calibration" not in average_weights(paths)[1]
    caplog.clear()
    assert toolbox.main(["average", *map(str, paths), str(output)]) == 0
    card = load_weights(output).card
    assert "calibration" not in card.content
    assert card.calibration.threshold == 0.5
    assert [record.getMessage().split(" is not")[0] for record in caplog.records] == [
        f"{paths[0]}: their operating point of 0.80",
        f"{paths[2]}: their operating point of 0.60",
    ]


def test_networks_of_another_kind_are_refused(tmp_path, capsys):
    paths = [write(tmp_path, "a", 0), write(tmp_path, "b", 0, (4, 4, 6, 6, 10))]
    assert toolbox.main(["average", *map(str, paths), str(tmp_path / "mean.safetensors")]) == 2
    told = capsys.readouterr().err
    assert "b.safetensors: bagau_net with" in told
    assert "average checkpoints of one training" in told


@pytest.mark.parametrize(
    ("output", "reason"),
    [("mean.pt", "expected a name ending in .safetensors"), ("b.safetensors", "expected a new")],
)
def test_output_must_be_new_and_named_rightly(tmp_path, capsys, output, reason):
    paths = [write(tmp_path, name, 0) for name in "ab"]
    before = paths[1].read_bytes()
    assert toolbox.main(["average", *map(str, paths), str(tmp_path / output)]) == 2
    assert reason in capsys.readouterr().err
    assert paths[1].read_bytes() == before
