"""``bagau pseudo-labels``: masks for training from results that nobody corrected."""

import argparse
from pathlib import Path

from bagau_bids.errors import EXIT_OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "derivatives", metavar="DERIVATIVES", type=Path, help="what bagau-bids wrote"
    )
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="new folder for the masks, to be given to 'bagau train' with --masks or --extra",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UsageError(f"{args.output}: is there already; expected a new or empty folder")

    from bagau_bids.datasets.pseudo_labels import write_pseudo_labels

    count = write_pseudo_labels(args.derivatives, args.output, tell=print)
    print(f"{args.output}: labels of {count} scans; look at them before you train on them")
    return EXIT_OK
