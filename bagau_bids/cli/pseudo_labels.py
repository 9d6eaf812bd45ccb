"""``bagau pseudo-labels``: masks for training from results that nobody corrected."""

from dataclasses import dataclass
from pathlib import Path

from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import argument


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    derivatives: Path = argument("what bagau-bids wrote", metavar="DERIVATIVES")
    output: Path = argument(
        "new folder for the masks, to be given to 'bagau train' with --masks or --extra",
        metavar="OUT",
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UsageError(f"{options.output}: is there already; expected a new or empty folder")

    from bagau_bids.datasets.pseudo_labels import write_pseudo_labels

    count = write_pseudo_labels(options.derivatives, options.output, tell=print)
    print(f"{options.output}: labels of {count} scans; look at them before you train on them")
    return EXIT_OK
