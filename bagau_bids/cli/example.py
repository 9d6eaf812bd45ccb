"""``bagau example``: a real FLAIR to try the program on, with the lesions that raters drew."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from bagau_bids import values
from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import argument

NAMES = {"FLAIR.nii.gz": "example_FLAIR.nii.gz", "mask.nii.gz": "example_mask.nii.gz"}
README = "README.md"


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    folder: Path = argument(
        "where to write example_FLAIR.nii.gz, example_mask.nii.gz (the consensus of three raters) "
        "and README.md (source, licence)",
        metavar="DIR",
        type=values.any_path,
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.files import write_bytes

    source = files("bagau_bids.data").joinpath("example")
    try:
        for name, target in {**NAMES, README: README}.items():
            write_bytes(options.folder / target, source.joinpath(name).read_bytes())
    except OSError as error:
        raise UsageError(
            f"{options.folder}: cannot be written ({error.strerror}: {error.filename}); name "
            "another folder"
        ) from error
    flair, mask = (options.folder / name for name in NAMES.values())
    print(
        f"{flair}\n{mask}\n"
        "One patient with multiple sclerosis (Lesjak 2018, CC BY; see README.md).\n"
        f"Next: bagau segment {flair} OUT --mask {mask} --template ICBM152NLin2009aSym"
    )
    return EXIT_OK
