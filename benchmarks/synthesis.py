"""Measure how fast synthetic FLAIRs are drawn, and show some beside real ones.

Heads are those that ``bagau synthetic-pool`` has prepared in its folder ``heads``::

    python benchmarks/synthesis.py POOL/heads [--device cuda] [--figure PNG --real DATA_FOLDER]
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bagau_bids.spaces import voxel_sizes
from bagau_bids.synthesis.engine import SyntheticScan
from bagau_bids.synthesis.heads import TrainingHead, draw_scan, load_training_heads

DRAWS, ROWS = 12, 3


def main() -> None:
    """Print the speed, and draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path, help="folder of prepared heads (*.npz)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="picture of 12 draws, and real FLAIRs")
    parser.add_argument("--real", type=Path, help="folder with ds-tabriz, ds-ljubljana, ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    heads = load_training_heads(args.heads)
    list(draw_scans(heads, args.device))  # what a head computes once is not counted
    start, busy = time.perf_counter(), time.process_time()
    scans = list(draw_scans(heads, args.device))
    wall, busy = time.perf_counter() - start, time.process_time() - busy
    print(
        f"{DRAWS} scans on {args.device} with {args.threads} thread(s): {wall / DRAWS:.2f} s a "
        f"scan by the clock, {busy / DRAWS:.2f} s of processor time, that is "
        f"{60 * DRAWS / busy:.0f} scans a minute and core"
    )
    if args.figure:
        real = sorted(args.real.glob("ds-*/sub-*/**/*FLAIR.nii.gz")) if args.real else []
        draw_figure(args.figure, scans, real[:: max(1, len(real) // 6)][:6])


def draw_scans(heads: Sequence[TrainingHead], device: str) -> Iterator[SyntheticScan]:
    """Twelve scans of different heads, as they are drawn for training."""
    for seed in range(DRAWS):
        yield draw_scan(heads[seed % len(heads)], seed, device=device)


def draw_figure(path: Path, scans: Sequence[SyntheticScan], real: Sequence[Path]) -> None:
    """Draw synthetic scans with WMH in red and infarcts in cyan, and real ones on the right."""
    columns = DRAWS // ROWS
    figure = Figure(figsize=(2.2 * (columns + 2), 2.6 * ROWS), dpi=90, layout="constrained")
    grid = figure.add_gridspec(ROWS, columns + 2)
    for number, scan in enumerate(scans):
        axes = figure.add_subplot(grid[number % ROWS, number // ROWS])
        marked = (scan.wmh_mask, "red"), (scan.infarct_mask, "cyan")
        outlined = scan.infarct_mask if scan.infarct_mask.any() else scan.wmh_mask
        level = int(np.argmax(outlined.sum(axis=(0, 1)))) or scan.flair.shape[2] * 6 // 10
        show(axes, scan.flair[:, :, level], scan.affine)
        for mask, colour in marked:
            if mask[:, :, level].any():
                axes.contour(mask[:, :, level].T, [0.5], colors=colour, linewidths=0.6)
        axes.set_title(f"synthetic {number}", fontsize=7)
    for number, source in enumerate(real):
        axes = figure.add_subplot(grid[number % ROWS, columns + number // ROWS])
        image = nib.as_closest_canonical(nib.load(source))
        data = image.get_fdata(dtype=np.float32)
        show(axes, data[:, :, data.shape[2] * 6 // 10], image.affine)
        axes.set_title(f"real: {source.name.removesuffix('_FLAIR.nii.gz')}", fontsize=7)
    figure.savefig(path)


def show(axes: Axes, plane: NDArray, affine: NDArray) -> None:
    """One axial slice in grey, at its true aspect."""
    spacing = voxel_sizes(affine)
    top = float(np.percentile(plane, 99.7))
    axes.imshow(plane.T, "gray", origin="lower", vmin=0, vmax=top, aspect=spacing[1] / spacing[0])
    axes.set_axis_off()


if __name__ == "__main__":
    main()
