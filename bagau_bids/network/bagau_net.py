"""BAGAU-Net: a brain-atlas-guided attention U-Net for white matter hyperintensities.

Two U-shaped paths over one axial slice. The segmentation path reads the FLAIR; the atlas path
reads the white-matter probability map registered to it. Multi-input attention modules (MAM)
let both paths weigh the skip connections of the segmentation path; the attention fusion
module (AFM) joins the two paths at the end.

References
----------
Zhang Z, Powell K, Yin C, et al. Brain Atlas Guided Attention U-Net for White Matter
Hyperintensity Segmentation. AMIA Jt Summits Transl Sci Proc 2021:663-671. arXiv:2010.09586.
Oktay O, Schlemper J, Le Folgoc L, et al. Attention U-Net. 2018. arXiv:1804.03999 (the gate).
Ronneberger O, Fischer P, Brox T. U-Net. 2015. doi:10.1007/978-3-319-24574-4_28.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

FULL_WIDTHS = (64, 96, 128, 256, 512)
SMALL_WIDTHS = (16, 24, 32, 64, 128)


@dataclass(frozen=True)
class BagauNetConfig:
    """Hyper-parameters of :class:`BagauNet`.

    With the default widths the network has 27.18 M parameters, as in the paper; with
    :data:`SMALL_WIDTHS` 1.70 M.
    """

    widths: tuple[int, ...] = FULL_WIDTHS  # channels at each level, shallow to deep
    mam: bool = True  # False: plain concatenation of the skips (ablation)
    afm: bool = True  # False: plain concatenation of both paths' last features (ablation)
    outputs: tuple[str, ...] = ("wmh",)  # channels of the head; ("wmh", "infarct") tells both

    @property
    def gate_widths(self) -> tuple[int, ...]:
        """Inner widths of the attention gates, shallow to deep: 32, 64, 96, 128 by default."""
        return (self.widths[0] // 2, *self.widths[:-2])


class DoubleConv(nn.Sequential):
    """(convolution, batch norm, ReLU) twice; keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def upsample_to(features: Tensor, skip: Tensor) -> Tensor:
    """Double height and width, then pad with zeros to those of `skip` where they were odd."""
    features = functional.interpolate(
        features, scale_factor=2, mode="bilinear", align_corners=True
    )
    rows = skip.shape[-2] - features.shape[-2]  # 0, or 1 for an odd height
    columns = skip.shape[-1] - features.shape[-1]
    if rows or columns:
        features = functional.pad(features, (0, columns, 0, rows))
    return features


class Encoder(nn.Module):
    """Double convolutions with max-pooling by 2 between them; returns every level."""

    def __init__(self, widths: tuple[int, ...], kernel_size: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            DoubleConv(w_in, w_out, kernel_size)
            for w_in, w_out in zip((1, *widths[:-1]), widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:  # (N, 1, H, W)
        """Features of every level, shallow to deep."""
        features = []
        for depth, level in enumerate(self.levels):
            x = level(functional.max_pool2d(x, 2) if depth else x)
            features.append(x)  # (N, widths[depth], H / 2**depth, W / 2**depth)
        return features


class AttentionGate(nn.Module):
    """Multiply the skip features by a map in [0, 1] computed from them and a gating signal."""

    def __init__(self, gating_width: int, skip_width: int, inner_width: int) -> None:
        super().__init__()
        self.gating = nn.Sequential(
            nn.Conv2d(gating_width, inner_width, 1), nn.BatchNorm2d(inner_width)
        )
        self.skip = nn.Sequential(
            nn.Conv2d(skip_width, inner_width, 1), nn.BatchNorm2d(inner_width)
        )
        self.attention = nn.Sequential(nn.Conv2d(inner_width, 1, 1), nn.BatchNorm2d(1))

    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        """Gate `skip`, (N, skip, h, w), by `gating`, (N, gating, h, w)."""
        joint = functional.relu(self.gating(gating) + self.skip(skip))  # (N, inner, h, w)
        return skip * torch.sigmoid(self.attention(joint))  # (N, skip, h, w) x (N, 1, h, w)


class MultiInputAttention(nn.Module):
    """MAM: the skip seen through two gates, one driven by each path, mixed and summed."""

    def __init__(self, gating_width: int, skip_width: int, inner_width: int) -> None:
        super().__init__()
        self.image_gate = AttentionGate(gating_width, skip_width, inner_width)
        self.atlas_gate = AttentionGate(gating_width, skip_width, inner_width)
        self.image_mix = nn.Conv2d(skip_width, skip_width, 1)
        self.atlas_mix = nn.Conv2d(skip_width, skip_width, 1)

    def forward(self, image: Tensor, atlas: Tensor, skip: Tensor) -> Tensor:
        """Gate `skip` by the decoder features `image` and the atlas features `atlas`."""
        by_image = self.image_mix(self.image_gate(image, skip))
        by_atlas = self.atlas_mix(self.atlas_gate(atlas, skip))
        return by_image + by_atlas  # (N, skip, h, w)


class AtlasDecoder(nn.Module):
    """The atlas path's way up: skips are added, not concatenated; 5x5 convolutions."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(widths[1:], widths[:-1], strict=True))  # (deeper, this level)
        self.squeeze = nn.ModuleList(nn.Conv2d(deep, width, 1) for deep, width in pairs)
        self.blocks = nn.ModuleList(DoubleConv(width, width, 5) for _, width in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode the levels of the atlas encoder."""
        x = features[-1]
        for level in reversed(range(len(self.blocks))):
            skip = features[level]
            x = self.blocks[level](self.squeeze[level](upsample_to(x, skip)) + skip)
        return x  # (N, widths[0], H, W)


class SegmentationDecoder(nn.Module):
    """The segmentation path's way up: gated skips concatenated, 3x3 convolutions."""

    def __init__(self, config: BagauNetConfig) -> None:
        super().__init__()
        widths = config.widths
        pairs = list(zip(widths[1:], widths[:-1], strict=True))  # (deeper, this level)
        self.blocks = nn.ModuleList(DoubleConv(deep + width, width, 3) for deep, width in pairs)
        self.mams = nn.ModuleList(
            MultiInputAttention(deep, width, inner)
            for (deep, width), inner in zip(pairs, config.gate_widths, strict=True)
            if config.mam
        )

    def forward(self, image: list[Tensor], atlas: list[Tensor]) -> Tensor:
        """Decode the levels of the image encoder, guided by those of the atlas encoder."""
        x = image[-1]
        for level in reversed(range(len(self.blocks))):
            skip = image[level]  # (N, widths[level], h, w)
            x = upsample_to(x, skip)  # (N, widths[level + 1], h, w)
            if self.mams:
                skip = self.mams[level](x, upsample_to(atlas[level + 1], skip), skip)
            x = self.blocks[level](torch.cat((skip, x), dim=1))
        return x  # (N, widths[0], H, W)


class AttentionFusion(nn.Module):
    """AFM: the atlas path masks the segmentation features; masked and unmasked are joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, image: Tensor, atlas: Tensor) -> Tensor:
        """Join the last features of both paths, (N, width, H, W) each."""
        mask = torch.sigmoid(self.mask(atlas))  # (N, width, H, W)
        return torch.cat((mask * image, image), dim=1)  # (N, 2 width, H, W)


class PlainFusion(nn.Module):
    """Concatenation of both paths' last features: the ablation of the AFM."""

    def forward(self, image: Tensor, atlas: Tensor) -> Tensor:
        """Join the last features of both paths, (N, width, H, W) each."""
        return torch.cat((image, atlas), dim=1)  # (N, 2 width, H, W)


class BagauNet(nn.Module):
    """BAGAU-Net.

    Parameters
    ----------
    config : BagauNetConfig
    """

    inputs = ("flair", "atlas")  # names of the tensors it is given

    def __init__(self, config: BagauNetConfig) -> None:
        super().__init__()
        self.config = config
        self.outputs = config.outputs
        self.image_encoder = Encoder(config.widths, kernel_size=3)
        self.atlas_encoder = Encoder(config.widths, kernel_size=5)
        self.image_decoder = SegmentationDecoder(config)
        self.atlas_decoder = AtlasDecoder(config.widths)
        self.fusion = AttentionFusion(config.widths[0]) if config.afm else PlainFusion()
        self.head = nn.Conv2d(2 * config.widths[0], len(config.outputs), 1)

    def forward(self, flair: Tensor, atlas: Tensor) -> Tensor:
        """Logits of white matter hyperintensity, and of infarct where the network tells it.

        Parameters
        ----------
        flair, atlas : (N, 1, H, W) tensors
            Axial slices of 1 mm pixels as :func:`bagau_bids.network.slices.network_input`
            makes them: the z-scored FLAIR, and the white-matter probability in [0, 1].
            H and W at least 16.

        Returns
        -------
        logits : (N, O, H, W) tensor
            A channel for each of ``config.outputs``, each a yes or no of its own: the paper's
            network has the first alone.
        """
        image_features = self.image_encoder(flair)
        atlas_features = self.atlas_encoder(atlas)
        image = self.image_decoder(image_features, atlas_features)  # (N, widths[0], H, W)
        guide = self.atlas_decoder(atlas_features)  # (N, widths[0], H, W)
        return self.head(self.fusion(image, guide))  # (N, O, H, W)
