"""Labels from a network's results: what is taken, what is left out, where the bands lie."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.masks import find_lesion_masks
from bagau_bids.cli import toolbox
from bagau_bids.datasets.pseudo_labels import pseudo_labels
from bagau_bids.spaces import Image, reorient

TEMPLATE = "MNI152NLin2009cSym"
SHAPE = (40, 48, 12)
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
AFFINE[:3, 3] = -20, -24, -24
VENTRICLE = np.s_[18:22, 14:34, 4:8]
BAND = np.s_[22:26, 14:34, 4:8]  # 4 mm wide, along the ventricle's right wall
RIM = np.s_[17:18, 14:34, 4:8]  # 1 mm wide, along its left one
FAR = np.s_[32:36, 14:34, 4:8]  # begins 10 mm from the ventricle
LESION = np.s_[5:12, 5:20, 4:10]  # 2.5 ml
SPECK = np.s_[30:32, 2:4, 2:3]  # 0.016 ml


@pytest.fixture
def maps():
    """A head in white matter whose network has found one large lesion."""
    rng = np.random.default_rng(0)
    flair = rng.normal(100, 5, SHAPE).astype(np.float32)
    flair[VENTRICLE] = 20
    for place in (BAND, RIM, FAR, LESION, SPECK):
        flair[place] = 160
    probability = np.zeros(SHAPE, np.float32)
    probability[LESION] = 0.9
    ventricles = np.zeros(SHAPE, np.float32)
    ventricles[VENTRICLE] = 1
    return {
        "wmh_probseg": probability,
        "preproc_flair": flair,
        "brain_mask": np.ones(SHAPE, np.float32),
        "wm_atlas": np.full(SHAPE, 0.95, np.float32),
        "ventricle_mask": ventricles,
    }


def labels_of(maps):
    return pseudo_labels(
        maps["wmh_probseg"],
        Image(maps["preproc_flair"], AFFINE),
        maps["brain_mask"] > 0,
        maps["wm_atlas"],
        maps["ventricle_mask"] > 0,
    )


def test_sure_is_a_label_and_doubtful_is_not_judged(maps):
    maps["preproc_flair"][:] = np.random.default_rng(1).normal(100, 5, SHAPE)  # no bands
    maps["wmh_probseg"][12:14, 5:20, 4:10] = 0.3
    maps["wmh_probseg"][14:16, 5:20, 4:10] = 0.2
    maps["wmh_probseg"][SPECK] = 0.9
    labels = labels_of(maps)
    assert (labels[LESION] == 1).all()
    assert (labels[12:14, 5:20, 4:10] == 2).all()
    assert (labels[14:16, 5:20, 4:10] == 0).all()
    assert (labels[SPECK] == 2).all()
    assert (labels == 1).sum() == maps["wmh_probseg"][LESION].size


def test_wide_band_is_labelled_and_a_narrow_rim_is_not_judged(maps):
    labels = labels_of(maps)
    inner = np.s_[23:25, 16:32, 4:8]
    assert (labels[inner] == 1).all()
    assert not (labels[RIM] == 1).any()
    assert (labels[17, 16:32, 5] == 2).all()
    assert not labels[FAR].any()
    assert not labels[VENTRICLE].any()


def test_band_is_not_judged_where_there_is_little_else(maps):
    maps["wmh_probseg"][:] = 0
    maps["wmh_probseg"][5:7, 5:20, 4:6] = 0.9  # 0.24 ml
    labels = labels_of(maps)
    assert (labels[5:7, 5:20, 4:6] == 1).all()
    assert (labels[23:25, 16:32, 5] == 2).all()
    assert (labels == 1).sum() == 60


@pytest.mark.parametrize("what", ["grey matter", "no ventricles", "no white matter"])
def test_no_band_outside_white_matter_or_without_ventricles(maps, what):
    if what == "grey matter":
        maps["wm_atlas"][BAND] = 0.2
    elif what == "no ventricles":
        maps["ventricle_mask"][:] = 0
    else:
        maps["wm_atlas"][:] = 0.5
    assert not labels_of(maps)[BAND].any()


def write(folder, maps, codes="RAS", tilt_degrees=0.0):
    """Write the maps as bagau-bids does, their voxels stored in another order."""
    entities = {"sub": "01", "ses": "2"}
    angle = np.deg2rad(tilt_degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    order = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = turn @ AFFINE @ inv_ornt_aff(order, SHAPE)
    paths = {}
    for name, data in {**maps, "wmh_mask": (maps["wmh_probseg"] >= 0.5).astype("u1")}.items():
        path = derivative_path(folder, entities, name, template=TEMPLATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = nib.orientations.apply_orientation(data, order)
        nib.Nifti1Image(stored, affine).to_filename(path)
        paths[name] = path
    return paths


@pytest.mark.parametrize(
    ("codes", "tilt_degrees"), [("RAS", 0), ("LAS", 0), ("LPS", 0), ("PIR", 0), ("LAS", 17)]
)
def test_masks_lie_on_the_grid_they_were_made_for(tmp_path, maps, codes, tilt_degrees, capsys):
    paths = write(tmp_path / "in", maps, codes, tilt_degrees)
    code = toolbox.main(["pseudo-labels", str(tmp_path / "in"), str(tmp_path / "out")])
    assert code == 0
    assert "sub-01_ses-2: " in capsys.readouterr().out
    (mask,) = find_lesion_masks(tmp_path / "out")
    assert mask.path.name == paths["wmh_mask"].name
    image, like = nib.load(mask.path), nib.load(paths["wmh_mask"])
    np.testing.assert_array_equal(image.affine, like.affine)
    assert image.get_data_dtype() == np.uint8
    labels = reorient(Image(np.asarray(image.dataobj), image.affine)).data
    np.testing.assert_array_equal(labels, labels_of(maps))
    assert (tmp_path / "out" / "dataset_description.json").is_file()


def test_what_is_missing_is_named(tmp_path, maps, capsys):
    (tmp_path / "empty").mkdir()
    assert toolbox.main(["pseudo-labels", str(tmp_path / "empty"), str(tmp_path / "out")]) == 1
    assert "no *_space-orig_label-WMH_mask.nii.gz found" in capsys.readouterr().err
    paths = write(tmp_path / "in", maps)
    paths["ventricle_mask"].unlink()
    assert toolbox.main(["pseudo-labels", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert f"{paths['ventricle_mask']}: 0 such files, expected one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_maps_of_another_grid_are_refused(tmp_path, maps, capsys):
    paths = write(tmp_path / "in", maps)
    nib.Nifti1Image(maps["wm_atlas"], np.eye(4)).to_filename(paths["wm_atlas"])
    assert toolbox.main(["pseudo-labels", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert f"{paths['wm_atlas']}: does not lie on the grid of" in told


def test_folder_with_something_in_it_is_refused(tmp_path, maps, capsys):
    write(tmp_path / "in", maps)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert toolbox.main(["pseudo-labels", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
