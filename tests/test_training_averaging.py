"""The mean of several weights files, and its subcommand."""

import pytest
import torch

from bagau_bids.cli import toolbox
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.weights import load_weights, save_weights

WIDTHS = (4, 4, 6, 6, 8)


def write(folder, name, seed, widths=WIDTHS):
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    save_weights(path, BagauNet(BagauNetConfig(widths=widths)), {"name": name})
    return path


def test_every_tensor_is_the_mean_of_its_like(tmp_path):
    paths = [write(tmp_path, f"step-{seed}", seed) for seed in range(3)]
    output = tmp_path / "mean.safetensors"
    assert toolbox.main(["average", *map(str, paths), str(output)]) == 0
    states = [load_weights(path)[0].state_dict() for path in paths]
    mean, card = load_weights(output)
    for name, value in mean.state_dict().items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value.double(), expected, atol=1e-3, rtol=1e-3)  # half stored
    assert card["name"] == "step-0"
    assert card["averaged_of"] == [load_weights(path)[1]["sha256"] for path in paths]
    assert card["validation"] == []


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
