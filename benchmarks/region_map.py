"""Make the map of brain regions in template space that the package ships, and measure it.

Whole-head label maps (FreeSurfer's numbers) are painted as FLAIRs and registered to the template
that nilearn carries, as a scan would be. Each tissue group is carried into template space, the
left and right halves and all heads are averaged, and each voxel takes the group that is the most
likely there. On heads left out, the map is carried back and compared with their own labels. ::

    python benchmarks/region_map.py MAPS DIR --held-out seg_15 seg_16 seg_17 seg_18 seg_19 seg_20
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bagau_bids.preprocessing.registration import (
    Registration,
    register_template,
)
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.preprocessing.template_regions import FILE_NAME, GROUPS
from bagau_bids.preprocessing.transforms import forward_field, inverse_field, sample
from bagau_bids.spaces import Grid, Image, OnGrid
from bagau_bids.synthesis.labels import Head, load_head

TEMPLATE = "ICBM152NLin2009aSym"
# FreeSurfer's numbers of each group, left and right, and how bright a FLAIR shows it.
NUMBERS: dict[str, tuple[tuple[int, ...], float]] = {
    "lateral_ventricle": ((4, 5, 43, 44, 31, 63, 72), 0.2),
    "other_csf": ((14, 15, 24), 0.2),
    "infratentorial": ((7, 8, 16, 46, 47), 0.85),
    "cortex": ((3, 42), 1.0),
    "white_matter": ((2, 41, 25, 57, 77, 30, 62), 0.75),
    "deep_grey": ((10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60, 85), 0.95),
}


def main() -> None:
    """Write the map and its card, print the table."""
    args = _parse()
    paths = sorted(args.label_maps.glob("*.nii.gz"))
    used, left_out = (
        [path for path in paths if (_name(path) in args.held_out) == held]
        for held in (False, True)
    )
    with tempfile.TemporaryDirectory() as cache:
        template = find_template(TEMPLATE, cache_dir=Path(cache))
        grid = nib.load(template.t1w)
        if args.make:
            mean = average(used, template, grid)
            write(args.output, mean, grid.affine, used)
        stored = nib.load(args.output / FILE_NAME)
        labels = Image(np.asarray(stored.dataobj), stored.affine)
        for path in left_out:
            measure(path, template, labels)


def paint(head: Head) -> NDArray[np.float32]:
    """Paint a label map as a FLAIR without noise: one brightness a group."""
    flair = np.zeros(head.labels.shape, np.float32)
    for numbers, brightness in NUMBERS.values():
        flair[np.isin(head.labels, numbers)] = brightness
    return flair


def register(head: Head, template: Template) -> Registration:
    """Register the template to a painted head, its brain mask the inside of the skull."""
    return register_template(Image(paint(head), head.affine), head.brain.numpy(), template)


def average(paths: Sequence[Path], template: Template, grid: OnGrid) -> NDArray[np.float32]:
    """Mean share of each group over heads and both sides, (group, X, Y, Z), template grid."""
    total = np.zeros((len(GROUPS), *grid.shape), np.float32)
    for path in paths:
        head = load_head(path)
        result = register(head, template)
        print(f"{_name(path)}: {result.used.stage}, overlap {result.used.overlap:.3f}", flush=True)
        points = inverse_field(result.transform, grid)
        for index, name in enumerate(GROUPS):
            member = np.isin(head.labels, NUMBERS[name][0])
            total[index] += sample(Image(member, head.affine), points)
    return (total + total[:, ::-1]) / (
        2 * len(paths)
    )  # the template's grid has x = 0 in its middle


def write(folder: Path, mean: NDArray, affine: NDArray, used: Sequence[Path]) -> None:
    """Write the labels, numbered from 1 in the order of the groups, and their card."""
    labels = np.where(mean.sum(axis=0) > 0.5, mean.argmax(axis=0) + 1, 0).astype(np.uint8)
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    image.header.set_xyzt_units("mm")
    folder.mkdir(parents=True, exist_ok=True)
    image.to_filename(folder / FILE_NAME)
    volumes = {
        name: round(float((labels == number).sum()) / 1000, 1)
        for number, name in enumerate(GROUPS, start=1)
    }
    card = {
        "Space": TEMPLATE,
        "Labels": {str(number): name for number, name in enumerate(GROUPS, start=1)},
        "VolumesMl": volumes,
        "MadeFrom": [_name(path) for path in used],
    }
    (folder / FILE_NAME.replace(".nii.gz", ".json")).write_text(json.dumps(card, indent=2) + "\n")


def measure(path: Path, template: Template, labels: Image) -> None:
    """Print the Dice of each group of the map with the labels of one head."""
    head = load_head(path)
    result = register(head, template)
    points = forward_field(result.transform, Grid(head.labels.shape, head.affine))
    carried = sample(labels, points, order=0)
    scores = []
    for number, name in enumerate(GROUPS, start=1):
        found, true = carried == number, np.isin(head.labels, NUMBERS[name][0])
        dice = 2 * (found & true).sum() / (found.sum() + true.sum())
        scores.append(f"{name} {dice:.3f}")
    print(f"{_name(path)}: Dice " + ", ".join(scores), flush=True)


def _name(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("output", type=Path, help="folder of the map")
    parser.add_argument("--held-out", nargs="*", default=(), metavar="NAME")
    parser.add_argument(
        "--measure-only", dest="make", action="store_false", help="take the map that is there"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
