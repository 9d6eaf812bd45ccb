"""Time and memory of the group level on derivatives that are generated here.

Writes derivatives of many participants with the names, sizes and numbers of real ones: masks of
random lesions on 256 x 256 x 24 voxels of 0.9 x 0.9 x 6 mm, transforms with a B-spline every
8 mm, tables, records and a page each. Then runs the group level in a process of its own, twice,
and prints its time and peak memory.

    python benchmarks/group.py /scratch/group --participants 1000

Sessions are compared by registration, which has its own cost: see --pairs.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from msgspec.structs import asdict
from scipy import ndimage

from bagau_bids import __version__
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.records import (
    Attempt,
    MeasureRecord,
    Model,
    Options,
    Record,
    RegistrationRecord,
    SegmentationRecord,
    Steps,
)
from bagau_bids.files import write_json, write_table
from bagau_bids.measures import lesions
from bagau_bids.measures.fazekas import fazekas_table
from bagau_bids.measures.flags import raised_flags
from bagau_bids.measures.quality import Figures
from bagau_bids.measures.regions import REGIONS
from bagau_bids.preprocessing.transforms import TemplateTransform, write_itk_forward
from bagau_bids.spaces import Image

TEMPLATE = "MNI152NLin2009cSym"
SHAPE, SPACING = (256, 256, 24), (0.9, 0.9, 6.0)
VARIANTS = 6  # different scans; each is used by many participants
HEAVY = ("preproc_flair", "wmh_probseg", "wm_atlas", "brain_mask")  # one file for all


def main() -> None:
    """Generate, run, print."""
    args = _parse()
    if not (args.folder / "participants.tsv").is_file():
        generate(args.folder, args.participants, args.pairs)
    for number in (1, 2):
        start = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from bagau_bids.reports.group import "
                "write_group; print(write_group(Path(sys.argv[1])).scans, 'scans')",
                str(args.folder),
            ],
            check=True,
        )
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"run {number}: {seconds:.1f} s; both runs so far: {used.ru_utime + used.ru_stime:.1f}"
            f" s of CPU, peak {used.ru_maxrss / 1e6:.2f} GB"
        )
    page = args.folder / "group_FLAIR.html"
    print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")


def generate(folder: Path, participants: int, pairs: int) -> None:
    """Write the derivatives; the first `pairs` participants have two sessions."""
    rng = np.random.default_rng(0)
    variants = folder / "variants"
    scans = [_variant(variants / str(number), rng) for number in range(VARIANTS)]
    for number in range(participants):
        label = f"{number + 1:04}"
        sessions = ("1", "2") if number < pairs else (None,)
        for session in sessions:
            entities = {"sub": label} | ({"ses": session} if session else {})
            variant = (number * 7 + (session == "2")) % VARIANTS
            _write_scan(folder, entities, variants / str(variant), scans[variant], rng)
        (folder / f"sub-{label}.html").write_text("page")
    lines = [
        f"sub-{n + 1:04}\t{rng.integers(40, 90)}\t{rng.choice(['F', 'M'])}"
        for n in range(participants)
    ]
    table = "\n".join(["participant_id\tage\tsex", *lines])
    (folder / "participants.tsv").write_text(table + "\n")


def _variant(folder: Path, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Write the images of one scan and return its tables."""
    folder.mkdir(parents=True)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING
    axes = np.ogrid[tuple(slice(n) for n in SHAPE)]
    mm = [axis * step + low for axis, step, low in zip(axes, SPACING, affine[:3, 3], strict=True)]
    brain = sum((place / radius) ** 2 for place, radius in zip(mm, (66, 82, 62), strict=True)) < 1
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), (3, 3, 0.6))
    field[~ndimage.binary_erosion(brain, iterations=8)] = -9
    share = rng.lognormal(np.log(0.008), 0.8)
    mask = field > np.quantile(field[brain], 1 - min(share, 0.2))
    flair = (100 * brain + 60 * mask + rng.normal(0, 5, SHAPE)).astype(np.float32)
    probability = mask * 0.8
    images = {
        "preproc_flair": flair,
        "wmh_probseg": probability.astype(np.float32),
        "wm_atlas": brain.astype(np.float32),
        "brain_mask": brain.astype(np.uint8),
        "wmh_mask": mask.astype(np.uint8),
    }
    for name, data in images.items():
        nib.Nifti1Image(data, affine).to_filename(folder / f"{name}.nii.gz")
    linear = np.diag([1.05, 1.02, 1.08, 1.0])
    linear[:3, 3] = rng.normal(0, 3, 3)
    nodes = np.diag([8.0, 8, 8, 1])
    nodes[:3, 3] = -120, -140, -100
    bumps = ndimage.gaussian_filter(rng.normal(0, 20, (3, 31, 36, 27)), (0, 2, 2, 2))
    write_itk_forward(TemplateTransform(linear, Image(bumps, nodes)), folder / "xfm.h5")
    labels = lesions.label_lesions(mask)
    # Ventricles as two upright rods: regions, and distances for the Fazekas estimate.
    distance = np.abs(np.hypot(abs(mm[0]) - 15, mm[1]) - 8) + 0 * mm[2]
    index = np.where(distance <= 10, REGIONS.index("periventricular"), REGIONS.index("deep"))
    regions = np.where(brain, 1 + 2 * index + (mm[0] > 0), 0)
    return {
        "volumes_table": lesions.volume_table(Image(mask, affine), brain, regions),
        "lesions_table": lesions.lesion_table(Image(labels, affine), probability, flair, brain),
        "fazekas_table": fazekas_table(Image(mask, affine), distance, regions),
    }


def _write_scan(
    folder: Path,
    entities: dict[str, str],
    variant: Path,
    tables: dict[str, pd.DataFrame],
    rng: np.random.Generator,
) -> None:
    def place(name: str) -> Path:
        path = derivative_path(folder, entities, name, template=TEMPLATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    for name in HEAVY:  # hard links: the files are as real, and the disk stays small
        os.link(variant / f"{name}.nii.gz", place(name))
    os.link(variant / "xfm.h5", place("template_to_flair_xfm"))
    place("wmh_mask").write_bytes((variant / "wmh_mask.nii.gz").read_bytes())
    for name, table in tables.items():
        write_table(place(name), table)
    write_json(place("record"), _record(entities, rng))


def _record(entities: dict[str, str], rng: np.random.Generator) -> Record:
    figures = {
        "slice_thickness_mm": 6.0,
        "in_plane_mm": 0.9,
        "brain_volume_ml": rng.normal(1400, 120),
        "tissue_outside_mask": rng.uniform(0.1, 0.5),
        "fov_coverage": 1 - rng.exponential(0.02),
        "registration_information": rng.normal(0.3, 0.04),
        "wm_misfit": rng.exponential(0.004),
        "wm_snr": rng.normal(14, 3),
        "noise_snr": rng.normal(25, 6),
        "stripe_ratio": 1 + rng.exponential(0.4),
        "slice_jump": rng.exponential(0.04),
        "ghost_to_wm": rng.exponential(0.04),
        "csf_to_wm": rng.normal(0.3, 0.08),
        "wmh_soft_ml": rng.lognormal(1.5, 0.8),
        "wmh_soft_to_hard": rng.normal(1.05, 0.03),
        "wmh_entropy": rng.normal(0.45, 0.05),
        "wmh_wm_contrast": rng.normal(1.5, 0.1),
        "cut_superior_cm2": 0.0,
        "cut_inferior_cm2": rng.normal(9, 2),
        "cut_sides_cm2": 0.0,
    }
    quality = Figures(**figures)
    model = Model(name="small", architecture="bagau-net", version="1", sha256="0" * 64)
    used = Attempt("centre of gravity, searched", "bspline", rng.normal(0.94, 0.01), 0.3, 0.5, 2)
    steps = Steps(
        registration=RegistrationRecord(
            method="robust", **asdict(used), attempts=(used,), notes=(), seed=0, threads=1
        ),
        segmentation=SegmentationRecord(
            notes=(), device="cpu", precision="float32", batch_size=8, tta=False, models=(model,)
        ),
        measure=MeasureRecord(notes=(), quality=quality, flags=raised_flags(quality)),
    )
    return Record(
        status="complete",
        finished="2026-01-01T00:00:00+00:00",
        source="bids:raw:scan.nii.gz",
        entities=entities,
        options=Options(
            template=TEMPLATE,
            registration="robust",
            skull_strip="auto",
            model="small",
            threshold=0.5,
            min_lesion_size_mm3=0.0,
            random_seed=0,
            sloppy=False,
        ),
        versions={"bagau-bids": __version__},
        steps=steps,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where derivatives are generated, or lie ready")
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=0, help="participants with two sessions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
