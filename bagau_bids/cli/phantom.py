"""``bagau phantom``: write a data set of synthetic FLAIRs, or compare what was measured in one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids.errors import EXIT_OK

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder of the data set, new or empty"
    )
    parser.add_argument(
        "--subjects", metavar="N", type=int, default=2, help="participants (default: %(default)s)"
    )
    parser.add_argument(
        "--sessions",
        metavar="N",
        type=int,
        default=1,
        help="scans of each participant, each drawn on its own (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="start of the random numbers; the same seed gives the same voxels "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--compare",
        metavar="DERIVATIVES",
        type=Path,
        help="write nothing: OUT is a phantom that bagau-bids has processed into DERIVATIVES; "
        "print true and measured volumes side by side",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.datasets.phantom import compare_volumes, make_phantom_dataset

    if args.compare:
        print(_side_by_side(compare_volumes(args.out, args.compare)))
        return EXIT_OK
    make_phantom_dataset(
        args.out,
        args.subjects,
        args.seed,
        sessions=args.sessions,
        progress=lambda line: print(line, flush=True),
    )
    return EXIT_OK


def _side_by_side(table: "pd.DataFrame") -> str:
    """Lay the comparison out in columns."""
    lines = [f"{'scan':<24}{'true ml':>10}{'measured ml':>14}{'Dice':>8}"]
    for scan in table.itertuples():
        lines.append(
            f"{scan.bids_name:<24}{scan.true_ml:>10.2f}{scan.measured_ml:>14.2f}{scan.dice:>8.2f}"
        )
    return "\n".join(lines)
