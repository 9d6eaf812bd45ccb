"""The real FLAIR that the program is tried on: small, attributed, with the mask of its raters."""

import nibabel as nib
import numpy as np

from bagau_bids.cli.toolbox import main
from bagau_bids.evaluation.scoring import check_grid, read_reference_mask
from bagau_bids.preprocessing.conform import read_volume


def test_files_are_written_with_their_source(tmp_path, capsys):
    assert main(["example", str(tmp_path / "new")]) == 0
    flair, mask = (tmp_path / "new" / f"example_{name}.nii.gz" for name in ("FLAIR", "mask"))
    assert flair.stat().st_size + mask.stat().st_size < 2_000_000
    drawn = read_reference_mask(mask)
    check_grid(drawn.stored, read_volume(flair))
    volume_ml = drawn.data.sum() * abs(np.linalg.det(drawn.affine[:3, :3])) / 1000
    assert 7 < volume_ml < 9
    image = nib.load(flair)
    inside = np.asanyarray(image.dataobj)[nib.load(mask).get_fdata() > 0]
    assert inside.mean() > 1.2 * np.asanyarray(image.dataobj)[image.get_fdata() > 0].mean()
    told = (tmp_path / "new" / "README.md").read_text()
    assert "doi:10.1007/s12021-017-9348-7" in told
    assert "CC BY" in told
    assert f"Next: bagau segment {flair} OUT --mask {mask}" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["example", str(tmp_path / "file")]) == 2
    assert "file: cannot be written" in capsys.readouterr().err
