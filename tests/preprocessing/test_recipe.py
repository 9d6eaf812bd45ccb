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
from bagau_bids.spaces import Image
from bagau_bids.synthesis.engine import ENGINE_VERSION

STORED = Path(__file__).with_name("recipe_results.json")
LAYOUT = phantom.Layout("LPS", 2.5, 5.0, tilted=True, header="sform", dtype="float32")
QUANTILES = (5, 25, 50, 75, 95)


def figures(values):
    """Mean, spread and quantiles of an array, rounded coarsely: processors differ in the rest."""
    found = [values.mean(), values.std(), *np.percentile(values, QUANTILES)]
    return [float(f"{value:.5g}") for value in found]


def results(folder):
    """Figures of what the parts make of a phantom, by part."""
    phantom.make_phantom_dataset(
        folder / "bids", subjects=1, seed=3, layouts=(LAYOUT,), head_spacing_mm=2.0
    )
    template = find_template("ICBM152NLin2009aSym", None, offline=True, cache_dir=folder)
    scan = conform(folder / "bids" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    made = preprocess(scan, template, method="sloppy")
    brain, wm_probseg = made.brain.mask, made.registration.wm_probseg
    inputs = network_input(Image(made.corrected, scan.affine), brain, wm_probseg)
    return {
        "conform": figures(scan.data),
        "brain_mask": figures(np.argwhere(brain)),
        "bias_field": figures(made.corrected[brain] / scan.data[brain].mean()),
        "registration": figures(wm_probseg[brain]),
        "flair": figures(inputs.channels["flair"][inputs.brain]),
        "atlas": figures(inputs.channels["atlas"][inputs.brain]),
    }


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
    for part, found in results(tmp_path).items():
        assert found == pytest.approx(stored["results"][part], rel=2e-3, abs=2e-3), (
            f"{part} makes something else now: raise the version, and store the results anew"
        )


if __name__ == "__main__":
    store()
