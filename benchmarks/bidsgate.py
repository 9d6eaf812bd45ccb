r"""Lesions injected into real scans: how many are found, how much of them, and what is invented.

Bidsgate (PyPI) injects ellipsoids of known place and size into FLAIRs that have a T1w on their
grid; here a T1w that lies elsewhere is brought onto the FLAIR first. ``bagau-bids`` runs on every
scan as it is and with its lesions. A lesion is found where at least a tenth of its volume is in
the mask; bidsgate's own count takes a single voxel. What is in the mask with the lesions and not
without them is recovered up to 2 mm from a lesion, and invented beyond.

All is kept in a folder: lesions, and what ``bagau-bids`` makes up to the network. Judging other
weights then takes the network's time alone, with the very functions that the workflow calls. ::

    pip install bidsgate
    python benchmarks/bidsgate.py WORK --bids ds-tabriz ds-ljubljana \
        --subjects tz04 tz05 tz06 tz09 tz10 --weights NEW.safetensors
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.masks import name_entities
from bagau_bids.bids.scans import find_scans, find_t1w
from bagau_bids.config import Processing, Selection
from bagau_bids.errors import BagauError
from bagau_bids.files import claim_origin, copy_file, write_json
from bagau_bids.measures.infarcts import tell_apart
from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import segment
from bagau_bids.network.slices import network_input, require_white_matter
from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.preprocessing.brain_mask import brain_mask
from bagau_bids.preprocessing.conform import conform, to_source
from bagau_bids.preprocessing.t1w import t1w_on_flair
from bagau_bids.preprocessing.template_regions import (
    GROUPS,
    carry_regions,
    load_template_regions,
)
from bagau_bids.preprocessing.transforms import lattice_field, read_itk_forward
from bagau_bids.spaces import Image, reorient, same_grid, voxel_sizes

MARGIN_MM = 2.0  # as bidsgate's --fp-margin
FOUND_SHARE = 0.1
CLASSES = (">=0.7", "0.5-0.7", "<0.5")
STATES = ("before", "after")


@dataclass(frozen=True)
class Lesion:
    """One injected lesion: where it lies, and how much of it each mask covers.

    `atlas` is the mean white-matter probability of the registered template in it, `tissue` the
    template's commonest there, `region` bidsgate's, under its centre.
    """

    scan: str
    number: int
    volume_mm3: float
    atlas: float
    tissue: str
    region: str
    share_before: float
    share_after: float
    touched: bool

    @property
    def found(self) -> bool:
        """Whether a tenth of it is in the mask."""
        return self.share_after >= FOUND_SHARE

    @property
    def known(self) -> bool:
        """Whether it would be found in the scan as it is: it lies on a real lesion."""
        return self.share_before >= FOUND_SHARE

    @property
    def atlas_class(self) -> str:
        """White matter for sure, probably, or not."""
        return CLASSES[0] if self.atlas >= 0.7 else CLASSES[1] if self.atlas >= 0.5 else CLASSES[2]


@dataclass(frozen=True)
class Volumes:
    """Volumes of one scan, mm3; voxels of the mask as it is count for none of them.

    `covered` is recovered within the outlines of the lesions, `recovered` that and what lies up
    to 2 mm around, `invented` is beyond, and `lost` is what the mask had beyond and has no more.
    """

    scan: str
    injected: float
    covered: float
    recovered: float
    invented: float
    lost: float


def main() -> None:
    """Prepare what is missing, judge the weights, print the tables."""
    args = _parse()
    torch.set_num_threads(args.threads)
    paths = args.weights or [find_weights(args.model)]
    networks = [load_weights(path) for path in paths]
    if any("t1" in network.inputs for network in networks):
        raise SystemExit("networks that look at a T1w are not judged here")
    name = "+".join(f"{path.stem}-{_digest(path)}" for path in paths) + (
        "-tta" if args.tta else ""
    )
    lesions: list[Lesion] = []
    volumes: list[Volumes] = []
    for bids in args.bids:
        folder = args.work.resolve() / bids.name
        stems = prepare(bids.resolve(), folder, args)
        results = folder / "results" / name
        for stem in stems:
            judge_scan(folder, results, stem, networks, args.tta)
        scores = bidsgate_scores(folder, results, name)
        for stem in stems:
            found, measured = score_scan(folder, results, stem, scores[stem])
            lesions += found
            volumes.append(measured)
    report(name, lesions, volumes)
    content = {"lesions": [asdict(one) for one in lesions], "scans": [asdict(v) for v in volumes]}
    write_json(args.work / f"{name}.json", content)


def prepare(bids: Path, folder: Path, args: argparse.Namespace) -> list[str]:
    """Inject lesions and preprocess, unless that was done; return the stems of the scans."""
    folder.mkdir(parents=True, exist_ok=True)
    claim_origin(folder / "origin.json", {"bids": str(bids), "seed": args.seed})
    labels = [scan.subject for scan in find_scans(bids, Selection())]
    wanted = [one for one in dict.fromkeys(labels) if not args.subjects or one in args.subjects]
    for label in wanted:
        inject(bids, folder, label, args.seed)
    truths = sorted((folder / "injected").rglob("*_desc-lesion_truth.json"))
    stems = [path.name.removesuffix("_desc-lesion_truth.json") for path in truths]
    stems = [stem for stem in stems if name_entities(Path(f"{stem}_FLAIR"))["sub"] in wanted]
    run(folder / "injected", folder, "after", stems, args)
    run(bids, folder, "before", stems, args)
    return stems


def inject(bids: Path, folder: Path, label: str, seed: int) -> None:
    """Inject lesions into the scans of a participant; what bidsgate refuses, it says."""
    pairs, log = folder / "pairs", folder / f"injection_sub-{label}.txt"
    if log.is_file():
        return
    for scan in find_scans(bids, Selection(participant_labels=(label,))):
        try:
            pair(scan, bids, pairs)
        except BagauError as error:
            print(f"{scan.stem}: left out: {error}", flush=True)
    if not (pairs / f"sub-{label}").is_dir():
        return
    said = bidsgate(
        folder,
        *("inject-lesions", str(pairs), "--out", str(folder / "injected")),
        *("--subject", f"sub-{label}", "--seed", str(seed)),
    )
    print(said, end="", flush=True)
    for empty in sorted((folder / "injected").rglob("*"), reverse=True):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()  # of scans that bidsgate refused
    log.write_text(said, encoding="utf-8")


def pair(scan: Any, bids: Path, pairs: Path) -> None:
    """Put a FLAIR and its T1w on one grid into a data set for bidsgate."""
    t1w, _ = find_t1w(scan)
    target = pairs / scan.path.parent.relative_to(bids)
    place = target / f"{scan.stem}_T1w.nii.gz"
    source, other = nib.load(scan.path), nib.load(t1w)
    if same_grid(other, source):
        copy_file(t1w, place)
    else:
        flair = conform(scan.path)
        mask = brain_mask(flair).mask
        found = t1w_on_flair(t1w, flair, mask, threads=2)
        place.parent.mkdir(parents=True, exist_ok=True)
        to_source(np.maximum(found.data, 0), source, np.float32).to_filename(place)
    copy_file(scan.path, target / f"{scan.stem}_FLAIR.nii.gz")


def bidsgate(folder: Path, *arguments: str) -> str:
    """Run bidsgate in a folder and return what it said."""
    command = [sys.executable, "-m", "bidsgate.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}\nis bidsgate installed?")
    return done.stdout + done.stderr


def run(bids: Path, folder: Path, state: str, stems: Sequence[str], args: Any) -> None:
    """Run ``bagau-bids`` on the scans that it was not run on yet."""
    out, last = folder / state, "brain_regions_dseg" if state == "after" else "wmh_mask"
    missing = sorted(
        {
            _entities(stem)["sub"]
            for stem in stems
            if not derivative_path(out, _entities(stem), last).is_file()
        }
    )
    if not missing:
        return
    start = "import sys; from bagau_bids.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", start, str(bids), str(out), "participant", "--offline"]
    command += ["--model", "small", "--skip-bids-validation", "--participant-label", *missing]
    command += ["-w", str(folder / f"nipype-{state}"), "--nprocs", str(args.nprocs)]
    if args.templateflow_home:
        command += ["--templateflow-home", str(args.templateflow_home)]
    subprocess.run(command, check=True)


def judge_scan(
    folder: Path, results: Path, stem: str, networks: Sequence[LoadedNetwork], tta: bool
) -> None:
    """Run the network on a scan with and without its lesions, unless its masks are there."""
    for state in STATES:
        path = results / state / f"{stem}_mask.nii.gz"
        if path.is_file():
            continue
        flair, brain, white = _inputs(folder / state, stem)
        require_white_matter(white, brain > 0)
        inputs = network_input(flair, brain > 0, white)
        found = segment(networks, inputs, brain > 0, tta=tta)
        source = nib.load(_file(folder / state, stem, "preproc_flair"))
        path.parent.mkdir(parents=True, exist_ok=True)
        mask, _ = tell_apart(found.probability, found.infarct_probability, Processing.threshold)
        to_source(mask.astype(np.uint8), source, np.uint8).to_filename(path)


def _inputs(out: Path, stem: str) -> tuple[Image, NDArray, NDArray]:
    """Corrected FLAIR, brain mask and white-matter map, as the network gets them."""
    flair = conform(_file(out, stem, "preproc_flair"))
    others = []
    for name in ("brain_mask", "wm_atlas"):
        image = nib.load(_file(out, stem, name))
        others.append(reorient(Image(image.get_fdata(dtype=np.float32), image.affine)).data)
    return flair, others[0], others[1]


def bidsgate_scores(folder: Path, results: Path, name: str) -> dict[str, Any]:
    """Score the masks by bidsgate itself; its scores by scan."""
    regions = folder / "regions"
    for mask in (results / "after").glob("*_mask.nii.gz"):
        stem = mask.name.removesuffix("_mask.nii.gz")
        copy_file(_file(folder / "after", stem, "brain_regions_dseg"), regions / f"{stem}.nii.gz")
        names = _file(folder / "after", stem, "brain_regions_table")
    bidsgate(
        folder,
        *("score-lesions", "--truth", "injected", "--pipeline", name, "--out", str(results)),
        *("--pred", str(results / "after" / "{base}_mask.nii.gz")),
        *("--regions", str(regions / "{base}.nii.gz"), "--region-names", str(names)),
    )
    scored = json.loads((results / "scores_lesions.json").read_text(encoding="utf-8"))
    return {one["subject"]: one["score"] for one in scored["results"]}


def score_scan(
    folder: Path, results: Path, stem: str, scores: dict[str, Any]
) -> tuple[list[Lesion], Volumes]:
    """Measure each lesion of a scan, and the volumes."""
    image = nib.load(next((folder / "injected").rglob(f"{stem}_desc-lesionTruth_mask.nii.gz")))
    labels = np.asarray(image.dataobj)
    before, after = (
        np.asarray(nib.load(results / state / f"{stem}_mask.nii.gz").dataobj) > 0
        for state in STATES
    )
    atlas = nib.load(_file(folder / "after", stem, "wm_atlas")).get_fdata(dtype=np.float32)
    tissues = template_tissues(folder / "after", stem, image)
    spacing = voxel_sizes(image.affine)
    voxel_mm3 = float(np.prod(spacing))
    found = []
    for row in scores["per_lesion"]:
        inside = labels == row["id"]
        commonest = int(np.argmax(np.bincount(tissues[inside], minlength=len(GROUPS) + 1)))
        found.append(
            Lesion(
                scan=stem,
                number=row["id"],
                volume_mm3=row["volume_mm3"],
                atlas=float(atlas[inside].mean()),
                tissue=("outside", *GROUPS)[commonest],
                region=str(row["region"]),
                share_before=float(before[inside].mean()),
                share_after=float(after[inside].mean()),
                touched=bool(row["detected"]),
            )
        )
    truth, new = labels > 0, after & ~before
    near = ndimage.distance_transform_edt(~truth, sampling=spacing) <= MARGIN_MM

    def volume(mask: NDArray) -> float:
        return float(np.count_nonzero(mask)) * voxel_mm3

    return found, Volumes(
        scan=stem,
        injected=volume(truth & ~before),
        covered=volume(new & truth),
        recovered=volume(new & near),
        invented=volume(new & ~near),
        lost=volume(before & ~after & ~near),
    )


def template_tissues(out: Path, stem: str, image: Any) -> NDArray[np.uint8]:
    """Carry the groups of the template's map to the grid of an image, 0 outside the brain."""
    transform = read_itk_forward(_file(out, stem, "template_to_flair_xfm"))
    points = lattice_field(transform, image)
    return carry_regions(load_template_regions(), points, image)[0]


def report(name: str, lesions: Sequence[Lesion], volumes: Sequence[Volumes]) -> None:
    """Print the tables: a line a scan, then all by atlas, region, tissue and size."""
    for one in volumes:
        own = [lesion for lesion in lesions if lesion.scan == one.scan]
        print(f"{one.scan:14s} {_counts(own)}, {_measured([one])}")
    print(f"\n{name}: {_counts(lesions)}, {_measured(volumes)}")
    sizes = pd.cut(
        [lesion.volume_mm3 for lesion in lesions],
        [0, 100, 500, np.inf],
        labels=["below 100 mm3", "100 to 500 mm3", "above 500 mm3"],
    )
    by: dict[str, Callable[[int], str]] = {
        "white matter in the atlas": lambda i: lesions[i].atlas_class,
        "tissue of the template": lambda i: lesions[i].tissue,
        "region": lambda i: lesions[i].region,
        "size": lambda i: str(sizes[i]),
    }
    for title, key in by.items():
        print(f"by {title}")
        for value in sorted({key(i) for i in range(len(lesions))}):
            own = [one for i, one in enumerate(lesions) if key(i) == value]
            print(f"  {value:26s} {_counts(own)}")


def _counts(lesions: Sequence[Lesion]) -> str:
    found, touched = sum(one.found for one in lesions), sum(one.touched for one in lesions)
    half = sum(one.share_after >= 0.5 for one in lesions)
    known = sum(one.known for one in lesions)
    return (
        f"found {found:3d} of {len(lesions):3d} (touched {touched}, by half {half}, "
        f"on a real lesion {known})"
    )


def _measured(volumes: Sequence[Volumes]) -> str:
    injected, covered, recovered, invented, lost = (
        sum(getattr(one, field) for one in volumes)
        for field in ("injected", "covered", "recovered", "invented", "lost")
    )
    return (
        f"volume recovered {recovered / injected:.2f} of the injected "
        f"(inside {covered / injected:.2f}),"
        f" invented {invented:.0f} mm3, lost elsewhere {lost:.0f} mm3"
    )


def _entities(stem: str) -> dict[str, str]:
    return name_entities(Path(f"{stem}_FLAIR.nii.gz"))


def _file(out: Path, stem: str, name: str) -> Path:
    return derivative_path(out, _entities(stem), name, template=Processing.template)


def _digest(path: Path) -> str:
    """Name weights and their operating points: results with other points are others."""
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    used = json.dumps([card["sha256"], card.get("calibration")], sort_keys=True)
    return hashlib.sha256(used.encode()).hexdigest()[:8]


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder where everything is kept")
    parser.add_argument("--bids", type=Path, nargs="+", required=True, help="data sets with T1w")
    parser.add_argument("--subjects", nargs="+", default=[], help="labels; all if none is given")
    parser.add_argument("--seed", type=int, default=3, help="of bidsgate (%(default)s)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--model", default=Processing.model, help="packaged (%(default)s)")
    given.add_argument("--weights", type=Path, nargs="+", help="several are averaged")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nprocs", type=int, default=2, help="of bagau-bids (%(default)s)")
    parser.add_argument("--templateflow-home", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
