"""``bagau segment``: FLAIRs of any name, without BIDS, to masks, tables and pages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli.parser import parse
from bagau_bids.config import Config, Execution, Processing, Resources
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, UsageError
from bagau_bids.options import CommandParser, argument, option, option_words, part

if TYPE_CHECKING:
    from bagau_bids.reports.results import ScanResults

DATA_SET, DERIVATIVES = Path("bids"), Path("bids", "derivatives", "bagau-bids")
SOURCES = DATA_SET / "sourcedata"
WORK = ".work"
CLAIM = ".bagau-segment.json"
TABLE, SCORES = "volumes.tsv", "evaluation.tsv"
OWN_NAMES = {DATA_SET.name, WORK, TABLE, "volumes.json", SCORES}
_OF_BIDS = ("bids_name", "participant_id", "session_id", "outliers")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    scans: tuple[Path, ...] = argument(
        "FLAIRs: .nii or .nii.gz files of any name, or folders of DICOM files, of which the "
        "series that is a FLAIR is taken",
        metavar="SCAN",
        type=values.any_path,
    )
    out: Path = argument(
        "folder of the results: of each scan a folder of its name with mask, probability, tables "
        "and report.html; volumes.tsv of all; and everything as a BIDS data set in bids/",
        metavar="OUT",
        type=values.any_path,
    )
    masks: tuple[Path, ...] = option(
        (),
        "masks drawn by hand (1 or 255: WMH), one for each SCAN in the same order: the results "
        "are scored against them",
        "--mask",
        metavar="MASK",
        type=values.any_path,
    )
    series: int | None = option(
        None,
        "number of the DICOM series to take, where the headers do not tell one FLAIR",
        metavar="NUMBER",
        type=values.whole_number(0),
    )
    processing: Processing = part(Processing)
    resources: Resources = part(Resources, "resources")
    execution: Execution = part(Execution, hidden=True)


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.usage = "bagau segment SCAN [SCAN ...] OUT [options]"
    parser.add_options(Options)


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.bids.plain import lay_out, name_scans, take_results
    from bagau_bids.cli.app import run as run_app
    from bagau_bids.cli.failure import exit_code_of
    from bagau_bids.datasets.dicom import convert_folders
    from bagau_bids.files import claim_origin
    from bagau_bids.reports.results import COMPLETE, find_results

    scans = name_scans(options.scans)
    _check(options, scans)
    try:
        claim_origin(options.out / CLAIM, {"command": "bagau segment"})
        files = convert_folders(scans, options.out / SOURCES, options.series, print)
        labels = lay_out(options.out / DATA_SET, files, scans)
    except OSError as error:
        raise UsageError(
            f"{options.out}: cannot be written ({error.strerror}: {error.filename}); expected a "
            "folder of one's own, and names of an ordinary length"
        ) from error
    config = _config(options, labels.values())
    code = exit_code_of("bagau segment", lambda stop: run_app(config, stop))
    if code not in (EXIT_OK, EXIT_SUBJECT_FAILED) or config.execution.dry_run:
        return code
    results = find_results(config.output_dir)
    complete = {scan.entities["sub"] for scan in results if scan.status == COMPLETE}
    for name, label in labels.items():
        folder = options.out / name
        take_results(config.output_dir, label, folder, complete=label in complete)
    for line in _summary(options.out, results, labels):
        print(line)
    return _score(options, scans) or code


def _check(options: Options, scans: Mapping[str, Path]) -> None:
    """Refuse what cannot be meant, before anything is written."""
    out = options.out
    if out.is_file():
        raise UsageError(
            f"{out}: is a file; expected the folder of the results as the last word: "
            "bagau segment SCAN... OUT"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / CLAIM).is_file():
        raise UsageError(
            f"{out}: is not empty and holds no results of bagau segment; expected a new folder, "
            "or one of results, to which more may be added"
        )
    if options.masks and not len(options.masks) == len(options.scans) == len(scans):
        raise UsageError(
            f"--mask: {len(options.masks)} masks for {len(scans)} scans; expected one for each "
            "scan, in the same order"
        )
    for path in options.masks:
        if not path.is_file():
            raise UsageError(f"--mask {path}: no such file; expected a mask on the scan's grid")
    taken = OWN_NAMES & scans.keys()
    if taken:
        raise UsageError(
            f"{out}: {' and '.join(sorted(taken))} are names of the program's own there, and of "
            "scans; rename these"
        )


def _config(options: Options, labels: Iterable[str]) -> Config:
    """Return the configuration of a run over the data set of links."""
    execution = options.execution
    if execution.work_dir == Execution().work_dir:
        execution = replace(execution, work_dir=options.out / WORK, rm_work_on_success=True)
    said = (options.processing, options.resources, execution)
    words = [word for section in said for word in option_words(section)]
    folders = [str(options.out / DATA_SET), str(options.out / DERIVATIVES)]
    return parse([*folders, "participant", "--participant-label", *labels, *words])


def _summary(out: Path, results: "Sequence[ScanResults]", labels: Mapping[str, str]) -> list[str]:
    """Write the table over all scans that the folder has; say what became of those of this run."""
    from bagau_bids.bids.derivatives import sidecar_path
    from bagau_bids.bids.plain import PAGE, PARTICIPANTS
    from bagau_bids.bids.tables import described_table, read_records
    from bagau_bids.files import write_json, write_table
    from bagau_bids.reports.group_table import group_columns, scan_row
    from bagau_bids.reports.results import COMPLETE
    from bagau_bids.reports.scan_tables import headline

    known = read_records(out / DATA_SET / PARTICIPANTS, ("participant_id", "scan"))
    names = {row["participant_id"].removeprefix("sub-"): row["scan"] for row in known}
    columns = group_columns()
    rows, lines = [], []
    for scan in results:
        name = names.get(scan.entities["sub"], scan.entities["sub"])
        row = scan_row(scan, columns).values
        if scan.status != COMPLETE:  # what an earlier run found is not what is there now
            row = {key: row[key] for key in ("status", "problem")}
        rows.append({"scan": name, **row})
        if name in labels:
            told = f"failed: {scan.problem}" if scan.problem else headline(scan)
            lines += [f"{name}: {told}", f"  {out / name / PAGE}"]
    shown = {name: column for name, column in columns.items() if name not in _OF_BIDS}
    table = described_table(rows, shown)
    table.insert(0, "scan", [row["scan"] for row in rows])
    write_table(out / TABLE, table)
    write_json(sidecar_path(out / TABLE), shown)
    return [*lines, f"Volumes: {out / TABLE}"]


def _score(options: Options, scans: Mapping[str, Path]) -> int:
    """Score the masks found against those drawn by hand; return the exit code."""
    if not options.masks:
        return EXIT_OK

    from bagau_bids.bids.plain import PLAIN_NAMES
    from bagau_bids.cli.evaluate import in_columns, report_problems
    from bagau_bids.evaluation.pairs import MaskPair
    from bagau_bids.evaluation.scoring import evaluate_pairs
    from bagau_bids.evaluation.tables import case_table
    from bagau_bids.files import write_table

    drawn = dict(zip(options.scans, options.masks, strict=True))
    found = {name: options.out / name / PLAIN_NAMES["wmh_mask"] for name in scans}
    pairs = [
        MaskPair(name, drawn[path], found[name])
        for name, path in scans.items()
        if found[name].is_file()
    ]
    cases = case_table(evaluate_pairs(pairs))
    print("", in_columns(cases), sep="\n")
    write_table(options.out / SCORES, cases)
    return report_problems(cases)
