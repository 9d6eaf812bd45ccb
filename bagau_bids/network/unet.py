"""The U-Net of the 2017 WMH challenge's winner, the baseline without (or with) an atlas.

References
----------
Li H, Jiang G, Zhang J, et al. Fully convolutional network ensembles for white matter
hyperintensities segmentation in MR images. NeuroImage 2018. doi:10.1016/j.neuroimage.2018.07.005.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bagau_bids.network.bagau_net import FULL_WIDTHS, DoubleConv, upsample_to


@dataclass(frozen=True)
class UNetConfig:
    """Hyper-parameters of :class:`UNet`."""

    in_channels: int = 1  # 1: FLAIR alone; 2: FLAIR and the white-matter map
    widths: tuple[int, ...] = FULL_WIDTHS  # channels at each level, shallow to deep


class UNet(nn.Module):
    """U-Net with the widths of BAGAU-Net; the first block has 5x5 kernels, the rest 3x3.

    Parameters
    ----------
    config : UNetConfig
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoder = nn.ModuleList(
            DoubleConv(w_in, w_out, 3 if depth else 5)
            for depth, (w_in, w_out) in enumerate(
                zip((config.in_channels, *widths[:-1]), widths, strict=True)
            )
        )
        self.decoder = nn.ModuleList(
            DoubleConv(deep + width, width, 3)
            for deep, width in zip(widths[1:], widths[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, flair: Tensor, atlas: Tensor) -> Tensor:
        """Logits of white matter hyperintensity.

        Parameters
        ----------
        flair, atlas : (N, 1, H, W) tensors
            As for :meth:`bagau_bids.network.bagau_net.BagauNet.forward`; the atlas is not
            looked at where the network has one input channel.

        Returns
        -------
        logits : (N, 1, H, W) tensor
        """
        x = flair if self.config.in_channels == 1 else torch.cat((flair, atlas), dim=1)
        skips: list[Tensor] = []
        for depth, block in enumerate(self.encoder):
            x = block(functional.max_pool2d(x, 2) if depth else x)
            skips.append(x)  # (N, widths[depth], H / 2**depth, W / 2**depth)
        for level in reversed(range(len(self.decoder))):
            skip = skips[level]
            x = self.decoder[level](torch.cat((skip, upsample_to(x, skip)), dim=1))
        return self.head(x)  # (N, 1, H, W)
