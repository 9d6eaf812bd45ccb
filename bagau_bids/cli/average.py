"""``bagau average``: one network from several checkpoints of a training."""

import argparse
import logging
import sys
from pathlib import Path

from bagau_bids.errors import EXIT_OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        nargs="+",
        type=Path,
        help="weights of one training, as 'bagau train --keep' leaves them",
    )
    parser.add_argument(
        "output",
        metavar="OUT.safetensors",
        type=Path,
        help="their mean, whose card (.json) is written beside it",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.output.suffix != ".safetensors":
        raise UsageError(f"{args.output}: expected a name ending in .safetensors")
    if args.output.exists():
        raise UsageError(
            f"{args.output}: expected a new file, as the last argument is where the mean goes; "
            "name another, or remove it"
        )

    from bagau_bids.network.weights import save_weights
    from bagau_bids.training.averaging import average_weights

    model, card = average_weights(args.weights)
    save_weights(args.output, model, card)
    print(f"{args.output}: the mean of {len(args.weights)} weights files")
    return EXIT_OK
