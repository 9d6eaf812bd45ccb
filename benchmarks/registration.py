r"""White-matter overlap of the registered template on synthetic FLAIRs of known anatomy.

From each label map (FreeSurfer labels, whole head) a FLAIR is synthesised with tilt, offset,
head and lesions; the template is registered to it, and the Dice of the warped white-matter map
at 0.5 and the true white matter is printed, with what the registration says of itself and the CPU
seconds that it and its processes took. Parameters of elastix may be others than the preset's.

    python benchmarks/registration.py LABEL_MAPS --templateflow-home STORE --slices 1 3
    python benchmarks/registration.py LABEL_MAPS --templateflow-home STORE --slices 6 6 \
        --both NumberOfSpatialSamples=4096 --bspline "MaximumNumberOfIterations=256" --moving-mm 1
"""

import argparse
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.preprocessing import registration
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.registration import METHODS, load_parameters, register_template
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.engine import SynthesisSettings, SyntheticScan, synthesise
from bagau_bids.synthesis.labels import load_head


def main() -> None:
    """Print the table."""
    args = _parse()
    template = find_template("MNI152NLin2009cSym", args.templateflow_home, offline=True)
    _change_parameters(args)
    settings = make_settings((args.slices[0], args.slices[1]))
    print("label map       Dice  overlap  MI     Jacobian     slice  CPU s    start", flush=True)
    scores, seconds = [], []
    for path in sorted(args.label_maps.glob("*.nii.gz"))[:: args.every]:
        scan = synthesise(load_head(path), args.seed, settings)
        dice, duration = measure(path.name.removesuffix(".nii.gz"), scan, template, args)
        scores.append(dice)
        seconds.append(duration)
    print(
        f"n={len(scores)} mean Dice {np.mean(scores):.3f} min {np.min(scores):.3f} "
        f"CPU seconds a scan {np.mean(seconds):.1f}"
    )


def make_settings(slice_spacing_mm: tuple[float, float]) -> SynthesisSettings:
    """Return settings of a head in full, its bias field nearly corrected."""
    base = SynthesisSettings()
    return replace(
        base,
        view=replace(base.view, cut_probability=0.0),
        acquisition=replace(
            base.acquisition,
            slice_spacing_mm=slice_spacing_mm,
            isotropic_probability=0.0,
            bias_amplitude=(0.0, 0.08),
            stripped_probability=0.0,
        ),
    )


def measure(
    name: str, scan: SyntheticScan, template: Template, args: argparse.Namespace
) -> tuple[float, float]:
    """Register one scan, print its line, return Dice and CPU seconds."""
    if args.brain_mask == "network":
        mask = brain_mask(Image(scan.flair, scan.affine)).mask
    else:
        mask = perturbed(scan.brain_mask, scan.affine, np.random.default_rng(args.seed))
    start = cpu_seconds()
    result = register_template(
        Image(scan.flair, scan.affine), mask, template, method=args.method, threads=args.threads
    )
    seconds = cpu_seconds() - start
    found, true = result.wm_probseg > 0.5, scan.wm_true > 0.5
    dice = float(2 * (found & true).sum() / (found.sum() + true.sum()))
    used = result.used
    print(
        f"{name:14s}  {dice:.3f}  {used.overlap:.3f}   {used.mutual_information:.3f}  "
        f"{used.min_jacobian:5.2f}-{used.max_jacobian:5.2f}  "
        f"{voxel_sizes(scan.affine)[2]:5.1f}  {seconds:7.1f}  {used.start} ({used.stage}, "
        f"attempt {len(result.attempts)})",
        flush=True,
    )
    return dice, seconds


def cpu_seconds() -> float:
    """CPU seconds of this process and of its processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _change_parameters(args: argparse.Namespace) -> None:
    """Have the registration take other parameters than those of its preset."""
    stages = load_parameters(args.method)
    for stage, given in zip(stages, (args.affine, args.bspline), strict=True):
        for text in (*args.both, *given):
            name, _, values = text.partition("=")
            stage[name] = tuple(values.split())
    registration.load_parameters = lambda method: stages
    if args.moving_mm:
        registration.MOVING_SPACING_MM[args.method] = args.moving_mm


def perturbed(mask: NDArray, affine: NDArray, rng: np.random.Generator) -> NDArray:
    """Return a brain mask with its contour moved by smooth noise of about 1.5 mm."""
    spacing = voxel_sizes(affine)
    noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), 8.0 / spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return inside - outside + 1.5 * noise / noise.std() > 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument(
        "--slices", type=float, nargs=2, default=(1.0, 3.0), help="range of their spacing in mm"
    )
    parser.add_argument("--method", choices=METHODS, default="robust")
    parser.add_argument("--brain-mask", choices=("perturbed", "network"), default="perturbed")
    parser.add_argument("--every", type=int, default=1, help="take every n-th label map")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    elastix = {"nargs": "+", "default": [], "metavar": "NAME=VALUES"}
    parser.add_argument("--both", **elastix, help="parameters of elastix in both stages")
    parser.add_argument("--affine", **elastix, help="in the affine stage alone")
    parser.add_argument("--bspline", **elastix, help="in the B-spline stage alone")
    parser.add_argument("--moving-mm", type=float, help="grid of the template for elastix")
    return parser.parse_args()


if __name__ == "__main__":
    main()
