"""Phantom: a BIDS data set of synthetic FLAIRs whose white matter hyperintensities are known.

Everything is made from the ICBM maps that nilearn carries (see `icbm_head`) and the synthesis
engine that also makes training scans. The scans differ in voxel order, tilt, slice thickness,
stored type and header on purpose: they are what real data sets mix.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from bagau_bids import __version__
from bagau_bids.bids.derivatives import (
    bids_uri,
    catalogue,
    derivative_path,
    sidecar_path,
    source_folder,
    source_stem,
)
from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.files import write_json, write_table, write_text
from bagau_bids.measures.lesions import voxel_volume_mm3
from bagau_bids.measures.metrics import dice
from bagau_bids.spaces import Image
from bagau_bids.synthesis.acquisition import AcquisitionSettings
from bagau_bids.synthesis.deformation import PoseSettings
from bagau_bids.synthesis.engine import (
    FieldOfViewSettings,
    SynthesisSettings,
    synthesise,
)
from bagau_bids.synthesis.icbm_head import icbm_head
from bagau_bids.synthesis.infarcts import InfarctSettings
from bagau_bids.synthesis.intensities import IntensitySettings
from bagau_bids.synthesis.labels import Head
from bagau_bids.synthesis.lesions import LesionSettings

BIDS_VERSION = "1.11.1"
TRUTH = Path("derivatives", "phantom-truth")
VOLUMES = "volumes.tsv"

_LICENSE = (
    "Made from the ICBM 152 2009a maps, copyright 1993-2009 Louis Collins, McConnell Brain "
    "Imaging Centre, Montreal Neurological Institute, McGill University: free to use, copy, "
    "modify and distribute for any purpose provided that this notice appears in all copies"
)
_README = """# Phantom FLAIRs

Synthetic FLAIR scans with known white matter hyperintensities, made by `bagau phantom`
(bagau-bids {version}, seed {seed}). No person was scanned. Each session is drawn on its own.

`derivatives/phantom-truth` holds the true masks of lesions and brain on each scan's grid and
their volumes (`volumes.tsv`). The scans differ in voxel order, tilt, slices and header on
purpose; `participants.tsv` says how.
"""
_VOLUMES_COLUMNS = {
    "bids_name": {"Description": "Entities of the scan"},
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session, where there are several"},
    "wmh_ml": {"Description": "True volume of white matter hyperintensities", "Units": "mL"},
    "wmh_voxels": {"Description": "Voxels of the true lesion mask"},
    "brain_ml": {"Description": "True volume of the brain with its outer CSF", "Units": "mL"},
}
_PARTICIPANTS_COLUMNS = {
    "orientation": {"Description": "Direction of the stored voxel axes"},
    "in_plane_mm": {"Description": "Voxel size within the axial slices", "Units": "mm"},
    "slice_mm": {"Description": "Slice thickness, without gaps", "Units": "mm"},
    "tilted": {"Description": "Whether the slices are tilted (oblique affine)"},
    "header": {"Description": "Transforms that the NIfTI header holds: sform, qform or both"},
    "dtype": {"Description": "Type of the stored numbers"},
}


@dataclass(frozen=True)
class Layout:
    """How one scan is acquired and stored.

    Parameters
    ----------
    orientation : str
        Direction of the voxel axes as stored, e.g. ``LPS``.
    in_plane_mm, slice_mm : float
        Voxel size; slices are axial.
    tilted : bool
        Whether the slices are tilted, which makes the affine oblique.
    header : {"both", "sform", "qform"}
        Which of the two transforms the NIfTI header holds.
    dtype : {"int16", "float32"}
        Type of the stored numbers.
    """

    orientation: str
    in_plane_mm: float
    slice_mm: float
    tilted: bool
    header: str
    dtype: str


# Subject after subject; the seventh is like the first.
LAYOUTS = (
    Layout("RAS", 0.94, 3.0, tilted=False, header="both", dtype="int16"),
    Layout("LAS", 0.90, 5.0, tilted=True, header="both", dtype="int16"),
    Layout("LPS", 1.00, 4.0, tilted=False, header="qform", dtype="int16"),
    Layout("RAS", 0.86, 6.0, tilted=True, header="sform", dtype="float32"),
    Layout("PIR", 1.20, 1.2, tilted=False, header="both", dtype="float32"),
    Layout("LPS", 0.75, 3.0, tilted=True, header="both", dtype="int16"),
)


def make_phantom_dataset(
    out: Path,
    subjects: int = 2,
    seed: int = 0,
    *,
    sessions: int = 1,
    layouts: tuple[Layout, ...] = LAYOUTS,
    head_spacing_mm: float = 1.0,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a phantom data set; the same arguments give the same voxels.

    Parameters
    ----------
    out : Path
        Folder of the data set, new or empty. It appears when everything is in it.
    subjects : int
        Number of participants, ``sub-01`` on.
    seed : int
        Start of the random numbers.
    sessions : int
        Scans of each participant; more than one are named ``ses-1`` on. Each is drawn on its own.
    layouts : tuple of Layout
        How the scans of one participant after the other are acquired and stored.
    head_spacing_mm : float
        Resolution of the head, see `icbm_head`: 2 is quick.
    progress : callable
        Gets one line a scan.

    Raises
    ------
    UsageError
        If `out` is a file or not empty, or a number is below 1.
    """
    if subjects < 1 or sessions < 1:
        raise UsageError(
            f"{subjects} subjects with {sessions} sessions asked for, at least 1 of each was "
            "expected: give larger numbers"
        )
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(
            f"{out}: exists and is not an empty folder, a new folder was expected: "
            "remove it or name another one"
        )
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        head = icbm_head(head_spacing_mm)
        rows = []
        for number in range(subjects * sessions):
            subject, session = divmod(number, sessions)
            entities = {"sub": f"{subject + 1:02d}"}
            if sessions > 1:
                entities["ses"] = str(session + 1)
            layout = layouts[subject % len(layouts)]
            rows.append(_write_scan(partial, entities, head, layout, seed * 1000 + number))
            progress(f"{rows[-1]['bids_name']}: {rows[-1]['wmh_ml']:.2f} ml of lesions")
        _write_descriptions(partial, rows, subjects, seed, layouts)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def compare_volumes(phantom: Path, derivatives: Path) -> pd.DataFrame:
    """Set the measured volumes of a processed phantom beside the true ones.

    Parameters
    ----------
    phantom : Path
        A data set of `make_phantom_dataset`.
    derivatives : Path
        What ``bagau-bids`` wrote for it.

    Returns
    -------
    DataFrame
        One row a scan: ``bids_name``, ``true_ml``, ``measured_ml`` and the ``dice`` of both masks;
        measured_ml and dice are missing where there is no mask.

    Raises
    ------
    MissingResourceError
        If the true volumes are not there.
    """
    table = Path(phantom) / TRUTH / VOLUMES
    if not table.is_file():
        raise MissingResourceError(
            f"{table}: not found, the true volumes of a phantom were expected: "
            "make the data set with `bagau phantom`"
        )
    truth = pd.read_csv(table, sep="\t", dtype={"participant_id": str, "session_id": str})
    rows = []
    for scan in truth.itertuples():
        entities = dict(part.split("-") for part in str(scan.bids_name).split("_"))
        measured_ml = overlap = np.nan
        result = derivative_path(derivatives, entities, "wmh_mask")
        if result.is_file():
            found = nib.Nifti1Image.from_filename(result)
            true = nib.Nifti1Image.from_filename(
                derivative_path(Path(phantom) / TRUTH, entities, "wmh_mask")
            )
            mask = np.asarray(found.dataobj) > 0
            measured_ml = mask.sum() * voxel_volume_mm3(found.affine) / 1000
            overlap = dice(np.asarray(true.dataobj) > 0, mask)
        rows.append((scan.bids_name, scan.wmh_ml, measured_ml, overlap))
    return pd.DataFrame(rows, columns=["bids_name", "true_ml", "measured_ml", "dice"])


def _write_scan(
    root: Path, entities: dict[str, str], head: Head, layout: Layout, seed: int
) -> dict[str, object]:
    """Draw one scan and write it with its truth; return its row of the table of volumes."""
    scan = synthesise(head, seed, _settings(layout))
    flair = root / source_folder(entities) / f"{source_stem(entities)}_FLAIR.nii.gz"
    brightest = np.percentile(scan.flair, 99.9)
    values = np.clip(scan.flair * (1000 / brightest), 0, 32000)
    if layout.dtype == "int16":
        values = np.round(values)
    _save(flair, Image(values.astype(layout.dtype), scan.affine), layout)
    write_json(
        sidecar_path(flair),
        {
            "Modality": "MR",
            "Manufacturer": "bagau-bids phantom",
            "SoftwareVersions": __version__,
            "MRAcquisitionType": "3D" if layout.slice_mm == layout.in_plane_mm else "2D",
            "SliceThickness": layout.slice_mm,
            "SpacingBetweenSlices": layout.slice_mm,
            "Description": f"Synthetic FLAIR, no person was scanned; seed {seed}",
        },
    )
    masks = {"wmh_mask": scan.wmh_mask, "brain_mask": scan.brain_mask}
    for name, mask in masks.items():
        path = derivative_path(root / TRUTH, entities, name)
        _save(path, Image(mask.astype(np.uint8), scan.affine), layout)
        write_json(
            sidecar_path(path),
            {
                "Type": catalogue().files[name].metadata["Type"],
                "Manual": False,
                "Description": "Truth of the phantom",
                "SpatialReference": bids_uri("raw", flair.relative_to(root)),
            },
        )
    voxel_ml = voxel_volume_mm3(scan.affine) / 1000
    return {
        "bids_name": source_stem(entities),
        "participant_id": f"sub-{entities['sub']}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else None,
        "wmh_ml": scan.wmh_mask.sum() * voxel_ml,
        "wmh_voxels": int(scan.wmh_mask.sum()),
        "brain_ml": scan.brain_mask.sum() * voxel_ml,
    }


def _settings(layout: Layout) -> SynthesisSettings:
    """Ranges for a clear scan of the whole head with lesions, on the grid of a layout."""
    isotropic = layout.slice_mm == layout.in_plane_mm
    return SynthesisSettings(
        pose=PoseSettings(
            tilt_probability=float(layout.tilted), scale_sd=0.04, translation_sd_mm=3.0
        ),
        view=FieldOfViewSettings(
            about="head",
            in_plane_margin_mm=(4.0, 12.0),
            top_margin_mm=(3.0, 10.0),
            bottom_margin_mm=(0.0, 8.0),
            cut_probability=0.0,
        ),
        intensities=IntensitySettings(bright_cortex_probability=0.2, flow_probability=0.2),
        lesions=LesionSettings(
            none_probability=0.0,
            small_probability=0.0,
            heavy_probability=0.0,
            periventricular_probability=1.0,
            deep_probability=1.0,
            contrast=(0.5, 0.9),
        ),
        infarcts=InfarctSettings(lacune_probability=0.0),
        acquisition=AcquisitionSettings(
            in_plane_mm=(layout.in_plane_mm, layout.in_plane_mm),
            slice_spacing_mm=(layout.slice_mm, layout.slice_mm),
            isotropic_probability=float(isotropic),
            isotropic_mm=(layout.slice_mm, layout.slice_mm),
            gap_fraction=(0.0, 0.0),
            working_mm=max(1.0, layout.in_plane_mm),
            bias_amplitude=(0.1, 0.3),
            noise=(0.01, 0.03),
            interpolated_below_mm=0.0,
            smoothed_probability=0.0,
            histogram_probability=0.0,
            clipped_probability=0.0,
            jpeg_probability=0.0,
            quantised_probability=0.0,
            sharp_probability=0.0,
            ringing_probability=0.0,
            motion_probability=0.0,
            stripped_probability=0.0,
        ),
    )


def _save(path: Path, image: Image, layout: Layout) -> None:
    """Write an image in the voxel order and with the header of a layout."""
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(layout.orientation))
    affine = image.affine @ inv_ornt_aff(turn, image.shape)
    stored = nib.Nifti1Image(apply_orientation(image.data, turn), affine)
    stored.header.set_xyzt_units("mm", "sec")
    stored.set_sform(affine, code=0 if layout.header == "qform" else 1)
    stored.set_qform(affine, code=0 if layout.header == "sform" else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.to_filename(path)


def _write_descriptions(
    root: Path,
    rows: list[dict[str, object]],
    subjects: int,
    seed: int,
    layouts: tuple[Layout, ...],
) -> None:
    """Write what belongs to no scan: descriptions and tables of the data set and its truth."""
    generator = {"Name": "bagau-bids", "Version": __version__, "Description": "bagau phantom"}
    description = {
        "Name": "Synthetic FLAIRs with known white matter hyperintensities",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": _LICENSE,
        "Authors": ["bagau-bids phantom generator"],
        "GeneratedBy": [generator],
    }
    truth = {
        **description,
        "Name": "Truth of the synthetic FLAIRs",
        "DatasetType": "derivative",
        "DatasetLinks": {"raw": "../.."},
    }
    write_text(root / "README.md", _README.format(version=__version__, seed=seed))
    write_table(root / TRUTH / VOLUMES, pd.DataFrame(rows))
    write_json(root / TRUTH / "volumes.json", _VOLUMES_COLUMNS)
    write_text(root / TRUTH / ".bidsignore", "volumes.*\n")
    write_text(root / TRUTH / "README.md", _README.format(version=__version__, seed=seed))
    write_json(root / TRUTH / "dataset_description.json", truth)
    participants = [
        {"participant_id": f"sub-{number + 1:02d}", **asdict(layouts[number % len(layouts)])}
        for number in range(subjects)
    ]
    write_table(root / "participants.tsv", pd.DataFrame(participants))
    write_json(root / "participants.json", _PARTICIPANTS_COLUMNS)
    write_json(root / "dataset_description.json", description)
