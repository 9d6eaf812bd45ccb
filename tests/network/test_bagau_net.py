"""BAGAU-Net and the U-Net baseline: sizes, wiring and ablations."""

import pytest
import torch

from bagau_bids.network.bagau_net import (
    FULL_WIDTHS,
    SMALL_WIDTHS,
    AttentionGate,
    BagauNet,
    BagauNetConfig,
    upsample_to,
)
from bagau_bids.network.unet import UNet, UNetConfig

TINY = (4, 4, 6, 6, 8)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def pair(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flair = torch.randn((2, 1, height, width), generator=generator)
    return flair, torch.rand((2, 1, height, width), generator=generator)


def double_conv(n_in, n_out, kernel):
    """Parameters of two biased convolutions with batch norm."""
    return (n_in + n_out) * n_out * kernel**2 + 2 * (n_out + 2 * n_out)


def expected_parameters(widths):
    """Parameters counted from the table of the paper's architecture, layer by layer."""
    total = 0
    for kernel in (3, 5):
        total += sum(double_conv(i, o, kernel) for i, o in zip((1, *widths), widths, strict=False))
    gate_widths = (widths[0] // 2, widths[0], widths[1], widths[2])
    for deep, width, inner in zip(widths[1:], widths, gate_widths, strict=False):
        total += double_conv(deep + width, width, 3)  # segmentation decoder
        total += deep * width + width + double_conv(width, width, 5)  # atlas decoder
        gate = (deep + 1) * inner + (width + 1) * inner + 4 * inner + inner + 1 + 2
        total += 2 * gate + 2 * (width + 1) * width  # MAM
    return total + (widths[0] + 1) * widths[0] + 2 * widths[0] + 2 * widths[0] + 1  # AFM, head


def test_full_width_has_the_parameters_of_the_paper():
    model = BagauNet(BagauNetConfig())
    assert count(model) == expected_parameters(FULL_WIDTHS) == 27_178_169
    assert round(count(model) / 1e6, 2) == 27.18


def test_quarter_width():
    model = BagauNet(BagauNetConfig(SMALL_WIDTHS))
    assert count(model) == expected_parameters(SMALL_WIDTHS) == 1_703_873


def test_gate_widths_of_the_paper():
    assert BagauNetConfig().gate_widths == (32, 64, 96, 128)


@pytest.mark.parametrize("size", [(32, 48), (50, 37), (16, 16)])
@pytest.mark.parametrize("config", [{}, {"mam": False}, {"afm": False}, {"mam": 0, "afm": 0}])
def test_logits_have_the_size_of_the_slices(size, config):
    model = BagauNet(BagauNetConfig(TINY, **config)).eval()
    flair, atlas = pair(*size)
    assert model(flair, atlas).shape == flair.shape


@pytest.mark.parametrize("config", [{}, {"mam": False}, {"afm": False}])
def test_every_parameter_is_used_once(config):
    model = BagauNet(BagauNetConfig(TINY, **config))
    model(*pair(32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(model.parameters()))


def test_the_atlas_and_the_flair_both_matter():
    torch.manual_seed(0)
    model = BagauNet(BagauNetConfig(TINY)).eval()
    flair, atlas = pair(32, 32)
    other_flair, other_atlas = pair(32, 32, seed=1)
    with torch.no_grad():
        logits = model(flair, atlas)
        assert not torch.allclose(logits, model(flair, other_atlas))
        assert not torch.allclose(logits, model(other_flair, atlas))


def test_gate_is_a_map_between_0_and_1_on_the_skip():
    gate = AttentionGate(gating_width=3, skip_width=4, inner_width=2).eval()
    skip = torch.rand(1, 4, 5, 5) + 0.1
    with torch.no_grad():
        ratio = gate(torch.randn(1, 3, 5, 5), skip) / skip
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_upsampling_aligns_corners_and_pads_odd_sizes_with_zeros():
    features = torch.tensor([[[[0.0, 3.0]]]])
    result = upsample_to(features, torch.zeros(1, 1, 3, 5))
    torch.testing.assert_close(result[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0]))
    assert (result[0, 0, 2] == 0).all()


@pytest.mark.parametrize(
    "inputs", [("flair",), ("flair", "atlas"), ("flair", "t1"), ("flair", "t1", "atlas")]
)
def test_unet_baseline(inputs):
    model = UNet(UNetConfig(inputs, TINY)).eval()
    assert model.encoder[0][0].kernel_size == (5, 5)
    assert model.encoder[1][0].kernel_size == (3, 3)
    flair, atlas = pair(50, 37)
    given = {"flair": flair, "atlas": atlas, "t1": atlas + flair}
    with torch.no_grad():
        logits = model(**given)
        for name in given:
            changed = model(**given | {name: 1 - given[name]})
            assert torch.allclose(logits, changed) == (name not in inputs)
    assert logits.shape == flair.shape
    assert (model.inputs, BagauNet.inputs) == (inputs, ("flair", "atlas"))


def test_unet_without_its_t1_is_refused():
    model = UNet(UNetConfig(("flair", "t1"), TINY))
    with pytest.raises(ValueError, match="expected all of flair, t1"):
        model(*pair(32, 32))


def test_head_has_a_channel_for_each_output():
    torch.manual_seed(0)
    config = BagauNetConfig(widths=(4, 6, 8, 12, 16), outputs=("wmh", "infarct"))
    logits = BagauNet(config).eval()(
        flair=torch.randn(2, 1, 32, 48), atlas=torch.rand(2, 1, 32, 48)
    )
    assert logits.shape == (2, 2, 32, 48)
    assert not torch.allclose(logits[:, 0], logits[:, 1])
