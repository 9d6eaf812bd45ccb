"""The recipe as a whole: its results are those of its version.

Where a change of the code is meant to change results, raise PREPROCESSING_VERSION (or the first
number of ENGINE_VERSION) and store the new ones: ``python tests/preprocessing/test_recipe.py``.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from bagau_bids.datasets import phantom
from bagau_bids.network.slices import network_input
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION, preprocess
from bagau_bids.preprocessing.template import find_template
from bagau_bids.synthesis.engine import ENGINE_VERSION

STORED = Path(__file__).with_name("recipe_results.json")
LAYOUT = phantom.Layout("LPS", 2.0, 5.0, tilted=True, header="sform", dtype="float32")
QUANTILES = (5, 25, 50, 75, 95)
# Processors differ in the rest.
TOLERANCE = {"rel": 2e-3, "abs": 5e-4}
FIELD_TOLERANCE = {"rel": 0, "abs": 2e-4}  # of a smooth field, whose mean is 1
PLACE_TOLERANCE = {"rel": 0, "abs": 0.02}  # mm
REPORT_TOLERANCE = {"rel": 0, "abs": 5e-4}  # of Dice, and of information in nats


def figures(values):
    """Mean, spread and quantiles of an array."""
    found = [values.mean(), values.std(), *np.percentile(values, QUANTILES)]
    return [float(f"{value:.5g}") for value in found]


def place(weights, affine):
    """Centre of what is in an image and its spread along the axes, mm."""
    points = affine[:3, :3] @ np.indices(weights.shape).reshape(3, -1) + affine[:3, 3:]
    shares = weights.ravel() / weights.sum(dtype=float)
    centre = points @ shares
    spread = np.sqrt((points - centre[:, None]) ** 2 @ shares)
    return np.round([*centre, *spread], 4).tolist()


def of_conform(scan):
    return {"conform": figures(scan.data), "conform_place_mm": place(scan.data, scan.affine)}


def of_brain_mask(mask, affine):
    volume_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return {"brain_mask_ml": [round(volume_ml, 2)], "brain_mask_place_mm": place(mask, affine)}


def of_bias_field(scan, corrected, brain):
    """The field where there is signal."""
    inside, outside = (part & (scan.data > 1) for part in (brain, ~brain))
    return {
        "bias_field": figures(scan.data[inside] / corrected[inside]),
        "bias_field_outside": figures(scan.data[outside] / corrected[outside]),
    }


def of_registration(found, affine, brain):
    """The template on the FLAIR, and what is reported of how well it fits."""
    reported = (found.used.overlap, found.used.mutual_information)
    return {
        "registration": figures(found.wm_probseg[brain]),
        "registration_place_mm": place(found.wm_probseg * brain, affine),
        "registration_report": [float(f"{value:.5g}") for value in reported],
    }


def of_network_input(inputs):
    return {
        "input_brain": [float(inputs.brain.mean())],
        "flair": figures(inputs.channels["flair"][inputs.brain]),
        "atlas": figures(inputs.channels["atlas"][inputs.brain]),
    }


def results(folder):
    """Figures of what the parts make of a phantom, by part."""
    phantom.make_phantom_dataset(
        folder / "bids", subjects=1, seed=3, layouts=(LAYOUT,), head_spacing_mm=2.0
    )
    template = find_template("ICBM152NLin2009aSym", None, offline=True, cache_dir=folder)
    scan = conform(folder / "bids" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    made = preprocess(scan, template, method="sloppy")
    brain, wm_probseg = made.brain.mask, made.registration.wm_probseg
    return {
        **of_conform(scan),
        **of_brain_mask(brain, scan.affine),
        **of_bias_field(scan, made.corrected.data, brain),
        **of_registration(made.registration, scan.affine, brain),
        **of_network_input(network_input(made.corrected, brain, wm_probseg)),
    }


def same(part, found, stored):
    """Whether figures of a part are the stored ones, but for what processors differ in."""
    kinds = {
        "bias_field": FIELD_TOLERANCE,
        "place_mm": PLACE_TOLERANCE,
        "report": REPORT_TOLERANCE,
    }
    tolerance = next((kinds[kind] for kind in kinds if kind in part), TOLERANCE)
    return found == pytest.approx(stored, **tolerance)


def store():
    with TemporaryDirectory() as folder:
        content = {
            "preprocessing": PREPROCESSING_VERSION,
            "engine": ENGINE_VERSION,
            "results": results(Path(folder)),
        }
    STORED.write_text(json.dumps(content, indent=2) + "\n")


@pytest.mark.slow
def test_results_change_only_with_the_version(tmp_path):
    stored = json.loads(STORED.read_text())
    versions = {"preprocessing": PREPROCESSING_VERSION, "engine": ENGINE_VERSION}
    assert {name: stored[name] for name in versions} == versions, "store the results anew"
    found = results(tmp_path)
    assert found.keys() == stored["results"].keys()
    changed = [part for part in found if not same(part, found[part], stored["results"][part])]
    assert not changed, "something else is made now: raise the version, and store the results anew"


if __name__ == "__main__":
    store()
