"""Measure the brain-mask network on real FLAIRs and on synthetic heads left out of training.

Prints one line a scan: volume, and Dice where a reference mask exists. Pictures go to a folder::

    python benchmarks/brain_mask.py DATA_FOLDER [--weights brain.safetensors] [--pictures DIR]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bagau_bids.network.cards import find_weights
from bagau_bids.network.weights import load_weights
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.labels import load_head
from bagau_bids.training.brain_mask import dice_at_half, held_out_pairs

HELD_OUT = ("seg_17", "seg_18", "seg_19", "seg_20")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with ds-tabriz, ds-ljubljana, ...")
    parser.add_argument("--weights", type=Path, help="default: those of the package")
    parser.add_argument("--pictures", type=Path, help="folder for one mosaic a scan")
    parser.add_argument("--synthetic", type=int, default=40, help="synthetic heads to draw")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    model = load_weights(args.weights or find_weights("brain")).model

    def predict(volume: NDArray) -> NDArray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.ascontiguousarray(volume))[None, None])
        return torch.sigmoid(logits)[0, 0].numpy()

    scores = []
    for path in sorted(args.data.glob("ds-*/sub-*/**/*FLAIR.nii.gz")):
        dice = measure(path, predict, args.pictures)
        if dice is not None:
            scores.append(dice)
    print(f"reference masks: n={len(scores)} mean={np.mean(scores):.3f} min={np.min(scores):.3f}")
    heads = [load_head(args.data / "label-maps" / f"{name}.nii.gz") for name in HELD_OUT]
    synthetic = [dice_at_half(model, *pair) for pair in held_out_pairs(heads, args.synthetic, 77)]
    print(
        f"synthetic heads left out: n={len(synthetic)} mean={np.mean(synthetic):.3f} "
        f"median={np.median(synthetic):.3f} min={np.min(synthetic):.3f}"
    )


def measure(
    path: Path, predict: Callable[[NDArray], NDArray], pictures: Path | None
) -> float | None:
    """Print the line of one scan and return its Dice, if it has a reference mask."""
    image = nib.as_closest_canonical(nib.load(path))
    flair = image.get_fdata(dtype=np.float32)
    start = time.perf_counter()
    result = brain_mask(Image(flair, image.affine), predict)
    seconds = time.perf_counter() - start
    volume_ml = result.mask.sum() * voxel_sizes(image.affine).prod() / 1000
    name = path.name.removesuffix("_FLAIR.nii.gz")
    dice, reference = None, None
    found = list(path.parents[2].glob(f"derivatives/auto/{name}/anat/*brain_mask.nii.gz"))
    if found:
        reference = nib.as_closest_canonical(nib.load(found[0])).get_fdata() > 0
        dice = float(2 * (reference & result.mask).sum() / (reference.sum() + result.mask.sum()))
    score = "     " if dice is None else f"{dice:.3f}"
    print(f"{name:18s} {volume_ml:6.0f} ml  Dice {score}  {seconds:4.1f} s  {result.stripped}")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        draw_mosaic(pictures / f"{name}.png", flair, image.affine, result.mask, reference)
    return dice


def draw_mosaic(
    path: Path, flair: NDArray, affine: NDArray, mask: NDArray, reference: NDArray | None
) -> None:
    """Axial slices and one sagittal, with the contour of the mask and of its reference."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    x_mm, y_mm, z_mm = voxel_sizes(affine)
    levels = np.linspace(0, flair.shape[2] - 1, 17).round().astype(int)
    figure, axes = plt.subplots(3, 6, figsize=(18, 10))
    top = np.percentile(flair, 99.5)
    for axis, level in zip(axes.flat, levels, strict=False):
        draw_plane(axis, flair[:, :, level], mask[:, :, level], y_mm / x_mm, top)
        if reference is not None:
            axis.contour(reference[:, :, level].T, [0.5], colors="lime", linewidths=0.6)
    centre = int(np.mean(np.nonzero(mask.any(axis=(1, 2)))[0]))
    draw_plane(axes.flat[17], flair[centre], mask[centre], z_mm / y_mm, top)
    figure.tight_layout(pad=0.1)
    figure.savefig(path, dpi=55)
    plt.close(figure)


def draw_plane(axis: Any, plane: NDArray, mask: NDArray, aspect: float, top: float) -> None:
    """One plane in grey with the contour of the mask in red."""
    axis.imshow(plane.T, origin="lower", cmap="gray", vmin=0, vmax=top, aspect=aspect)
    if mask.any():
        axis.contour(mask.T, [0.5], colors="red", linewidths=0.8)
    axis.axis("off")


if __name__ == "__main__":
    main()
