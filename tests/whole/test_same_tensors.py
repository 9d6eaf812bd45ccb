"""The network is given the same tensors by `bagau-bids` and by `bagau train`."""

import nibabel as nib
import numpy as np
import pytest
from network_spy import Spy, loaded

from bagau_bids.bids.records import Attempt
from bagau_bids.bids.scans import Scan
from bagau_bids.datasets.labelled import LabelledScan, prepare_scan
from bagau_bids.preprocessing.brain_mask import BrainMask
from bagau_bids.preprocessing.registration import Registration
from bagau_bids.preprocessing.template import Template
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import training_shard
from bagau_bids.workflow import preprocessing, segmentation

TEMPLATE_PARTS = ("t1w", "wm_probseg", "brain_mask")


def oblique(size):
    """Affine of a scan that is stored from right to left and tilted by 14 degrees."""
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.97, -0.2431], [0.2431, 0.97]]
    return turn @ np.diag([*size, 1.0]) @ np.diag([-1, 1, 1, 1.0])


@pytest.fixture(params=[(2.5, 3.0, 6.0), (2.5, 3.0, 1.5)], ids=["thick", "thin"])
def labelled(tmp_path, request):
    """A scan with its mask in files, as a user has them."""
    rng = np.random.default_rng(0)
    flair = rng.uniform(50, 150, (60, 64, 9)).astype(np.float32)
    mask = np.zeros(flair.shape, np.uint8)
    mask[20:24, 30:33, 4] = 1
    paths = []
    for name, data in (("FLAIR", flair), ("label-WMH_mask", mask)):
        paths.append(tmp_path / f"sub-1_{name}.nii.gz")
        nib.Nifti1Image(data, oblique(request.param)).to_filename(paths[-1])
    return LabelledScan(Scan(paths[0], {"sub": "1"}), paths[1])


@pytest.fixture
def template(tmp_path):
    """Files of a template, never registered for real."""
    paths = [tmp_path / f"{name}.nii" for name in ("t1w", "wm", "mask")]
    for path in paths:
        nib.Nifti1Image(np.ones((6, 7, 8), np.float32), np.eye(4)).to_filename(path)
    return Template("T", *paths)


@pytest.fixture
def spy(monkeypatch):
    """Stand-ins for the slow functions, whose results depend on all they are given."""

    def brain_mask(flair):
        mask = np.zeros(flair.data.shape, bool)
        mask[8:-8, 8:-8, 1:-1] = True
        return BrainMask(mask & (flair.data > 60), stripped=False, notes=())

    def correct_bias_field(flair, mask):
        ramp = np.linspace(0.9, 1.1, flair.data.shape[0])[:, None, None]
        corrected = flair.data * ramp * np.where(mask, 1, 1.02)
        return Image(corrected.astype(np.float32), flair.affine)

    def register_template(
        flair, brain_mask, template, *, method, seed=0, threads=1, helpers=1, excluded=None
    ):
        left = brain_mask if excluded is None else brain_mask & ~excluded
        return Registration(
            wm_probseg=(left * flair.data / 200).astype(np.float32),
            t1w=flair.data,
            transform=TemplateTransform(np.eye(4), threads=helpers),
            method=method,
            used=(attempt := Attempt("centre of gravity", "bspline", 0.95, 0.4, 0.5, 2.0)),
            attempts=(attempt,),
            notes=(),
        )

    network = Spy()
    for name, function in {
        "preprocessing.brain_mask.brain_mask": brain_mask,
        "preprocessing.bias_field.correct_bias_field": correct_bias_field,
        "preprocessing.registration.register_template": register_template,
        "network.inference.load_for_inference": lambda path: loaded(network),
    }.items():
        monkeypatch.setattr(f"bagau_bids.{name}", function)
    return network


def run_steps(flair, template, folder):
    """Run the steps of `bagau-bids` as far as the network, each in a folder of its own."""

    def run(step, **inputs):
        cwd = folder / type(step).__name__
        cwd.mkdir(parents=True)
        step.inputs.trait_set(**inputs)
        return step.run(cwd=str(cwd)).outputs

    weights = folder / "weights"
    folder.mkdir()
    weights.touch()
    scan = run(preprocessing.Conform(), in_file=str(flair)).flair
    mask = run(preprocessing.BrainMask(), flair=scan, network="0").brain_mask
    corrected = run(preprocessing.BiasField(), flair=scan, brain_mask=mask).corrected
    files = {f"template_{part}": str(getattr(template, part)) for part in TEMPLATE_PARTS}
    given = {"corrected": corrected, "brain_mask": mask}
    atlas = run(preprocessing.Registration(), **given, template=template.name, **files).wm_probseg
    run(
        segmentation.Segmentation(),
        **given,
        wm_probseg=atlas,
        weights=[str(weights)],
        device="cpu",
        batch_size=4,
    )


def test_training_sees_what_the_workflow_gives_the_network(tmp_path, labelled, template, spy):
    run_steps(labelled.scan.path, template, tmp_path / "work")
    flair, atlas = (
        np.concatenate([batch[position][:, 0] for batch in spy.seen]) for position in (0, 1)
    )
    assert np.ptp(flair) > 1
    assert np.ptp(atlas) > 0.1
    for _ in range(2):  # as computed, and as read from the cache
        prepared = prepare_scan(labelled, template, "robust", tmp_path / "cache")
        shard = training_shard(prepared.inputs, prepared.reference)
        np.testing.assert_array_equal(shard.channels["flair"], flair)
        np.testing.assert_array_equal(shard.channels["atlas"], atlas)
