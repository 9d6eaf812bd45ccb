"""A FLAIR to scroll through in a page, the mask switched on and off.

No WebGL, no library and no network: pictures are embedded, a few lines of JavaScript swap them.
So it also works on remote desktops and on computers that block everything else.
"""

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from bagau_bids.errors import ProcessingError
from bagau_bids.reports import figures, stacks
from bagau_bids.reports.pages import render
from bagau_bids.reports.results import ScanResults, load_image, load_image_on

PAGE_BYTES = 4_000_000  # of the slices of all scans of a page, as text


def scan_viewer(scan: ScanResults, sharing: int = 1) -> Markup:
    """Make the viewer of a scan from its derivatives.

    Parameters
    ----------
    scan : ScanResults
    sharing : int
        Scans on the same page, which share `PAGE_BYTES`.

    Returns
    -------
    Markup
        Empty where the FLAIR or the brain mask was not written; the reason where one of the
        files cannot be read.
    """
    if not scan.path("preproc_flair").is_file() or not scan.path("brain_mask").is_file():
        return Markup()
    try:
        volumes = _load(scan)
    except ProcessingError as error:
        return Markup('<p class="notice bad">The FLAIR is not shown here. {}</p>').format(error)
    return viewer_fragment(
        f"{scan.stem}_viewer", volumes, min(stacks.LARGEST_BYTES, PAGE_BYTES // sharing)
    )


def _load(scan: ScanResults) -> stacks.Volumes:
    flair = load_image(scan.path("preproc_flair"))

    def load(name: str) -> NDArray:
        return load_image_on(scan.path(name), flair)

    return stacks.Volumes(
        flair.data,
        flair.affine,
        figures.display_window(flair.data, load("brain_mask")),
        load("wmh_mask") > 0 if scan.path("wmh_mask").is_file() else None,
        load("wmh_probseg") if scan.path("wmh_probseg").is_file() else None,
    )


def viewer_code() -> Markup:
    """Style and script that a page with viewers needs once, after the last of them."""
    steps = np.linspace(stacks.LOWEST_PROBABILITY, 1, 6)
    colours = ", ".join(to_hex(colour) for colour in colormaps["plasma"](steps))
    style = render("viewer.css", colours=colours, headroom=stacks.HEADROOM)
    script = render("viewer.js")
    return Markup(f"<style>\n{style}</style>\n<script>\n{script}</script>")


def viewer_fragment(
    anchor: str, volumes: stacks.Volumes, largest_bytes: int = stacks.LARGEST_BYTES
) -> Markup:
    """Make the HTML of a scan to scroll through; see `scan_planes` for what it holds.

    Without JavaScript, and on paper, it shows one slice of each plane.

    Parameters
    ----------
    anchor : str
        Identifier of the element, unique on its page.
    volumes : Volumes
    largest_bytes : int
        Room for the slices, as text.
    """
    planes, coding = stacks.scan_planes(volumes, largest_bytes)
    outlined, probable = volumes.mask is not None, volumes.probability is not None
    shows = ["outline", "filled"] * outlined + ["probability"] * probable
    names = ("name", "axis", "axes", "columns", "rows", "first", "step", "total")
    lists = ("positions_mm", "areas_mm2", "pictures", "probabilities", "paths")
    content = [{name: getattr(plane, name) for name in names + lists} for plane in planes]
    text = render(
        "viewer.html",
        anchor=anchor,
        planes=planes,
        shows=[*shows, "FLAIR only"],
        outlined=outlined,
        probable=probable,
        found=any(planes[0].areas_mm2),
        lowest=stacks.LOWEST_PROBABILITY,
        coding=coding,
        content={"media_type": coding.media_type, "planes": content},
    )
    return Markup(text)
