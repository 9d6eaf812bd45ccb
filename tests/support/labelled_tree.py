"""Files of a data set with masks, where a test replaces what would read them."""

import nibabel as nib
import numpy as np


def write_labelled_tree(folder, subjects):
    """Write an empty FLAIR under ``bids`` and an empty mask under ``masks`` for each subject."""
    for subject in subjects:
        for derivative, name in (
            ("bids", f"sub-{subject}_FLAIR.nii.gz"),
            ("masks", f"sub-{subject}_label-WMH_mask.nii.gz"),
        ):
            path = folder / derivative / f"sub-{subject}" / "anat" / name
            path.parent.mkdir(parents=True)
            nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_filename(path)
