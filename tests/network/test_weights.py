"""Weights files: what is written is read back, anything else is refused with its reason."""

import hashlib
import json
import re

import pytest
import torch

from bagau_bids.errors import EXIT_MISSING, MissingResourceError
from bagau_bids.network import cards
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.cards import Calibration, find_networks, find_weights, read_card
from bagau_bids.network.unet import UNet, UNetConfig
from bagau_bids.network.weights import build_network, in_training, load_weights, save_weights

TINY = (4, 4, 6, 6, 8)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = BagauNet(BagauNetConfig(TINY, afm=False))
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, {"licence": "CC-BY-4.0", "training_data": ["a"]})
    return path, model


def edit_card(path, **changes):
    card_path = path.with_suffix(".json")
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps({**card, **changes}))


def test_round_trip(saved):
    path, model = saved
    network = load_weights(path)
    loaded, card = network.model, network.card
    assert not loaded.training
    assert loaded.config == model.config
    assert list(card.content)[:2] == ["licence", "training_data"]
    assert card.content == json.loads(path.with_suffix(".json").read_text())
    assert card.architecture == "bagau_net"
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.parameters == sum(p.numel() for p in model.parameters())
    for name, value in model.state_dict().items():
        read = loaded.state_dict()[name]
        assert read.dtype == value.dtype
        torch.testing.assert_close(read, value, rtol=1e-3, atol=1e-4)


def test_kernels_are_stored_in_half_precision(tmp_path):
    model = UNet(UNetConfig(widths=TINY))
    save_weights(tmp_path / "u.safetensors", model, {})
    vectors = sum(v.numel() * v.element_size() for v in model.state_dict().values() if v.ndim < 2)
    kernels = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    size = (tmp_path / "u.safetensors").stat().st_size
    assert size < 2 * kernels + vectors + 12_000  # the header


def test_saving_leaves_no_other_file(saved):
    path, _ = saved
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_diverged_weights_are_not_saved(tmp_path):
    model = UNet(UNetConfig(widths=TINY))
    with torch.no_grad():
        model.head.weight.fill_(1e6)
    with pytest.raises(ValueError, match="head.weight is not finite in half precision"):
        save_weights(tmp_path / "u.safetensors", model, {})


def test_other_suffix_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="expected a name ending in .safetensors"):
        save_weights(tmp_path / "u.pt", UNet(UNetConfig(widths=TINY)), {})


def refused(path, match):
    with pytest.raises(MissingResourceError, match=match) as caught:
        load_weights(path)
    assert str(path.with_suffix("")) in str(caught.value)
    assert caught.value.exit_code == EXIT_MISSING


def test_missing_file(tmp_path):
    refused(tmp_path / "none.safetensors", "no such weights file")


def test_pickle_is_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(path, "a pickled weights file is not opened")


def test_unknown_kind_of_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    refused(path, "a '.onnx' weights file is not opened")


def test_missing_card(saved):
    path, _ = saved
    path.with_suffix(".json").unlink()
    refused(path, "the card of mine.safetensors is missing")


def test_card_that_is_not_json(saved):
    path, _ = saved
    path.with_suffix(".json").write_text("{")
    refused(path, "JSON is malformed|truncated")


def test_card_of_something_else(saved):
    path, _ = saved
    path.with_suffix(".json").write_text('{"Name": "x"}')
    refused(path, "required field `architecture`; expected a card of weights as")


@pytest.mark.parametrize("content", [b"[]", b'"x"'])
def test_card_that_is_no_object(saved, content):
    saved[0].with_suffix(".json").write_bytes(content)
    refused(saved[0], "Expected `object`")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sha256": 7}, "sha256"),
        ({"inputs": "flair"}, "inputs"),
        ({"calibration": [0.5]}, "calibration"),
        ({"validation": {"scan": "a"}}, "validation"),
    ],
)
def test_field_of_another_kind_is_named(saved, changes, field):
    edit_card(saved[0], **changes)
    refused(saved[0], rf"Expected .*`\$\.{field}`")


def test_truncated_file(saved):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "truncated or not a safetensors file")


def test_changed_file(saved):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(path, "its SHA-256 is .*, expected")


def test_unknown_architecture(saved):
    path, _ = saved
    edit_card(path, architecture="transformer")
    refused(path, "unknown architecture 'transformer'")


def test_unknown_hyper_parameter(saved):
    path, _ = saved
    edit_card(path, config={"depth": 7})
    refused(path, "cannot be built from")


@pytest.mark.parametrize("threshold", [0, 1, 7])
def test_card_with_an_impossible_calibration(saved, threshold):
    path, _ = saved
    edit_card(path, calibration={"threshold": threshold})
    refused(path, r"Expected `float` [<>] [01].0 - at `\$.calibration.threshold`")


@pytest.fixture
def two_outputs(tmp_path):
    """Weights that tell infarcts, their WMH calibrated to 0.7 and their infarcts to 0.3."""
    path = tmp_path / "two.safetensors"
    model = BagauNet(BagauNetConfig(TINY, outputs=("wmh", "infarct")))
    save_weights(path, model, {"calibration": {"threshold": 0.7, "infarct_threshold": 0.3}})
    return path


def test_each_output_has_an_operating_point_of_its_own(two_outputs):
    network = load_weights(two_outputs)
    assert network.outputs == ("wmh", "infarct")
    assert network.operating_points == {"wmh": 0.7, "infarct": 0.3}
    assert network.calibrated(Calibration(0.2)).operating_points == {"wmh": 0.2, "infarct": 0.5}
    edit_card(two_outputs, calibration={"threshold": 0.7})
    assert load_weights(two_outputs).operating_points["infarct"] == 0.5


def test_card_without_outputs_tells_wmh_alone(saved):
    path, _ = saved
    config = {k: v for k, v in read_card(path).config.items() if k != "outputs"}
    edit_card(path, config=config)
    network = load_weights(path)
    assert network.outputs == network.model.outputs == ("wmh",)


def test_network_in_training_is_described_as_its_card_will(tmp_path):
    for name, model in {
        "b": BagauNet(BagauNetConfig(TINY, outputs=("wmh", "infarct"))),
        "u": UNet(UNetConfig(inputs=("flair", "t1"), widths=TINY)),
    }.items():
        save_weights(tmp_path / f"{name}.safetensors", model, {})
        network, loaded = in_training(model), load_weights(tmp_path / f"{name}.safetensors")
        assert (network.inputs, network.outputs) == (loaded.inputs, loaded.outputs)
        assert network.operating_points == loaded.operating_points
        assert network.card.architecture == loaded.card.architecture


def test_networks_of_a_run_are_the_users_or_packaged(saved, tmp_path):
    save_weights(tmp_path / "u.safetensors", UNet(UNetConfig(inputs=("t1",), widths=TINY)), {})
    own = find_networks((saved[0], tmp_path / "u.safetensors"), "small")
    assert [one.path for one in own.lesions] == [saved[0], tmp_path / "u.safetensors"]
    assert own.brain.path == find_weights("brain")
    assert own.take("t1")
    assert not own.tell("infarct")
    packaged = find_networks((), "full")
    assert [one.path for one in packaged.lesions] == [find_weights("full")]
    assert not packaged.take("t1")
    with pytest.raises(MissingResourceError, match="no such weights file"):
        find_networks((tmp_path / "none.safetensors",), "small")


def test_card_with_an_impossible_calibration_of_infarcts(two_outputs):
    edit_card(two_outputs, calibration={"infarct_threshold": 0})
    refused(two_outputs, r"Expected `float` > 0.0 - at `\$.calibration.infarct_threshold`")


@pytest.mark.parametrize("outputs", [["infarct"], ["wmh", "tumour"]])
def test_card_with_outputs_that_nobody_knows(two_outputs, outputs):
    edit_card(two_outputs, config={"widths": TINY, "outputs": outputs})
    refused(two_outputs, f"outputs {', '.join(outputs)}, known are wmh alone, and wmh and infarct")


@pytest.mark.parametrize("outputs", [5, "wmh", None, ["wmh", 5], [["wmh"]], {"wmh": 1}])
def test_card_with_outputs_that_are_no_names_tells_the_field(two_outputs, outputs):
    edit_card(two_outputs, config={"widths": TINY, "outputs": outputs})
    got = re.escape(f"Expected a list of `str`, got {outputs!r} - at `$.config.outputs`; expected")
    refused(two_outputs, rf"two\.json: {got} a card of weights")


@pytest.mark.parametrize(
    "inputs", [[], ["flair", "flair"], ["flair", "colour"], ["FLAIR"], ["flair", "atlas", "flair"]]
)
def test_card_with_inputs_that_nobody_knows_or_twice(saved, inputs):
    edit_card(saved[0], inputs=inputs)
    said = f"Expected some of flair, atlas, t1, each once, got {', '.join(inputs) or 'none'}"
    refused(saved[0], rf"mine\.json: {said} - at `\$\.inputs`; expected a card of weights")


@pytest.mark.parametrize("inputs", [["t1"], ["t1", "flair"], ["flair", "atlas", "t1"]])
def test_card_with_inputs_in_any_order_is_read(saved, inputs):
    edit_card(saved[0], inputs=inputs)
    assert read_card(saved[0]).inputs == tuple(inputs)


def test_card_with_other_shapes(saved):
    path, _ = saved
    edit_card(path, config={"widths": [4, 4, 6, 6, 10], "afm": False})
    refused(path, r"tensors do not fit bagau_net .* instead of")


def test_card_with_other_tensors(saved):
    path, _ = saved
    edit_card(path, config={"widths": TINY, "afm": True})
    refused(path, r"tensors do not fit bagau_net .*fusion")


def test_packaged_weights_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cards.resources, "files", lambda package: tmp_path)
    expected = "full.safetensors: the weights 'full' should ship.*--weights"
    with pytest.raises(MissingResourceError, match=expected) as caught:
        find_weights("full")
    assert caught.value.exit_code == EXIT_MISSING


@pytest.mark.parametrize(
    ("name", "largest_mb", "widths"),
    [
        ("small", 4, [16, 24, 32, 64, 128]),
        ("full", 60, [64, 96, 128, 256, 512]),
        ("stroke", 4, [16, 24, 32, 64, 128]),
        ("brain", 4, None),
    ],
)
def test_packaged_weights_are_whole_and_described(name, largest_mb, widths):
    path = find_weights(name)
    assert path.stat().st_size <= largest_mb * 1e6
    network = load_weights(path)  # compares its SHA-256 with the card's
    model, card = network.model, network.card
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    assert card.content["licence"] == "CC BY 4.0"
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"(`{name}`)" in text.splitlines()[0]
    for heading in ("## Intended use", "## Where it fails", "**Licence of these weights**"):
        assert heading in text
    if widths:
        assert card.config["widths"] == widths
        assert {one["scan"] for one in card.validation} >= {
            "sub-tz08_FLAIR",
            "sub-tz09_FLAIR",
            "sub-lj26_FLAIR",
        }
        assert "multiple sclerosis" in text


def test_every_architecture_can_be_built_from_its_card():
    built = build_network("unet", {"inputs": ["flair", "t1"], "widths": [4, 4, 6]})
    assert built.config.inputs == ("flair", "t1")
    assert build_network("brain_unet", {}).config.widths
