"""``bagau segment``: FLAIRs of any name, without BIDS, to masks, tables and pages."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.cli.parser import parse
from bagau_bids.config import Config, Execution, Processing, Resources
from bagau_bids.errors import EXIT_OK, BagauError, InputImageError, ProcessingError, UsageError
from bagau_bids.options import CommandParser, argument, option, option_words, part

if TYPE_CHECKING:
    import pandas as pd

    from bagau_bids.cli.app import Ending
    from bagau_bids.cli.failure import StopRequest
    from bagau_bids.reports.results import ScanResults

DATA_SET, DERIVATIVES = Path("bids"), Path("bids", "derivatives", "bagau-bids")
SOURCES = DATA_SET / "sourcedata"
WORK = ".work"
CLAIM = ".bagau-segment.json"
TABLE, SCORES = "volumes.tsv", "evaluation.tsv"
OWN_NAMES = {DATA_SET.name, WORK, TABLE, "volumes.json", SCORES}
MOST_TOLD = 10  # scans that cannot be read, named in a message
_OF_BIDS = ("bids_name", "participant_id", "session_id", "outliers")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    scans: tuple[Path, ...] = argument(
        "FLAIRs: .nii or .nii.gz files of any name, folders of them, or folders of DICOM files, "
        "of which the series that is a FLAIR is taken",
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
    parser.epilog = (
        "What else bagau-bids --help lists of a run is taken too: --dry-run, --work-dir ..."
    )
    parser.allow_options_between()
    parser.add_options(Options)


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.bids.plain import PARTICIPANTS, name_scans
    from bagau_bids.files import copy_file

    scans = name_scans([path for given in options.scans for path in _flairs_of(given)])
    _check(options, scans)
    if not options.execution.dry_run:
        return _segment(options, scans)
    with TemporaryDirectory(prefix="bagau-dry-") as folder:  # nothing is to be left anywhere
        out = Path(folder, "out")
        known = options.out / DATA_SET / PARTICIPANTS
        if known.is_file():
            copy_file(known, out / DATA_SET / PARTICIPANTS)
        execution = replace(options.execution, work_dir=out / WORK)
        try:
            return _segment(replace(options, out=out, execution=execution), scans)
        except BagauError as error:
            raise type(error)(str(error).replace(str(out), str(options.out))) from error


def _flairs_of(path: Path) -> list[Path]:
    """Return a file or a folder of DICOM files as it is, and the FLAIRs of a folder of NIfTI."""
    from bagau_bids.datasets.folder import find_sources, has_images, left_out_lines

    if not path.is_dir() or not has_images(path):
        return [path]
    sources, left_out = find_sources(path)
    for line in left_out_lines(left_out, f" of {path}"):
        print(line)
    return [one.path for one in sources]


def _segment(options: Options, scans: Mapping[str, Path]) -> int:
    """Lay the scans out, process them, and score them where masks are given."""
    from bagau_bids.cli.failure import exit_code_of

    drawn = dict(zip(scans, options.masks, strict=False))
    _check_masks(drawn, {name: path for name, path in scans.items() if path.is_file()})
    made = [path for path in (options.out, *options.out.parents) if not path.exists()]
    try:
        files, labels = _lay_out(options, scans, drawn)
    except BagauError:
        _leave_nothing(options.out, made)
        raise
    run_of = _Run(options, scans, files, labels)
    code = exit_code_of("bagau segment", run_of.carry_out)
    return _score(options.out, labels, drawn) or code if run_of.ended else code


def _lay_out(
    options: Options, scans: Mapping[str, Path], drawn: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Make the data set of links; return the files by the names of scans, and their labels."""
    from bagau_bids.bids.plain import lay_out
    from bagau_bids.datasets.dicom import convert_folders
    from bagau_bids.files import claim_origin

    try:
        claim_origin(options.out / CLAIM, {"command": "bagau segment"})
        files = convert_folders(scans, options.out / SOURCES, options.series, print)
        _check_masks(drawn, {name: files[name] for name in files if scans[name].is_dir()})
        return files, lay_out(options.out / DATA_SET, files, scans)
    except OSError as error:
        raise UsageError(
            f"{options.out}: cannot be written ({error.strerror}: {error.filename}); expected a "
            "folder of one's own, and names of an ordinary length"
        ) from error


def _leave_nothing(out: Path, made: Sequence[Path]) -> None:
    """Remove what was begun of folders that were not there before."""
    if out in made:
        shutil.rmtree(out, ignore_errors=True)
    for folder in made[1:]:
        with suppress(OSError):
            folder.rmdir()


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
    same = len(scans) if any(path.is_dir() for path in options.scans) else len(options.scans)
    if options.masks and not len(options.masks) == same == len(scans):
        raise UsageError(
            f"--mask: {len(options.masks)} masks for {len(scans)} scans; expected one for each "
            "scan, in the same order"
        )
    taken = OWN_NAMES & scans.keys()
    if taken:
        raise UsageError(
            f"{out}: {' and '.join(sorted(taken))} are names of the program's own there, and of "
            "scans; rename these"
        )
    _check_readable(options, scans)


def _check_readable(options: Options, scans: Mapping[str, Path]) -> None:
    """Refuse scans none of which can be read, where nothing is known of any.

    Beside others, or with results of an earlier run, one that cannot be read is told of by the
    processing, on its page and in the table.
    """
    from bagau_bids.preprocessing.conform import check_start

    reasons = []
    for name, path in scans.items():
        if path.is_dir() or (options.out / name).exists():
            return
        try:
            check_start(path)
        except InputImageError as error:
            reasons.append(str(error))
        else:
            return
    shown = [*reasons[:MOST_TOLD], *(["..."] if len(reasons) > MOST_TOLD else [])]
    raise UsageError("\n  ".join(["no scan can be read; expected FLAIRs as NIfTI files:", *shown]))


def _check_masks(drawn: Mapping[str, Path], scans: Mapping[str, Path]) -> None:
    """Refuse masks that could not be scored, before the hour that the scans take.

    A scan that cannot be read is left to the processing, which says so and goes on with others.
    """
    from bagau_bids.evaluation.scoring import check_grid, read_reference_mask
    from bagau_bids.preprocessing.conform import read_volume

    for name, scan in scans.items():
        if name not in drawn:
            continue
        path = drawn[name]
        if not path.is_file():
            raise UsageError(f"--mask {path}: no such file; expected a mask on the scan's grid")
        try:
            mask = read_reference_mask(path)
        except InputImageError as error:
            raise UsageError(f"--mask {error}") from error
        if mask.data.any() and not (mask.data == 1).any():
            raise UsageError(
                f"--mask {path}: values 0 and 2 alone, where 2 is what is not judged; expected 1 "
                "or 255 where WMH is"
            )
        try:
            volume = read_volume(scan)
        except InputImageError:
            continue
        try:
            check_grid(mask.stored, volume)
        except InputImageError as error:
            raise UsageError(f"--mask {error}") from error


@dataclass
class _Run:
    """One run of the app over the data set of links, told of in the names that the user gave."""

    options: Options
    scans: Mapping[str, Path]
    files: Mapping[str, Path]
    labels: Mapping[str, str]
    ended: bool = False  # with results, which may be scored

    @property
    def names(self) -> dict[Path, Path]:
        """What the user calls each file of the data set of links."""
        from bagau_bids.bids.masks import NIFTI_EXTENSION, extension_of

        root, names = (self.options.out / DATA_SET).absolute(), {}
        for name, label in self.labels.items():
            scan = self.scans[name]
            link = root / f"sub-{label}" / "anat" / f"sub-{label}_FLAIR"
            names[link.with_name(f"{link.name}{extension_of(self.files[name])}")] = scan
            if scan.is_file():
                beside = scan.with_name(NIFTI_EXTENSION.sub("", scan.name) + ".json")
                names[link.with_name(f"{link.name}.json")] = beside
        return names

    def carry_out(self, stop: "StopRequest") -> int:
        """Process the scans; errors name the user's files."""
        from rich.console import Console

        from bagau_bids.bids.plain import renamed
        from bagau_bids.cli import app

        names = self.names

        class NamingConsole(Console):
            """A console that names the user's files."""

            def print(self, *texts: Any, **keywords: Any) -> None:
                """Print lines of progress, which are texts, and displays, which are not."""
                super().print(
                    *(renamed(one, names) if isinstance(one, str) else one for one in texts),
                    **keywords,
                )

        config = _config(self.options, self.labels.values())
        if not config.execution.dry_run:
            for name, label in self.labels.items():
                keep_saved_over(self.options.out, name, label)
        try:
            called = {f"sub-{label}": name for name, label in self.labels.items()}
            return app.run(config, stop, self._tell, NamingConsole(stderr=True), called)
        except BagauError as error:
            raise type(error)(renamed(str(error), names)) from error

    def _tell(self, config: Config, ending: "Ending") -> str:
        """Take the results out and say what became of each scan."""
        from bagau_bids.bids.plain import PAGE, renamed, take_results
        from bagau_bids.cli import app
        from bagau_bids.cli.summary import ELSEWHERE, GAVE_WAY, TO_DO
        from bagau_bids.reports.results import COMPLETE, find_results

        reasons = {row.name: row.reason for row in ending.rows if row.reason}
        if config.execution.dry_run:
            planned = {
                name: f"failed: {reason}" if (reason := reasons.get(f"sub-{label}")) else TO_DO
                for name, label in self.labels.items()
            }
            return "\n".join(
                renamed(f"{name}: {what}", self.names) for name, what in planned.items()
            )
        self.ended = True
        results = {scan.entities["sub"]: scan for scan in find_results(config.output_dir)}
        elsewhere = {row.name for row in ending.rows if row.status == ELSEWHERE}
        said, unread = [], dict[str, str]()
        for name, label in self.labels.items():
            folder, scan = self.options.out / name, results.get(label)
            reason = reasons.get(f"sub-{label}", "")
            if f"sub-{label}" in elsewhere:  # its results are the other run's to put out
                said.append(f"{name}: left to another run: {reason}")
                continue
            if reason and scan is None:
                unread[name] = renamed(reason, self.names)
            complete = not reason and scan is not None and scan.status == COMPLETE
            take_results(
                config.output_dir,
                label,
                folder,
                complete=complete,
                name=name,
                names=self.names,
            )
            told = f"failed: {reason}" if reason or scan is None else _outcome(scan)
            said.append(f"{name}: {' '.join(renamed(told, self.names).split())}")
            if (folder / PAGE).is_file():
                said.append(f"  {folder / PAGE}")
            if complete and scan and (how := app.take_again(self.options.out, scan)):
                said.append(f"  {GAVE_WAY}{how}")
            if page := reasons.get(f"page of sub-{label}"):
                said.append(f"  its page could not be written: {page}")
        _write_table(self.options.out, list(results.values()), self.names, unread)
        return "\n".join(
            [*said, f"Volumes: {self.options.out / TABLE}", f"Log: {ending.log_path}"]
        )


def keep_saved_over(out: Path, name: str, label: str, unlike: Path | None = None) -> None:
    """Keep the mask of a scan's folder where a person has saved over it and nobody measured it.

    Parameters
    ----------
    out : Path
        Folder of the results.
    name, label : str
        Of the scan, and of its participant.
    unlike : Path, optional
        Mask that takes its place; by default that of the data set.
    """
    from bagau_bids.bids import edited
    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.bids.plain import PLAIN_NAMES

    derivatives, entities = out / DERIVATIVES, {"sub": label}
    mask = out / name / PLAIN_NAMES["wmh_mask"]
    if edited.saved_over(mask, derivatives, entities):
        other = unlike or derivative_path(derivatives, entities, "wmh_mask")
        edited.keep(mask, derivatives, entities, other)


def refresh(out: Path, labels: Mapping[str, str]) -> int:
    """Take results out again that were measured anew, write the table, and score them anew.

    Parameters
    ----------
    out : Path
        Folder of the results.
    labels : mapping of str to str
        Label of the participant by the name of the scan.

    Returns
    -------
    int
        Exit code: of scores, where masks drawn by hand were given before.
    """
    from bagau_bids.bids.plain import PAGE, take_results
    from bagau_bids.reports.results import find_results

    for name, label in labels.items():
        take_results(out / DERIVATIVES, label, out / name, complete=True, name=name)
        print(f"Page: {out / name / PAGE}")
    _write_table(out, find_results(out / DERIVATIVES), {}, {})
    print(f"Volumes: {out / TABLE}")
    return _score(out, labels, {})


def _outcome(scan: "ScanResults") -> str:
    from bagau_bids.reports.scan_tables import headline

    try:
        return f"failed: {scan.problem}" if scan.problem else headline(scan)
    except ProcessingError as error:  # of a damaged table
        return f"failed: {error}"


def _config(options: Options, labels: Iterable[str]) -> Config:
    """Return the configuration of a run over the data set of links."""
    execution = options.execution
    if execution.work_dir == Execution().work_dir:
        execution = replace(execution, work_dir=options.out / WORK, rm_work_on_success=True)
    said = (options.processing, options.resources, execution)
    words = [word for section in said for word in option_words(section)]
    folders = [str(options.out / DATA_SET), str(options.out / DERIVATIVES)]
    return parse([*folders, "participant", "--participant-label", *labels, *words])


def _write_table(
    out: Path,
    results: "Sequence[ScanResults]",
    names: Mapping[Path, Path],
    unread: Mapping[str, str],
) -> None:
    """Write the table over all scans that the folder has, and those that could not be read.

    Parameters
    ----------
    out, results
        The folder, and what it has.
    names
        What the user calls files.
    unread
        Why, by the name of the scan.
    """
    from bagau_bids.bids.derivatives import sidecar_path
    from bagau_bids.bids.plain import PARTICIPANTS, renamed
    from bagau_bids.bids.tables import described_table, read_records
    from bagau_bids.cli.summary import FAILED
    from bagau_bids.files import write_json, write_table
    from bagau_bids.reports.group_table import group_columns, scan_row
    from bagau_bids.reports.results import COMPLETE

    known = read_records(out / DATA_SET / PARTICIPANTS, ("participant_id", "scan"))
    titles = {row["participant_id"].removeprefix("sub-"): row["scan"] for row in known}
    columns = group_columns()
    rows = []
    for scan in results:
        row = scan_row(scan, columns).values
        if row["status"] != COMPLETE:  # what an earlier run found is not what is there now
            row = {"status": row["status"], "problem": renamed(str(row["problem"]), names)}
        rows.append({"scan": titles.get(scan.entities["sub"], scan.entities["sub"]), **row})
    rows += [
        {"scan": name, "status": FAILED, "problem": reason} for name, reason in unread.items()
    ]
    shown = {name: column for name, column in columns.items() if name not in _OF_BIDS}
    table = described_table(rows, shown)
    table.insert(0, "scan", [row["scan"] for row in rows])
    write_table(out / TABLE, table)
    write_json(sidecar_path(out / TABLE), shown)


def _usual(out: Path, labels: Mapping[str, str], cases: "pd.DataFrame") -> list[str]:
    """Say what accuracy is usual for each volume that was found, by the card of the weights."""
    from bagau_bids.reports.expectation import expectation
    from bagau_bids.reports.results import find_results

    lines = []
    found = {scan.entities["sub"]: scan for scan in find_results(out / DERIVATIVES)}
    for row in cases[cases["status"] == "scored"].to_dict("records"):
        scan = found[labels[row["case"]]]
        segmentation = scan.steps.segmentation
        if segmentation is not None and not scan.edited:
            usual = expectation(segmentation.models, row["result_ml"])
            dice = f"Dice {usual.dice}. " if usual.dice else ""
            lines.append(f"Usual for what was found in {row['case']}: {dice}{usual.words}")
    return lines


def _score(out: Path, labels: Mapping[str, str], drawn: Mapping[str, Path]) -> int:
    """Score masks against those drawn by hand, given now or before; return the exit code.

    The table keeps what it has of other scans.
    """
    from bagau_bids.bids.plain import PLAIN_NAMES
    from bagau_bids.cli.evaluate import in_columns, report_problems
    from bagau_bids.evaluation.pairs import MaskPair
    from bagau_bids.evaluation.scoring import evaluate_pairs
    from bagau_bids.evaluation.tables import case_table
    from bagau_bids.files import write_table

    rows = _scored_before(out)
    before = {} if rows is None else dict(zip(rows["case"], rows["reference"], strict=True))
    references = {name: Path(path) for name, path in before.items() if name in labels}
    references |= {name: path.absolute() for name, path in drawn.items()}
    found = {name: out / name / PLAIN_NAMES["wmh_mask"] for name in references}
    pairs = [
        MaskPair(name, path, found[name])
        for name, path in references.items()
        if found[name].is_file()
    ]
    if not references:
        return EXIT_OK
    cases = case_table(evaluate_pairs(pairs))
    print("", in_columns(cases), *_usual(out, labels, cases), sep="\n")
    cases.insert(1, "reference", [str(references[name]) for name in cases["case"]])
    if rows is not None:
        cases = _beside(rows[~rows["case"].isin(references)], cases)
    write_table(out / SCORES, cases)
    return report_problems(cases[cases["case"].isin(references)])


def _scored_before(out: Path) -> "pd.DataFrame | None":
    """Return the scores that there are, as text; None where there are none of this version."""
    import pandas as pd

    if not (out / SCORES).is_file():
        return None
    rows = pd.read_csv(out / SCORES, sep="\t", dtype=str, keep_default_na=False)
    return rows if {"case", "reference"} <= set(rows.columns) else None


def _beside(rows: "pd.DataFrame", cases: "pd.DataFrame") -> "pd.DataFrame":
    """Put scores that were read as text above new ones."""
    import pandas as pd

    return pd.concat([rows, cases.astype(object)], ignore_index=True) if len(rows) else cases
