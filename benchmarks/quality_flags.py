r"""How often each quality flag is right: FLAIRs as they are, and damaged on purpose.

Each FLAIR is prepared once (brain mask, bias field, registration); then the corrected image, the
mask or the registration is damaged, in full and by half, the network is run again, and the
figures are measured. For each damage a flag is named that should be raised. The tables count, for
each flag, the damaged scans that it found, and the undamaged ones that it named all the same:
for the scans that the limits were chosen with, and for the others, which are the ones to believe.
The registration is not run again on damaged images, so that figures it records of itself are
those of the undamaged scan. A label map (``seg_*.nii.gz``) is painted as a synthetic FLAIR.

Everything is kept in a folder, scan by scan and damage by damage: a run that was ended goes on
where it was, and a second run counts anew with the limits of the day. ::

    python benchmarks/quality_flags.py --work DIR --templateflow-home STORE \
        --chosen-with FLAIR [FLAIR ...] --others FLAIR [FLAIR ...]
"""

import argparse
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.config import Processing
from bagau_bids.files import write_json
from bagau_bids.measures.flags import limits, raised_flags
from bagau_bids.measures.quality import Figures, Registered, scan_quality
from bagau_bids.measures.regions import find_ventricles
from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import segment
from bagau_bids.network.slices import network_input, require_white_matter
from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.recipe import preprocess
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.preprocessing.template_regions import (
    carry_regions,
    covered_fraction,
    load_template_regions,
)
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    forward_field,
    lattice_field,
    sample,
)
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.engine import SynthesisSettings, synthesise
from bagau_bids.synthesis.labels import load_head


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


Damage = Callable[[Case, float], Case]


def untouched(case: Case, strength: float) -> Case:
    """Leave the scan as it is."""
    return case


def noise(case: Case, strength: float) -> Case:
    """Add Rician noise of a seventh of the brightness of tissue."""
    rng = np.random.default_rng(0)
    real, imaginary = rng.normal(0, strength * case.white / 7, (2, *case.flair.shape))
    return replace(case, flair=np.hypot(case.flair + real, imaginary).astype(np.float32))


def ghosts(case: Case, strength: float) -> Case:
    """Add copies of the head, shifted to the front and back, as from movement."""
    shift = case.flair.shape[1] // 4
    copies = np.roll(case.flair, shift, 1) + np.roll(case.flair, -shift, 1)
    share = 0.1 * strength
    return replace(case, flair=((1 - 2 * share) * case.flair + share * copies).astype(np.float32))


def stripes(case: Case, strength: float) -> Case:
    """Add ripples along one axis, as from one disturbed line of the spectrum."""
    wave = np.sin(np.arange(case.flair.shape[1]) * 2.1)[None, :, None]
    height = 0.12 * strength * case.white
    return replace(case, flair=(case.flair + height * wave).astype(np.float32))


def jumps(case: Case, strength: float) -> Case:
    """Darken every fourth slice to three quarters of its brightness."""
    gains = np.where(np.arange(case.flair.shape[2]) % 4 == 0, 1 - 0.25 * strength, 1.0)
    return replace(case, flair=(case.flair * gains).astype(np.float32))


def cut_top(case: Case, strength: float) -> Case:
    """Leave out the upper third of the brain's slices."""
    found = np.flatnonzero(case.brain.any(axis=(0, 1)))
    stop = int(found[-1] - strength * len(found) / 3)
    return replace(case, flair=case.flair[:, :, :stop], brain=case.brain[:, :, :stop])


def cut_side(case: Case, strength: float) -> Case:
    """Leave out a quarter of the brain on the left."""
    found = np.flatnonzero(case.brain.any(axis=(1, 2)))
    start = int(found[0] + strength * len(found) / 4)
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, 0] * start
    return replace(case, flair=case.flair[start:], brain=case.brain[start:], affine=affine)


def shifted(case: Case, strength: float) -> Case:
    """Put the registration 12 mm off to the right and 12 mm to the front."""
    move = np.eye(4)
    move[:2, 3] = 12 * strength
    return replace(case, transform=replace(case.transform, affine=case.transform.affine @ move))


def shrunken(case: Case, strength: float) -> Case:
    """Make the brain mask 7 mm smaller all around."""
    depth = ndimage.distance_transform_edt(case.brain, sampling=voxel_sizes(case.affine))
    return replace(case, brain=depth > 7 * strength)


def bright_csf(case: Case, strength: float) -> Case:
    """Make CSF as bright as on a T2-weighted image; by half, as bright as tissue."""
    dark = case.brain & (case.flair < 0.6 * case.white)
    bright = case.flair + strength * 2 * (case.white - case.flair)
    return replace(case, flair=np.where(dark, bright, case.flair).astype(np.float32))


# Each damage with the flag that should be raised; None: no flag should.
DAMAGES: dict[str, tuple[Damage, str | None]] = {
    "none": (untouched, None),
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


@dataclass(frozen=True)
class Row:
    """Figures of one scan with one damage; `chosen` where the limits were chosen with it."""

    scan: str
    chosen: bool
    damage: str
    strength: float
    figures: Figures

    @property
    def flags(self) -> set[str]:
        """Names of the flags that are raised."""
        return {flag.name for flag in raised_flags(self.figures)}


def main() -> None:
    """Measure, print each line, and count."""
    args = _parse()
    rows = list(measure_all(args))
    for row in rows:
        names = ", ".join(f"{flag.figure} {flag.value:.3g}" for flag in raised_flags(row.figures))
        print(f"{row.scan:18s} {row.damage:10s} {row.strength:3.1f} {names or 'nothing'}")
    halves = {
        "chosen with": [row for row in rows if row.chosen],
        "others": [row for row in rows if not row.chosen],
    }
    count_found(halves)
    count_named(halves)


def measure_all(args: argparse.Namespace) -> Iterator[Row]:
    """Figures of every scan with every damage, from the folder where they are there."""
    template = find_template("MNI152NLin2009cSym", args.templateflow_home, offline=True)
    network = load_weights(find_weights(args.model))
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = [("none", 1.0), *((n, s) for n in DAMAGES if n != "none" for s in args.strengths)]
    for path in (*args.chosen_with, *args.others):
        scan = path.name.removesuffix(".nii.gz").removesuffix("_FLAIR")
        for name, strength in wanted:
            kept = args.work / f"{scan}_{name}_{strength}_{args.model}.json"
            if not kept.is_file():
                case = DAMAGES[name][0](
                    prepared(path, args.work / f"{scan}.pkl", template), strength
                )
                write_json(kept, asdict(figures(case, template, network)))
                print(kept.name, flush=True)
            found = Figures(**json.loads(kept.read_text()))
            yield Row(scan, path in args.chosen_with, name, strength, found)


def prepared(path: Path, kept: Path, template: Template) -> Case:
    """Prepare a scan, or read it where that was done."""
    if not kept.is_file():
        kept.write_bytes(pickle.dumps(prepare(path, template)))
    return pickle.loads(kept.read_bytes())


def prepare(path: Path, template: Template) -> Case:
    """Run a scan up to its registration."""
    scan = conform(path) if "FLAIR" in path.name else paint(path)
    made = preprocess(scan, template)
    transform, used = made.registration.transform, made.registration.used
    flair, brain = made.corrected, made.brain.mask
    return Case(flair.data, flair.affine, brain, transform, used.mutual_information)


def paint(path: Path) -> Image:
    """Synthesise a whole head without any damage, its seed the number in the name."""
    base = SynthesisSettings()
    settings = replace(
        base,
        view=replace(base.view, about="head", cut_probability=0.0),
        acquisition=replace(
            base.acquisition,
            ringing_probability=0.0,
            motion_probability=0.0,
            slice_gain_probability=0.0,
            stripped_probability=0.0,
        ),
    )
    number = int(path.name.removesuffix(".nii.gz").split("_")[1])
    scan = synthesise(load_head(path), number, settings)
    return Image(scan.flair, scan.affine)


def figures(case: Case, template: Template, network: LoadedNetwork) -> Figures:
    """Quality figures of a case, its lesions found by the network."""
    import nibabel as nib

    flair, brain = Image(case.flair, case.affine), case.brain
    white = nib.load(template.wm_probseg)
    field = forward_field(case.transform, flair)
    wm = sample(Image(white.get_fdata(dtype="f4"), white.affine), field)
    regions = load_template_regions()
    points = lattice_field(case.transform, flair)
    groups, _ = carry_regions(regions, points, flair)
    inside = groups > 0
    require_white_matter(wm, brain)
    inputs = network_input(flair, brain, wm)
    found = segment([network], inputs, brain, device="cpu", batch_size=8)
    registered = Registered(
        overlap=float(2 * (inside & brain).sum() / (inside.sum() + brain.sum())),
        mutual_information=case.information,
        coverage=covered_fraction(regions, points, Image(groups, flair.affine)),
        csf=find_ventricles(flair, brain, wm, groups).csf,
    )
    probability = found.probability
    return scan_quality(flair, brain, wm, probability >= 0.5, probability, registered)


def count_found(halves: dict[str, list[Row]]) -> None:
    """Print how many damaged scans were found: by the flag that is for the damage, by any."""
    print("\ndamage     strength flag           " + "".join(f"{half:>22s}" for half in halves))
    kinds = dict.fromkeys((row.damage, row.strength) for rows in halves.values() for row in rows)
    for damage, strength in kinds:
        flag = DAMAGES[damage][1]
        if flag is None:
            continue
        cells = []
        for rows in halves.values():
            own = [row for row in rows if (row.damage, row.strength) == (damage, strength)]
            found = sum(flag in row.flags for row in own)
            cells.append(f"{found} of {len(own)} ({sum(bool(row.flags) for row in own)} any)")
        line = "".join(f"{cell:>22s}" for cell in cells)
        print(f"{damage:10s} {strength:8.1f} {flag:15s}{line}")


def count_named(halves: dict[str, list[Row]]) -> None:
    """Print how many undamaged scans each flag named all the same."""
    clean = {half: [r for r in rows if r.damage == "none"] for half, rows in halves.items()}
    print("\nundamaged, flag      " + "".join(f"{half:>22s}" for half in halves))
    for flag in dict.fromkeys(limit.flag for limit in limits().values()):
        cells = [f"{sum(flag in r.flags for r in own)} of {len(own)}" for own in clean.values()]
        print(f"{flag:21s}" + "".join(f"{cell:>22s}" for cell in cells))
    cells = [f"{sum(bool(r.flags) for r in own)} of {len(own)}" for own in clean.values()]
    print(f"{'any':21s}" + "".join(f"{cell:>22s}" for cell in cells))


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder where results are kept")
    parser.add_argument("--chosen-with", type=Path, nargs="*", default=[])
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument("--model", default=Processing.model, help="packaged weights (%(default)s)")
    parser.add_argument("--strengths", type=float, nargs="*", default=[1.0, 0.5])
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
