"""Where a head lies, whatever the header says: the template is tried in all 24 directions."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bagau_bids.spaces import Grid, Image, resample, voxel_sizes

SPACING_MM = 8.0
BINS = 16
NODS_DEGREES = (-20.0, 0.0, 20.0)  # heads nod by as much, and the best of three counts
WORDS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadDirection:
    """How well the template fits as the header says, and how well otherwise.

    Attributes
    ----------
    ratio
        Mutual information with the template in the best other direction over that in the
        header's; above 1 the header is probably wrong.
    right, anterior, superior
        What the header's right, anterior and superior are in that other direction.
    """

    ratio: float
    right: str
    anterior: str
    superior: str

    @property
    def words(self) -> str:
        """The other direction in words."""
        return (
            f"what the header calls right, anterior and superior looks like {self.right}, "
            f"{self.anterior} and {self.superior} of the head"
        )


def head_direction(
    flair: Image, brain_mask: npt.NDArray[np.bool_], template: Image, template_mask: Image
) -> HeadDirection:
    """Compare the direction of a head with its header's, before anything is deformed.

    Mirror images are not among the 24 directions: left and right look the same.

    Parameters
    ----------
    flair
        Zero away from the brain; cubic voxels.
    brain_mask
        On the grid of `flair`.
    template, template_mask
        T1w of the template, zero outside the brain, and its brain mask, zero there too.
    """
    ours, points = _coarse(flair)
    theirs, _ = _coarse(template)
    level = _levels(ours.data)
    source = _centre(Image(brain_mask, flair.affine))
    target = _centre(template_mask)
    to_index = np.linalg.inv(theirs.affine)
    bins = _levels(theirs.data).reshape(theirs.data.shape).astype(np.float32)

    def information(turn: Array) -> float:
        there = turn @ (points - source[:, None]) + target[:, None]
        index = to_index[:3, :3] @ there + to_index[:3, 3:]
        other = np.rint(ndimage.map_coordinates(bins, index, order=1)).astype(int)
        joint = np.bincount(level * BINS + other, minlength=BINS**2).reshape(BINS, BINS)
        return _information(joint / level.size)

    turns = right_angles()
    found = [max(information(_nod(nod) @ turn) for nod in NODS_DEGREES) for turn in turns]
    best = 1 + int(np.argmax(found[1:]))
    return HeadDirection(found[best] / max(found[0], 1e-6), *_words(turns[best]))


def right_angles() -> list[Array]:
    """All 24 rotations by right angles, (3, 3) each, the one that turns nothing first."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(turn) > 0:
                found.append(turn)
    return found


def _words(turn: Array) -> tuple[str, str, str]:
    """Where the three axes of the header point to in the head."""
    largest = [int(np.abs(turn[:, axis]).argmax()) for axis in range(3)]
    first, second, third = (
        WORDS[there][int(turn[there, axis] > 0)] for axis, there in enumerate(largest)
    )
    return first, second, third


def _coarse(volume: Image) -> tuple[Image, Array]:
    """Blur a volume to coarse cubic voxels; also the place of each of them, (3, N) mm."""
    sizes = voxel_sizes(volume.affine)
    shape = np.maximum(np.ceil(sizes * volume.data.shape / SPACING_MM), 1).astype(int)
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] / sizes * SPACING_MM
    blurred = ndimage.gaussian_filter(np.asarray(volume.data, np.float32), SPACING_MM / sizes / 2)
    coarse = resample(Image(blurred, volume.affine), Grid(tuple(shape), affine))
    index = np.indices(coarse.shape).reshape(3, -1)
    return Image(coarse, affine), affine[:3, :3] @ index + affine[:3, 3:]


def _levels(data: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Give the bin of each voxel, flat."""
    share = data.ravel() / max(float(data.max()), 1e-6)
    return np.clip(share * BINS, 0, BINS - 1).astype(np.int64)


def _centre(mask: Image) -> Array:
    centre = np.argwhere(mask.data).mean(axis=0)
    return mask.affine[:3, :3] @ centre + mask.affine[:3, 3]


def _nod(degrees: float) -> Array:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


def _information(joint: Array) -> float:
    """Mutual information of a joint distribution, nats."""
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())
