"""Judge weights by a pack, as a streaming training judges its own, and by wrong atlases.

    python benchmarks/judge.py PACK WEIGHTS.safetensors ... [--own] [--atlas zero left front]

For each file a line a scan, then what training takes for its score. With ``--own`` at the
operating point of the weights, as ``bagau-bids`` uses them, else where volumes fit. With
``--mirrored`` each is averaged with what it says of the mirrored slices, with ``--mean`` all of
them are averaged, by their own probabilities. With ``--atlas`` the Dice of the labelled scans
again, at the same threshold, with the atlas zero, or moved by 20 mm.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.synthesis.heads import load_training_heads
from bagau_bids.training.judging import (
    HEALTHY,
    SYNTHETIC,
    JudgedScan,
    held_out_infarcts,
    judge,
    synthetic_scans,
)
from bagau_bids.training.pack import HEADS, read_pack_file, read_stroke, read_validation
from bagau_bids.training.sources import StrokeSettings
from bagau_bids.training.stream import SYNTHETIC_SEED

MOVED_MM = {"zero": (0, 0), "left": (-20, 0), "front": (0, 20)}
COLUMNS = (
    ("dice", 3),
    ("reference_ml", 2),
    ("result_ml", 2),
    ("lesion_recall", 2),
    ("lesion_f1", 2),
    ("infarct_called_wmh", 3),
    ("infarct_dice", 3),
    ("wmh_outside_cm2", 2),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--own", action="store_true", help="at the operating point of the card")
    parser.add_argument("--atlas", nargs="+", choices=MOVED_MM, default=[])
    parser.add_argument("--synthetic", type=int, default=4, help="scans with and without lesions")
    parser.add_argument("--mirrored", action="store_true", help="average over both sides, too")
    parser.add_argument("--mean", action="store_true", help="judge the mean of all, not each")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.mean and args.own:
        parser.error("--mean: has no operating point of its own, leave --own out")
    torch.set_num_threads(args.threads)
    read_pack_file(args.pack)
    labelled = [
        JudgedScan(scan, scan.subject.partition("-")[0]) for scan in read_validation(args.pack)
    ]
    synthetic = []
    if args.synthetic:
        heads = load_training_heads(args.pack / HEADS)
        for healthy, style in ((False, SYNTHETIC), (True, HEALTHY)):
            drawn = synthetic_scans(heads, args.synthetic, SYNTHETIC_SEED, healthy=healthy)
            synthetic += [JudgedScan(scan, style) for scan in drawn]
    arrays = read_stroke(args.pack)
    infarcts = arrays and held_out_infarcts(arrays, StrokeSettings().infarct_pixels)
    device = torch.device("cpu")
    print("\t".join(["weights and scan", "threshold", *(name for name, _ in COLUMNS)]))
    groups = [args.weights] if args.mean else [[path] for path in args.weights]
    for paths in groups:
        name = " and ".join(path.stem for path in paths)
        network = averaged([load_weights(path) for path in paths], mirrored=args.mirrored)
        own = network.card.calibration if args.own else None
        verdict = judge(name, network, [*labelled, *synthetic], infarcts or None, device, own)
        for line in verdict.lines:
            figures = [f"{getattr(line, name):.{digits}f}" for name, digits in COLUMNS]
            print("\t".join([line.scan, f"{line.threshold:.2f}", *figures]), flush=True)
        point = verdict.calibration
        print(
            f"{name}\t{point.threshold:.2f}\tscore {verdict.score:.4f}\t"
            f"infarcts from {point.infarct_threshold:.2f}",
            flush=True,
        )
        for moved in args.atlas:
            wrong = [replace(one, scan=_with_atlas(one.scan, moved)) for one in labelled]
            again = judge(name, network, wrong, None, device, point)
            told = "\t".join(f"{line.dice:.3f}" for line in again.lines)
            print(f"{name}, atlas {moved}\t{point.threshold:.2f}\t{told}", flush=True)


def averaged(networks: Sequence[LoadedNetwork], *, mirrored: bool) -> LoadedNetwork:
    """Make one network of the mean of several, which tells what all of them tell."""
    least = min(networks, key=lambda network: len(network.outputs))
    models = [network.model for network in networks]
    mean = Mean(models, len(least.outputs), mirrored=mirrored)
    return replace(least, model=mean.eval())


class Mean(nn.Module):
    """The logit of the mean of what several networks say, of both sides if asked for."""

    def __init__(self, models: Sequence[nn.Module], outputs: int, *, mirrored: bool) -> None:
        super().__init__()
        self.models, self.outputs, self.mirrored = nn.ModuleList(models), outputs, mirrored

    def forward(self, **given: Tensor) -> Tensor:
        """Take (N, 1, H, W) each, left to right along H."""
        said = [model(**given).sigmoid() for model in self.models]
        if self.mirrored:
            other = {name: slices.flip(2) for name, slices in given.items()}
            said += [model(**other).sigmoid().flip(2) for model in self.models]
        return torch.stack([one[:, : self.outputs] for one in said]).mean(0).logit(eps=1e-6)


def _with_atlas(scan, name):
    """Give a scan with the white-matter map zero, or moved by whole pixels of 1 mm."""
    atlas = np.zeros_like(scan.inputs.channels["atlas"])
    if name != "zero":
        atlas = np.roll(scan.inputs.channels["atlas"], MOVED_MM[name], axis=(1, 2))
    return replace(scan, inputs=scan.inputs.with_channels(atlas=atlas))


if __name__ == "__main__":
    main()
