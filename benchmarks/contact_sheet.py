"""Show what was found on many scans on one sheet: two rows of slices a scan, outlined.

    python benchmarks/contact_sheet.py BIDS DERIVATIVES SHEET.jpg [--reference MASKS]

The result is outlined in red, the reference, where there is one, in green below it; slices are
those with the most of either.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bagau_bids.bids.scans import Scan, find_scans
from bagau_bids.config import Selection
from bagau_bids.reports.figures import (
    busiest_slices,
    display_window,
    draw_outline,
    draw_slices,
    mosaic,
    scan_axis,
    stack,
)

WIDTH, COLUMNS, TITLE = 1000, 8, 22  # pixels, slices a scan, pixels


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--reference", type=Path, help="derivative with reference masks")
    parser.add_argument("--subjects", nargs="+", default=[])
    parser.add_argument("--slices", type=int, default=COLUMNS)
    args = parser.parse_args()
    strips = list(draw_strips(args))
    sheet = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(args.sheet, quality=78)


def draw_strips(args: argparse.Namespace) -> Iterator[Image.Image]:
    """One picture a scan of the data set that has a result."""
    for scan in find_scans(args.bids_dir, Selection()):
        if args.subjects and scan.subject not in args.subjects:
            continue
        result = find_mask(args.derivatives, scan)
        reference = find_mask(args.reference, scan) if args.reference else None
        flair, affine = load(scan.path)
        brain, _ = load(find_mask(args.derivatives, scan, "label-brain_mask"))
        found, _ = load(result)
        true = load(reference)[0] == 1 if reference else np.zeros(found.shape, bool)
        yield draw_strip(scan.stem, flair, affine, brain > 0, [found > 0, true], args.slices)


def find_mask(derivatives: Path, scan: Scan, name: str = "label-WMH_mask") -> Path:
    """Find the one mask of a scan under a derivative."""
    stem = scan.path.name.removesuffix("_FLAIR.nii.gz")
    found = sorted(derivatives.rglob(f"{stem}_*{name}.nii.gz"))
    if len(found) != 1:
        raise SystemExit(f"{derivatives}: {len(found)} files {stem}_*{name}.nii.gz, expected one")
    return found[0]


def load(path: Path) -> tuple[NDArray, NDArray]:
    """Array and affine in RAS order."""
    image = nib.as_closest_canonical(nib.load(path))
    return image.get_fdata(dtype=np.float32), image.affine


def draw_strip(
    title: str,
    flair: NDArray,
    affine: NDArray,
    brain: NDArray,
    masks: list[NDArray],
    slices: int,
) -> Image.Image:
    """Slices of one scan with the result in red, and the reference in green."""
    axis = scan_axis(affine)
    shown = busiest_slices(masks[0] | masks[1], axis, slices)
    layout = mosaic([(axis, shown)], brain, affine, columns=min(slices, 4), width=WIDTH)
    layers = [draw_slices(layout, flair, display_window(flair, brain))]
    for mask, colour in zip(reversed(masks), ("#00d060", "#ff3020"), strict=True):
        layers.append(draw_outline(layout, mask, colour))
    picture = stack(*layers).convert("RGB")
    strip = Image.new("RGB", (WIDTH, picture.height + TITLE))
    strip.paste(picture, (0, TITLE))
    volumes = [mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 for mask in masks]
    text = f"{title}: {volumes[0]:.1f} ml found"
    if volumes[1]:
        text += f", {volumes[1]:.1f} ml in the reference"
    ImageDraw.Draw(strip).text((6, 5), text, fill="white")
    return strip


if __name__ == "__main__":
    main()
