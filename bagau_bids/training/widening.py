"""A wider network that computes what a narrower one does: a warm start for training.

References
----------
Chen T, Goodfellow I, Shlens J. Net2Net: accelerating learning via knowledge transfer. 2016.
arXiv:1511.05641.
"""

import torch
from torch import Tensor, nn

_SMALLEST = 0.25  # a copy's share is drawn from this to 1 more, before they are made to add up


def widen(narrow: nn.Module, wide: nn.Module, seed: int = 0) -> None:
    """Give a network the function of a narrower one of the same architecture.

    Each channel becomes several copies that lie beside each other, so that concatenated
    features still line up; a kernel's weights are divided among the copies of its input
    channel. The shares are uneven and random: equal ones would get equal gradients for ever,
    and the width would be of no use.

    Parameters
    ----------
    narrow : torch.nn.Module
        The network to take over.
    wide : torch.nn.Module
        Of the same architecture, every width the same multiple of the other's; changed in
        place.
    seed : int
        Of the shares.

    Raises
    ------
    ValueError
        If the networks differ in more than their widths, or a width is no multiple.
    """
    source, target = narrow.state_dict(), wide.state_dict()
    if source.keys() != target.keys():
        raise ValueError("the networks differ in more than their widths")
    generator = torch.Generator().manual_seed(seed)
    wide.load_state_dict(
        {name: _widened(source[name], target[name].shape, generator) for name in source}
    )


def _widened(tensor: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Copy channels to a shape; the weights of an input channel are divided among its copies."""
    if any(new % old for new, old in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"{tuple(shape)} is no multiple of {tuple(tensor.shape)}")
    if tensor.ndim == 0:  # batch norm's counter
        return tensor
    wide = tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)
    if tensor.ndim == 1:
        return wide
    inputs = tensor.shape[1]
    copies = shape[1] // inputs
    shares = torch.rand((shape[0], inputs, copies), generator=generator) + _SMALLEST
    shares = (shares / shares.sum(dim=2, keepdim=True)).flatten(1)  # (output, input)
    wide = wide.repeat_interleave(copies, dim=1)
    return wide * shares.reshape(*shares.shape, *(1 for _ in shape[2:]))
