"""Ventricles and regions on synthetic FLAIRs whose ventricles are known.

From each label map a FLAIR is synthesised, the template is registered to it, and the ventricles
of the registered map and those found on the FLAIR are compared with the true ones: volume, Dice,
and how much of the lesions lies in the right one of periventricular and deep. ::

    python benchmarks/regions.py LABEL_MAPS --templateflow-home STORE --only seg_17 seg_18
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bagau_bids.measures.regions import (
    LATERAL_VENTRICLE,
    distance_mm,
    find_ventricles,
    partition,
)
from bagau_bids.preprocessing.recipe import preprocess
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.preprocessing.template_regions import carry_regions, load_template_regions
from bagau_bids.preprocessing.transforms import lattice_field
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.engine import AtlasSettings, SynthesisSettings, synthesise
from bagau_bids.synthesis.labels import load_head

VENTRICLES = (4, 5, 43, 44, 31, 63, 72)


def main() -> None:
    """Print the table."""
    args = _parse()
    template = find_template("MNI152NLin2009cSym", args.templateflow_home, offline=True)
    print("label map  slice  true ml | template: ml  Dice  lesions | FLAIR: ml  Dice  lesions")
    rows = []
    for path in sorted(args.label_maps.glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        for spacing in args.slices if not args.only or name in args.only else ():
            rows.append(measure(name, path, spacing, template, args.seed))
    figures = np.array(rows)
    print(
        f"n={len(rows)} Dice of the template {figures[:, 0].mean():.3f}, found on the FLAIR "
        f"{figures[:, 1].mean():.3f} (least {figures[:, 1].min():.3f}); lesion voxels in the "
        f"right region {100 * figures[:, 2].mean():.1f} %, {100 * figures[:, 3].mean():.1f} %"
    )


def measure(
    name: str, path: Path, spacing: float, template: Template, seed: int
) -> tuple[float, float, float, float]:
    """Print the line of one scan; return Dice and share of lesion voxels, template and FLAIR."""
    head = load_head(path)
    # The atlas that is carried along without errors is the truth.
    head = replace(head, wm_atlas=np.isin(head.labels, VENTRICLES).astype(np.float32))
    scan = synthesise(head, seed, make_settings(spacing))
    true = scan.wm_atlas > 0.5
    made = preprocess(Image(scan.flair, scan.affine), template)
    brain, flair, result = made.brain.mask, made.corrected, made.registration
    points = lattice_field(result.transform, flair)
    groups, right = carry_regions(load_template_regions(), points, flair)
    found = find_ventricles(flair, brain, result.wm_probseg, groups)

    def periventricular(ventricles: NDArray) -> NDArray:
        distance = distance_mm(ventricles, scan.affine)
        return partition(Image(groups, scan.affine), right, brain, distance, "10mm")[scan.wmh_mask]

    expected = periventricular(true)
    ml = float(voxel_sizes(scan.affine).prod()) / 1000
    prior, dice, shares = (groups == LATERAL_VENTRICLE) & brain, [], []
    for mask in (prior, found.mask):
        dice.append(float(2 * (mask & true).sum() / (mask.sum() + true.sum())))
        shares.append(float((periventricular(mask) == expected).mean()))
    print(
        f"{name:9s}  {voxel_sizes(scan.affine)[2]:5.1f}  {true.sum() * ml:7.1f} | "
        f"{prior.sum() * ml:12.1f}  {dice[0]:.3f}  {shares[0]:7.3f} | "
        f"{found.mask.sum() * ml:9.1f}  {dice[1]:.3f}  {shares[1]:7.3f}  {found.source}",
        flush=True,
    )
    return dice[0], dice[1], shares[0], shares[1]


def make_settings(spacing: float) -> SynthesisSettings:
    """Return settings of a head in full, with slices of a spacing in mm."""
    base = SynthesisSettings()
    return replace(
        base,
        view=replace(base.view, cut_probability=0.0),
        acquisition=replace(
            base.acquisition,
            slice_spacing_mm=(spacing, spacing),
            isotropic_probability=0.0,
            stripped_probability=0.0,
        ),
        atlas=AtlasSettings(smooth_error_mm=(0.0, 0.0), gross_probability=0.0),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="label maps to take")
    parser.add_argument("--slices", type=float, nargs="*", default=(2.0, 5.0), help="spacing, mm")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
