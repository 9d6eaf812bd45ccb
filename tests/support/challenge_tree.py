"""Folders as the WMH Segmentation Challenge hands them out, with made-up scans.

``python tests/challenge_tree.py PHANTOM OUT`` makes the folders of the public release from a data
set of ``bagau phantom``, one case a participant.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

RELEASE = (
    "training/Utrecht/0",
    "training/Singapore/50",
    "training/Amsterdam/GE3T/100",
    "test/Utrecht/20",
    "test/Amsterdam/GE1T5/150",
    "test/Amsterdam/Philips_VU .PETMR_01./160",
)
HANDED_OUT_2017 = ("Utrecht/0", "Singapore/50", "GE3T/100")
FILES_OF_A_CASE = 9  # and two more in Amsterdam


def small_scan(seed, affine=None, shape=(12, 14, 6)):
    """A FLAIR and its mask with labels 0, 1 and 2, of random numbers."""
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.2, 3.0, 1.0]) if affine is None else affine
    labels = np.zeros(shape, np.float32)
    labels[3:6, 4:7, 2:4] = 1
    labels[8:10, 8:10, 2:4] = 2
    flair = rng.integers(1, 900, shape).astype(np.int16)
    return nib.Nifti1Image(flair, affine), nib.Nifti1Image(labels, affine)


def phantom_scans(phantom):
    """FLAIR and mask of each participant of a phantom, one lesion voxel in fifty relabelled 2."""
    for flair in sorted(phantom.glob("sub-*/anat/*_FLAIR.nii.gz")):
        name = flair.name.replace("_FLAIR", "_space-orig_label-WMH_mask")
        folder = phantom / "derivatives" / "phantom-truth" / flair.parent.relative_to(phantom)
        mask = nib.load(folder / name)
        labels = np.asarray(mask.dataobj, dtype=np.float32)
        lesions = np.argwhere(labels)[::50]
        labels[tuple(lesions.T)] = 2
        mask.header.set_data_dtype(np.float32)
        yield nib.load(flair), nib.Nifti1Image(labels, mask.affine, mask.header)


def write_case(folder, flair, mask):
    """Write all files of one case below ``<...>/<site>/<number>``."""
    (folder / "orig").mkdir(parents=True)
    (folder / "pre").mkdir()
    rng = np.random.default_rng(len(folder.name))
    data = np.asarray(flair.dataobj, dtype=np.float32)
    t1w = nib.Nifti1Image(rng.uniform(1, 500, (16, 16, 16)).astype(np.float32), np.eye(4))
    for part, factor in (("orig", 1.0), ("pre", 0.9)):
        nib.Nifti1Image(data * factor, flair.affine, flair.header).to_filename(
            folder / part / "FLAIR.nii.gz"
        )
        nib.Nifti1Image(data.max() - data * factor, flair.affine).to_filename(
            folder / part / "T1.nii.gz"
        )
        nib.Nifti1Image(t1w.dataobj * factor, t1w.affine).to_filename(
            folder / part / "3DT1.nii.gz"
        )
    nib.Nifti1Image(np.ones(t1w.shape, np.float32), t1w.affine).to_filename(
        folder / "orig" / "3DT1_mask.nii.gz"
    )
    (folder / "orig" / "reg_3DT1_to_FLAIR.txt").write_text('(Transform "EulerTransform")\n')
    if "Amsterdam" in folder.parts:
        for name in ("FLAIR_mask", "T1_mask"):
            nib.Nifti1Image(np.full(data.shape, 0.5, np.float32), flair.affine).to_filename(
                folder / "orig" / f"{name}.nii.gz"
            )
    mask.to_filename(folder / "wmh.nii.gz")


def write_observer(root, case, mask, observer="o3"):
    """Write what a further observer outlined in a case: label 1 alone."""
    folder = root / "additional_annotations" / f"observer_{observer}" / case
    folder.mkdir(parents=True)
    labels = (np.asarray(mask.dataobj) == 1).astype(np.float32)
    nib.Nifti1Image(labels, mask.affine).to_filename(folder / "result.nii.gz")


def make_release(root, scans, cases=RELEASE):
    """Write the folders of the public release; training cases get two further observers."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "readme.pdf").write_bytes(b"%PDF")
    for case, (flair, mask) in zip(cases, scans, strict=False):
        write_case(root / case, flair, mask)
        if case.startswith("training"):
            write_observer(root, case, mask, "o3")
            write_observer(root, case, mask, "o4")
    return root


if __name__ == "__main__":
    make_release(Path(sys.argv[2]), phantom_scans(Path(sys.argv[1])))
