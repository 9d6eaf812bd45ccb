"""Masks that a person edited: told from the network's, and kept when others take their place."""

import json
import shlex

import nibabel as nib
import numpy as np
import pytest

from bagau_bids.bids.derivatives import derivative_path, sidecar_path
from bagau_bids.bids.edited import how_to_take, keep, kept_masks, kept_of, saved_over, was_edited
from bagau_bids.bids.masks import find_lesion_masks

SCAN = {"sub": "01", "ses": "2"}


def write(path, *voxels, value=1):
    data = np.zeros((4, 5, 6), np.uint8)
    for voxel in voxels:
        data[voxel] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.eye(4)).to_filename(path)
    return path


@pytest.fixture
def out(tmp_path):
    """Results of a scan: a mask and its lesions."""
    folder = tmp_path / "out"
    write(derivative_path(folder, SCAN, "wmh_mask"), (1, 1, 1), (3, 3, 3))
    write(derivative_path(folder, SCAN, "lesions_dseg"), (1, 1, 1), (3, 3, 3), value=2)
    write_manual(folder, False)
    return folder


def write_manual(folder, value):
    sidecar = sidecar_path(derivative_path(folder, SCAN, "wmh_mask"))
    sidecar.write_text(json.dumps({"Manual": value}))


def test_a_mask_is_the_network_s_as_long_as_its_lesions_are_of_it(out):
    assert not was_edited(out, SCAN)
    write_manual(out, True)
    assert was_edited(out, SCAN)
    write_manual(out, False)
    write(derivative_path(out, SCAN, "wmh_mask"), (1, 1, 1), (3, 3, 4))  # as many voxels
    assert was_edited(out, SCAN)


def test_nothing_is_told_of_what_is_no_whole_image(out):
    mask = derivative_path(out, SCAN, "wmh_mask")
    content = mask.read_bytes()
    mask.write_bytes(content[: len(content) // 2])
    sidecar_path(mask).write_text("{")
    assert not was_edited(out, SCAN)
    assert keep(mask, out, SCAN, mask) is None
    mask.unlink()
    assert not was_edited(out, SCAN)
    other = write(out / "copy.nii.gz", (0, 0, 0))
    assert saved_over(other, out, SCAN)
    derivative_path(out, SCAN, "lesions_dseg").unlink()
    assert not saved_over(other, out, SCAN)


def test_each_edit_is_kept_once_and_none_takes_the_place_of_another(out, tmp_path):
    network = write(tmp_path / "network.nii.gz", (1, 1, 1))
    same = write(tmp_path / "same.nii.gz", (1, 1, 1), value=255)
    first, second = (write(tmp_path / f"{n}.nii.gz", (2, 2, n)) for n in (1, 2))
    assert keep(same, out, SCAN, network) is None
    assert kept_masks(out, SCAN) == ()
    kept = [keep(mask, out, SCAN, network) for mask in (first, second, first)]
    name = derivative_path("", SCAN, "wmh_mask")
    folders = [out / "derivatives" / folder for folder in ("edited", "edited2", "edited")]
    assert kept == [folder / name for folder in folders]
    assert [path.read_bytes() for path in kept_masks(out, SCAN)] == [
        first.read_bytes(),
        second.read_bytes(),
    ]
    assert json.loads(sidecar_path(kept[0]).read_text())["Manual"] is True
    described = json.loads((folders[0] / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert kept_masks(out, {"sub": "01"}) == ()
    assert set(kept_of(out, "sub-01")) >= set(kept)
    assert kept_of(out, "sub-0") == ()


def test_kept_masks_are_found_in_their_own_folder_only(out, tmp_path):
    kept = keep(write(tmp_path / "m.nii.gz", (0, 0, 1)), out, SCAN, tmp_path / "none.nii.gz")
    assert [mask.path for mask in find_lesion_masks(out)] == [
        derivative_path(out, SCAN, "wmh_mask")
    ]
    assert [mask.path for mask in find_lesion_masks(out / "derivatives" / "edited")] == [kept]


def test_the_command_that_takes_a_mask_again(out, tmp_path):
    kept = keep(write(tmp_path / "m.nii.gz", (0, 0, 1)), out, SCAN, tmp_path / "none.nii.gz")
    words = shlex.split(how_to_take(out, kept, SCAN))
    masks = str(out / "derivatives" / "edited")
    assert words == ["bagau", "remeasure", str(out), "--masks", masks]
