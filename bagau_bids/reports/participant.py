"""The page of one participant: every FLAIR of it, what was found, and how far to trust it.

Built from the derivatives folder alone, so it can be made again at any time. The pictures lie
in ``sub-<label>/figures`` and are also embedded: the page is one file that can be mailed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bagau_bids.bids.edited import how_to_take
from bagau_bids.bids.plain import OUT
from bagau_bids.bids.tables import natural_key
from bagau_bids.config import Execution
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.files import remove_stale, write_text
from bagau_bids.reports import scan_pictures, scan_tables, stacks, viewer
from bagau_bids.reports.expectation import Expectation, expectation
from bagau_bids.reports.fingerprint import further_pages, made_from, marked
from bagau_bids.reports.methods import Methods, render_methods
from bagau_bids.reports.pages import Picture, render
from bagau_bids.reports.results import ScanResults, find_results
from bagau_bids.reports.scan_tables import (
    Grade,
    Lesion,
    Reason,
    RegionVolumes,
    Shown,
    Volumes,
)

LONGEST_LESION_LIST = 200
LARGEST_PAGE_BYTES = 15_000_000  # more cannot be mailed
SECTION_TEXT_BYTES = 150_000  # tables of a scan, with the longest list of lesions
PAGE_TEXT_BYTES = 150_000  # style, scripts, methods
# Part of a scan's section that shows what a flag is about.
FLAG_PARTS = {
    "registration": "registration",
    "brain mask": "brain",
    "field of view": "brain",
    "resolution": "lesions",
    "noise": "flair",
    "movement": "flair",
    "contrast": "flair",
    "uncertainty": "wmh",
    "infarct": "suspects",
    "cavity": "suspects",
}


@dataclass(frozen=True)
class Pictures:
    """Pictures of a scan by the part of its section that shows them."""

    key: tuple[Picture, ...] = ()
    wmh: tuple[Picture, ...] = ()
    suspects: tuple[Picture, ...] = ()
    sizes: tuple[Picture, ...] = ()
    flair: tuple[Picture, ...] = ()
    brain: tuple[Picture, ...] = ()
    registration: tuple[Picture, ...] = ()

    @property
    def all(self) -> tuple[Picture, ...]:
        """Every picture, in the order of the page."""
        return (
            *self.key,
            *self.wmh,
            *self.suspects,
            *self.sizes,
            *self.flair,
            *self.brain,
            *self.registration,
        )


@dataclass(frozen=True)
class ScanSection:
    """Everything the page shows of one scan.

    Parameters
    ----------
    anchor, title : str
    results : ScanResults
    key_figures : tuple of (str, str, str)
        Name, number, and what to add.
    expected : Expectation or None
        How far the volume may be trusted; None where there is none.
    settings : tuple of (str, str)
        How the scan was made and processed.
    reasons : tuple of Reason
        Why it deserves a look.
    pictures : Pictures
    regions, quality, lesions : tuples
        Rows of tables.
    region_rule : str
        How regions were told apart.
    lesions_left_out : int
        Lesions that are in the table on disk only.
    grades : tuple of Grade
        Estimates of the Fazekas grades.
    trouble : tuple of str
        What could not be read.
    viewer : str
        HTML to scroll through the FLAIR; empty where there is none.
    """

    anchor: str
    title: str
    results: ScanResults
    key_figures: tuple[tuple[str, str, str], ...]
    expected: Expectation | None
    settings: tuple[tuple[str, str], ...]
    reasons: tuple[Reason, ...]
    pictures: Pictures
    regions: tuple[RegionVolumes, ...]
    region_rule: str
    lesions: tuple[Lesion, ...]
    lesions_left_out: int
    grades: tuple[Grade, ...]
    quality: tuple[Shown, ...]
    trouble: tuple[str, ...]
    viewer: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags raised, each once."""
        return tuple(dict.fromkeys(reason.flag for reason in self.reasons))

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Parts of the section that there are: their anchors and names, in order."""
        there = {
            "wmh": ("WMH", self.pictures.wmh),
            "suspects": ("Large areas", self.pictures.suspects),
            "scroll": ("Scroll", self.viewer),
            "regions": ("Regions", self.regions or self.grades),
            "lesions": ("Lesions", self.lesions),
            "flair": ("Conform", self.pictures.flair),
            "brain": ("Brain mask", self.pictures.brain),
            "registration": ("Registration", self.pictures.registration),
            "quality": ("Quality", self.quality),
            "settings": ("Settings", self.settings),
        }
        return tuple((f"{self.anchor}_{key}", name) for key, (name, some) in there.items() if some)

    def place_of(self, flag: str) -> str:
        """Anchor of the part that shows what a flag is about; empty where it is not there."""
        anchor = f"{self.anchor}_{FLAG_PARTS.get(flag, '')}"
        return anchor if anchor in dict(self.parts) else ""

    @property
    def how_to_take(self) -> str:
        """Command that takes the latest edited mask that the network's has replaced."""
        scan = self.results
        inside = scan.replaced[-1].relative_to(scan.output_dir)
        return how_to_take(Path(OUT), Path(OUT) / inside, scan.entities)

    def file(self, name: str) -> str:
        """Link to a derivative, empty where it is not there."""
        path = self.results.path(name)
        there = path.is_file()
        return path.relative_to(self.results.output_dir).as_posix() if there else ""


@dataclass(frozen=True)
class Crash:
    """A crash file: the scan it is about, its path below the output folder, and its text."""

    scan: str
    path: str
    text: str


def write_participant_report(
    output_dir: Path,
    participant_label: str,
    *,
    aggregate_session_reports: int = Execution.aggregate_session_reports,
) -> tuple[Path, ...]:
    """Write ``sub-<label>.html`` and the figures it shows.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant_label : str
        Without ``sub-``.
    aggregate_session_reports : int
        With more sessions than this, each has a page of its own
        (``sub-<label>_ses-<label>.html``) and the participant's page links to them. So it is, too,
        where one page would pass `LARGEST_PAGE_BYTES`; a session that does so by itself has a
        page a scan, under the scan's name.

    Returns
    -------
    tuple of Path
        The participant's page, then those of sessions or scans. Pages and figures are written
        in one step each, and left alone where nothing changed; pages of sessions or scans that
        an earlier run left and this one does not write are removed.

    Raises
    ------
    UsageError
        If the folder holds nothing of this participant.
    """
    participant = f"sub-{participant_label}"
    scans = find_results(output_dir, participant_label)
    crashes = tuple(_crashes(output_dir, participant, scans))
    if not scans and not crashes:
        raise UsageError(
            f"{output_dir}: holds no results of {participant}; expected files below "
            f"{participant}: run the participant level first"
        )
    sections = [_section(scan) for scan in scans]
    pages = _pages(participant, sections, aggregate_session_reports)
    own, *further = pages
    written = [_write_page(output_dir, name, pages, crashes) for name in further]
    others = set(further_pages(output_dir).get(participant, ())) - set(written)
    remove_stale(sorted(others), f"what it showed is on {own}.html or linked there")
    source = made_from(output_dir, participant, aggregate_session_reports, sorted(written))
    return (_write_page(output_dir, own, pages, crashes, source), *written)


def _pages(
    participant: str, sections: Sequence[ScanSection], most_sessions: int
) -> dict[str, list[ScanSection]]:
    """Say which page shows which scans; the participant's page, which links to all, is first.

    Many sessions, or large pictures, have a page each; scans of a session that are still too
    large together have one each.
    """
    pages = {participant: list(sections)}
    sessions = _by_session(sections) if len(sections) > 1 else {}
    if len(sessions) > most_sessions or (sessions and page_bytes(sections) > LARGEST_PAGE_BYTES):
        own = {f"{participant}_ses-{session}": some for session, some in sessions.items()}
        pages = {
            participant: [one for one in sections if "ses" not in one.results.entities],
            **own,
        }
    split: dict[str, list[ScanSection]] = {participant: []}
    for name, some in pages.items():
        for section in some:
            apart = len(some) > 1 and page_bytes(some) > LARGEST_PAGE_BYTES
            split.setdefault(section.anchor if apart else name, []).append(section)
    return split


def page_bytes(sections: Sequence[ScanSection]) -> int:
    """Size that a page has at most which shows these scans: pictures, viewers, and text."""
    pictures = sum(picture.bytes for one in sections for picture in one.pictures.all)
    viewers = min(len(sections) * stacks.LARGEST_BYTES, viewer.PAGE_BYTES)
    return pictures + viewers + len(sections) * SECTION_TEXT_BYTES + PAGE_TEXT_BYTES


def _by_session(sections: Sequence[ScanSection]) -> dict[str, list[ScanSection]]:
    sessions: dict[str, list[ScanSection]] = {}
    for section in sections:
        if session := section.results.entities.get("ses"):
            sessions.setdefault(session, []).append(section)
    return sessions


def _write_page(
    output_dir: Path,
    name: str,
    pages: Mapping[str, Sequence[ScanSection]],
    crashes: Sequence[Crash],
    source: str = "",
) -> Path:
    """Write one of the pages; the first lists the scans of all, and says what it is made from."""
    subject = name.split("_")[0]
    scans = [
        replace(section, viewer=viewer.scan_viewer(section.results, len(pages[name])))
        for section in pages[name]
    ]
    shown = {section.anchor: section for section in scans}
    page_of = {section.anchor: page for page, own in pages.items() for section in own}
    listed = scans
    if name == subject:
        everything = (shown.get(one.anchor, one) for own in pages.values() for one in own)
        listed = sorted(everything, key=lambda section: natural_key(section.anchor))
    links = {
        anchor: ("" if anchor in shown else f"{page_of[anchor]}.html") + f"#{anchor}"
        for anchor in (section.anchor for section in listed)
    }
    text = render(
        "participant.html",
        made_from=source,
        participant=name,
        subject=subject,
        listed=listed,
        links=links,
        scans=scans,
        single=len(listed) == len(scans) == 1,
        meanings=scan_tables.MEANINGS,
        crashes=[crash for crash in crashes if not crash.scan or crash.scan in links],
        methods=_methods(output_dir),
        viewer_code=viewer.viewer_code(),
    )
    path = output_dir / f"{name}.html"
    write_text(path, marked(text, source) if source else text)
    return path


def _section(scan: ScanResults) -> ScanSection:
    """Gather one scan; what cannot be read is said on the page, the rest is still shown."""
    trouble: list[str] = []

    def attempt(make: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return make()
        except ProcessingError as error:
            trouble.append(str(error))
            return otherwise

    volumes = attempt(lambda: scan_tables.read_rows(scan, "volumes_table", Volumes), [])
    lesions = attempt(lambda: scan_tables.read_rows(scan, "lesions_table", Lesion), [])
    grades = tuple(attempt(lambda: scan_tables.grades(scan), ()))
    whole = scan_tables.whole_brain(volumes)
    return ScanSection(
        anchor=scan.stem,
        title=scan.title,
        results=scan,
        key_figures=tuple(scan_tables.key_figures(volumes, grades)),
        expected=_expected(scan, whole),
        settings=tuple(scan_tables.settings(scan)),
        reasons=tuple(scan_tables.reasons(scan)),
        pictures=_pictures(scan, attempt, [row.volume_mm3 for row in lesions], whole),
        regions=tuple(scan_tables.region_rows(volumes)),
        region_rule=scan_tables.region_rule(scan),
        lesions=tuple(lesions[:LONGEST_LESION_LIST]),
        lesions_left_out=max(len(lesions) - LONGEST_LESION_LIST, 0),
        grades=grades,
        quality=tuple(attempt(lambda: scan_tables.quality_rows(scan), ())),
        trouble=tuple(trouble),
    )


def _expected(scan: ScanResults, whole: Volumes | None) -> Expectation | None:
    segmentation = scan.steps.segmentation
    if scan.edited:
        return Expectation("", "That of the person who edited the mask.")
    if segmentation is None or whole is None or whole.volume_mm3 is None:
        return None
    return expectation(segmentation.models, whole.volume_mm3 / 1000)


def _pictures(
    scan: ScanResults,
    attempt: Callable[[Callable[[], Any], Any], Any],
    sizes_mm3: Sequence[float],
    whole: Volumes | None,
) -> Pictures:
    """Draw what images are there; a picture that cannot be drawn leaves the others."""
    sizes: tuple[Picture, ...] = ()
    if sizes_mm3 and whole and whole.voxel_mm3:
        sizes = (scan_pictures.size_picture(scan, sizes_mm3, whole.voxel_mm3),)
    shown = attempt(lambda: scan_pictures.load_shown(scan), None)
    if shown is None:
        return Pictures(sizes=sizes)

    def draw(maker: scan_pictures.Maker) -> tuple[Picture, ...]:
        return attempt(lambda: tuple(maker(shown)), ())

    return Pictures(
        key=draw(scan_pictures.key_pictures),
        wmh=draw(scan_pictures.lesion_pictures),
        suspects=draw(scan_pictures.suspect_pictures),
        sizes=sizes,
        flair=draw(scan_pictures.before_after_pictures),
        brain=draw(scan_pictures.brain_pictures),
        registration=draw(scan_pictures.registration_pictures),
    )


def _methods(output_dir: Path) -> Methods | None:
    """Methods text of the last run, None where it was not written."""
    texts = [output_dir / "logs" / name for name in ("CITATION.md", "CITATION.bib")]
    if not texts[0].is_file():
        return None
    markdown, bibtex = (
        path.read_text(encoding="utf-8") if path.is_file() else "" for path in texts
    )
    return render_methods(markdown, bibtex)


def _crashes(output_dir: Path, participant: str, scans: Sequence[ScanResults]) -> Iterator[Crash]:
    """Crash files that the records of failed scans name; without any scan, all of them."""
    named = {
        output_dir / scan.failure.crash_file: scan.stem
        for scan in scans
        if scan.failure and scan.failure.crash_file
    }
    if not scans:
        found = (output_dir / participant / "log").glob("*/crash-*.txt")
        named = dict.fromkeys(sorted(found, key=lambda path: natural_key(path.as_posix())), "")
    for path, stem in named.items():
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Crash(stem, path.relative_to(output_dir).as_posix(), text)
