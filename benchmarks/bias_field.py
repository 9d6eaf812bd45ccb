"""Measure the bias field: recovery of known fields, time, and the effect on real scans.

Known fields are laid over FLAIR-like images made from label maps. Real scans get a brain mask,
their field, and, where a TemplateFlow folder is given, a white-matter map by registration::

    python benchmarks/bias_field.py DATA_FOLDER [--templateflow DIR] [--scans PATTERN]
"""

import argparse
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.preprocessing.bias_field import estimate_bias_field
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.registration import register_template
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.spaces import Image, reorient, voxel_sizes

PHANTOMS = (("seg_01", 6, 0), ("seg_05", 3, 1), ("seg_09", 6, 2), ("seg_17", 1, 3))
FIELD_MM = 80.0  # distance between the nodes of the fields that are laid over the phantoms
FIELD_LOG = 0.35  # their largest logarithm: from 70 to 140 percent
WHITE, GREY, FLUID = (2, 41, 7, 46), (3, 42, 8, 47), (4, 43, 5, 44, 14, 15, 24)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with label-maps, ds-tabriz, ...")
    parser.add_argument("--templateflow", type=Path, help="store with the template: slower")
    parser.add_argument("--scans", default="ds-*/sub-*/**/*FLAIR.nii.gz")
    args = parser.parse_args()
    for name, slab, seed in PHANTOMS:
        recover(args.data / "label-maps" / f"{name}.nii.gz", slab, seed)
    template = None
    if args.templateflow:
        template = find_template(
            "MNI152NLin2009cSym", home=args.templateflow, offline=True, cache_dir=Path()
        )
    for path in sorted(args.data.glob(args.scans)):
        measure(path, template)


def recover(path: Path, slab: int, seed: int) -> None:
    """Lay a known field over a phantom and print how much of it is found."""
    rng = np.random.default_rng(seed)
    image = nib.load(path)
    ras = reorient(Image(np.asarray(image.dataobj).astype(np.int16), image.affine))
    labels = ras.data
    box = ndimage.find_objects(((labels > 0) & (labels < 100)).astype(np.uint8))[0]
    labels = labels[box]
    clean, white, lesions, brain = phantom(labels, rng)

    def average(data: NDArray) -> NDArray:
        count = data.shape[2] // slab
        parts = data[:, :, : count * slab].astype(np.float32)
        return parts.reshape(*data.shape[:2], count, slab).mean(axis=3)

    clean = average(clean)
    clean += rng.normal(0, 0.015, clean.shape)
    white, lesions, brain = (
        average(m) > share for m, share in ((white, 0.9), (lesions, 0.9), (brain, 0.5))
    )
    affine = ras.affine @ np.diag([1.0, 1.0, slab, 1.0])
    field = smooth_field(brain, voxel_sizes(affine), rng)
    started = time.process_time()
    found = estimate_bias_field(Image(clean * field, affine), brain)
    seconds = time.process_time() - started
    logs = np.log(found[brain]), np.log(field[brain])
    flair, corrected = clean * field, clean * field / found
    print(
        f"{path.name} slices of {slab} mm: {seconds:.1f} s, correlation of the log fields "
        f"{np.corrcoef(*logs)[0, 1]:.3f}, error {np.std(logs[0] - logs[1]):.3f} of "
        f"{np.std(logs[1]):.3f}, variation of white matter {variation(flair[white]):.3f} -> "
        f"{variation(corrected[white]):.3f} (without a field {variation(clean[white]):.3f}), "
        f"lesions / white matter {flair[lesions].mean() / flair[white].mean():.3f} -> "
        f"{corrected[lesions].mean() / corrected[white].mean():.3f} (without a field "
        f"{clean[lesions].mean() / clean[white].mean():.3f})",
        flush=True,
    )


def phantom(
    labels: NDArray, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return a FLAIR-like image of a label map, and its white matter, lesions and brain."""
    brain = (labels > 0) & (labels < 100)
    near = ndimage.distance_transform_edt(~np.isin(labels, (4, 43))) < 7
    texture = ndimage.gaussian_filter(rng.normal(size=labels.shape), 3)
    white = np.isin(labels, WHITE)
    lesions = white & near & (texture > 0.3 * texture.std())
    clean = np.where(brain, 0.56, 0.0)
    for tissue, value in (
        (white, 0.5),
        (np.isin(labels, GREY), 0.62),
        (np.isin(labels, FLUID), 0.1),
    ):
        clean[tissue] = value
    clean[lesions] = 0.8
    return ndimage.gaussian_filter(clean, 0.7), white & ~lesions, lesions, brain


def smooth_field(brain: NDArray, sizes_mm: NDArray, rng: np.random.Generator) -> NDArray:
    """Return a random cubic field on the grid of a mask, mean 1 in it."""
    axes = [
        np.arange(n) * size / FIELD_MM + 1 for n, size in zip(brain.shape, sizes_mm, strict=True)
    ]
    nodes = rng.normal(size=[int(axis[-1]) + 3 for axis in axes])
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    log_field = ndimage.map_coordinates(nodes, points, order=3, mode="nearest")
    log_field -= log_field[brain].mean()
    field = np.exp(log_field * FIELD_LOG / np.abs(log_field[brain]).max())
    return field / field[brain].mean()


def measure(path: Path, template: Template | None) -> None:
    """Print time and effect on one real scan."""
    scan = conform(path)
    mask = brain_mask(scan).mask
    started = time.process_time()
    field = estimate_bias_field(scan, mask)
    seconds = time.process_time() - started
    corrected = scan.data / field
    low, high = np.percentile(field[mask], (1, 99))
    words = [f"{path.name}: {seconds:.1f} s, field {low:.2f} to {high:.2f}"]
    lesions = manual_lesions(path, scan.data.shape)
    normal = np.ones_like(mask)
    if lesions.any():
        around = ndimage.distance_transform_edt(~lesions, sampling=voxel_sizes(scan.affine))
        ring = (around > 2) & (around < 8) & mask
        before, after = (
            image[lesions].mean() / np.median(image[ring]) for image in (scan.data, corrected)
        )
        words.append(
            f"lesions / surroundings {before:.3f} -> {after:.3f} ({after / before - 1:+.1%})"
        )
        normal = around > 3
    if template:
        result = register_template(Image(corrected, scan.affine), mask, template)
        white = mask & normal & (result.wm_probseg > 0.9)
        before, after = robust_variation(scan.data[white]), robust_variation(corrected[white])
        words.append(f"variation of white matter {before:.3f} -> {after:.3f}")
    print(", ".join(words), flush=True)


def manual_lesions(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the manual mask of a scan in RAS+ order, empty where there is none."""
    root = next(folder for folder in path.parents if folder.name.startswith("ds-"))
    folder = root / "derivatives" / "manual" / path.parent.relative_to(root)
    stem = path.name.removesuffix("_FLAIR.nii.gz")
    found = sorted(folder.glob(f"{stem}_*label-WMH_mask.nii.gz"))
    return conform(found[0]).data > 0 if found else np.zeros(shape, bool)


def variation(values: NDArray) -> float:
    """Return the coefficient of variation."""
    return float(values.std() / values.mean())


def robust_variation(values: NDArray) -> float:
    """Return the coefficient of variation between the 2nd and the 98th percentile."""
    low, high = np.percentile(values, (2, 98))
    return variation(values[(values >= low) & (values <= high)])


if __name__ == "__main__":
    main()
