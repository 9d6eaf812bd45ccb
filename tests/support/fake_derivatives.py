"""A derivatives folder as the participant level leaves it, from a drawn head in seconds."""

import json

import msgspec
import nibabel as nib
import numpy as np
from scipy import ndimage

from bagau_bids.bids import records
from bagau_bids.bids.derivatives import derivative_path, source_folder, source_stem
from bagau_bids.files import write_json, write_table
from bagau_bids.measures import fazekas, flags, lesions, quality, regions
from bagau_bids.preprocessing.transforms import write_itk_forward
from bagau_bids.spaces import Image

TEMPLATE = "MNI152NLin2009cSym"
# What versions before regions, flags and compared pictures did not write.
NEWER = (
    *("regions_dseg", "ventricle_mask", "fazekas_table", "quality_table"),
    *("conformed_flair", "warped_t1w"),
)


def drawn_head(shape=(48, 56, 16), spacing=(4.0, 4.0, 9.0), n_lesions=6, seed=0):
    """A head of ellipsoids: (flair, affine, brain, white matter, WMH probability), RAS."""
    rng = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    mm = [
        axis * step + start
        for axis, step, start in zip(
            np.ogrid[tuple(slice(n) for n in shape)], spacing, affine[:3, 3], strict=True
        )
    ]

    def ellipsoid(x, y, z, centre=(0, 0, 0)):
        return sum(((a - c) / r) ** 2 for a, c, r in zip(mm, centre, (x, y, z), strict=True)) < 1

    brain = ellipsoid(66, 82, 62)
    white = ellipsoid(54, 70, 48) & ~ellipsoid(14, 34, 16)
    flair = 20.0 * ellipsoid(80, 96, 76) + 70.0 * brain - 15.0 * white - 50 * ellipsoid(12, 32, 14)
    probability = np.zeros(shape, np.float32)
    inside = np.argwhere(ndimage.binary_erosion(white))
    for centre in rng.choice(inside, n_lesions, replace=False) if n_lesions else ():
        world = nib.affines.apply_affine(affine, centre)
        probability[ellipsoid(*rng.uniform(6, 12, 3), world) & white] = rng.uniform(0.7, 0.97)
    flair = flair + 60 * probability + rng.normal(0, 2, shape)
    return flair.astype(np.float32), affine, brain, white.astype(np.float32), probability


def write_scan(output_dir, entities, head=None, *, orientation="RAS", leave_out=(), record=None):
    """Write everything of one scan; returns its head as drawn.

    Without the image of regions volumes are not told by region, without the table of quality no
    flag is recorded. Of the steps in `record` what is not said is as in `example_record`.
    """
    head = head or drawn_head()
    flair, affine, brain, white, probability = head
    mask = probability >= 0.5
    labels = lesions.label_lesions(mask)

    def save(name, data, dtype):
        if name in leave_out:
            return
        path = derivative_path(output_dir, entities, name, template=TEMPLATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.asarray(data).astype(dtype), affine)
        change = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
        )
        image.as_reoriented(change).to_filename(path)

    save("preproc_flair", flair, np.float32)
    save("brain_mask", brain, np.uint8)
    save("wm_atlas", white, np.float32)
    save("wmh_probseg", probability, np.float32)
    save("wmh_mask", mask, np.uint8)
    ventricles = ndimage.binary_fill_holes(white > 0) & (white == 0)
    numbers, anatomy = _anatomy(affine, brain, ventricles)
    save("ventricle_mask", ventricles, np.uint8)
    save("regions_dseg", np.where(mask, numbers, 0), np.uint8)
    save("conformed_flair", np.clip(flair, 0, 255), np.uint8)
    save("warped_t1w", 100 * brain + 80 * (white > 0), np.uint8)
    distance = anatomy.ventricle_distance_mm
    figures = quality.scan_quality(Image(flair, affine), brain, white, mask, probability)
    told = None if "regions_dseg" in leave_out else numbers
    tables = {
        "volumes_table": lesions.volume_table(Image(mask, affine), brain, told),
        "lesions_table": lesions.lesion_table(
            Image(labels, affine), probability, flair, brain, anatomy
        ),
        "fazekas_table": fazekas.fazekas_table(Image(mask, affine), distance, numbers),
        "quality_table": flags.quality_table(figures),
    }
    for name, table in tables.items():
        if name not in leave_out:
            write_table(derivative_path(output_dir, entities, name), table)
    if "record" not in leave_out:
        path = derivative_path(output_dir, entities, "record")
        write_json(path, example_record(entities, flair, affine, figures))
        content = json.loads(path.read_text())
        example = content["steps"]
        if "quality_table" in leave_out:
            del example["measure"]["flags"]
        content |= record or {}
        content["steps"] = {
            name: example.get(name, {}) | step for name, step in content["steps"].items()
        }
        write_json(path, content)
    return head


def _anatomy(affine, brain, ventricles):
    """Region of each voxel, and what the table of lesions says of their places."""
    right = np.zeros(brain.shape, bool)
    right[brain.shape[0] // 2 :] = True
    distance = regions.distance_mm(ventricles, affine)
    groups = np.full(brain.shape, regions.CORTEX + 1)  # tissue that is not cortex
    numbers = regions.partition(Image(groups, affine), right, brain, distance, "10mm")
    lattice = np.array(affine)
    lattice[:3, :3] *= np.array(brain.shape) - 1
    corners = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij")).reshape(3, -1)
    points = nib.affines.apply_affine(lattice, corners.T).T.reshape(3, 2, 2, 2)
    return numbers, lesions.Anatomy(numbers, distance, Image(points, lattice), 55.0)


def write_transform(output_dir, entities, transform):
    """Write the transform from the template to a FLAIR."""
    path = derivative_path(output_dir, entities, "template_to_flair_xfm", template=TEMPLATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_itk_forward(transform, path)


def write_failure(output_dir, entities, message, crash_file=msgspec.UNSET):
    """Write the record that a scan leaves that failed before it had any result."""
    record = records.Record(
        status="failed",
        finished="2026-01-02T03:04:05+00:00",
        source=f"bids:raw:{source_stem(entities)}_FLAIR.nii.gz",
        entities=entities,
        options=OPTIONS,
        versions={"bagau-bids": "0.1.0"},
        failure=records.Failure(
            step="conform", message=message, crash_file=crash_file and str(crash_file)
        ),
        steps=records.Steps(),
    )
    write_json(derivative_path(output_dir, entities, "record"), record)


OPTIONS = records.Options(
    template=TEMPLATE,
    registration="robust",
    skull_strip="auto",
    model="small",
    threshold=0.5,
    min_lesion_size_mm3=0.0,
    random_seed=0,
    sloppy=False,
)


def example_record(entities, flair, affine, figures):
    """A record of a scan that went well."""
    attempt = records.Attempt(
        start="header", stage="bspline", overlap=0.93, mutual_information=0.31
    )
    model = records.Model(name="small", architecture="bagau_net", version="1", sha256="0" * 64)
    return records.Record(
        status="complete",
        finished="2026-01-02T03:04:05+00:00",
        source=f"bids:raw:{source_folder(entities)}/{source_stem(entities)}_FLAIR.nii.gz",
        entities=entities,
        options=OPTIONS,
        versions={"bagau-bids": "0.1.0", "torch": "2.13.0"},
        steps=records.Steps(
            conform=records.ConformRecord(
                notes=("3 voxels that were not finite were set to 0.",),
                shape=flair.shape,
                spacing_mm=tuple(nib.affines.voxel_sizes(affine).tolist()),
                stored_axes="LPS",
                tilt_degrees=0.0,
                duration_s=0.5,
            ),
            registration=records.RegistrationRecord(
                method="robust",
                **msgspec.structs.asdict(attempt),
                attempts=(attempt,),
                notes=(),
                seed=0,
                threads=1,
            ),
            segmentation=records.SegmentationRecord(
                notes=(),
                device="cpu",
                precision="float32",
                batch_size=8,
                tta=False,
                models=(model,),
            ),
            regions=records.RegionsRecord(rule="10mm", ventricles="flair", notes=()),
            measure=records.MeasureRecord(
                notes=(), quality=figures, flags=flags.raised_flags(figures)
            ),
        ),
    )


def write_later_tables(output_dir, entities, head, flags=(), rule="10mm"):
    """Replace volumes by region and grades by those of a cylinder of ventricles, and set flags."""
    flair, affine, brain, _, probability = head
    mask = probability >= 0.5
    places = [
        axis * step + start
        for axis, step, start in zip(
            np.ogrid[tuple(slice(n) for n in mask.shape)],
            np.diag(affine)[:3],
            affine[:3, 3],
            strict=True,
        )
    ]
    distance = np.maximum(np.hypot(places[0], places[1]) - 15, 0) + 0 * places[2]
    near = regions.RULES[rule]
    index = np.full(mask.shape, regions.REGIONS.index("deep"))
    for name in ("periventricular", "juxtaventricular"):
        if name in near:
            index[distance <= near[name]] = regions.REGIONS.index(name)
    numbers = np.where(brain, 1 + 2 * index + (places[0] > 0), 0)
    tables = {
        "volumes_table": lesions.volume_table(Image(mask, affine), brain, numbers, rule),
        "fazekas_table": fazekas.fazekas_table(Image(mask, affine), distance, numbers),
    }
    for name, table in tables.items():
        write_table(derivative_path(output_dir, entities, name), table)
    path = derivative_path(output_dir, entities, "record")
    record = json.loads(path.read_text())
    record["steps"]["measure"]["flags"] = [
        {"name": name, "figure": "noise_snr", "value": 5.0, "limit": 10.0, "words": f"{name}!"}
        for name in flags
    ]
    write_json(path, record)
