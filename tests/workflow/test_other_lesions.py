"""Infarcts and known lesions through the workflow: real networks, the slow steps replaced."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from network_spy import loaded
from workflow_fakes import (
    AFFINE,
    SHAPE,
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

from bagau_bids.network import inference, weights
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing import bias_field
from bagau_bids.reports.results import read_table
from bagau_bids.reports.scan_tables import Volumes
from bagau_bids.spaces import Image, reorient

REAL = {
    (inference, "segment"): inference.segment,
    (inference, "load_for_inference"): inference.load_for_inference,
}
WIDTHS = (4, 4, 6, 6, 8)
# Left, back, low (the first axis is stored from right to left); a twelfth of the brain.
TUMOUR = (slice(11, 17), slice(5, 12), slice(3, 6))


class BrightBlobs(torch.nn.Module):
    """WMH where the FLAIR stands out, by whatever z-score it was given."""

    def forward(self, flair, atlas):
        return (flair - 2.5) * 3 + 0 * atlas


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Run sub-01 with real inference; options as for `make_config`, and what is beside it."""
    calls = install(monkeypatch, tmp_path)
    for (module, name), function in REAL.items():
        monkeypatch.setattr(module, name, function)
    template = make_template(tmp_path / "store")
    bids_dir = make_dataset(tmp_path / "data", "sub-01")

    def run(flair=None, **options):
        if flair is not None:
            write_flair(bids_dir, "sub-01", flair)
        config = make_config(bids_dir, tmp_path / "out", tmp_path / "work", **options)
        (result,) = process_scans(config, scans_of(bids_dir), template, Listener())
        return result

    run.calls = calls
    return run


@pytest.fixture
def bright(monkeypatch):
    """Have bright voxels called WMH, without any weights."""
    monkeypatch.setattr(inference, "load_for_inference", lambda path: loaded(BrightBlobs().eval()))


def out(tmp_path, name):
    return tmp_path / "out" / "sub-01" / "anat" / f"sub-01_{name}"


def image(tmp_path, name):
    return np.asarray(nib.load(out(tmp_path, f"space-orig_{name}.nii.gz")).dataobj)


def volumes(tmp_path):
    rows = read_table(out(tmp_path, "label-WMH_desc-volumes_morph.tsv"), Volumes)
    return {row.region: row for row in rows}


def sidecar(tmp_path, name):
    return json.loads(out(tmp_path, f"{name}.json").read_text())


def record(tmp_path):
    return sidecar(tmp_path, "desc-processing_record")


def tumour():
    mask = np.zeros(SHAPE, np.uint8)
    mask[TUMOUR] = 1
    return mask


def with_tumour():
    flair = head()
    flair[TUMOUR] = 300
    return flair


def write_lesion(folder, name, mask=None, affine=AFFINE):
    folder.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(tumour() if mask is None else mask, affine).to_filename(folder / name)


VOXEL_ML = 8 * 8 * 14 / 1000


def test_known_lesion_is_no_wmh_and_counts_for_nothing(go, bright, tmp_path, monkeypatch):
    seen = []
    correct = bias_field.correct_bias_field  # the stand-in

    def remember(flair, mask):
        seen.append(mask)
        return correct(flair, mask)

    monkeypatch.setattr(bias_field, "correct_bias_field", remember)
    assert go(with_tumour()).ok
    inside = tumour() > 0
    assert image(tmp_path, "label-WMH_mask")[inside].mean() > 0.6  # a tumour is bright
    assert volumes(tmp_path)["all"].known_lesion_mm3 is None
    assert "known_lesions" not in record(tmp_path)["steps"]["conform"]
    lesion = slice(6, 8), slice(8, 11), 4
    # The tumour widens the spread, so that lesions stand out less.
    assert not image(tmp_path, "label-WMH_mask")[lesion].any()

    write_lesion(tmp_path / "data/sub-01/anat", "sub-01_label-lesion_roi.nii.gz")
    assert go().ok
    mask, probability = (image(tmp_path, f"label-WMH_{kind}") for kind in ("mask", "probseg"))
    assert not mask[inside].any()
    assert not probability[inside].any()
    assert mask[lesion].all()

    np.testing.assert_array_equal(image(tmp_path, "label-lesion_mask"), tumour())
    assert seen[0][::-1][inside].any()  # steps see voxels in RAS order
    assert not seen[1][::-1][inside].any()
    excluded = go.calls.data["known lesions out of the registration"]
    np.testing.assert_array_equal(excluded[::-1], inside)
    rows = volumes(tmp_path)
    assert rows["all"].known_lesion_mm3 == pytest.approx(1000 * VOXEL_ML * inside.sum())
    assert rows["left"].known_lesion_mm3 + rows["right"].known_lesion_mm3 == pytest.approx(
        rows["all"].known_lesion_mm3
    )
    assert rows["all"].infarct_mm3 is None
    about = sidecar(tmp_path, "space-orig_label-lesion_mask")
    assert about["Sources"] == ["bids:raw:sub-01/anat/sub-01_label-lesion_roi.nii.gz"]
    own = "bids::sub-01/anat/sub-01_space-orig_label-lesion_mask.nii.gz"
    assert own in sidecar(tmp_path, "space-orig_label-WMH_probseg")["Sources"]
    notes = record(tmp_path)["steps"]["conform"]["notes"]
    assert any("Known lesions of 112.90 ml are those of" in note for note in notes)


def test_derivative_is_preferred_and_a_mask_that_is_gone_leaves_nothing(go, bright, tmp_path):
    write_lesion(tmp_path / "data/sub-01/anat", "sub-01_label-lesion_roi.nii.gz", tumour() * 0)
    mine = tmp_path / "mine"
    write_lesion(mine / "sub-01/anat", "sub-01_label-tumour_mask.nii.gz")
    assert go(with_tumour(), known_lesions=(mine,)).ok
    assert not image(tmp_path, "label-WMH_mask")[tumour() > 0].any()
    about = sidecar(tmp_path, "space-orig_label-lesion_mask")
    assert about["Sources"] == ["bids:mine:sub-01/anat/sub-01_label-tumour_mask.nii.gz"]
    links = json.loads((tmp_path / "out/dataset_description.json").read_text())["DatasetLinks"]
    assert links["mine"] == mine.as_uri()

    assert go().ok  # the empty mask beside the FLAIR
    assert image(tmp_path, "label-WMH_mask")[tumour() > 0].mean() > 0.6
    assert volumes(tmp_path)["all"].known_lesion_mm3 == 0
    assert any("is empty" in note for note in record(tmp_path)["steps"]["conform"]["notes"])

    assert go(ignore_lesion_roi=True).ok
    assert volumes(tmp_path)["all"].known_lesion_mm3 is None
    left = [path.name for path in out(tmp_path, "x").parent.glob("*label-lesion*")]
    assert left == []


def test_mask_that_cannot_be_used_fails_its_scan_with_the_reason(go, bright, tmp_path):
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] += 500
    folder = tmp_path / "data/sub-01/anat"
    write_lesion(folder, "sub-01_label-lesion_roi.nii.gz", affine=elsewhere)
    result = go()
    assert (result.ok, result.step) == (False, "conform")
    assert "sub-01_label-lesion_roi.nii.gz: the mask of known lesions lies els" in result.reason
    write_lesion(folder, "sub-01_T1w_label-lesion_roi.nii.gz")
    result = go()
    assert not result.ok
    assert "several masks of known lesions of sub-01" in result.reason


def test_mask_outside_the_brain_is_noted(go, bright, tmp_path):
    corner = np.zeros(SHAPE, np.uint8)
    corner[0, 0, 0] = 1
    write_lesion(tmp_path / "data/sub-01/anat", "sub-01_label-lesion_roi.nii.gz", corner)
    assert go().ok
    notes = record(tmp_path)["steps"]["measure"]["notes"]
    assert any("lies outside the brain mask" in note for note in notes)


def two_outputs(path, card=None):
    """Weights of an untrained network both of whose channels say yes to half of `head`."""
    torch.manual_seed(3)
    model = BagauNet(BagauNetConfig(WIDTHS, outputs=("wmh", "infarct"))).eval()
    flair = reorient(Image(head(), AFFINE))
    brain = flair.data > 50
    inputs = network_input(flair, brain, np.where(brain, np.float32(0.8), 0))
    with torch.inference_mode():
        logits = model(
            *(
                torch.from_numpy(x)[:, None]
                for x in (inputs.channels["flair"], inputs.channels["atlas"])
            )
        )
    for channel in range(2):
        inside = logits[:, channel][torch.from_numpy(inputs.brain)]
        scale = 3 / inside.std()
        bias = model.head.bias.data[channel] - inside.median()
        model.head.bias.data[channel] = bias * scale
        model.head.weight.data[channel] *= scale
    weights.save_weights(path, model, card or {})
    return path


def test_infarcts_are_an_output_when_asked_for(go, tmp_path):
    path = two_outputs(tmp_path / "two.safetensors")
    assert go(weights=(path,), infarct=True).ok
    wmh, infarct = (image(tmp_path, f"label-{name}_probseg") for name in ("WMH", "infarct"))
    masks = [image(tmp_path, f"label-{name}_mask") > 0 for name in ("WMH", "infarct")]
    both = (wmh >= 0.5) & (infarct >= 0.5)
    assert both.any()
    np.testing.assert_array_equal(masks[1], (infarct >= 0.5) & ~(both & (wmh > infarct)))
    np.testing.assert_array_equal(masks[0], (wmh >= 0.5) & ~(both & (wmh <= infarct)))
    assert masks[0].any()
    assert masks[1].any()
    assert not (masks[0] & masks[1]).any()
    rows = volumes(tmp_path)
    assert rows["all"].infarct_mm3 == pytest.approx(1000 * VOXEL_ML * masks[1].sum())
    assert rows["left"].infarct_mm3 > 0
    about = sidecar(tmp_path, "space-orig_label-infarct_mask")
    assert (about["Type"], about["Threshold"]) == ("Lesion", 0.5)
    (model,) = sidecar(tmp_path, "space-orig_label-infarct_probseg")["Models"]
    assert model["Outputs"] == ["wmh", "infarct"]
    assert model["InfarctThresholdBeforeCalibration"] == 0.5

    assert go(weights=(path,)).ok
    np.testing.assert_array_equal(image(tmp_path, "label-WMH_mask") > 0, masks[0])
    assert volumes(tmp_path)["all"].infarct_mm3 is None
    assert not list(out(tmp_path, "x").parent.glob("*label-infarct*"))
    step = record(tmp_path)["steps"]["measure"]
    assert step["infarct_ml"] == pytest.approx(VOXEL_ML * masks[1].sum(), abs=0.01)
    assert any("--infarct puts them out" in note for note in step["notes"])
