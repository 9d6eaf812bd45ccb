"""Where a streaming training takes its slices from, all of them on the device.

Each source hands out batches as the augmentation takes them. Nothing here waits for the host:
slices lie on the device in 8 bits and are drawn by a generator of the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from bagau_bids.network.slices import PLANE_SIZE, Z_SCORE_LIMITS
from bagau_bids.synthesis.pool import (
    BACKGROUND,
    CHANNELS,
    HIDDEN_INFARCT,
    INFARCT,
    NOT_JUDGED,
    WMH,
    Shard,
)
from bagau_bids.training.pack import GREY_LEVELS, RealSlices, encode_atlas, encode_flair
from bagau_bids.training.stroke import unpack_infarcts

_SIZE_STEPS = 16  # codes of a lesion's size for each doubling of its pixels
# On a CPU the memory of many slices is asked for anew each time, which took half of all time.
_SLICES_AT_ONCE = {"cpu": 8, "cuda": 64}
_SIDE_MULTIPLE = 16  # the networks halve a slice four times
_IN_PLANE = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


@dataclass(frozen=True)
class Batch:
    """Slices on a device.

    Parameters
    ----------
    flair : (N, 1, H, W) float tensor
        Z-scored.
    atlas : (N, 1, H, W) float tensor
        White-matter probability.
    target : (N, 1, H, W) uint8 tensor
        Labels 0 to 4.
    lesion_share : (N, 1, H, W) float tensor
        In each pixel of a lesion, one over the pixels of that lesion in its slice.
    """

    flair: Tensor
    atlas: Tensor
    target: Tensor
    lesion_share: Tensor

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """One batch with the slices of several, in their order."""
        return cls(*(torch.cat([getattr(one, f.name) for one in batches]) for f in fields(cls)))

    def __len__(self) -> int:
        """Count the slices."""
        return len(self.flair)


def lesion_size_codes(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Logarithm of the size of the lesion that a pixel belongs to.

    Parameters
    ----------
    target : (N, H, W) uint8 array
        Lesions are 8-connected within a slice.

    Returns
    -------
    codes : (N, H, W) uint8 array
        16 times the logarithm to base 2 of the pixels; 0 outside of lesions.
    """
    numbered, count = ndimage.label(target == WMH, _IN_PLANE)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 1
    codes = np.rint(np.log2(np.maximum(sizes, 1)) * _SIZE_STEPS).clip(0, 255).astype(np.uint8)
    found: NDArray[np.uint8] = codes[numbered]
    return found


@dataclass(frozen=True)
class StoredSlices:
    """Slices as a store keeps them, (N, 200, 200) uint8 arrays.

    Parameters
    ----------
    flair, atlas, target, sizes : arrays
        Codes of the FLAIR, white matter times 255, labels, codes of lesions' sizes.
    """

    flair: NDArray[np.uint8]
    atlas: NDArray[np.uint8]
    target: NDArray[np.uint8]
    sizes: NDArray[np.uint8]

    @classmethod
    def of(cls, slices: Shard) -> Self:
        """Encode slices, FLAIR and atlas in 8 bits already or as floats."""
        flair, atlas = (slices.channels[name] for name in CHANNELS)
        if flair.dtype != np.uint8:
            flair, atlas = encode_flair(flair), encode_atlas(atlas)
        return cls(flair, atlas, slices.target, lesion_size_codes(slices.target))


class SliceStore:
    """Slices on the device in 8 bits; the oldest are overwritten when it is full.

    Parameters
    ----------
    capacity : int
        Slices that fit in.
    device : torch.device
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        shape = (capacity, PLANE_SIZE, PLANE_SIZE)
        self.capacity, self.device = capacity, device
        self.flair, self.atlas, self.target, self.sizes = (
            torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(4)
        )
        self.added = 0

    def __len__(self) -> int:
        """Count the slices that are there."""
        return min(self.added, self.capacity)

    def add(self, slices: StoredSlices) -> None:
        """Put slices in."""
        count = len(slices.flair)
        places = (torch.arange(self.added, self.added + count) % self.capacity).to(self.device)
        arrays = (slices.flair, slices.atlas, slices.target, slices.sizes)
        stores = (self.flair, self.atlas, self.target, self.sizes)
        for store, array in zip(stores, arrays, strict=True):
            store[places] = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        self.added += count

    def take(self, numbers: Tensor) -> Batch:
        """Slices by their places, an int tensor on the device."""
        return Batch(
            decode(self.flair[numbers])[:, None],
            self.atlas[numbers].float()[:, None] / 255,
            self.target[numbers][:, None],
            torch.exp2(-self.sizes[numbers].float() / _SIZE_STEPS)[:, None],
        )

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Slices at random, each as likely as any other."""
        return self.take(_integers(len(self), count, generator))


class RealSource:
    """Slices of labelled scans; each subject is as likely as any other.

    Parameters
    ----------
    scans : sequence of RealSlices
    device : torch.device
    """

    def __init__(self, scans: Sequence[RealSlices], device: torch.device) -> None:
        self.store = SliceStore(sum(len(scan.slices) for scan in scans), device)
        subjects = [scan.subject for scan in scans]
        totals = dict.fromkeys(subjects, 0)
        for scan in scans:
            self.store.add(StoredSlices.of(scan.slices))
            totals[scan.subject] += len(scan.slices)
        weights = [
            np.full(len(scan.slices), 1 / totals[scan.subject], np.float32) for scan in scans
        ]
        self.weights = torch.from_numpy(np.concatenate(weights)).to(device)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Slices at random."""
        return self.store.take(
            torch.multinomial(self.weights, count, replacement=True, generator=generator)
        )


@dataclass(frozen=True)
class StrokeSettings:
    """How slices of stroke patients are drawn and labelled."""

    infarct_share: float = 0.4  # drawn from those with an infarct, before the rest is
    infarct_pixels: int = 60  # that a slice with an infarct has at least
    wmh: float = 0.55  # probability from which a pixel is WMH
    doubtful: float = 0.3  # probability from which it is not judged
    hidden_pixels: int = 150  # an infarct of fewer may be hidden: no larger than a WMH
    hidden_white_matter: float = 0.7  # probability of white matter in a hidden one
    # Splenium, fornix and septum are bright in many slices, and networks call them WMH.
    midline_mm: float = 7.0  # to each side of the middle, where nothing is WMH
    bend_mm: float = 2.5  # largest smooth error of the atlas


class StrokeSource:
    """Slices of stroke patients, labelled by networks; nothing is judged until they are.

    Parameters
    ----------
    arrays : dict of str to array
        As :func:`bagau_bids.training.stroke.stroke_arrays` makes them; those held out are left.
    settings : StrokeSettings
    device : torch.device
    """

    def __init__(
        self, arrays: dict[str, NDArray], settings: StrokeSettings, device: torch.device
    ) -> None:
        used = ~arrays["held_out"]
        infarct = unpack_infarcts(arrays)[used]
        self.settings, self.device = settings, device
        self.flair = torch.from_numpy(arrays["flair"][used]).to(device)
        self.levels = torch.from_numpy(arrays["atlas"]).to(device).float() / 255
        small = _of_few_pixels(infarct, settings.hidden_pixels)
        self.infarct = torch.from_numpy(infarct).to(device)
        white = self.levels.amax(0) >= settings.hidden_white_matter
        self.may_hide = torch.from_numpy(small).to(device) & white
        beside_mm = torch.arange(PLANE_SIZE, device=device) - (PLANE_SIZE - 1) / 2
        self.midline = beside_mm.abs() <= settings.midline_mm
        shows = infarct.sum(axis=(1, 2)) >= settings.infarct_pixels
        self.with_infarct = torch.from_numpy(np.flatnonzero(shows)).to(device)
        self.restore(np.full(self.flair.shape, NOT_JUDGED, np.uint8))

    def restore(self, target: NDArray[np.uint8]) -> None:
        """Take over labels, (N, 200, 200) uint8 array."""
        self.target = torch.from_numpy(target).to(self.device)
        self.sizes = torch.from_numpy(lesion_size_codes(target)).to(self.device)

    def label(self, probability: Tensor, shift: float = 0.0) -> None:
        """Label all slices by the probability of WMH.

        Parameters
        ----------
        probability : (N, 200, 200) float tensor
        shift : float
            Added to both thresholds, for a network whose volumes fit at 0.5 plus this.
        """
        wmh, doubtful = (
            min(max(level + shift, 0.05), 0.95)
            for level in (self.settings.wmh, self.settings.doubtful)
        )
        target = torch.where(probability >= doubtful, NOT_JUDGED, BACKGROUND)
        target = torch.where(probability >= wmh, WMH, target)
        target = target.masked_fill(self.midline[:, None], BACKGROUND)
        hidden = self.may_hide & (probability >= doubtful)
        target = torch.where(self.infarct, torch.where(hidden, HIDDEN_INFARCT, INFARCT), target)
        target = target.masked_fill(self.flair == 0, BACKGROUND).to(torch.uint8)
        self.restore(target.cpu().numpy())

    @torch.no_grad()
    def label_by(self, network: Callable[[Tensor, Tensor], Tensor], shift: float) -> None:
        """Label all slices by what a network says of them and of their mirror images.

        Parameters
        ----------
        network : callable
            Of FLAIR and atlas, (N, 1, H, W) tensors, the middle of the plane that holds all
            brains, to the probability of WMH.
        shift : float
            Of the thresholds, as :meth:`label`.
        """
        batch_size = _SLICES_AT_ONCE[self.device.type]
        found = torch.zeros(self.flair.shape, device=self.device)
        guide = self.levels[len(self.levels) // 2]
        window = _middle(self.flair.amax(0) > 0)
        for first in range(0, len(found), batch_size):
            some = slice(first, first + batch_size)
            flair = decode(self.flair[some][:, *window])[:, None]
            flair = flair.contiguous(memory_format=torch.channels_last)
            atlas = guide[window].expand_as(flair).contiguous(memory_format=torch.channels_last)
            mirrored = network(flair.flip(2), atlas.flip(2)).flip(2)
            found[some][:, *window] = ((network(flair, atlas) + mirrored) / 2)[:, 0]
        self.label(found, shift)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Slices at random, with the atlas of a level near theirs, smoothly bent."""
        numbers = _integers(len(self.flair), count, generator)
        if len(self.with_infarct):
            others = self.with_infarct[_integers(len(self.with_infarct), count, generator)]
            chance = torch.rand(count, generator=generator, device=self.device)
            numbers = torch.where(chance < self.settings.infarct_share, others, numbers)
        levels = self.levels[_integers(len(self.levels), count, generator)][:, None]
        return Batch(
            decode(self.flair[numbers])[:, None],
            _bent(levels, self.settings.bend_mm, generator),
            self.target[numbers][:, None],
            torch.exp2(-self.sizes[numbers].float() / _SIZE_STEPS)[:, None],
        )


def decode(codes: Tensor) -> Tensor:
    """Undo :func:`bagau_bids.training.pack.encode_flair` on the device."""
    low, high = Z_SCORE_LIMITS
    values = (codes.float() - 1) * ((high - low) / GREY_LEVELS) + low
    return values.masked_fill(codes == 0, 0)


def _middle(shown: Tensor) -> tuple[slice, slice]:
    """Smallest part around the middle of a plane that holds all pixels shown.

    Its sides are whole multiples of what networks take, and the middle stays the middle, so that a
    mirror image fills the same part.
    """
    sides = []
    for axis, size in enumerate(shown.shape):
        places = torch.nonzero(shown.any(1 - axis)).ravel().tolist()
        reach = max((abs(2 * place + 1 - size) + 1 for place in places), default=0)
        length = min(-(-reach // _SIDE_MULTIPLE) * _SIDE_MULTIPLE, size)
        first = (size - length) // 2
        sides.append(slice(first, first + length))
    return sides[0], sides[1]


def _integers(end: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(end, (count,), generator=generator, device=generator.device)


def _of_few_pixels(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Parts of (N, H, W) masks that have fewer pixels than this within their slice."""
    numbered, _ = ndimage.label(mask, _IN_PLANE)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = pixels
    few: NDArray[np.bool_] = (sizes < pixels)[numbered]
    return few


def _bent(images: Tensor, largest_mm: float, generator: torch.Generator) -> Tensor:
    """Images of 1 mm pixels with a smooth displacement, of another size in each."""
    count, size, device = len(images), images.shape[-1], images.device
    identity = torch.eye(2, 3, device=device).expand(count, 2, 3)
    grid = functional.affine_grid(identity, list(images.shape), align_corners=False)
    knots = torch.randn((count, 2, 8, 8), generator=generator, device=device)
    share = torch.rand((count, 1, 1, 1), generator=generator, device=device)
    smooth = functional.interpolate(knots, (size, size), mode="bicubic", align_corners=True)
    moved = smooth * share * (2 * largest_mm / size)
    return functional.grid_sample(images, grid + moved.permute(0, 2, 3, 1), align_corners=False)
