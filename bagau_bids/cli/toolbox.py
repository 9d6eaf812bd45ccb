"""The toolbox ``bagau``: everything around the BIDS-App, one subcommand each."""

import importlib
import keyword
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from types import ModuleType

from bagau_bids import __version__
from bagau_bids.cli.failure import exit_code_of
from bagau_bids.cli.parser import FIRST_COMMANDS
from bagau_bids.errors import UsageError
from bagau_bids.options import CommandParser

GROUPS = {
    "segment": {
        "segment": "segment FLAIRs of any name without BIDS: masks, volumes and a page for each",
        "remeasure": "measure results anew from masks that were edited by hand",
        "slurm": "write the script of a SLURM job array that processes a data set",
        "fetch": "get the template's files ready for runs without network",
        "models": "list the packaged weights, or show and check a weights file",
    },
    "try and judge": {
        "example": "write a real FLAIR to try the program on, with the lesions that raters drew",
        "phantom": "write a BIDS data set of synthetic FLAIRs with known lesions",
        "evaluate": "score masks against reference masks: Dice, H95, lesions, volumes",
        "import": "make a BIDS data set from a folder of FLAIRs, or from labelled data",
    },
    "train your own": {
        "train": "train the segmentation network on masks of your own",
        "calibrate": "move a network's threshold to where it agrees best with given masks",
        "average": "take the mean of several checkpoints of one training",
        "pseudo-labels": "turn results on FLAIRs without masks into labels for training",
        "synthetic-pool": "draw synthetic slices to train the segmentation network on",
        "pack": "preprocess what a streaming training reads, to take it to another machine",
        "train-brain-mask": "train the brain mask network on synthetic heads",
        "experiment": "train and judge all systems of a table of the paper, and write the table",
    },
}
SUBCOMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}

# A subcommand that an option makes another one, with arguments of its own.
VARIANTS = {("train", "--stream"): "train-stream"}

_EPILOG = """\
bagau SUBCOMMAND --help says more of each.

exit codes: 0 done; 1 a scan or case failed; 2 wrong usage; 70 it could not be carried out; 127 a
needed file is missing.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bagau`` with the arguments of the process or with ``argv``; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code_of("bagau", lambda _: _run(arguments))


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError(FIRST_COMMANDS)
    chosen = arguments[0] if arguments and arguments[0] in SUBCOMMANDS else None
    module = load_subcommand(variant(chosen, arguments)) if chosen else None
    options = build_parser(chosen, module).read(arguments)
    if module is None:
        raise AssertionError("argparse accepts known subcommands only")
    return module.run(options)


def variant(chosen: str, arguments: Sequence[str]) -> str:
    """Name what to load for a subcommand with these arguments: itself, or a variant of it."""
    for (name, option), other in VARIANTS.items():
        if name == chosen and any(one.split("=")[0] == option for one in arguments):
            return other
    return chosen


def load_subcommand(name: str) -> ModuleType:
    """Import the module of a subcommand.

    It has a dataclass ``Options``, or ``add_arguments(parser)`` where there is more to say, and
    ``run(options)``.
    """
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        module += "_"
    return importlib.import_module(f"bagau_bids.cli.{module}")


def add_arguments(parser: CommandParser, module: ModuleType) -> None:
    """Add the arguments of a subcommand to its parser."""
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    else:
        parser.add_options(module.Options)


def _description() -> Iterator[str]:
    """Say what the toolbox is, and list the subcommands by what they are for."""
    yield "The toolbox around bagau-bids, which segments white matter hyperintensities."
    width = max(map(len, SUBCOMMANDS))
    for title, group in GROUPS.items():
        yield f"\n{title}:"
        yield from (f"  {name:<{width}}  {text}" for name, text in group.items())


def build_parser(chosen: str | None = None, module: ModuleType | None = None) -> CommandParser:
    """Return the parser of ``bagau``; only the chosen subcommand's options are added."""
    parser = CommandParser(
        prog="bagau",
        description="\n".join(_description()),
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bagau {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, text in SUBCOMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        subparser = subparsers.add_parser(name, description=description)
        if module is not None and name == chosen:
            add_arguments(subparser, module)
    return parser


if __name__ == "__main__":
    sys.exit(main())
