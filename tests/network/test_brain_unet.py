"""The brain-mask network: shapes, independence of scale, and that it can learn."""

import pytest
import torch

from bagau_bids.network.brain_unet import BrainUNet, BrainUNetConfig
from bagau_bids.training.brain_mask import brain_loss


@pytest.mark.parametrize("shape", [(16, 24, 8), (32, 8, 16)])
def test_logits_have_the_shape_of_the_input(shape):
    torch.manual_seed(0)
    model = BrainUNet(BrainUNetConfig()).eval()
    assert model.size_multiple == 8
    with torch.inference_mode():
        assert model(torch.rand(2, 1, *shape)).shape == (2, 1, *shape)


def test_default_has_the_size_the_card_states():
    parameters = sum(p.numel() for p in BrainUNet(BrainUNetConfig()).parameters())
    assert parameters == 591_449


def test_it_learns_a_ball():
    torch.manual_seed(0)
    model = BrainUNet(BrainUNetConfig(widths=(8, 8, 8)))
    axes = torch.linspace(-1, 1, 16)
    squared = axes[:, None, None] ** 2 + axes[None, :, None] ** 2 + axes**2
    ball = (squared < 0.5).float()[None, None]
    image = ball + 0.2 * torch.randn(ball.shape)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = float(brain_loss(model(image), ball).detach())
    for _ in range(40):
        optimiser.zero_grad()
        loss = brain_loss(model(image), ball)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5 * first
