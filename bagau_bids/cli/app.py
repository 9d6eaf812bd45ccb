"""The BIDS-App ``bagau-bids``: from the command line to the exit code."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING

from bagau_bids.cli.failure import StopRequest, exit_code_of
from bagau_bids.cli.parser import parse
from bagau_bids.config import MODELS, Config, Processing
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, BagauError, ProcessingError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bagau_bids.bids.scans import Scan
    from bagau_bids.cli.progress import Progress
    from bagau_bids.cli.summary import Row
    from bagau_bids.network.cards import Networks
    from bagau_bids.preprocessing.template import Template
    from bagau_bids.reports.results import ScanResults

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """What is to be told at the end of the participant level.

    Attributes
    ----------
    rows
        What became of each scan, and of pages that could not be written.
    pages
        The pages that were written.
    log_path
        The log of the run.
    """

    rows: "list[Row]"
    pages: tuple[Path, ...]
    log_path: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bagau-bids`` with the arguments of the process or with ``argv``.

    Returns
    -------
    int
        0 all done; 1 a scan or a page failed, or a participant has no FLAIR under ``--strict``;
        2 wrong usage or nothing to process; 70 the workflow could not be built or run; 127 a
        template, weights or another needed file is missing; 130 and 143 when stopped by a
        signal.
    """
    return exit_code_of("bagau-bids", lambda stop: run(parse(argv), stop))


def tell(config: Config, ending: Ending) -> str:
    """Return the summary of a run: what was found in each scan, the pages, the log."""
    from bagau_bids.cli.summary import DONE, GAVE_WAY, summary_text
    from bagau_bids.reports.results import find_results

    done = {row.name for row in ending.rows if row.status == DONE}
    subjects = {name.split("_")[0].removeprefix("sub-") for name in done if name[:4] == "sub-"}
    scans = {
        scan.stem: scan
        for subject in sorted(subjects)
        for scan in find_results(config.output_dir, subject)
        if scan.stem in done
    }
    found = _found(scans.values())
    rows = [replace(row, found=found.get(row.name, "")) for row in ending.rows]
    notes = [
        f"{stem}: {GAVE_WAY}{how}"
        for stem, scan in scans.items()
        if (how := take_again(config.output_dir, scan))
    ]
    return summary_text(rows, ending.log_path, ending.pages, notes)


def take_again(out: Path, scan: "ScanResults") -> str:
    """Return the command that takes the edited mask again which the network's has replaced.

    Parameters
    ----------
    out : Path
        Folder of the results, as the user calls it.
    scan : ScanResults

    Returns
    -------
    str
        Empty where there is no such mask.
    """
    from bagau_bids.bids.edited import how_to_take

    return how_to_take(out, scan.replaced[-1], scan.entities) if scan.replaced else ""


def run(
    config: Config,
    stop: StopRequest,
    tell: Callable[[Config, Ending], str] = tell,
    console: "Console | None" = None,
    called: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Carry out one run and return its exit code; errors leave it as `BagauError`.

    What can be wrong with the request is checked before the output folder is touched, what can
    be missing before the first scan is processed.

    Parameters
    ----------
    config : Config
    stop : StopRequest
    tell : callable
        Returns what is printed at the end of the participant level.
    console : Console, optional
        Where the progress is told; stderr by default.
    called : mapping of str to str
        What the user calls scans, by their stems.
    """
    from rich.console import Console

    from bagau_bids.bids.validation import check_dataset
    from bagau_bids.cli.progress import Progress
    from bagau_bids.cli.runlog import run_log

    if not config.selection.skip_bids_validation:
        check_dataset(config.bids_dir)
    processes = "participant" in config.analysis_levels and not (
        config.execution.reports_only or config.execution.boilerplate_only
    )
    networks = find_networks(config.processing) if processes else None
    scans = _find_scans(config) if processes else {}
    _prepare_environment(config.execution.work_dir)
    console = console or Console(stderr=True)
    with run_log(config, console) as log_path, _debugger(config.execution.debug):
        if config.execution.boilerplate_only:
            return _write_boilerplate(config)
        exit_code = EXIT_OK
        if "participant" in config.analysis_levels:
            if networks is None:
                rows, pages = _remake_pages(config)
            else:
                with_progress = partial(Progress, console=console, check=stop.check, called=called)
                rows, pages = _process(config, scans, networks, with_progress)
            exit_code = _conclude(config, Ending(rows, pages, log_path), tell)
        if "group" in config.analysis_levels and not config.execution.dry_run:
            _write_group(config.output_dir)
        return exit_code


def _find_scans(config: Config) -> dict["Scan", str]:
    """Find the scans, each with the reason why it can have no result, or an empty text."""
    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.bids.scans import find_scans, find_too_long, find_unavailable

    scans = find_scans(config.bids_dir, config.selection)
    too_long = find_too_long(scans, config.output_dir.absolute(), config.processing.template)
    unavailable = too_long | find_unavailable(scans)
    records = (derivative_path(config.output_dir, scan.entities, "record") for scan in scans)
    if len(unavailable) == len(scans) and not any(path.is_file() for path in records):
        reasons = "\n".join(f"  {reason}" for reason in unavailable.values())
        raise UsageError(f"None of the {len(scans)} FLAIR images found can be read:\n{reasons}")
    return {scan: unavailable.get(scan, "") for scan in scans}


def _process(
    config: Config,
    scans: dict["Scan", str],
    networks: "Networks",
    with_progress: "Callable[..., Progress]",
) -> tuple[list["Row"], tuple[Path, ...]]:
    """Process the scans and write the pages; return what became of each, and the pages.

    Scans with a text, which says why they can have no result, are only told of.
    """
    from bagau_bids.bids.scans import find_missing
    from bagau_bids.cli.summary import DONE, ELSEWHERE, FAILED, NO_FLAIR, TO_DO, Row
    from bagau_bids.workflow.flair import scan_steps
    from bagau_bids.workflow.run import run_participants

    missing = find_missing(config.bids_dir, config.selection, scans)
    template = _check_resources(config, networks)
    unavailable = {scan: reason for scan, reason in scans.items() if reason}
    usable = [scan for scan in scans if scan not in unavailable]
    steps = scan_steps(config.processing, networks)
    outdated = [] if config.execution.dry_run else _record_unavailable(config, unavailable)
    pages = _Pages(config, [*usable, *outdated])
    told = {"begun": pages.load, "finished": pages.scan_finished}
    with with_progress(len(usable), steps, **told) as progress:
        results = run_participants(config, usable, template, networks, progress)
    rows = [Row(f"sub-{subject}", NO_FLAIR, reason) for subject, reason in missing.items()]
    rows += [Row(scan.stem, FAILED, reason) for scan, reason in unavailable.items()]
    if config.execution.dry_run:
        return rows + [Row(scan.stem, TO_DO) for scan in usable], ()
    rows += [
        Row(it.scan.stem, DONE)
        if it.ok
        else Row(it.scan.stem, ELSEWHERE if it.elsewhere else FAILED, it.reason)
        for it in results
    ]
    pages.write_rest()
    return rows + pages.failed, tuple(pages.written)


class _Pages:
    """The pages of a run: each is written once its participant is finished, or at the end.

    So the first are there early, and are drawn while other processes are at work on what follows.

    Parameters
    ----------
    config
        The run.
    scans
        What is processed.

    Attributes
    ----------
    failed
        A row for each page that could not be written.
    written
        The pages there are.
    """

    def __init__(self, config: Config, scans: Sequence["Scan"]) -> None:
        self._config = config
        self._subjects = {scan.stem: scan.subject for scan in scans}
        self._unfinished = Counter(self._subjects.values())
        self._loading: Thread | None = None
        self.failed: list[Row] = []
        self.written: list[Path] = []

    def load(self) -> None:
        """Load what draws pages, half a second, while only other processes are at work.

        Not where a plugin was asked for, which may run the steps in this one. Two threads must
        not load the same libraries at a time.
        """
        from bagau_bids.workflow.plugins import runs_in_this_process

        resources = self._config.resources
        here = runs_in_this_process(resources, self._config.execution.debug)
        if not here and resources.plugin_file is None:
            self._loading = Thread(target=_load_pages, daemon=True)
            self._loading.start()

    def _be_loaded(self) -> None:
        if self._loading is not None:
            self._loading.join()

    def scan_finished(self, stem: str) -> None:
        """Write the page of a participant whose last scan this is."""
        subject = self._subjects[stem]
        self._unfinished[subject] -= 1
        if not self._unfinished[subject]:
            del self._unfinished[subject]
            self._write([subject])

    def write_rest(self) -> None:
        """Write the pages of participants some scans of whom failed."""
        self._write(sorted(self._unfinished))
        self.written.sort()

    @cached_property
    def _further(self) -> dict[str, tuple[Path, ...]]:
        """Further pages of an earlier run; those of a participant are his until he is finished."""
        from bagau_bids.reports.fingerprint import further_pages

        return further_pages(self._config.output_dir)

    def _write(self, subjects: Sequence[str]) -> None:
        self._be_loaded()
        failed, pages = _write_pages(self._config, subjects, self._further)
        self.failed += failed
        self.written += pages


def _load_pages() -> None:
    """Load what draws pages; where it cannot be loaded, each page will say so."""
    with suppress(Exception):
        import_module("bagau_bids.reports.participant")


def _record_unavailable(config: Config, unavailable: Mapping["Scan", str]) -> list["Scan"]:
    """Let results of an earlier run tell that their scan cannot be read now; return such scans."""
    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.workflow.run import record_failure
    from bagau_bids.workflow.tracker import ScanOutcome

    there = [
        scan
        for scan in unavailable
        if derivative_path(config.output_dir, scan.entities, "record").is_file()
    ]
    for scan in there:
        record_failure(config, ScanOutcome(scan, False, unavailable[scan]))
    return there


def _found(scans: "Iterable[ScanResults]") -> dict[str, str]:
    """Say what was found in each scan, by the scan's stem."""
    from bagau_bids.reports.scan_tables import headline

    found = {}
    for scan in scans:
        with suppress(ProcessingError):  # of a table; its page tells of that
            found[scan.stem] = headline(scan)
    return found


def find_networks(processing: Processing) -> "Networks":
    """Find the weights; refuse to be asked for infarcts of ones none of which tells them."""
    from bagau_bids.network import cards

    networks = cards.find_networks(processing.weights, processing.model)
    if networks.tell(cards.INFARCT) or not processing.infarct:
        return networks
    able = [
        f"--model {name}" for name in MODELS if cards.find_networks((), name).tell(cards.INFARCT)
    ]
    raise UsageError(
        f"--infarct: {', '.join(one.path.name for one in networks.lesions)} tell WMH alone; "
        "expected weights whose card names infarct among its outputs: use "
        + (" or ".join(able) or "--weights with such ones, for none of the packaged ones does")
    )


def _check_resources(config: Config, networks: "Networks") -> "Template":
    """Find everything the scans will need, so that what is missing stops the run at once."""
    from bagau_bids.network.cards import read_weights
    from bagau_bids.preprocessing.template import find_template
    from bagau_bids.workflow.plugins import settle_device

    processing = config.processing
    device = settle_device(config.resources)
    for weights in networks.lesions:
        if processing.weights:  # nobody has tried these: do they fit what their card describes?
            from bagau_bids.network.weights import load_weights

            load_weights(weights.path, weights.card)
        else:
            read_weights(weights.path, weights.card)
        log.info("weights %s, SHA-256 %s", weights.path, weights.card.sha256)
    if processing.skull_strip == "auto":
        read_weights(networks.brain.path, networks.brain.card)
    template = find_template(
        processing.template,
        processing.templateflow_home,
        offline=processing.offline,
        cache_dir=config.execution.work_dir / "templates",
    )
    log.info("template %s, white matter %s", template.name, template.wm_probseg)
    log.info("device %s", device)
    return template


def _remake_pages(config: Config) -> tuple[list["Row"], tuple[Path, ...]]:
    """Write the pages again of the participants that the output folder has; see `_process`."""
    from bagau_bids.bids.scans import list_subjects
    from bagau_bids.cli.summary import DONE, Row
    from bagau_bids.reports.fingerprint import further_pages

    there = list_subjects(config.output_dir) if config.output_dir.is_dir() else []
    subjects = config.selection.participant_labels or tuple(there)
    unknown = sorted(set(subjects) - set(there))
    if unknown or not subjects:
        raise UsageError(
            f"{config.output_dir} has no results of {', '.join(unknown) or 'any participant'} to "
            "write pages from; process them first, without --reports-only"
        )
    failed, pages = _write_pages(config, subjects, further_pages(config.output_dir))
    names = {row.name for row in failed}
    done = [f"page of sub-{subject}" for subject in subjects]
    return failed + [Row(name, DONE) for name in done if name not in names], pages


def _write_pages(
    config: Config, subjects: Sequence[str], further: Mapping[str, tuple[Path, ...]]
) -> tuple[list["Row"], tuple[Path, ...]]:
    """Write the pages of participants that are not as they would be, or all with --reports-only.

    `further` are those that participants have besides their own, as `further_pages` finds them.
    Returns a row for each that could not be written, and all pages there are.
    """
    from bagau_bids.cli.summary import FAILED, Row
    from bagau_bids.reports.fingerprint import pages_in_place

    most_sessions = config.execution.aggregate_session_reports
    failed, pages = [], list[Path]()
    for subject in subjects:
        own = further.get(f"sub-{subject}", ())
        try:
            there = pages_in_place(config.output_dir, f"sub-{subject}", most_sessions, own)
            if there and not config.execution.reports_only:
                pages += there
                continue
            from bagau_bids.reports.participant import write_participant_report  # is slow to load

            pages += write_participant_report(
                config.output_dir, subject, aggregate_session_reports=most_sessions
            )
        except Exception as error:
            log.exception("page of sub-%s", subject, extra={"file_only": True})
            reason = str(error) if isinstance(error, BagauError) else repr(error)
            failed.append(Row(f"page of sub-{subject}", FAILED, reason))
    return failed, tuple(pages)


def _conclude(config: Config, ending: Ending, tell: Callable[[Config, Ending], str]) -> int:
    """Show and keep the summary; return the exit code that follows from it."""
    from bagau_bids.cli.summary import ELSEWHERE, FAILED, NO_FLAIR, write_summary

    text = tell(config, ending)
    print(text, flush=True)
    log.info("%s", text, extra={"file_only": True})
    write_summary(ending.rows, config.log_dir / "summary.tsv")
    bad = {FAILED, ELSEWHERE, *([NO_FLAIR] if config.execution.strict else [])}
    return EXIT_SUBJECT_FAILED if any(row.status in bad for row in ending.rows) else EXIT_OK


def _write_boilerplate(config: Config) -> int:
    from bagau_bids.bids.description import write_citation

    write_citation(config.output_dir, config.processing)
    print(f"Written: {config.output_dir / 'logs' / 'CITATION.md'}")
    return EXIT_OK


def _write_group(output_dir: Path) -> None:
    from bagau_bids.reports.group import write_group

    table = write_group(output_dir)
    scans = "1 scan" if table.scans == 1 else f"{table.scans} scans"
    print(f"Group table: {table.path} ({scans})\nGroup page: {table.page}")


def _prepare_environment(work_dir: Path) -> None:
    """Set what libraries read from the environment of this process and its children."""
    os.environ.setdefault("NO_ET", "1")  # nipype asks a server for its newest version
    os.environ.setdefault("LOGNAME", "bagau")  # nipype's SLURM plugin needs one in a container
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(work_dir / "matplotlib"))


@contextmanager
def _debugger(debug: Sequence[str]) -> Iterator[None]:
    """Open the debugger on an error of any kind, where it was asked for."""
    try:
        yield
    except Exception:
        if "pdb" in debug:
            import pdb

            pdb.post_mortem(sys.exc_info()[2])
        raise
