"""A head that is a box, with a box of lesion at its right, front and top."""

import nibabel as nib
import numpy as np

from bagau_bids.reports import stacks
from bagau_bids.spaces import Image, reorient

SPACING = (2.0, 2.0, 2.0)
SHAPE = (40, 48, 36)
# Right, anterior, superior: a block of "lesion" in a head that fills most of the picture.
BLOCK = (slice(26, 32), slice(34, 39), slice(25, 29))


def tilted(affine, degrees=12):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def volumes_of(spacing=SPACING, orientation="RAS", **more):
    """A head with a bright block, through another voxel order and back to RAS."""
    flair = np.zeros(SHAPE, np.float32)
    flair[6:34, 6:42, 6:32] = 100
    flair[BLOCK] = 150
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -40, -50, -30
    image = nib.Nifti1Image(flair, tilted(affine) if orientation == "oblique" else affine)
    if orientation != "oblique":
        change = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
        )
        image = image.as_reoriented(change)
    flair = reorient(Image(np.asarray(image.dataobj), image.affine))
    mask = flair.data > 120
    content = {"mask": mask, "probability": np.where(mask, 0.9, 0.05).astype(np.float32)}
    return stacks.Volumes(flair.data, flair.affine, (0.0, 200.0), **(content | more))
