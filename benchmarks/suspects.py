r"""How well large areas at the cortex are found: strokes, painted infarcts, scans as they are.

``--slices`` takes single slices of stroke patients with their infarcts outlined (`flair` and
`infarct` in ``slices.npz``, (N, X, Y), 1 mm, in the space of the template at about z = 18 mm); a
slice counts as 5 mm thick. ``--derivatives`` takes output folders of ``bagau-bids``: their scans
are searched as they are or, with ``--infarcts`` (masks in the space of the template, 1 mm), with
infarcts painted in, brighter than the tissue by 0.2, 0.35 and 0.5 of white matter. ::

    python benchmarks/suspects.py --slices slices.npz --derivatives OUT [OUT ...] \
        --infarcts FOLDER --count 30
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.masks import name_entities
from bagau_bids.config import Processing
from bagau_bids.measures.flags import limits
from bagau_bids.measures.regions import LATERAL_VENTRICLE, WHITE_MATTER
from bagau_bids.measures.suspects import (
    FIGURES,
    Anatomy,
    Suspect,
    find_suspects,
    fit_template,
    white_matter_level,
)
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.template_regions import carry_regions, load_template_regions
from bagau_bids.preprocessing.transforms import lattice_field, read_itk_forward, sample
from bagau_bids.spaces import Grid, Image, reorient, resample, voxel_sizes

GAINS = (0.2, 0.35, 0.5)
SIZES_CM2 = (0, 1, 3, 10, np.inf)
SIZES_ML = (0.5, 3, 10, 30, np.inf)
SLICE_MM, SLICE_ORIGIN = 5.0, (-78.0, -112.0, 18.0)


@dataclass(frozen=True)
class Case:
    """One scan, and each voxel's place in the template, (3, X, Y, Z) mm."""

    name: str
    flair: NDArray
    affine: NDArray
    anatomy: Anatomy
    points: NDArray


def main() -> None:
    """Print what was asked for."""
    args = _parse()
    if args.slices:
        report_slices(args.slices)
    places = [(out, stem) for out in args.derivatives for stem in stems_in(out)]
    if args.infarcts:
        report_painted(places, sorted(args.infarcts.glob("*.nii.gz")), args.count)
    elif places:
        report_scans(places)


def flagged(areas: Sequence[Suspect], kind: str = "bright") -> list[Suspect]:
    """Areas of a kind that raise its flag."""
    limit = limits()[FIGURES[kind]].upper
    return [area for area in areas if area.kind == kind and area.volume_ml > limit]


def report_slices(path: Path) -> None:
    """Print the share of slices with an area, by the size of the infarct."""
    loaded = np.load(path)
    affine = np.diag([1.0, 1, SLICE_MM, 1])
    affine[:3, 3] = SLICE_ORIGIN
    shape = (*loaded["flair"].shape[1:], 1)
    groups = resample(load_template_regions(), Grid(shape, affine), order=0).astype(np.uint8)
    right = np.broadcast_to((np.arange(shape[0]) > -SLICE_ORIGIN[0])[:, None, None], shape)
    rows = []
    for flair, infarct in zip(loaded["flair"], loaded["infarct"], strict=True):
        brain = ndimage.binary_fill_holes(flair > 0)[..., None]
        image = flair[..., None].astype(np.float32)
        anatomy = Anatomy(
            brain_mask=brain,
            ventricles=groups == LATERAL_VENTRICLE,
            groups=groups,
            right=right,
            to_template=np.eye(4),
            white_matter=white_matter_level(image, brain, groups == WHITE_MATTER),
        )
        bright = [
            one for one in find_suspects(Image(image, affine), anatomy) if one.kind == "bright"
        ]
        hit = any(infarct[tuple(slice(*edges) for edges in one.box[:2])].any() for one in bright)
        rows.append((infarct.sum() / 100, bool(bright), hit))
    areas, found, hits = (np.array(column) for column in zip(*rows, strict=True))
    print(f"slices without an infarct: {found[areas == 0].sum()} of {(areas == 0).sum()} with one")
    for low, high in zip(SIZES_CM2, SIZES_CM2[1:], strict=False):
        own = (areas > low) & (areas <= high)
        print(f"infarct of {low:g} to {high:g} cm2: {hits[own].sum()} of {own.sum()} found")


def stems_in(out: Path) -> list[str]:
    """List the scans of an output folder."""
    ending = "_desc-processing_record.json"
    return [path.name.removesuffix(ending) for path in sorted(out.rglob(f"*{ending}"))]


def load(out: Path, stem: str) -> Case:
    """Read what ``bagau-bids`` left of a scan."""
    entities = name_entities(Path(f"{stem}_FLAIR.nii.gz"))

    def place(name: str) -> Path:
        return derivative_path(out, entities, name, template=Processing.template)

    def image(name: str) -> NDArray:
        stored = nib.load(place(name))
        return reorient(Image(stored.get_fdata(dtype=np.float32), stored.affine)).data

    flair = conform(place("preproc_flair"))
    points = lattice_field(read_itk_forward(place("template_to_flair_xfm")), flair)
    groups, right = carry_regions(load_template_regions(), points, flair)
    brain = image("brain_mask") > 0
    anatomy = Anatomy(
        brain_mask=brain,
        ventricles=image("ventricle_mask") > 0,
        groups=groups,
        right=right,
        to_template=fit_template(points),
        white_matter=white_matter_level(flair.data, brain, image("wm_atlas")),
    )
    axes = (Image(axis, points.affine) for axis in points.data)
    dense = np.stack([resample(axis, flair, cval=None) for axis in axes])
    return Case(stem, flair.data, flair.affine, anatomy, dense)


def report_scans(places: Sequence[tuple[Path, str]]) -> None:
    """Print what is found in scans as they are."""
    for out, stem in places:
        case = load(out, stem)
        areas = find_suspects(Image(case.flair, case.affine), case.anatomy)
        words = [f"{one.kind} {one.volume_ml} ml, {one.place}, {one.template_mm}" for one in areas]
        named = sum(len(flagged(areas, kind)) for kind in FIGURES)
        print(f"{stem}: {named} flagged; {'; '.join(words) or 'nothing'}", flush=True)


def report_painted(places: Sequence[tuple[Path, str]], masks: Sequence[Path], count: int) -> None:
    """Print how many painted infarcts are found, by brightness and size."""
    rows = list(painted(places, masks, count))
    for gain in GAINS:
        cells = []
        for low, high in zip(SIZES_ML, SIZES_ML[1:], strict=False):
            own = [hit for size, added, hit in rows if added == gain and low <= size < high]
            cells.append(f"{low:g} to {high:g} ml: {sum(own)} of {len(own)}")
        print(f"brighter by {gain:g} of white matter: {', '.join(cells)}")


def painted(
    places: Sequence[tuple[Path, str]], masks: Sequence[Path], count: int
) -> Iterator[tuple[float, float, bool]]:
    """Volume, brightness, and whether it is flagged, of infarcts drawn by chance."""
    rng = np.random.default_rng(0)
    loaded: dict[str, Case] = {}
    done = 0
    for turn, number in enumerate(rng.permutation(len(masks))):
        if done == count:
            return
        out, stem = places[turn % len(places)]
        case = loaded.setdefault(stem, loaded.get(stem) or load(out, stem))
        soft, volume_ml = _carried(masks[number], case)
        if volume_ml < SIZES_ML[0]:
            continue
        done += 1
        texture = ndimage.gaussian_filter(
            rng.normal(size=case.flair.shape), 2 / voxel_sizes(case.affine)
        )
        level = case.anatomy.white_matter or 1.0
        # CSF within an infarct is left nearly as dark as it is.
        added = soft * level * np.clip(case.flair / level / 0.7, 0, 1)
        added *= 1 + 0.25 * texture / texture.std()
        for gain in GAINS:
            flair = (case.flair + gain * added).astype(np.float32)
            areas = flagged(find_suspects(Image(flair, case.affine), case.anatomy))
            hit = any((soft[tuple(slice(*e) for e in one.box)] > 0.5).any() for one in areas)
            yield volume_ml, gain, hit


def _carried(path: Path, case: Case) -> tuple[NDArray, float]:
    """Carry an infarct onto a scan, softly, (X, Y, Z) in [0, 1]; with its volume in ml."""
    image = nib.load(path)
    mask = (np.asarray(image.dataobj) > 0).astype(np.float32)
    if mask.sum() < 1000 * SIZES_ML[0] * 2:
        return mask, 0.0
    on = sample(Image(mask, image.affine), case.points) * case.anatomy.brain_mask
    soft = ndimage.gaussian_filter(on, 0.7 / voxel_sizes(case.affine))
    return soft, float((soft > 0.5).sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000)


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=Path, help="slices.npz")
    parser.add_argument("--derivatives", type=Path, nargs="*", default=[])
    parser.add_argument("--infarcts", type=Path, help="folder of masks to paint")
    parser.add_argument("--count", type=int, default=30, help="infarcts (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
