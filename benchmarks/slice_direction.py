"""What is found of one 3-D FLAIR as slices of some thickness, axial, coronal and sagittal.

    python benchmarks/slice_direction.py FLAIR MASK --weights W --templateflow-home STORE

Voxels are averaged along each axis in turn; each scan goes through the whole recipe and the
network. The mask, averaged likewise, counts from a half on.
"""

import argparse
from pathlib import Path

import numpy as np

from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.measures.metrics import dice
from bagau_bids.network.inference import segment
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights
from bagau_bids.preprocessing.conform import conform, read_volume
from bagau_bids.preprocessing.recipe import preprocess
from bagau_bids.preprocessing.template import find_template
from bagau_bids.spaces import Image, reorient

DIRECTIONS = {"as it is": None, "sagittal": 0, "coronal": 1, "axial": 2}


def main() -> None:
    """Print a line a direction."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flair", type=Path)
    parser.add_argument("mask", type=Path, help="reference, on the grid of the FLAIR")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument("--voxels", type=int, default=6, help="averaged to one slice")
    args = parser.parse_args()
    template = find_template("MNI152NLin2009cSym", args.templateflow_home, offline=True)
    networks = [load_weights(args.weights)]
    whole = conform(args.flair)
    reference = reorient(read_volume(args.mask))
    print("slices     reference ml  result ml  Dice")
    for name, axis in DIRECTIONS.items():
        flair = thick(whole, axis, args.voxels)
        truth = thick(reference, axis, args.voxels).data >= 0.5
        made = preprocess(flair, template)
        wm_probseg = made.registration.wm_probseg
        inputs = network_input(made.corrected, made.brain.mask, wm_probseg)
        found = segment(networks, inputs, made.brain.mask).probability >= 0.5
        voxel_ml = voxel_volume_mm3(flair.affine) / 1000
        volumes = f"{truth.sum() * voxel_ml:13.2f} {found.sum() * voxel_ml:10.2f}"
        print(f"{name:10} {volumes} {dice(truth, found):5.3f}", flush=True)


def thick(image: Image, axis: int | None, count: int) -> Image:
    """Average so many voxels along an axis to one; what is left over at its end is cut off."""
    if axis is None:
        return image
    slices = image.shape[axis] // count
    along = np.moveaxis(image.data.astype(np.float32), axis, 0)[: slices * count]
    averaged = along.reshape(slices, count, *along.shape[1:]).mean(axis=1)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (count - 1) / 2
    affine[:3, axis] *= count
    return Image(np.moveaxis(averaged, 0, axis), affine)


if __name__ == "__main__":
    main()
