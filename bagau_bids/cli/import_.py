"""``bagau import``: make a BIDS data set with manual masks from data of another layout."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, InputImageError, UsageError
from bagau_bids.options import CommandParser, argument, option

if TYPE_CHECKING:
    from bagau_bids.datasets.cases import Collection
    from bagau_bids.datasets.writer import DatasetTexts

_FILES_HELP = """hard: hard links, no further space, SRC may be moved (same file system only);
symlink: symbolic links with relative targets; copy: copies (default: %(default)s)"""
_OUT_HELP = "folder of the data set: new, empty, or that of the same import, which goes on"
LINKS = ("hard", "symlink", "copy")


@dataclass(frozen=True)
class Challenge:
    """What ``bagau import wmh-challenge`` is told."""

    source: Path = argument(
        "folder that holds training and test", metavar="SRC", type=values.any_path
    )
    out: Path = argument(_OUT_HELP, metavar="BIDS_OUT", type=values.any_path)
    files: str = option("hard", _FILES_HELP, choices=LINKS)
    images: str = option(
        "orig",
        "FLAIR and T1w to use: orig, as scanned, or pre, corrected for the bias field; the "
        "others become derivatives (default: %(default)s)",
        choices=("orig", "pre"),
    )


@dataclass(frozen=True)
class Pairs:
    """What ``bagau import pairs`` is told."""

    source: Path = argument("a .tsv or .csv file", metavar="TABLE", type=values.any_path)
    out: Path = argument(_OUT_HELP, metavar="BIDS_OUT", type=values.any_path)
    files: str = option("hard", _FILES_HELP, choices=LINKS)
    description: Path | None = option(
        None,
        "fields for dataset_description.json: Name, License, Authors, HowToAcknowledge, ...",
        metavar="JSON",
        type=values.existing_file,
    )


@dataclass(frozen=True)
class Folder:
    """What ``bagau import folder`` is told."""

    source: Path = argument(
        "folder of FLAIRs: NIfTI files, or folders of DICOM files, one a participant",
        metavar="SRC",
        type=values.any_path,
    )
    out: Path = argument(_OUT_HELP, metavar="BIDS_OUT", type=values.any_path)
    files: str = option("hard", _FILES_HELP, choices=LINKS)


def add_arguments(parser: CommandParser) -> None:
    """Add the kinds of import to the parser of the subcommand, each with its options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    kinds.add_parser(
        "wmh-challenge",
        help="the folders of the WMH Segmentation Challenge",
        description="Import the folders of the WMH Segmentation Challenge (MICCAI 2017), as "
        "released (doi:10.34894/AECRSD) or as handed out in 2017.",
    ).add_options(Challenge)
    kinds.add_parser(
        "pairs",
        help="a table of FLAIRs and masks",
        description="Import FLAIRs and masks that a table lists. Columns: flair and mask, paths "
        "relative to the table; participant_id, session_id and t1w if you like; any other tells "
        "something of the participant.",
    ).add_options(Pairs)
    kinds.add_parser(
        "folder",
        help="a folder of FLAIRs without masks, NIfTI or DICOM",
        description="Import the FLAIRs of a folder. A subfolder is a participant, further ones "
        "are its sessions; files that lie in the folder itself are a participant each. "
        "sourcedata/import.tsv says what became of what.",
    ).add_options(Folder)


def run(options: Challenge | Pairs | Folder) -> int:
    """Carry the subcommand out; return the exit code."""
    return _import_folder(options) if isinstance(options, Folder) else _import_labelled(options)


def _import_folder(options: Folder) -> int:
    from bagau_bids.datasets.folder import TABLE, import_folder

    if options.out.absolute().is_relative_to(options.source.absolute()):
        raise UsageError(
            f"{options.out}: lies in {options.source}, all of which is looked through; expected a "
            "folder elsewhere: name one beside it"
        )
    rows = import_folder(options.source, options.out, how=options.files, progress=_say)
    became = [row for row in rows if row.became]
    _say(
        f"{options.out}: {len(became)} FLAIRs, {len(rows) - len(became)} others left out: "
        f"{options.out / TABLE}"
    )
    if not became:
        return EXIT_SUBJECT_FAILED
    _say(f"Next: bagau-bids {options.out} OUT participant group")
    return EXIT_OK


def _import_labelled(options: Challenge | Pairs) -> int:
    """Import scans with masks."""
    from bagau_bids.datasets.cases import check_cases
    from bagau_bids.datasets.writer import write_dataset

    collection, texts = _challenge(options) if isinstance(options, Challenge) else _pairs(options)
    for note in collection.notes:
        _say(note)
    checked, digests = check_cases(collection, _say)
    failures = checked.failures
    if checked.cases:
        report = write_dataset(
            options.out, checked, digests, texts, how=options.files, progress=_say
        )
        failures = report.failures
        _say(
            f"{options.out}: {report.cases} cases; {report.placed} files placed "
            f"({options.files}), {report.left_out} left out, each listed in sourcedata/import.tsv"
        )
    else:
        print(f"{options.out}: not written, no case can be imported", file=sys.stderr)
    for failure in failures:
        print(f"left out: {failure.name}: {failure.reason}", file=sys.stderr)
    return EXIT_SUBJECT_FAILED if failures else EXIT_OK


def _challenge(options: Challenge) -> "tuple[Collection, DatasetTexts]":
    from bagau_bids.datasets.challenge import challenge_facts, find_cases
    from bagau_bids.datasets.writer import DatasetTexts

    if options.out.is_relative_to(options.source):
        raise UsageError(
            f"{options.out}: lies in {options.source}, all of which is imported; expected a "
            "folder elsewhere: name one beside it"
        )
    facts = challenge_facts()
    texts = DatasetTexts(
        command="bagau import wmh-challenge",
        options={"images": options.images},
        description=facts["description"],
        columns=facts["columns"],
        derivatives=facts["derivatives"],
    )
    return find_cases(options.source, options.images), texts


def _pairs(options: Pairs) -> "tuple[Collection, DatasetTexts]":
    from bagau_bids.datasets.cases import read_json_object
    from bagau_bids.datasets.pairs import column_descriptions, read_pairs
    from bagau_bids.datasets.writer import DatasetTexts

    try:
        given = read_json_object(options.description) if options.description else {}
    except InputImageError as error:
        raise UsageError(str(error)) from error
    texts = DatasetTexts(
        command="bagau import pairs",
        options={"table": options.source.name},
        description={"Name": options.source.stem, **given},
        columns=column_descriptions(options.source),
    )
    return read_pairs(options.source), texts


def _say(line: str) -> None:
    print(line, flush=True)
