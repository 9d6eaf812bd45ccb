"""Widening keeps the function and makes room for another."""

import pytest
import torch

from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.unet import UNet, UNetConfig
from bagau_bids.training.widening import widen

NARROW = (4, 6, 8, 10, 12)
TWICE = (8, 12, 16, 20, 24)


def trained(network, seed=0):
    """The network with batch-norm statistics and weights that are not those of its making."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
    return network.eval()


def pair(kind):
    """A narrow and a wide network."""
    if kind == "unet":
        return [UNet(UNetConfig(("flair", "atlas"), widths)) for widths in (NARROW, TWICE)]
    ablation = {"bagau_net": {}, "without mam": {"mam": False}, "without afm": {"afm": False}}
    return [BagauNet(BagauNetConfig(widths, **ablation[kind])) for widths in (NARROW, TWICE)]


@pytest.mark.parametrize("kind", ["bagau_net", "without mam", "without afm", "unet"])
@pytest.mark.parametrize("training", [False, True])
def test_the_wide_network_computes_what_the_narrow_one_does(kind, training):
    torch.manual_seed(0)
    narrow, wide = pair(kind)
    trained(narrow)
    widen(narrow, wide)
    flair, atlas = torch.randn(2, 1, 35, 48), torch.rand(2, 1, 35, 48)
    narrow, wide, flair, atlas = (it.double() for it in (narrow, wide, flair, atlas))
    with torch.no_grad():
        expected = narrow.train(training)(flair, atlas)
        found = wide.train(training)(flair, atlas)
    scale = expected.abs().max().item()  # of single precision's error
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)


def test_copies_of_a_channel_do_not_stay_alike():
    torch.manual_seed(0)
    narrow, wide = pair("bagau_net")
    widen(trained(narrow), wide)
    wide.train()
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    flair, atlas = torch.randn(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    for _ in range(2):
        wide(flair, atlas).square().mean().backward()
        optimizer.step()
    first = wide.image_encoder.levels[0][0].weight
    assert not torch.allclose(first[0::2], first[1::2], atol=1e-6)


def test_other_networks_are_refused():
    narrow, wide = pair("bagau_net")
    with pytest.raises(ValueError, match="is no multiple of"):
        widen(narrow, BagauNet(BagauNetConfig((6, 9, 12, 15, 18))))
    with pytest.raises(ValueError, match="more than their widths"):
        widen(UNet(UNetConfig(("flair",), NARROW)), wide)
