"""Masks of many FLAIRs in the space of the template, quickly, and what their scans did not see.

Only the surroundings of a mask are mapped, so that a thousand scans take a minute.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bagau_bids.preprocessing.transforms import TemplateTransform, sample
from bagau_bids.spaces import Grid, Image, OnGrid, resample, voxel_sizes

LATTICE = 4  # voxels between the places where the field of view is asked for


# 2 mm over the whole brain, from -90, -126, -72 to 90, 90, 108: what SPM and FSL use for MNI152.
MNI_2MM = Grid(
    (91, 109, 91),
    np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]),
)


def mask_in_template(
    mask: Image, transform: TemplateTransform, grid: OnGrid
) -> npt.NDArray[np.bool_]:
    """Resample a mask onto a grid of the template.

    A voxel of the grid is inside where the linearly interpolated mask is at least a half at the
    point of the FLAIR that its centre belongs to.

    Parameters
    ----------
    mask
        Non-zero inside.
    transform
        FLAIR points to template points; inverted here.
    grid
        In template space.
    """
    inside = np.zeros(grid.shape, dtype=bool)
    part = _around(Image(mask.data != 0, mask.affine))
    candidates = _near(part, transform, grid)
    if not candidates.size:
        return inside
    points = grid.affine[:3, :3] @ candidates + grid.affine[:3, 3:]
    values = sample(part, transform.unmap_points(points))
    inside[tuple(candidates[:, values >= 0.5])] = True
    return inside


def _around(mask: Image) -> Image:
    """Cut a mask out with one voxel around it."""
    box = tuple(
        slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2)
        if (found := np.flatnonzero(mask.data.any(axis=others))).size
        else slice(0, 0)
        for others in ((1, 2), (0, 2), (0, 1))
    )
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    return Image(mask.data[box], mask.affine @ start)


def _near(mask: Image, transform: TemplateTransform, grid: OnGrid) -> npt.NDArray[np.intp]:
    """Voxels of the grid, (3, N) indices, that the mask reaches or that touch one of those."""
    # Many times quicker than asking for the places along each axis at once.
    inside = np.flatnonzero(mask.data)
    voxels = np.array(np.unravel_index(inside, mask.shape), dtype=np.float64)
    # Thick voxels are split so that no voxel of the grid is passed over.
    parts = np.ceil(voxel_sizes(mask.affine) / voxel_sizes(grid.affine).min()).astype(int)
    shifts = np.stack(
        np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in parts), indexing="ij")
    ).reshape(3, 1, -1)
    split = (voxels[:, :, None] + shifts).reshape(3, -1)
    mapped = transform.map_points(mask.affine[:3, :3] @ split + mask.affine[:3, 3:])
    to_grid = np.linalg.inv(grid.affine)
    index = np.rint(to_grid[:3, :3] @ mapped + to_grid[:3, 3:]).astype(int)
    limits = np.reshape(grid.shape, (3, 1))
    index = index[:, ((index >= 0) & (index < limits)).all(axis=0)]
    if not index.size:
        return index
    low = np.maximum(index.min(axis=1) - 1, 0)
    high = np.minimum(index.max(axis=1) + 2, grid.shape)
    reached = np.zeros(high - low, dtype=np.uint8)
    reached[tuple(index - low[:, None])] = 1
    found = np.flatnonzero(ndimage.maximum_filter(reached, 3))
    return np.array(np.unravel_index(found, reached.shape)) + low[:, None]


class LesionFrequency:
    """Share of scans with a lesion, voxel by voxel, gathered scan by scan.

    Parameters
    ----------
    grid
        In template space.
    """

    def __init__(self, grid: OnGrid = MNI_2MM) -> None:
        self.grid = grid
        self.scans = 0
        self._hits = np.zeros(grid.shape, dtype=np.int32)
        coarse = [np.arange(0, n + LATTICE, LATTICE) for n in grid.shape]
        self._nodes = np.stack(np.meshgrid(*coarse, indexing="ij")).astype(np.float64)
        self._seen = np.zeros(self._nodes.shape[1:], dtype=np.int32)

    def add(self, mask: Image, transform: TemplateTransform) -> None:
        """Count one scan; arguments as `mask_in_template`."""
        self._hits += mask_in_template(mask, transform, self.grid)
        to_voxel = np.linalg.inv(mask.affine) @ np.linalg.inv(transform.affine) @ self.grid.affine
        place = np.tensordot(to_voxel[:3, :3], self._nodes, axes=1)
        place += to_voxel[:3, 3].reshape(3, 1, 1, 1)
        ends = np.array(mask.shape).reshape(3, 1, 1, 1) - 0.5
        self._seen += ((place >= -0.5) & (place <= ends)).all(axis=0)
        self.scans += 1

    def seen(self) -> npt.NDArray[np.float32]:
        """Return how many scans have each voxel in their field of view.

        It is asked for every few voxels, by the affine part of the transforms.
        """
        coarse = self.grid.affine @ np.diag([LATTICE, LATTICE, LATTICE, 1.0])
        return resample(Image(self._seen, coarse), self.grid, cval=None)

    def frequency(self) -> npt.NDArray[np.float32]:
        """Return the share, 0 to 1, of those scans that have the voxel in their field of view.

        Zero where fewer than half of the scans do.
        """
        seen = self.seen()
        share = self._hits / np.maximum(seen, 1)
        return np.where(seen >= self.scans / 2, np.minimum(share, 1), 0).astype(np.float32)
