"""How well a T1w finds its FLAIR: real pairs, and pairs that were moved apart on purpose.

    python benchmarks/t1w.py BIDS_DIR [--moved]

Prints, for each FLAIR with a T1w, the start that was taken and the mutual information in the
brain: as registered, by the headers alone, and with the T1w shifted by 14 mm. With ``--moved``
(for data sets whose T1w lie on the FLAIR's grid) the T1w is moved by a known rotation and shift
first, a small and a large one. The last figures are the distance, in the brain, between what was
found and the placement given: the truth where the T1w was moved, else the headers.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bagau_bids.bids.scans import find_scans, find_t1w
from bagau_bids.config import Selection
from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.registration import mutual_information
from bagau_bids.preprocessing.t1w import on_search_grid, register_rigidly
from bagau_bids.preprocessing.transforms import TemplateTransform, forward_field, sample
from bagau_bids.spaces import Image, resample

MOVES = {"small": ((2, -3, 4), (3, -5, 4)), "large": ((20, 5, -8), (40, -60, 80))}
SHIFT_MM = (10.0, 10.0, 0.0)


def move(degrees: tuple[float, ...], shift_mm: tuple[float, ...]) -> np.ndarray:
    """Rigid map, (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def report(name: str, flair: Image, t1w: Image, mask: np.ndarray, truth: np.ndarray) -> None:
    """Register a T1w that `truth` moved, and print how well."""
    moved = Image(t1w.data, truth @ t1w.affine)
    found, start, information = register_rigidly(flair, moved, mask)

    ours, theirs = on_search_grid(flair), on_search_grid(moved)
    brain = resample(Image(mask, flair.affine), ours) > 0.5

    def information_at(transform: np.ndarray) -> float:
        points = forward_field(TemplateTransform(transform), ours)
        data = sample(theirs, points)
        return mutual_information(ours.data[brain], data[brain])

    points = np.vstack([np.argwhere(mask).T, np.ones(int(mask.sum()))])
    world = flair.affine @ points
    error = np.linalg.norm(((found - truth) @ world)[:3], axis=0)
    headers, shifted = (
        information_at(transform) for transform in (np.eye(4), move((0, 0, 0), SHIFT_MM) @ found)
    )
    print(
        f"{name}: start {start}, information {information:.3f}, headers {headers:.3f}, shifted "
        f"{shifted:.3f}, off the placement given {error.mean():.2f} mm, at most "
        f"{error.max():.2f} mm",
        flush=True,
    )


def main() -> None:
    """Go through a data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--moved", action="store_true")
    args = parser.parse_args()
    for scan in find_scans(args.bids_dir, Selection()):
        try:
            path, _ = find_t1w(scan)
        except InputImageError:
            print(f"{scan.stem}: no T1w")
            continue
        flair, t1w = conform(scan.path), conform(path)
        mask = brain_mask(flair).mask
        volumes = Image(flair.data, flair.affine), Image(t1w.data, t1w.affine)
        moves = MOVES if args.moved else {"as it is": ((0, 0, 0), (0, 0, 0))}
        for name, (degrees, shift_mm) in moves.items():
            report(f"{scan.stem}, {name}", *volumes, mask, move(degrees, shift_mm))


if __name__ == "__main__":
    main()
