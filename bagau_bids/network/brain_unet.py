"""A small 3-D U-Net that finds the inside of the skull in a whole-head image.

References
----------
Cicek O, Abdulkadir A, Lienkamp SS, Brox T, Ronneberger O. 3D U-Net: learning dense volumetric
segmentation from sparse annotation. MICCAI 2016. doi:10.1007/978-3-319-46723-8_49.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BrainUNetConfig:
    """Hyper-parameters of :class:`BrainUNet`."""

    widths: tuple[int, ...] = (24, 48, 64)  # channels at each level, shallow to deep


class ConvPair(nn.Sequential):
    """Twice: 3x3x3 convolution, instance normalisation, leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class BrainUNet(nn.Module):
    """3-D U-Net between a strided stem and a transposed head, each a step of two voxels.

    The U-Net itself works on half the input's resolution, where its channels are cheap; the
    head brings its features back to every voxel. Instance normalisation, so that one volume
    makes a batch.

    Parameters
    ----------
    config : BrainUNetConfig
    """

    def __init__(self, config: BrainUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = nn.Conv3d(1, widths[0], 4, stride=2, padding=1)
        self.encoder = nn.ModuleList(
            ConvPair(w_in, w_out)
            for w_in, w_out in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            ConvPair(deep + width, width)
            for deep, width in zip(widths[1:], widths[:-1], strict=True)
        )
        self.head = nn.ConvTranspose3d(widths[0], 1, 4, stride=2, padding=1)

    @property
    def size_multiple(self) -> int:
        """Every axis of the input must be a multiple of this."""
        return 2 ** len(self.config.widths)

    def forward(self, flair: Tensor) -> Tensor:
        """Logits of being inside the skull.

        Parameters
        ----------
        flair : (N, 1, D, H, W) tensor
            Scaled image; every axis a multiple of :attr:`size_multiple`.

        Returns
        -------
        logits : (N, 1, D, H, W) tensor
        """
        x = self.stem(flair)  # (N, widths[0], D / 2, H / 2, W / 2)
        skips: list[Tensor] = []
        for depth, block in enumerate(self.encoder):
            x = block(functional.max_pool3d(x, 2) if depth else x)
            skips.append(x)  # (N, widths[depth], D / 2**(depth + 1), ...)
        for level in reversed(range(len(self.decoder))):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.decoder[level](torch.cat((skips[level], x), dim=1))
        return self.head(x)
