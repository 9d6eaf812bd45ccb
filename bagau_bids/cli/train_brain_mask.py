"""``bagau train-brain-mask``: train the brain-mask network on synthetic heads."""

import argparse
from pathlib import Path

from bagau_bids.cli.labelled import add_device_option
from bagau_bids.errors import EXIT_OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments to its parser."""
    parser.add_argument(
        "label_maps",
        type=Path,
        metavar="LABEL_MAPS",
        help="folder of whole-head label maps (*.nii.gz, FreeSurfer numbers, 5xx outside the "
        "brain), such as the training_label_maps of SynthSeg",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the checkpoint, curve and weights"
    )
    parser.add_argument(
        "--steps", type=int, default=4200, help="training steps, one head each (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (%(default)s)")
    parser.add_argument(
        "--held-out",
        nargs="*",
        default=[],
        metavar="NAME",
        help="label maps to validate on and not to train on, names without .nii.gz",
    )
    add_device_option(parser, "the network is trained")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that draw heads (%(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")


def run(args: argparse.Namespace) -> int:
    """Train, and return the exit code."""
    paths = sorted(args.label_maps.glob("*.nii.gz"))
    names = {path.name.removesuffix(".nii.gz"): path for path in paths}
    if not paths:
        raise UsageError(
            f"{args.label_maps}: found no *.nii.gz file, expected a folder of whole-head label "
            "maps; give the folder they lie in"
        )
    unknown = sorted(set(args.held_out) - set(names))
    if unknown:
        raise UsageError(
            f"--held-out {' '.join(unknown)}: found no such label map in {args.label_maps}, "
            f"expected some of {' '.join(names)}; correct the names"
        )
    if set(args.held_out) == set(names):
        raise UsageError("--held-out names every label map, expected at least one to train on")

    from bagau_bids.synthesis.labels import load_head
    from bagau_bids.training.brain_mask import BrainTraining, train_brain_mask

    train_brain_mask(
        [load_head(path) for name, path in names.items() if name not in args.held_out],
        [load_head(names[name]) for name in sorted(args.held_out)],
        args.out,
        BrainTraining(
            steps=args.steps,
            seed=args.seed,
            threads=args.threads,
            workers=args.workers,
            device=args.device,
        ),
        resume=args.resume,
    )
    return EXIT_OK
