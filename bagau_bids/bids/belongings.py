"""What belongs to one FLAIR: its sidecars, T1w, brain mask and known lesions, found once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.bids.acquisition import json_files, sidecars_of
from bagau_bids.bids.derivatives import bids_uri
from bagau_bids.bids.description import derivative_links, linked_folders
from bagau_bids.bids.known_lesions import find_known_lesions
from bagau_bids.bids.masks import find_brain_mask
from bagau_bids.bids.scans import Scan, find_t1w
from bagau_bids.config import Processing


@dataclass(frozen=True)
class Given:
    """An image that is there already: its path, its BIDS URI, and how it was chosen, if at all."""

    path: Path
    uri: str
    note: str = ""


@dataclass(frozen=True)
class Belongings:
    """A FLAIR with what belongs to it.

    Attributes
    ----------
    scan
        The FLAIR.
    source
        Its path relative to the data set.
    sidecars
        JSON files that say how it was acquired.
    t1w
        T1w of the same session, where one is wanted.
    brain_mask
        Brain mask of this FLAIR from other derivatives, if there is one.
    known_lesions
        Mask of what the user knows to be no WMH, if there is one.
    """

    scan: Scan
    source: str
    sidecars: tuple[Path, ...] = ()
    t1w: Given | None = None
    brain_mask: Given | None = None
    known_lesions: Given | None = None


def find_belongings(
    scan: Scan,
    bids_dir: Path,
    processing: Processing,
    *,
    with_t1w: bool,
    json_files: Callable[[Path], Sequence[Path]] = json_files,
) -> Belongings:
    """Find what belongs to a FLAIR; no image is opened.

    Parameters
    ----------
    scan
        The FLAIR.
    bids_dir
        Root of its data set.
    processing
        Names the derivative data sets to look in.
    with_t1w
        Whether a T1w is wanted.
    json_files
        Returns the JSON files of a folder; see `sidecars_of`.

    Raises
    ------
    InputImageError
        If there is no T1w where one is wanted, several masks fit, or one was not fetched.
    """
    linked = derivative_links(linked_folders(processing))
    datasets = {**linked, "raw": bids_dir}

    def given(path: Path, note: str = "") -> Given:
        name, root = next(item for item in datasets.items() if path.is_relative_to(item[1]))
        return Given(path, bids_uri(name, path.relative_to(root)), note)

    t1w = find_t1w(scan) if with_t1w else None
    masks = {name: root for name, root in linked.items() if root in processing.derivatives}
    mask = find_brain_mask(masks, scan.entities)
    lesions = find_known_lesions(
        scan.path,
        scan.entities,
        processing.known_lesions,
        beside=not processing.ignore_lesion_roi,
    )
    return Belongings(
        scan=scan,
        source=scan.path.relative_to(bids_dir).as_posix(),
        sidecars=sidecars_of(scan.path, json_files),
        t1w=given(*t1w) if t1w else None,
        brain_mask=given(mask) if mask else None,
        known_lesions=given(lesions.path, lesions.note) if lesions else None,
    )
