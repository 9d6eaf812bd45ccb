"""Segmentation of a scan: the way through the network and back."""

import numpy as np
import pytest
import torch
from network_spy import loaded
from scipy import ndimage
from torch import nn

from bagau_bids.errors import MissingResourceError, ProcessingError, UsageError
from bagau_bids.measures.metrics import dice
from bagau_bids.network import inference
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import (
    calibrated,
    choose_device,
    for_inference,
    load_for_inference,
)
from bagau_bids.network.slices import (
    add_t1,
    network_input,
    place_plane,
    require_white_matter,
    to_slices,
    z_score,
)
from bagau_bids.network.unet import UNet, UNetConfig
from bagau_bids.network.weights import LoadedNetwork, load_weights, save_weights
from bagau_bids.spaces import Image


def make_scan():
    rng = np.random.default_rng(0)
    flair = rng.normal(100, 10, (60, 70, 9)).astype(np.float32)
    brain = np.zeros(flair.shape, bool)
    brain[10:50, 10:60, 2:7] = True
    flair[25:32, 30:40, 4] = 300
    atlas = brain * rng.random(flair.shape).astype(np.float32)
    return flair, np.diag([2.5, 2.5, 5, 1]), brain, atlas.astype(np.float32)


def segment(models, flair, affine, brain, atlas, **options):
    """Segment a scan by networks, or by stand-ins with their own names of outputs."""
    networks = [
        model if isinstance(model, LoadedNetwork) else loaded(model, outputs=model.outputs)
        for model in models
    ]
    inputs = network_input(Image(flair, affine), brain, atlas)
    return inference.segment(networks, inputs, brain, **options)


class Threshold(nn.Module):
    """Says lesion where the FLAIR is bright, and remembers what it was given."""

    outputs = ("wmh",)

    def __init__(self, logit=8.0):
        super().__init__()
        self.logit = logit
        self.seen = []

    def forward(self, flair, atlas):
        self.seen.append((flair.float().numpy().copy(), atlas.float().numpy().copy()))
        return torch.where(flair > 5, self.logit, -self.logit)


def test_bright_block_comes_back_in_its_place():
    flair, affine, brain, atlas = make_scan()
    result = segment([Threshold()], flair, affine, brain, atlas)
    expected = np.zeros(flair.shape, bool)
    expected[25:32, 30:40, 4] = True
    assert result.probability.shape == flair.shape
    assert result.probability.dtype == np.float32
    np.testing.assert_array_equal(result.probability >= 0.5, expected)


def test_probability_is_zero_outside_the_brain_and_within_bounds():
    flair, affine, brain, atlas = make_scan()
    model = BagauNet(BagauNetConfig((4, 4, 6, 6, 8))).eval()
    probability = segment([model], flair, affine, brain, atlas).probability
    assert (probability[~brain] == 0).all()
    assert (probability[brain] > 0).all()
    assert probability.max() <= 1


def test_only_slices_with_brain_are_run():
    model = Threshold()
    flair, affine, brain, atlas = make_scan()
    segment([model], flair, affine, brain, atlas, batch_size=2)
    assert [len(batch) for batch, _ in model.seen] == [2, 2, 1]
    inputs = network_input(Image(flair, affine), brain, atlas)
    given = np.concatenate([batch[:, 0] for batch, _ in model.seen])
    np.testing.assert_array_equal(given, inputs.channels["flair"][2:7])


def test_no_white_matter_is_an_error_and_no_empty_mask():
    _, _, brain, atlas = make_scan()
    require_white_matter(atlas, brain)
    with pytest.raises(ProcessingError, match="the network would find no lesion"):
        require_white_matter(atlas * 0, brain)


class LeftOfTheFlair(nn.Module):
    """Sure of lesions in the first half of the rows, whatever lies there."""

    outputs = ("wmh",)

    def forward(self, flair, atlas):
        logits = torch.full_like(flair, -20.0)
        logits[:, :, : flair.shape[2] // 2] = 20.0
        return logits + 0 * atlas


def test_averaging_with_the_mirrored_scan_takes_away_what_depends_on_the_side():
    flair, affine, brain, atlas = make_scan()
    once, both = (
        segment([LeftOfTheFlair()], flair, affine, brain, atlas, tta=tta).probability[brain]
        for tta in (False, True)
    )
    assert once.min() < 0.01
    assert once.max() > 0.99
    np.testing.assert_allclose(both, 0.5, atol=1e-3)


def test_what_each_side_says_alone_is_told():
    flair, affine, brain, atlas = make_scan()
    assert segment([LeftOfTheFlair()], flair, affine, brain, atlas).views == ()
    found = segment([LeftOfTheFlair(), Threshold()], flair, affine, brain, atlas, tta=True)
    plain = segment([LeftOfTheFlair(), Threshold()], flair, affine, brain, atlas).probability
    alone, mirrored = found.views
    np.testing.assert_allclose(alone, plain, atol=1e-6)
    np.testing.assert_allclose((alone + mirrored) / 2, found.probability, atol=1e-6)
    assert np.median(np.abs(alone - mirrored)[brain]) > 0.45  # the first network changes sides
    assert (mirrored[~brain] == 0).all()


def test_the_mirrored_scan_is_averaged_voxel_for_voxel():
    flair, affine, brain, atlas = make_scan()
    result = segment([Threshold()], flair, affine, brain, atlas, tta=True)
    expected = segment([Threshold()], flair, affine, brain, atlas)
    np.testing.assert_allclose(result.probability, expected.probability, atol=1e-6)


def test_probabilities_of_several_networks_are_averaged():
    scan = make_scan()
    result = segment([Threshold(8.0), Threshold(-8.0)], *scan).probability
    np.testing.assert_allclose(result[scan[2]], 0.5, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_batch_size_does_not_change_the_result(precision, monkeypatch):
    monkeypatch.setattr(inference, "working_precision", lambda device: precision)
    model = BagauNet(BagauNetConfig((4, 4, 6, 6, 8))).eval()
    one, many = (segment([model], *make_scan(), batch_size=n) for n in (1, 8))
    assert np.abs(one.probability - many.probability).max() < 1e-4
    assert one.precision == str(precision).removeprefix("torch.")


def test_threads_and_slices_at_once_change_next_to_nothing():
    """With the network that ships: the same bits in the same way, a Dice of 0.995 in another."""
    network = load_weights(find_weights("small"))
    flair, affine, brain, atlas = make_scan()
    inputs = network_input(Image(flair, affine), brain, atlas)
    before, found = torch.get_num_threads(), []
    try:
        for threads, batch_size in ((1, 8), (1, 8), (2, 8), (2, 8), (1, 2)):
            torch.set_num_threads(threads)
            result = inference.segment([network], inputs, brain, batch_size=batch_size)
            found.append(result.probability)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    masks = [one >= np.percentile(found[0][brain], 80) for one in found]
    for other in masks[1:]:
        assert dice(masks[0] & brain, other & brain) >= 0.995


def test_half_precision_agrees_with_single(monkeypatch):
    torch.manual_seed(0)
    model = BagauNet(BagauNetConfig((8, 8, 12, 12, 16))).eval()
    results = []
    for precision in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(inference, "working_precision", lambda device, p=precision: p)
        results.append(segment([model], *make_scan()).probability)
    assert np.abs(results[0] - results[1]).max() < 0.02


def test_ensemble_is_the_mean_of_probabilities():
    scan = make_scan()
    each = [segment([Threshold(logit)], *scan).probability for logit in (2.0, 0.5)]
    both = segment([Threshold(2.0), Threshold(0.5)], *scan).probability
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)


class Hungry(Threshold):
    """Runs out of memory with more than `room` slices, `failures` times at most."""

    def __init__(self, room, failures=100):
        super().__init__()
        self.room, self.failures = room, failures

    def forward(self, flair, atlas):
        if len(flair) > self.room and self.failures:
            self.failures -= 1
            raise torch.cuda.OutOfMemoryError
        return super().forward(flair, atlas)


def test_batch_is_halved_when_memory_runs_out():
    scan = make_scan()
    result = segment([Hungry(room=1)], *scan, batch_size=4)
    assert result.batch_size == 1
    assert [note.split(": ")[1] for note in result.notes] == [
        "went on with 2 slices at once",
        "went on with 1 slices at once",
    ]
    expected = segment([Threshold()], *scan).probability
    np.testing.assert_array_equal(result.probability, expected)


def test_cpu_takes_over_when_one_slice_is_too_much():
    scan = make_scan()
    result = segment([Hungry(room=0, failures=1)], *scan, batch_size=1)
    assert result.device == "cpu"
    assert "the CPU took over" in result.notes[0]
    expected = segment([Threshold()], *scan).probability
    np.testing.assert_array_equal(result.probability, expected)


def test_mirrored_scan_has_its_t1_mirrored_too():
    flair, affine, brain, atlas = make_scan()
    inputs = network_input(Image(flair, affine), brain, atlas)
    inputs = add_t1(inputs, Image(-flair, affine), brain)
    mirrored = inference.mirror(inputs)
    np.testing.assert_array_equal(mirrored.channels["t1"], inputs.channels["t1"][:, ::-1])
    np.testing.assert_array_equal(mirrored.channels["flair"], inputs.channels["flair"][:, ::-1])


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="no network given"):
        segment([], *make_scan())


def test_named_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device cuda: PyTorch .* sees 0 CUDA"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="--device cuda:2: PyTorch .* sees 2 CUDA"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_unknown_devices(name):
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("threshold", [0.2, 0.75])
def test_calibration_makes_the_threshold_one_half_and_keeps_the_order(threshold):
    probability = np.linspace(0, 1, 101, dtype=np.float32)
    result = calibrated(probability, threshold)
    assert np.array_equal(result >= 0.5, probability >= np.float32(threshold))
    assert (np.diff(result) > 0).all()
    assert (result[0], result[-1]) == (0, 1)
    odds = probability[1:-1] / (1 - probability[1:-1])
    expected = odds * (1 - threshold) / threshold
    np.testing.assert_allclose(result[1:-1], expected / (1 + expected), rtol=1e-5)


def test_calibrated_networks_are_calibrated_before_their_mean():
    flair, affine, brain, atlas = make_scan()
    models = [BagauNet(BagauNetConfig((4, 4, 6, 6, 8))).eval() for _ in range(2)]
    alone = [segment([model], flair, affine, brain, atlas).probability for model in models]
    both = segment(
        [models[0], loaded(models[1], threshold=0.8)], flair, affine, brain, atlas
    ).probability
    np.testing.assert_allclose(both, (alone[0] + calibrated(alone[1], 0.8)) / 2, atol=1e-6)


class TellsInfarcts(nn.Module):
    """Two channels: WMH where the FLAIR is bright, infarct on the low rows of the plane."""

    outputs = ("wmh", "infarct")

    def __init__(self, logit=8.0):
        super().__init__()
        self.logit = logit

    def forward(self, flair, atlas):
        wmh = torch.where(flair > 5, self.logit, -self.logit)
        infarct = torch.full_like(flair, -self.logit)
        infarct[:, :, : flair.shape[2] // 2] = self.logit
        return torch.cat((wmh, infarct + 0 * atlas), dim=1)


def test_each_channel_has_its_own_probability():
    flair, affine, brain, atlas = make_scan()
    result = segment([TellsInfarcts()], flair, affine, brain, atlas)
    alone = segment([Threshold()], flair, affine, brain, atlas)
    np.testing.assert_array_equal(result.probability, alone.probability)
    low_rows = brain & (np.arange(60) < 29.5)[:, None, None]  # the plane is centred on 29.5
    np.testing.assert_array_equal(result.infarct_probability >= 0.5, low_rows)
    assert result.infarct_probability.dtype == np.float32


def test_network_with_one_channel_tells_no_infarcts():
    assert segment([Threshold()], *make_scan()).infarct_probability is None


def test_mean_of_infarcts_is_over_those_that_tell_them():
    scan = make_scan()
    models = [Threshold(2.0), TellsInfarcts(3.0), TellsInfarcts(1.0)]
    result = segment(models, *scan)
    each = [segment([model], *scan) for model in models]
    wmh = np.mean([one.probability for one in each], axis=0)
    infarct = np.mean([one.infarct_probability for one in each[1:]], axis=0)
    np.testing.assert_allclose(result.probability, wmh, atol=1e-6)
    np.testing.assert_allclose(result.infarct_probability, infarct, atol=1e-6)


def test_infarcts_are_averaged_with_the_mirrored_scan():
    scan = make_scan()
    both = segment([TellsInfarcts()], *scan, tta=True).infarct_probability
    np.testing.assert_allclose(both[scan[2]], 0.5, atol=1e-3)


def test_each_channel_is_calibrated_by_its_own_point():
    scan = make_scan()
    model = TellsInfarcts(1.0)
    before = segment([model], *scan)
    after = segment([loaded(model, outputs=model.outputs, infarct=0.8)], *scan)
    np.testing.assert_array_equal(after.probability, before.probability)
    expected = calibrated(before.infarct_probability, 0.8)
    np.testing.assert_allclose(after.infarct_probability, expected, atol=1e-6)
    assert np.abs(after.infarct_probability - before.infarct_probability).max() > 0.1


def test_known_lesions_do_not_count_for_the_z_score():
    flair, affine, brain, atlas = make_scan()
    known = np.zeros_like(brain)
    known[12:30, 12:40, 2:7] = True
    bright = np.where(known, 400, flair)
    counted = brain & ~known
    aside = network_input(Image(bright, affine), brain, atlas, known).channels["flair"]
    plain = network_input(
        Image(np.where(known, 100, flair), affine), brain, atlas, known
    ).channels["flair"]
    inside = network_input(Image(bright, affine), brain, atlas).channels["flair"]
    plane, _ = place_plane(Image(brain, affine))
    far = to_slices(ndimage.binary_dilation(known, iterations=3), plane)
    np.testing.assert_array_equal(aside[far == 0], plain[far == 0])
    assert np.abs(inside - aside)[far == 0].max() > 0.5
    low, high = np.percentile(bright[counted], (5, 95))
    middle = bright[counted & (bright >= low) & (bright <= high)]
    z_scored = z_score(bright, bright[counted], "FLAIR")[40, 20, 3]
    assert z_scored == pytest.approx((bright[40, 20, 3] - middle.mean()) / middle.std(), abs=1e-4)


def test_known_lesions_that_cover_the_brain_are_an_error():
    flair, affine, brain, atlas = make_scan()
    with pytest.raises(ProcessingError, match="known lesions covers the whole brain mask"):
        network_input(Image(flair, affine), brain, atlas, brain)


def able(monkeypatch, **instructions):
    """Let PyTorch find these instructions on the processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("instructions", "variables", "expected"),
    [
        ({"avx512_bf16": True}, {}, torch.bfloat16),
        ({"amx_bf16": True}, {}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, {}, torch.float32),
        ({"amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, torch.float32),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "avx512_core"}, torch.float32),
        ({"avx512_bf16": True}, {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, torch.float32),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, torch.bfloat16),
        ({"amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, torch.bfloat16),
        (
            {"amx_bf16": True},
            {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX", "DNNL_MAX_CPU_ISA": "AVX2"},
            torch.bfloat16,
        ),
    ],
)
def test_precision_is_what_onednn_may_use(monkeypatch, instructions, variables, expected):
    able(monkeypatch, **instructions)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert inference.working_precision(torch.device("cpu")) == expected
    assert inference.working_precision(torch.device("cuda")) == torch.float32


def test_precision_is_single_without_onednn(monkeypatch):
    able(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert inference.working_precision(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: BagauNet(BagauNetConfig(widths=(4, 6, 8, 10, 12), outputs=("wmh", "infarct"))),
        lambda: BagauNet(BagauNetConfig(widths=(4, 6, 8, 10, 12), mam=False, afm=False)),
        lambda: UNet(UNetConfig(inputs=("flair", "atlas"), widths=(4, 6, 8, 10, 12))),
    ],
)
def test_what_computes_is_the_network_without_its_batch_norms(make):
    torch.manual_seed(0)
    model = make()
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.weight.data, layer.bias.data):
                values.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {name: torch.randn(2, 1, 36, 52, generator=generator) for name in model.inputs}
    quick = for_inference(model)
    with torch.inference_mode():
        expected, found = model(**given), quick(**given)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quick.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_network_is_read_once_for_many_scans_and_again_when_it_changed(tmp_path):
    path = tmp_path / "own.safetensors"
    with pytest.raises(MissingResourceError, match=r"own\.safetensors"):
        load_for_inference(path)
    widths = BagauNetConfig(widths=(4, 4, 6, 6, 8))
    torch.manual_seed(1)
    save_weights(path, BagauNet(widths), {"name": "first"})
    first = load_for_inference(path)
    assert load_for_inference(path) is first
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in first.model.modules())
    given = {"flair": torch.randn(1, 1, 32, 32), "atlas": torch.rand(1, 1, 32, 32)}
    with torch.inference_mode():
        torch.testing.assert_close(
            first.model(**given), load_weights(path).model(**given), rtol=1e-4, atol=1e-5
        )
    save_weights(path, BagauNet(widths), {"name": "another"})
    second = load_for_inference(path)
    assert second.card.content["name"] == "another"
    with torch.inference_mode():
        assert not torch.allclose(second.model(**given), first.model(**given))
