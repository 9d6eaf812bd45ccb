"""How often each quality flag is right: real FLAIRs, as they are and damaged on purpose.

Each FLAIR is prepared once (brain mask, bias field, registration); then the corrected image, the
mask or the registration is damaged, the network is run again, and the figures are measured. For
each damage a flag is named that should be raised. The last table counts, for each flag, the
damaged scans that it found, and the undamaged ones that it named all the same. The registration
is not run again on damaged images, so that figures it records of itself are those of the
undamaged scan. ::

    python benchmarks/quality_flags.py FLAIR [FLAIR ...] --templateflow-home STORE
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.measures.flags import limits, raised_flags
from bagau_bids.measures.quality import Registered, scan_quality
from bagau_bids.measures.regions import find_ventricles
from bagau_bids.network.inference import segment
from bagau_bids.network.weights import find_weights, load_weights
from bagau_bids.preprocessing.bias_field import correct_bias_field
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.registration import register_template, warp_to_flair
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.preprocessing.template_regions import (
    carry_regions,
    covered_fraction,
    load_template_regions,
)
from bagau_bids.preprocessing.transforms import TemplateTransform, lattice_field
from bagau_bids.spaces import voxel_sizes


@dataclass(frozen=True)
class Case:
    """A prepared scan: corrected FLAIR, brain mask, and the transform of its registration."""

    flair: NDArray
    affine: NDArray
    brain: NDArray
    transform: TemplateTransform
    information: float

    @property
    def white(self) -> float:
        """Brightness of tissue: the median in the brain."""
        return float(np.median(self.flair[self.brain]))


def noise(case: Case, rng: np.random.Generator) -> Case:
    """Add Rician noise of a seventh of the brightness of tissue."""
    real, imaginary = rng.normal(0, case.white / 7, (2, *case.flair.shape))
    return replace(case, flair=np.hypot(case.flair + real, imaginary).astype(np.float32))


def ghosts(case: Case, rng: np.random.Generator) -> Case:
    """Add copies of the head, shifted to the front and back, as from movement."""
    shift = case.flair.shape[1] // 4
    copies = np.roll(case.flair, shift, 1) + np.roll(case.flair, -shift, 1)
    return replace(case, flair=(0.8 * case.flair + 0.1 * copies).astype(np.float32))


def stripes(case: Case, rng: np.random.Generator) -> Case:
    """Add ripples along one axis, as from one disturbed line of the spectrum."""
    wave = np.sin(np.arange(case.flair.shape[1]) * 2.1)[None, :, None]
    return replace(case, flair=(case.flair + 0.12 * case.white * wave).astype(np.float32))


def jumps(case: Case, rng: np.random.Generator) -> Case:
    """Darken every fourth slice to three quarters of its brightness."""
    gains = np.where(np.arange(case.flair.shape[2]) % 4 == 0, 0.75, 1.0)
    return replace(case, flair=(case.flair * gains).astype(np.float32))


def cut_top(case: Case, rng: np.random.Generator) -> Case:
    """Leave out the upper third of the brain's slices."""
    found = np.flatnonzero(case.brain.any(axis=(0, 1)))
    stop = int(found[-1] - len(found) // 3)
    return replace(case, flair=case.flair[:, :, :stop], brain=case.brain[:, :, :stop])


def cut_side(case: Case, rng: np.random.Generator) -> Case:
    """Leave out a quarter of the brain on the left."""
    found = np.flatnonzero(case.brain.any(axis=(1, 2)))
    start = int(found[0] + len(found) // 4)
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, 0] * start
    return replace(case, flair=case.flair[start:], brain=case.brain[start:], affine=affine)


def shifted(case: Case, rng: np.random.Generator) -> Case:
    """Put the registration 12 mm off to the right and 12 mm to the front."""
    move = np.eye(4)
    move[:3, 3] = 12, 12, 0
    return replace(case, transform=replace(case.transform, affine=case.transform.affine @ move))


def shrunken(case: Case, rng: np.random.Generator) -> Case:
    """Make the brain mask 7 mm smaller all around."""
    depth = ndimage.distance_transform_edt(case.brain, sampling=voxel_sizes(case.affine))
    return replace(case, brain=depth > 7)


def bright_csf(case: Case, rng: np.random.Generator) -> Case:
    """Make CSF as bright as on a T2-weighted image."""
    dark = case.brain & (case.flair < 0.6 * case.white)
    return replace(case, flair=np.where(dark, 2 * case.white - case.flair, case.flair))


# Each damage with the flag that should be raised; None: no flag should.
DAMAGES: dict[str, tuple[Callable[[Case, np.random.Generator], Case], str | None]] = {
    "none": (lambda case, rng: case, None),
    "noise": (noise, "noise"),
    "ghosts": (ghosts, "movement"),
    "stripes": (stripes, "movement"),
    "jumps": (jumps, "movement"),
    "cut_top": (cut_top, "field of view"),
    "cut_side": (cut_side, "field of view"),
    "shifted": (shifted, "registration"),
    "shrunken": (shrunken, "brain mask"),
    "bright_csf": (bright_csf, "contrast"),
}


def main() -> None:
    """Measure, print each line, and count."""
    args = _parse()
    if args.figures and args.figures.is_file():
        rows = json.loads(args.figures.read_text())
    else:
        rows = measure_all(args.flairs, args.templateflow_home)
        if args.figures:
            args.figures.write_text(json.dumps(rows, indent=1))
    for row in rows:
        names = ", ".join(
            f"{flag.figure} {flag.value:.3g}" for flag in raised_flags(row["figures"])
        )
        print(f"{row['scan']:16s} {row['damage']:11s} {names or 'nothing'}")
    count(rows)


def measure_all(paths: list[Path], templateflow_home: Path | None) -> list[dict[str, Any]]:
    """Figures of every scan with every damage."""
    template = find_template("MNI152NLin2009cSym", templateflow_home, offline=True)
    model, _ = load_weights(find_weights("small"))
    rows = []
    for path in paths:
        case = prepare(path, template)
        for name, (damage, _) in DAMAGES.items():
            damaged = damage(case, np.random.default_rng(0))
            rows.append(
                {
                    "scan": path.name.removesuffix("_FLAIR.nii.gz"),
                    "damage": name,
                    "figures": figures(damaged, template, model),
                }
            )
            print(rows[-1]["scan"], name, flush=True)
    return rows


def prepare(path: Path, template: Template) -> Case:
    """Run a scan up to its registration."""
    scan = conform(path)
    brain = brain_mask(scan.data, scan.affine).mask
    flair = correct_bias_field(scan.data, scan.affine, brain)
    result = register_template(flair, scan.affine, brain, template)
    return Case(flair, scan.affine, brain, result.transform, result.used.mutual_information)


def figures(case: Case, template: Template, model: Any) -> dict[str, float | None]:
    """Quality figures of a case, its lesions found by the network."""
    import nibabel as nib

    shape, affine, brain = case.flair.shape, case.affine, case.brain
    white = nib.load(template.wm_probseg)
    wm = warp_to_flair(white.get_fdata(dtype="f4"), white.affine, case.transform, shape, affine)
    regions = load_template_regions()
    points, lattice = lattice_field(case.transform, shape, affine)
    groups, _ = carry_regions(regions, points, lattice, shape, affine)
    inside = groups > 0
    found = segment([model], case.flair, affine, brain, wm, device="cpu", batch_size=8)
    registered = Registered(
        overlap=float(2 * (inside & brain).sum() / (inside.sum() + brain.sum())),
        mutual_information=case.information,
        coverage=covered_fraction(regions, points, lattice, groups, affine),
        csf=find_ventricles(case.flair, affine, brain, wm, groups).csf,
    )
    probability = found.probability
    return scan_quality(case.flair, affine, brain, wm, probability >= 0.5, probability, registered)


def count(rows: list[dict[str, Any]]) -> None:
    """Print how often each flag was right."""
    print(f"\n{'flag':14s} damaged scans found   undamaged scans named")
    for flag in dict.fromkeys(limit["flag"] for limit in limits().values()):
        wanted, clean = [], []
        for row in rows:
            raised = flag in {item.name for item in raised_flags(row["figures"])}
            if DAMAGES[row["damage"]][1] == flag:
                wanted.append(raised)
            elif row["damage"] == "none":
                clean.append(raised)
        found = f"{sum(wanted)} of {len(wanted)}" if wanted else "not tried"
        print(f"{flag:14s} {found:21s} {sum(clean)} of {len(clean)}")
    for kind in DAMAGES:
        asked = [bool(raised_flags(row["figures"])) for row in rows if row["damage"] == kind]
        print(f"{kind:14s} any flag: {sum(asked)} of {len(asked)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flairs", type=Path, nargs="+")
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument(
        "--figures", type=Path, help="JSON of the figures: read where it is there, else written"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
