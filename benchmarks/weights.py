"""Measure what weights find where there is nothing, and how they take a wrong atlas.

Synthetic heads without lesions are drawn from heads prepared by ``bagau synthetic-pool``, with
another seed than its pools; their brain masks are the network's, their atlases those of the
synthesis, errors included. Real scans are preprocessed as for training::

    python benchmarks/weights.py WEIGHTS.safetensors ... --heads POOL/heads \
        --bids ds-tabriz ds-tabriz/derivatives/manual --subjects tz08 tz09
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bagau_bids.bids.scans import find_scans
from bagau_bids.config import Selection
from bagau_bids.datasets.labelled import TrainingScan, pair_masks, prepare_scan
from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.measures.metrics import comparable_masks, dice
from bagau_bids.network.inference import segment
from bagau_bids.network.slices import network_input, require_white_matter
from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.template import find_template
from bagau_bids.spaces import Image
from bagau_bids.synthesis.engine import synthesise
from bagau_bids.synthesis.heads import load_training_heads, pool_settings

EMPTY_HEADS, SEED = 20, 990_000
FAULTS: dict[str, Callable[[NDArray], NDArray]] = {
    "as registered": lambda atlas: atlas,
    "zero": np.zeros_like,
    "20 mm to the front": lambda atlas: _moved(atlas, 20, axis=2),
    "20 mm to the left": lambda atlas: _moved(atlas, -20, axis=1),
    "front and back swapped": lambda atlas: atlas[:, :, ::-1].copy(),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+", help="several are averaged")
    parser.add_argument("--heads", type=Path, help="folder of prepared heads (*.npz)")
    parser.add_argument(
        "--bids", type=Path, nargs=2, action="append", default=[], metavar=("BIDS", "MASKS")
    )
    parser.add_argument("--subjects", nargs="+", default=[])
    parser.add_argument("--cache", type=Path, default=Path("work/benchmark-weights"))
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    networks = [load_weights(path) for path in args.weights]
    if args.heads:
        report_empty_heads(networks, args.heads, tta=args.tta)
    scans = labelled_scans(args)
    if scans:
        report_faults(networks, scans, tta=args.tta)


def report_empty_heads(networks: Sequence[LoadedNetwork], folder: Path, *, tta: bool) -> None:
    """Print the volume found in each head without lesions, and the median."""
    heads = load_training_heads(folder)
    base = pool_settings()
    settings = replace(base, lesions=replace(base.lesions, none_probability=1.0))
    volumes = []
    for number in range(EMPTY_HEADS):
        head = heads[number % len(heads)].head
        scan = synthesise(head, SEED + number, settings)
        assert not scan.wmh_mask.any()
        assert scan.wm_atlas is not None
        mask = brain_mask(Image(scan.flair, scan.affine)).mask
        require_white_matter(scan.wm_atlas, mask)
        inputs = network_input(Image(scan.flair, scan.affine), mask, scan.wm_atlas)
        found = segment(networks, inputs, mask, tta=tta)
        voxel_ml = voxel_volume_mm3(scan.affine) / 1000
        volumes.append(float((found.probability >= 0.5).sum()) * voxel_ml)
        shape = " x ".join(f"{size}" for size in scan.flair.shape)
        print(f"head without lesions {number:2d} ({shape}): {volumes[-1]:.2f} ml")
    print(
        f"n = {len(volumes)}: median {np.median(volumes):.2f} ml, mean {np.mean(volumes):.2f}, "
        f"worst {np.max(volumes):.2f}"
    )


def labelled_scans(args: argparse.Namespace) -> list[TrainingScan]:
    """Preprocess the named subjects, or read what was preprocessed before."""
    found = []
    for number, (bids, masks) in enumerate(args.bids):
        labelled, _ = pair_masks(find_scans(bids, Selection()), masks, number)
        found += [one for one in labelled if one.scan.subject in args.subjects]
    if not found:
        return []
    template = find_template(
        "MNI152NLin2009cSym", args.templateflow_home, offline=True, cache_dir=args.cache
    )
    return [prepare_scan(one, template, "robust", args.cache) for one in found]


def report_faults(
    networks: Sequence[LoadedNetwork], scans: Sequence[TrainingScan], *, tta: bool
) -> None:
    """Print the Dice of each scan under each fault of the atlas."""
    for scan in scans:
        for name, fault in FAULTS.items():
            inputs = scan.inputs.with_channels(atlas=fault(scan.inputs.channels["atlas"]))
            found = segment(networks, inputs, scan.brain_mask, tta=tta).probability >= 0.5
            score = dice(*comparable_masks(scan.reference, found))
            print(f"{scan.name}, atlas {name}: Dice {score:.3f}")


def _moved(slices: NDArray, pixels: int, axis: int) -> NDArray:
    """(Z, H, W) slices moved by whole pixels (of 1 mm) along an in-plane axis, zero behind."""
    moved = np.roll(slices, pixels, axis=axis)
    gap = slice(0, pixels) if pixels > 0 else slice(pixels, None)
    moved[tuple(gap if a == axis else slice(None) for a in range(3))] = 0
    return moved


if __name__ == "__main__":
    main()
