"""The network and the measuring step: each map goes where it belongs."""

from dataclasses import fields

import numpy as np
import pytest

from bagau_bids.spaces import Image
from bagau_bids.workflow.segmentation import Measure, agreement
from bagau_bids.workflow.step import save_image

AFFINE = np.array([[2.0, 0.1, 0, -9], [0, 2, 0, -8], [0, 0, 5, -7], [0, 0, 0, 1]])
SHAPE = (6, 7, 8)


@pytest.mark.parametrize("known", [False, True])
def test_measured_are_the_maps_that_the_steps_hand_over(tmp_path, known):
    rng = np.random.default_rng(5)
    masks = ("brain_mask", "ventricles", *(["known_lesions"] if known else []))
    given = {name: rng.random(SHAPE) < 0.5 for name in masks}
    given |= {name: rng.random(SHAPE) for name in ("corrected", "wm_probseg", "warped_t1w")}
    given |= {
        "regions": rng.integers(0, 9, SHAPE),
        "template_points": rng.normal(size=(2, 3, 4, 3)),
    }
    for name, data in given.items():
        kind = np.uint8 if name in (*masks, "regions") else np.float32
        save_image(tmp_path / f"{name}.nii.gz", Image(data, AFFINE), kind)
    step = Measure(**{name: tmp_path / f"{name}.nii.gz" for name in given})
    maps = step._maps(*step._load_scan(tmp_path / "corrected.nii.gz"))

    expected = {
        "flair": given["corrected"],
        "template_t1w": given["warped_t1w"],
        "template_points": np.moveaxis(given["template_points"], -1, 0),
        "known_lesions": given.get("known_lesions"),
        **{n: given[n] for n in ("brain_mask", "ventricles", "wm_probseg", "regions")},
    }
    assert expected.keys() == {one.name for one in fields(maps)}
    for name, data in expected.items():
        found = getattr(maps, name)
        if isinstance(found, Image):
            np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
            found = found.data
        if data is None:
            assert found is None
            continue
        assert (found.dtype == bool) == (data.dtype == bool), name
        np.testing.assert_array_equal(found, data if data.dtype == bool else data.astype("f4"))


@pytest.mark.parametrize(
    ("masks", "expected"),
    [([], None), ([[0, 0], [0, 0]], None), ([[1, 0], [0, 0]], 0.0), ([[1, 1], [0, 1]], 2 / 3)],
)
def test_agreement_with_the_mirror_image_is_unknown_without_one_or_without_wmh(masks, expected):
    views = [np.where(mask, 0.5, 0.49).astype(np.float32) for mask in masks]
    assert agreement(views) == (None if expected is None else pytest.approx(expected))
