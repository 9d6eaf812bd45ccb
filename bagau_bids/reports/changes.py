"""What changed between the sessions of a participant: aligned, compared, and kept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from msgspec import Struct, convert
from msgspec.structs import asdict
from nibabel.affines import apply_affine
from scipy import ndimage

from bagau_bids import __version__
from bagau_bids.bids.derivatives import catalogue, derivative_path, sidecar_path
from bagau_bids.bids.participants import raw_folder
from bagau_bids.bids.sessions import LABELS, SessionOrder, order_sessions
from bagau_bids.bids.tables import MOST_NAMED, column_descriptions, described_table, listed
from bagau_bids.errors import ProcessingError
from bagau_bids.files import read_json, remove_stale, write_json, write_table
from bagau_bids.measures.changes import (
    GONE,
    GROWING,
    NEW,
    SHRINKING,
    STABLE,
    count_changes,
    lesion_changes,
)
from bagau_bids.preprocessing.rigid import align_sessions, half_way, movement
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.reports.charts import COLOUR, NOTE_COLOUR, bare, literal
from bagau_bids.reports.figures import figure_image
from bagau_bids.reports.frequency import read_transform
from bagau_bids.reports.pages import Picture, embed
from bagau_bids.reports.results import ScanResults, load_image, load_image_on
from bagau_bids.reports.scan_tables import Volumes, read_rows, whole_brain
from bagau_bids.spaces import Grid, Image, field_of_view, isotropic_grid, resample

COMPARED, FAILED = "compared", "failed"
SPACING_MM = 1.0  # of the grid on which sessions are compared
INPUTS = ("preproc_flair", "brain_mask", "wmh_mask", "template_to_flair_xfm")
MOST_BARS = 30
# Colours that people with red-green blindness tell apart (Wong 2011, doi:10.1038/nmeth.1618).
STATE_COLOURS = {
    NEW: "#d55e00",
    GROWING: "#e69f00",
    STABLE: "#adb5bd",
    SHRINKING: "#56b4e9",
    GONE: "#0072b2",
}


class Compared(Struct, frozen=True):
    """Counts and volumes of one pair of sessions, and how the sessions lie to each other."""

    n_new: int
    n_growing: int
    n_stable: int
    n_shrinking: int
    n_gone: int
    n_small: int
    volume_before_mm3: float
    volume_after_mm3: float
    gained_mm3: float
    lost_mm3: float
    brain_overlap: float
    rotation_deg: float
    shift_mm: float


class Alignment(Struct, frozen=True, rename="pascal"):
    """The rigid transform of a pair as its record holds it."""

    description: str
    matrix: list[list[float]]


class MadeFrom(Struct, frozen=True):
    """What a comparison follows from: size and time of the last change of each file."""

    version: str
    inputs: dict[str, tuple[int, int]]


class ChangesRecord(Struct, frozen=True):
    """How a pair of sessions was compared, kept beside the later one."""

    before: str
    after: str
    transform: Alignment
    figures: Compared
    made_from: MadeFrom


@dataclass(frozen=True)
class Pair:
    """A session and the one before: names of the scans, and what changed or why nobody knows."""

    participant_id: str
    before: str
    after: str
    ordered_by: str
    figures: Compared | None = None
    problem: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """Value by column, see ``data/tables/session_changes.json``."""
        status = FAILED if self.figures is None else COMPARED
        return {**vars(self), "status": status} | (asdict(self.figures) if self.figures else {})


@dataclass(frozen=True)
class Changes:
    """The table of changes that was written.

    Parameters
    ----------
    rows : tuple of Pair
    picture : Picture or None
        Volumes by session and changes of lesions; None where no pair was compared.
    notes : tuple of str
        What is not sure about the order of the sessions.
    """

    rows: tuple[Pair, ...] = ()
    picture: Picture | None = None
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each pair that could not be compared."""
        return tuple(
            f"{row.after} was not compared with {row.before}: {row.problem}"
            for row in self.rows
            if row.figures is None
        )


def write_changes(output_dir: Path, scans: Sequence[ScanResults]) -> Changes:
    """Compare each session with the one before it and write ``group_changes.tsv`` and ``.json``.

    The lesions of each pair go into a table beside the later session. A pair whose images are
    those of the last run is not aligned again.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    scans : sequence of ScanResults
        Complete scans in order. Of each session the first counts.

    Returns
    -------
    Changes
        Without rows, and nothing written, where no participant has two sessions. What earlier
        runs wrote of pairs that are not compared any more is removed.
    """
    orders = session_orders(output_dir, scans)
    pairs = session_pairs(scans, orders)
    rows = tuple(
        _pair(before, after, orders[before.entities["sub"]].source) for before, after in pairs
    )
    path = output_dir / catalogue().group["changes"].name
    kept = [after for (_, after), row in zip(pairs, rows, strict=True) if row.figures]
    _remove_stale_pairs(output_dir, kept)
    if not rows:
        remove_stale([path, sidecar_path(path)], "no participant has two complete sessions")
        return Changes()
    described = column_descriptions("session_changes")
    write_table(path, described_table([row.columns for row in rows], described))
    write_json(sidecar_path(path), described)
    compared = {row.after: row.figures for row in rows if row.figures}
    picture = _picture(path, compared, pairs) if compared else None
    return Changes(rows, picture, tuple(_order_notes(orders)))


def _remove_stale_pairs(output_dir: Path, kept: Sequence[ScanResults]) -> None:
    """Remove tables and records of changes beside scans that this run compared with no other."""
    made = {path for scan in kept for path in _files_beside(scan)}
    for name in ("changes_table", "changes_record"):
        pattern = derivative_path(".", {"sub": "*"}, name).name
        for folder in ("sub-*/anat", "sub-*/ses-*/anat"):
            for path in sorted(set(output_dir.glob(f"{folder}/{pattern}")) - made):
                beside = [sidecar_path(path)] if path.suffix == ".tsv" else []
                remove_stale([path, *beside], "the pair of sessions is not compared any more")


def _files_beside(scan: ScanResults) -> tuple[Path, ...]:
    return scan.path("changes_table"), scan.path("changes_record")


def session_orders(output_dir: Path, scans: Sequence[ScanResults]) -> dict[str, SessionOrder]:
    """Order the sessions of each participant that has several, as the raw data set says.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives; its description names the raw data set.
    scans : sequence of ScanResults
        Of each session the first counts.

    Returns
    -------
    dict
        By the label of the participant.
    """
    images: dict[str, dict[str, str]] = {}
    for (subject, session), scan in _first_of_sessions(scans).items():
        source = scan.record.source if scan.record else ""
        images.setdefault(subject, {})[session] = source.split(f"/ses-{session}/")[-1]
    folders = [output_dir, *raw_folder(output_dir)]
    return {
        subject: order_sessions(folders, subject, own)
        for subject, own in images.items()
        if len(own) > 1
    }


def session_pairs(
    scans: Sequence[ScanResults], orders: Mapping[str, SessionOrder]
) -> list[tuple[ScanResults, ScanResults]]:
    """Pair the first scan of each session with that of the participant's next session."""
    first = _first_of_sessions(scans)
    return [
        (first[subject, earlier], first[subject, later])
        for subject, order in orders.items()
        for earlier, later in pairwise(order.labels)
    ]


def _first_of_sessions(scans: Sequence[ScanResults]) -> dict[tuple[str, str], ScanResults]:
    """First scan by participant and session."""
    first: dict[tuple[str, str], ScanResults] = {}
    for scan in scans:
        if "ses" in scan.entities:
            first.setdefault((scan.entities["sub"], scan.entities["ses"]), scan)
    return first


def _order_notes(orders: Mapping[str, SessionOrder]) -> Iterator[str]:
    """Say whose sessions are ordered by nothing but their labels, and what cannot be read."""
    guessed = [f"sub-{subject}" for subject, order in orders.items() if order.source == LABELS]
    if guessed:
        yield (
            f"Sessions of {listed(guessed, MOST_NAMED)} are compared in the order of their "
            "labels, which may not be that in time: no acq_time in scans.tsv or sessions.tsv "
            "tells them apart, and no sessions.tsv lists them all. Add one to the data set and "
            "run the group level again."
        )
    for order in orders.values():
        yield from order.notes


def _pair(before: ScanResults, after: ScanResults, ordered_by: str) -> Pair:
    pair = Pair(
        participant_id=f"sub-{after.entities['sub']}",
        before=f"{before.stem}_FLAIR",
        after=f"{after.stem}_FLAIR",
        ordered_by=ordered_by,
    )
    try:
        return replace(pair, figures=_compared(before, after))
    except ProcessingError as error:
        return replace(pair, problem=" ".join(str(error).split()))


def _compared(before: ScanResults, after: ScanResults) -> Compared:
    """Figures of one pair: those of the last run where its inputs are the same, else new ones."""
    inputs = {path.name: _stamp(path) for path in _input_paths(before, after)}
    made_from = MadeFrom(__version__, inputs)
    record_path, table_path = after.path("changes_record"), after.path("changes_table")
    with suppress(ProcessingError):  # nothing, or nothing whole, was kept
        record = read_json(record_path, ChangesRecord, "", ProcessingError)
        if record.made_from == made_from and table_path.is_file():
            return record.figures
    table, figures, matrix = compare_sessions(_load(before), _load(after))
    write_table(table_path, table)
    write_json(sidecar_path(table_path), column_descriptions("lesion_changes"))
    # Written last: what it describes is there.
    write_json(
        record_path,
        ChangesRecord(
            before=f"{before.stem}_FLAIR",
            after=f"{after.stem}_FLAIR",
            transform=Alignment(
                "Rigid transform from points of the earlier FLAIR to points of the later one, mm, "
                "RAS+.",
                matrix.tolist(),
            ),
            figures=figures,
            made_from=made_from,
        ),
    )
    return figures


def _input_paths(*scans: ScanResults) -> Iterator[Path]:
    for scan in scans:
        yield from (scan.path(name) for name in INPUTS)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: results that are made again unchanged keep theirs."""
    try:
        found = path.stat()
    except OSError as error:
        raise ProcessingError(
            f"{path}: cannot be read ({error.strerror}); expected a result of the participant "
            "level: process the scan again"
        ) from error
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Session:
    """Images of one session on their common grid, RAS order.

    Parameters
    ----------
    flair : Image
    brain, lesions : (X, Y, Z) bool arrays
    transform : TemplateTransform
        FLAIR to template points.
    """

    flair: Image
    brain: np.ndarray
    lesions: np.ndarray
    transform: TemplateTransform


def _load(scan: ScanResults) -> Session:
    flair = load_image(scan.path("preproc_flair"))
    brain, lesions = (
        load_image_on(scan.path(name), flair) != 0 for name in ("brain_mask", "wmh_mask")
    )
    return Session(flair, brain, lesions, read_transform(scan))


def compare_sessions(before: Session, after: Session) -> tuple[pd.DataFrame, Compared, np.ndarray]:
    """Align two sessions and compare their lesions.

    Returns
    -------
    table : DataFrame
        One row a lesion, see `bagau_bids.measures.changes.lesion_changes`; centroids in the world
        of the earlier session.
    figures : Compared
    matrix : (4, 4) array
        Points of the earlier FLAIR to points of the later one, mm, RAS+.
    """
    matrix, overlap = align_sessions(
        (before.flair, before.brain, before.transform),
        (after.flair, after.brain, after.transform),
    )
    table = changes_between(before, after, matrix)
    centre = np.mean(np.nonzero(before.brain), axis=1)
    affine = before.flair.affine
    angle, shift = movement(matrix, affine[:3, :3] @ centre + affine[:3, 3])
    lie = {"brain_overlap": float(overlap), "rotation_deg": float(angle), "shift_mm": float(shift)}
    return table, convert(count_changes(table) | lie, Compared), matrix


def changes_between(before: Session, after: Session, matrix: np.ndarray) -> pd.DataFrame:
    """Compare the lesions of two sessions that a rigid transform aligns, see `compare_sessions`.

    Both masks are resampled linearly, and cut at a half, onto 1 mm voxels of the space half-way
    between the sessions.
    """
    half = half_way(matrix)
    both = (
        Image(before.lesions, half @ before.flair.affine),
        Image(after.lesions, np.linalg.inv(half) @ after.flair.affine),
    )
    grid = _around(both, isotropic_grid(both[0], SPACING_MM))
    first, second = (resample(mask, grid) >= 0.5 for mask in both)
    seen = field_of_view(both[0], grid) & field_of_view(both[1], grid)
    return lesion_changes(Image(first & seen, np.linalg.inv(half) @ grid.affine), second & seen)


def _around(masks: Sequence[Image], grid: Grid) -> Grid:
    """Cut a grid down to where one of the masks is; one voxel if nowhere.

    A mask that is resampled linearly reaches less than a voxel beyond its own voxels.
    """
    corners = []
    for mask in masks:
        if mask.data.any():
            (box,) = ndimage.find_objects(mask.data.astype(np.uint8))
            ends = np.meshgrid(*((axis.start - 1, axis.stop) for axis in box), indexing="ij")
            corners.append(
                apply_affine(np.linalg.inv(grid.affine) @ mask.affine, np.stack(ends, -1))
            )
    found = np.concatenate([corner.reshape(-1, 3) for corner in corners] or [np.zeros((1, 3))])
    low = np.clip(np.floor(found.min(axis=0)), 0, np.array(grid.shape) - 1).astype(int)
    high = np.clip(np.ceil(found.max(axis=0)) + 1, low + 1, grid.shape).astype(int)
    start = np.eye(4)
    start[:3, 3] = low
    return Grid(tuple((high - low).tolist()), grid.affine @ start)


def _picture(
    path: Path,
    compared: Mapping[str, Compared],
    pairs: Sequence[tuple[ScanResults, ScanResults]],
) -> Picture:
    """Volumes by session, and what became of the lesions of each pair."""
    rows = sorted(compared.items(), key=lambda row: -(row[1].gained_mm3 + row[1].lost_mm3))
    shown = dict(rows[:MOST_BARS])
    figure = Figure(figsize=(8, max(3.2, 1.2 + 0.26 * len(shown))), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_volumes(left, pairs)
    _draw_states(right, shown)
    which = "" if len(shown) == len(rows) else f" ({MOST_BARS} pairs with the largest changes)"
    caption = (
        f"{len(rows)} pair{'s' if len(rows) > 1 else ''} of sessions. Left: WMH volume in each "
        f"session, a line a participant. Right: lesions of each pair of sessions{which}; those "
        "below a sphere of 3 mm are not judged. Sessions are aligned rigidly and compared "
        "half-way between them. Segmentations differ from scan to scan, more so between scanners: "
        "look at both pages before you believe a change."
    )
    names = ("changes", "Changes between sessions", caption)
    return embed(names, figure_image(figure), saved=(path.name,))


def _draw_volumes(axes: Axes, pairs: Sequence[tuple[ScanResults, ScanResults]]) -> None:
    lines: dict[str, dict[str, float]] = {}
    for pair in pairs:
        for scan in pair:
            if (volume := _volume_ml(scan)) is not None:
                lines.setdefault(scan.entities["sub"], {})[scan.entities["ses"]] = volume
    for own in lines.values():
        axes.plot(range(1, len(own) + 1), list(own.values()), "o-", color=COLOUR, alpha=0.6)
    longest = max(map(len, lines.values()), default=2)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.7, longest + 0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("session, in order")
    axes.set_ylabel("WMH volume (ml)")
    bare(axes)


def _volume_ml(scan: ScanResults) -> float | None:
    try:
        whole = whole_brain(read_rows(scan, "volumes_table", Volumes))
    except ProcessingError:
        return None
    return whole.volume_mm3 / 1000 if whole and whole.volume_mm3 is not None else None


def _draw_states(axes: Axes, rows: Mapping[str, Compared]) -> None:
    places = np.arange(len(rows))[::-1]
    ends = np.zeros(len(rows))
    for state, colour in STATE_COLOURS.items():
        counts = np.array([getattr(row, f"n_{state}") for row in rows.values()])
        axes.barh(places, counts, left=ends, color=colour, height=0.7, label=state)
        ends += counts
    labels = [literal(after.removesuffix("_FLAIR")) for after in rows]
    axes.set_yticks(places, labels=labels, fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("lesions, since the session before", color=NOTE_COLOUR)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, fontsize=8)
    bare(axes)
