"""The U-Net of the 2017 WMH challenge's winner, the baseline with or without T1w and atlas.

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

    inputs: tuple[str, ...] = ("flair",)  # of flair, t1 and atlas: one channel each, in order
    widths: tuple[int, ...] = FULL_WIDTHS  # channels at each level, shallow to deep


class UNet(nn.Module):
    """U-Net with the widths of BAGAU-Net; the first block has 5x5 kernels, the rest 3x3.

    Parameters
    ----------
    config : UNetConfig
    """

    outputs = ("wmh",)  # what its channels are about

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = config.inputs  # names of the tensors it is given
        widths = config.widths
        self.encoder = nn.ModuleList(
            DoubleConv(w_in, w_out, 3 if depth else 5)
            for depth, (w_in, w_out) in enumerate(
                zip((len(config.inputs), *widths[:-1]), widths, strict=True)
            )
        )
        self.decoder = nn.ModuleList(
            DoubleConv(deep + width, width, 3)
            for deep, width in zip(widths[1:], widths[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(
        self, flair: Tensor, atlas: Tensor | None = None, t1: Tensor | None = None
    ) -> Tensor:
        """Logits of white matter hyperintensity.

        Parameters
        ----------
        flair, atlas, t1 : (N, 1, H, W) tensors
            As for :meth:`bagau_bids.network.bagau_net.BagauNet.forward`, and the z-scored T1w;
            those that the network's configuration names.

        Returns
        -------
        logits : (N, 1, H, W) tensor
        """
        given = {"flair": flair, "atlas": atlas, "t1": t1}
        used = [tensor for name in self.inputs if (tensor := given[name]) is not None]
        if len(used) < len(self.inputs):
            raise ValueError(f"expected all of {', '.join(self.inputs)}")
        x = torch.cat(used, dim=1)  # (N, len(inputs), H, W)
        skips: list[Tensor] = []
        for depth, block in enumerate(self.encoder):
            x = block(functional.max_pool2d(x, 2) if depth else x)
            skips.append(x)  # (N, widths[depth], H / 2**depth, W / 2**depth)
        for level in reversed(range(len(self.decoder))):
            skip = skips[level]
            x = self.decoder[level](torch.cat((skip, upsample_to(x, skip)), dim=1))
        return self.head(x)  # (N, 1, H, W)
