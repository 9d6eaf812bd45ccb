"""A network that keeps what it is given."""

import torch
from torch import nn


class Spy(nn.Module):
    """Remembers the tensors it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, flair, atlas):
        self.seen.append((flair.float().numpy().copy(), atlas.float().numpy().copy()))
        return torch.zeros_like(flair)
