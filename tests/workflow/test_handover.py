"""What each step hands to the function behind it, and how its result comes out again.

The oracle calls the stand-ins, whose results depend on all they are given, with what the options
and the images of the data set say.
"""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import stand_ins
from workflow_fakes import (
    AFFINE,
    Listener,
    head,
    install,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
    write_flair,
)

from bagau_bids.network.slices import add_t1, network_input
from bagau_bids.preprocessing.transforms import read_itk_forward
from bagau_bids.spaces import Image, reorient

TEMPLATE = "MNI152NLin2009cSym"
OPTIONS = {
    "registration": "paper",
    "random_seed": 7,
    "omp_nthreads": 3,
    "nprocs": 3,
    "debug": ("pdb",),  # all steps in this process
    "output_spaces": ("orig", TEMPLATE),
    "tta": True,
    "batch_size": 5,
}


@pytest.fixture
def template(tmp_path):
    return make_template(tmp_path / "store")


@pytest.fixture
def go(tmp_path, monkeypatch, template):
    """Process the FLAIR of a data set; return where its results are."""
    install(monkeypatch, tmp_path)
    make_dataset(tmp_path / "data", "sub-01")

    def run(**options):
        places = (tmp_path / "data", tmp_path / "out", tmp_path / "work")
        config = make_config(*places, **OPTIONS, **options)
        (result,) = process_scans(config, scans_of(tmp_path / "data"), template, Listener())
        assert result.ok, result.reason
        return tmp_path / "out" / "sub-01" / "anat"

    return run


def stored(folder, name):
    """An image of the derivatives in the order of the steps."""
    image = nib.load(folder / f"sub-01_{name}.nii.gz")
    return reorient(Image(np.asarray(image.dataobj), image.affine)).data


def steps_of(folder):
    return json.loads((folder / "sub-01_desc-processing_record.json").read_text())["steps"]


def test_the_steps_up_to_the_network(go, tmp_path, template):
    anat = tmp_path / "data" / "sub-01" / "anat"
    lesion = np.zeros(head().shape, np.uint8)
    lesion[13:16, 5:9, 3:5] = 1
    nib.Nifti1Image(lesion, AFFINE).to_filename(anat / "sub-01_label-lesion_roi.nii.gz")
    write_flair(tmp_path / "data", "sub-01").rename(anat / "sub-01_T1w.nii.gz")
    write_flair(tmp_path / "data", "sub-01")
    networks = (tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    card = {"architecture": "unet", "config": {}, "sha256": "0", "inputs": ["flair", "t1"]}
    for weights in networks:
        weights.write_text(weights.stem)
        weights.with_suffix(".json").write_text(json.dumps(card))
    folder = go(weights=networks)

    flair = reorient(Image(head(), AFFINE))
    known = reorient(Image(lesion > 0, AFFINE)).data
    brain = stand_ins.brain_mask(flair)
    corrected = stand_ins.correct_bias_field(flair, brain.mask & ~known)
    elastix = {"seed": 7, "threads": 1}  # whatever the threads of a step, for the same result
    found = stand_ins.register_template(
        corrected, brain.mask, template, method="paper", helpers=2, excluded=known, **elastix
    )
    t1w = stand_ins.t1w_on_flair(anat / "sub-01_T1w.nii.gz", flair, brain.mask, **elastix)
    np.testing.assert_array_equal(stored(folder, "space-orig_label-brain_mask"), brain.mask)
    np.testing.assert_array_equal(stored(folder, "desc-preproc_FLAIR"), corrected.data)
    atlas = stored(folder, f"space-orig_atlas-{TEMPLATE}_label-WM_probseg")
    np.testing.assert_array_equal(atlas, found.wm_probseg)
    transform = read_itk_forward(folder / f"sub-01_from-{TEMPLATE}_to-FLAIR_mode-image_xfm.h5")
    np.testing.assert_allclose(transform.affine, found.transform.affine, atol=1e-9)
    steps = steps_of(folder)
    assert steps["brain_mask"]["notes"] == list(brain.notes)
    brain_mm3 = brain.mask.sum() * abs(np.linalg.det(AFFINE[:3, :3]))
    assert steps["brain_mask"]["volume_ml"] == pytest.approx(brain_mm3 / 1000, abs=0.05)
    volumes = pd.read_csv(
        folder / "sub-01_label-WMH_desc-volumes_morph.tsv", sep="\t", index_col="region"
    )
    assert volumes.brain_mm3["all"] == pytest.approx(brain_mm3)
    assert steps["registration"]["mutual_information"] == found.used.mutual_information
    assert (steps["registration"]["method"], steps["registration"]["seed"]) == ("paper", 7)
    assert steps["t1w"]["transform"] == t1w.transform.tolist()
    assert steps["t1w"]["coverage"] == t1w.coverage
    assert steps["t1w"]["notes"] == list(t1w.notes)

    given = network_input(corrected, brain.mask, found.wm_probseg, known)
    judged = brain.mask & ~known
    segmented = stand_ins.segment(
        [stand_ins.load_weights(path) for path in networks],
        add_t1(given, t1w, judged),
        judged,
        device="cpu",
        batch_size=5,
        tta=True,
    )
    probability = stored(folder, "space-orig_label-WMH_probseg")
    np.testing.assert_array_equal(probability, segmented.probability)
    mask = stored(folder, "space-orig_label-WMH_mask")
    np.testing.assert_array_equal(mask, segmented.probability >= 0.5)
    assert mask.any()
    step = steps["segmentation"]
    assert (step["device"], step["batch_size"], step["tta"]) == ("cpu", 5, True)
    views = [view >= 0.5 for view in segmented.views]
    common = 2 * (views[0] & views[1]).sum() / (views[0].sum() + views[1].sum())
    assert 0 < common < 1
    assert step["mirrored_dice"] == pytest.approx(common)
    assert steps["measure"]["quality"]["mirrored_dice"] == pytest.approx(common)
    assert [model["Name"] for model in step["models"]] == ["first", "second"]
    assert len({model["SHA256"] for model in step["models"]}) == 2


@pytest.mark.parametrize(("name", "order"), [("label-WMH_mask", 0), ("desc-preproc_FLAIR", 1)])
def test_copies_in_template_space(go, name, order):
    """Masks by the nearest voxel, intensities by weights of the eight around."""
    folder = go()
    space = {0: "space-orig_", 1: ""}[order]
    native = nib.load(folder / f"sub-01_{space}{name}.nii.gz")
    copy = nib.load(folder / f"sub-01_space-{TEMPLATE}_res-1_{name}.nii.gz")
    transform = read_itk_forward(folder / f"sub-01_from-{TEMPLATE}_to-FLAIR_mode-image_xfm.h5")
    to_voxel = np.linalg.inv(native.affine) @ np.linalg.inv(transform.affine) @ copy.affine
    values = np.pad(np.asarray(native.dataobj, float), 1)
    expected = np.zeros(copy.shape)
    for index in np.ndindex(copy.shape):
        place = (to_voxel @ [*index, 1])[:3] + 1
        if (place < 1).any() or (place > np.array(native.shape)).any():
            continue
        if order == 0:
            expected[index] = values[tuple(np.rint(place).astype(int))]
            continue
        low = np.floor(place).astype(int)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, place - low, 1 - (place - low)))
            expected[index] += weight * values[tuple(low + corner)]
    np.testing.assert_allclose(copy.dataobj, expected, atol=0.01)
    assert expected.any()
