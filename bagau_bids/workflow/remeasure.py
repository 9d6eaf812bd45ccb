"""Results of scans measured anew from masks that were edited by hand."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import nibabel as nib
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from bagau_bids.bids.derivatives import catalogue, sidecar_path
from bagau_bids.bids.edited import keep
from bagau_bids.bids.records import Edited
from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.evaluation.scoring import check_grid, read_result_mask
from bagau_bids.files import read_json, remove_stale, replacing, write_json, write_table
from bagau_bids.measures.regions import without_ventricles
from bagau_bids.measures.wmh import Head, WmhMeasures, measure_wmh
from bagau_bids.preprocessing.conform import read_volume, to_source
from bagau_bids.preprocessing.transforms import lattice_field, read_itk_forward
from bagau_bids.reports.results import COMPLETE, ScanResults, load_image, load_image_on
from bagau_bids.reports.scan_tables import Volumes, read_rows, whole_brain
from bagau_bids.spaces import Image

NEEDED = (
    "wmh_mask",
    "lesions_dseg",
    "ventricle_mask",
    "brain_regions_dseg",
    "template_to_flair_xfm",
)
OTHERS = {"infarct": "infarct_mask", "known_lesion": "known_lesion_mask"}
IN_TEMPLATE_SPACE = ("template_wmh_mask", "template_wmh_probseg", "template_flair")


def remeasure(scan: ScanResults, path: Path) -> bool:
    """Measure a scan anew from an edited mask, and mark its results as edited.

    Mask, lesions, regions and the tables of volumes, lesions and Fazekas grades are replaced; the
    probability and the quality figures stay those of the network. Copies in template space are
    removed. The network's own mask takes the mark away again; an edited one whose place it takes,
    or that was never measured, is kept.

    Parameters
    ----------
    scan : ScanResults
        Complete.
    path : Path
        Mask of 0 and 1, or 0 and 255, on the grid of the FLAIR.

    Returns
    -------
    bool
        Whether anything changed: not where the results are of this mask already.

    Raises
    ------
    InputImageError
        If the mask cannot be read, lies on another grid, or has voxels of an infarct or of a
        known lesion.
    ProcessingError
        If results that are needed are missing or damaged.
    """
    lacking = [scan.path(name).name for name in NEEDED if not scan.path(name).is_file()]
    if scan.status != COMPLETE or lacking or not scan.steps.regions:
        found = scan.problem or f"has no {', '.join(lacking) or 'record of regions'}"
        raise ProcessingError(
            f"{scan.stem}: {found}; expected the complete results of a scan: process it "
            "again by this version"
        )
    given = read_result_mask(path)
    check_grid(given.stored, read_volume(scan.path("wmh_mask")))
    mask = given.data > 0
    before = whole_brain(read_rows(scan, "volumes_table", Volumes))
    flair = load_image(scan.path("preproc_flair"))
    current = load_image_on(scan.path("wmh_mask"), flair) > 0
    measured = load_image_on(scan.path("lesions_dseg"), flair) > 0
    counted = None if before is None else before.volume_voxels
    unchanged = np.array_equal(mask, current) and np.array_equal(mask, measured)
    digest = _digest(mask)
    marked = scan.edited and scan.edited.network_sha256 == digest  # an end was not reached
    if unchanged and counted == np.count_nonzero(mask) and not marked:
        return False
    others = {
        name: load_image_on(scan.path(key), flair) > 0
        for name, key in OTHERS.items()
        if scan.path(key).is_file()
    }
    _check_apart(path, mask, scan, others)
    rule = scan.steps.regions.rule
    measures = measure_wmh(mask, _head(scan, flair, others, rule), rule)
    edited = _edited(scan, path, _digest(measured), before.volume_mm3 if before else None)
    given_back = edited.network_sha256 == digest
    if given_back or not np.array_equal(current, measured):
        keep(scan.path("wmh_mask"), scan.output_dir, scan.entities, path)
    # Whenever this is stopped, the mark is there until all is the network's again, and the
    # lesions, written last, tell that the rest is to be done.
    _mark(scan, edited)
    _write(scan, mask, measures)
    if given_back:
        _mark(scan, UNSET)
    return True


def _digest(mask: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()


def _head(
    scan: ScanResults, flair: Image, others: Mapping[str, NDArray[np.bool_]], rule: str
) -> Head:
    """Load what lies around the mask, as it was when the scan was processed."""
    transform = read_itk_forward(scan.path("template_to_flair_xfm"))
    wm_probseg = load_image_on(scan.path("wm_atlas"), flair)
    brain_regions = load_image_on(scan.path("brain_regions_dseg"), flair).astype(np.uint8)
    return Head(
        flair=flair,
        brain_mask=load_image_on(scan.path("brain_mask"), flair) > 0,
        ventricles=load_image_on(scan.path("ventricle_mask"), flair) > 0,
        healthy=np.where(np.any([*others.values()], axis=0), 0, wm_probseg),
        probability=load_image_on(scan.path("wmh_probseg"), flair),
        regions=without_ventricles(brain_regions, rule),
        others=others,
        template_points=lattice_field(transform, flair),
    )


def _check_apart(
    path: Path,
    mask: NDArray[np.bool_],
    scan: ScanResults,
    others: Mapping[str, NDArray[np.bool_]],
) -> None:
    for name, other in others.items():
        if common := np.count_nonzero(mask & other):
            raise InputImageError(
                f"{path}: {common} voxels are also in {scan.path(OTHERS[name]).name}; expected "
                "each voxel in one of both: clear them in one"
            )


def _write(scan: ScanResults, mask: NDArray[np.bool_], measures: WmhMeasures) -> None:
    """Put images and tables in the place of those that are there."""
    source = nib.load(scan.path("wmh_mask"))
    images = {
        "regions_dseg": measures.regions,
        "wmh_mask": mask,
        "lesions_dseg": measures.lesions,
    }
    made = {
        key: to_source(data, source, catalogue().files[key].dtype) for key, data in images.items()
    }
    for key, table in measures.tables.items():
        write_table(scan.path(key), table)
    left = [scan.path(key) for key in IN_TEMPLATE_SPACE]
    remove_stale([one for path in left for one in (path, sidecar_path(path))], "it was not edited")
    for key, image in made.items():
        with replacing(scan.path(key)) as temporary:
            image.to_filename(temporary)


def _edited(
    scan: ScanResults, path: Path, measured_sha256: str, measured_mm3: float | None
) -> Edited:
    """Say what was edited, and what the network had found: what was measured before any edit."""
    earlier = scan.edited
    return Edited(
        mask=path.name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        network_mm3=earlier.network_mm3 if earlier else measured_mm3,
        network_sha256=earlier.network_sha256 if earlier else measured_sha256,
    )


def _mark(scan: ScanResults, edited: Edited | UnsetType) -> None:
    """Write into record and sidecars whether a person has edited the mask, and how."""
    if scan.record is None:
        raise AssertionError("a complete scan has a record")
    write_json(scan.path("record"), msgspec.structs.replace(scan.record, edited=edited))
    for key in ("wmh_mask", "lesions_dseg", "regions_dseg"):
        sidecar = sidecar_path(scan.path(key))
        content = read_json(sidecar, dict[str, Any], "process the scan again", ProcessingError)
        write_json(sidecar, content | {"Manual": edited is not UNSET})
