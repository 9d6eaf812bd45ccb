"""``bagau import``: make a BIDS data set with manual masks from data of another layout."""

import argparse
import sys
from typing import TYPE_CHECKING

from bagau_bids.cli import values
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, InputImageError, UsageError

if TYPE_CHECKING:
    from bagau_bids.datasets.cases import Collection
    from bagau_bids.datasets.writer import DatasetTexts

_FILES_HELP = """hard: hard links, no further space, SRC may be moved (same file system only);
symlink: symbolic links with relative targets; copy: copies (default: %(default)s)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    challenge = kinds.add_parser(
        "wmh-challenge",
        help="the folders of the WMH Segmentation Challenge",
        description="Import the folders of the WMH Segmentation Challenge (MICCAI 2017), as "
        "released (doi:10.34894/AECRSD) or as handed out in 2017.",
        allow_abbrev=False,
    )
    challenge.add_argument(
        "source", metavar="SRC", type=values.any_path, help="folder that holds training and test"
    )
    _add_output(challenge)
    challenge.add_argument(
        "--images",
        choices=("orig", "pre"),
        default="orig",
        help="FLAIR and T1w to use: orig, as scanned, or pre, corrected for the bias field; the "
        "others become derivatives (default: %(default)s)",
    )
    pairs = kinds.add_parser(
        "pairs",
        help="a table of FLAIRs and masks",
        description="Import FLAIRs and masks that a table lists. Columns: flair and mask, paths "
        "relative to the table; participant_id, session_id and t1w if you like; any other tells "
        "something of the participant.",
        allow_abbrev=False,
    )
    pairs.add_argument("source", metavar="TABLE", type=values.any_path, help="a .tsv or .csv file")
    _add_output(pairs)
    pairs.add_argument(
        "--description",
        metavar="JSON",
        type=values.existing_file,
        help="fields for dataset_description.json: Name, License, Authors, HowToAcknowledge, ...",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        metavar="BIDS_OUT",
        type=values.any_path,
        help="folder of the data set: new, empty, or that of the same import, which goes on",
    )
    parser.add_argument(
        "--files", choices=("hard", "symlink", "copy"), default="hard", help=_FILES_HELP
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.datasets.cases import check_cases
    from bagau_bids.datasets.writer import write_dataset

    collection, texts = _challenge(args) if args.kind == "wmh-challenge" else _pairs(args)
    for note in collection.notes:
        _say(note)
    checked, digests = check_cases(collection, _say)
    failures = checked.failures
    if checked.cases:
        report = write_dataset(args.out, checked, digests, texts, how=args.files, progress=_say)
        failures = report.failures
        _say(
            f"{args.out}: {report.cases} cases; {report.placed} files placed ({args.files}), "
            f"{report.left_out} left out, each listed in sourcedata/import.tsv"
        )
    else:
        print(f"{args.out}: not written, no case can be imported", file=sys.stderr)
    for failure in failures:
        print(f"left out: {failure.name}: {failure.reason}", file=sys.stderr)
    return EXIT_SUBJECT_FAILED if failures else EXIT_OK


def _challenge(args: argparse.Namespace) -> "tuple[Collection, DatasetTexts]":
    from bagau_bids.datasets.challenge import challenge_facts, find_cases
    from bagau_bids.datasets.writer import DatasetTexts

    if args.out.is_relative_to(args.source):
        raise UsageError(
            f"{args.out}: lies in {args.source}, all of which is imported; expected a folder "
            "elsewhere: name one beside it"
        )
    facts = challenge_facts()
    texts = DatasetTexts(
        command="bagau import wmh-challenge",
        options={"images": args.images},
        description=facts["description"],
        columns=facts["columns"],
        derivatives=facts["derivatives"],
    )
    return find_cases(args.source, args.images), texts


def _pairs(args: argparse.Namespace) -> "tuple[Collection, DatasetTexts]":
    from bagau_bids.datasets.cases import read_json_object
    from bagau_bids.datasets.pairs import column_descriptions, read_pairs
    from bagau_bids.datasets.writer import DatasetTexts

    try:
        given = read_json_object(args.description) if args.description else {}
    except InputImageError as error:
        raise UsageError(str(error)) from error
    texts = DatasetTexts(
        command="bagau import pairs",
        options={"table": args.source.name},
        description={"Name": args.source.stem, **given},
        columns=column_descriptions(args.source),
    )
    return read_pairs(args.source), texts


def _say(line: str) -> None:
    print(line, flush=True)
