"""The whole tool on a phantom: real steps, shipped networks, no network access."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from table_checks import undescribed

from bagau_bids.datasets.phantom import compare_volumes


@pytest.mark.slow
def test_phantom_from_data_set_to_group_table(processed_phantom):
    data, out = processed_phantom.bids, processed_phantom.derivatives
    assert processed_phantom.exit_code == 0
    source = nib.load(data / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    mask = nib.load(out / "sub-01" / "anat" / "sub-01_space-orig_label-WMH_mask.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    (row,) = compare_volumes(data, out).to_dict("records")
    assert row["dice"] > 0.5  # 0.66 when this was written; an empty or shifted mask has 0
    group = pd.read_csv(out / "group_FLAIR.tsv", sep="\t")
    assert group["volume_mm3"].item() == pytest.approx(1000 * row["measured_ml"], rel=1e-3)
    assert len(list(out.rglob("*.tsv"))) >= 7
    assert undescribed(out) == []
    copies = list((out / "sub-01" / "anat").glob("*space-ICBM152NLin2009aSym*label-WMH_mask*"))
    assert copies
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert "sub-01" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
