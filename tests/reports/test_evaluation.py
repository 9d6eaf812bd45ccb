"""The page of an evaluation: whole, alone in one file, and honest about what is missing."""

import base64
import io

import nibabel as nib
import numpy as np
import pytest
from fake_derivatives import drawn_head
from page_checks import Page
from PIL import Image

from bagau_bids.evaluation.pairs import MaskPair, Unpaired
from bagau_bids.evaluation.scoring import evaluate_pairs, unpaired_results
from bagau_bids.evaluation.tables import case_table, summary_table
from bagau_bids.reports import charts
from bagau_bids.reports import evaluation as page_module
from bagau_bids.reports.evaluation import Comparison, write_evaluation_page


@pytest.fixture
def pairs(tmp_path):
    """Three cases with their FLAIRs: a shifted result, an empty one, and a perfect one."""
    made, flairs = {}, {}
    for number, orientation in ((1, "RAS"), (2, "LPS"), (3, "PIR")):
        flair, affine, _, _, probability = drawn_head(seed=number)
        truth = (probability > 0).astype(np.uint8)
        truth[:4, :4, :4] = 2
        found = np.roll(probability > 0, 1, axis=0) if number == 1 else truth == 1
        paths = [tmp_path / f"{kind}{number}.nii.gz" for kind in ("t", "f", "flair")]
        images = truth, (found * (number != 2)).astype(np.uint8), flair
        for path, data in zip(paths, images, strict=True):
            image = nib.Nifti1Image(data, affine)
            turn = nib.orientations.ornt_transform(
                nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
            )
            image.as_reoriented(turn).to_filename(path)
        case = f"sub-{number}"
        made[case] = MaskPair(case, paths[0], paths[1], {"sub": str(number)})
        flairs[case] = paths[2]
    return made, flairs


def write(folder, pairs, flairs=None, *, unpaired=(), groups=None):
    results = evaluate_pairs(pairs.values()) + unpaired_results(unpaired)
    cases = case_table(results, groups)
    comparison = Comparison(folder / "reference", folder / "result", pairs, flairs or {})
    path = folder / "page.html"
    write_evaluation_page(path, cases, summary_table(cases, resamples=50), comparison)
    return Page(path), path.read_text(encoding="utf-8")


def test_page_is_whole_and_stands_alone(pairs, tmp_path):
    page, text = write(tmp_path, *pairs)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert link.startswith(("https://doi.org", "data:", "evaluation"))
    for picture in page.pictures:
        kind, data = picture.split(",")
        assert kind in ("data:image/png;base64", "data:image/webp;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    # Two charts; of the two imperfect cases slices with two layers over them.
    assert len(page.pictures) == 2 + 2 * 3
    assert "3 scored" in page.text
    assert "In 1 case a mask is empty" in page.text
    assert "FLAIR only" in page.text
    assert "nan" not in page.text.lower()
    assert 'id="worst-sub-3"' not in text


def test_worst_case_comes_first(pairs, tmp_path):
    _, text = write(tmp_path, *pairs)
    assert text.index('id="worst-sub-2"') < text.index('id="worst-sub-1"')


def test_without_flairs_masks_are_shown_on_their_own_grid(pairs, tmp_path):
    page, _ = write(tmp_path, pairs[0])
    assert len(page.pictures) == 2 + 2 * 3
    assert "FLAIR only" not in page.text


def test_flair_that_cannot_be_shown_is_explained(pairs, tmp_path):
    made, flairs = pairs
    nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)).to_filename(flairs["sub-1"])
    flairs["sub-2"].unlink()
    page, _ = write(tmp_path, made, flairs)
    assert page.text.count("Shown without its FLAIR") == 2
    assert "no such file" in page.text


def test_what_was_not_scored_is_listed_and_escaped(pairs, tmp_path):
    unpaired = [Unpaired("sub-9", "<b>no result & more", {"sub": "9"})]
    page, text = write(tmp_path, *pairs, unpaired=unpaired)
    assert "1 not scored" in page.text
    assert "&lt;b&gt;no result &amp; more" in text


def test_nothing_scored_is_said(tmp_path):
    page, _ = write(tmp_path, {}, unpaired=[Unpaired("x", "no result")])
    assert "No case could be scored" in page.text
    assert page.pictures == []


def test_groups_have_rows_of_their_own(pairs, tmp_path):
    page, _ = write(tmp_path, *pairs, groups={"sub-1": "Utrecht", "sub-2": "Singapore"})
    assert "By group" in page.text
    assert "Utrecht" in page.text


def colours_of(picture):
    """Colours, without opacity, of a transparent picture that cover enough to be seen."""
    pixels = np.asarray(picture).reshape(-1, 4)
    colours, counts = np.unique(pixels[pixels[:, 3] > 0][:, :3], axis=0, return_counts=True)
    return {"#" + bytes(c).hex() for c, n in zip(colours.tolist(), counts, strict=True) if n > 20}


def test_every_kind_of_voxel_has_its_colour(pairs, tmp_path):
    page, _ = write(tmp_path, {"sub-1": pairs[0]["sub-1"]})
    layer = Image.open(io.BytesIO(base64.b64decode(page.pictures[3].split(",")[1])))
    assert colours_of(layer) >= {
        page_module.BOTH_COLOUR,
        page_module.MISSED_COLOUR,
        page_module.FALSE_COLOUR,
    }


def test_charts_bear_one_case_many_cases_and_nothing_but_zeros():
    heights = [
        charts.draw_dice([str(n) for n in range(count)], np.linspace(0, 1, count), 0.5).height
        for count in (1, 50, 300)
    ]
    assert heights[0] < heights[2] < heights[1]
    for volumes in ([[0.0], [0.0]], [[1.0, 2.0], [1.5, 4.0]]):
        assert charts.draw_volumes(*volumes, None).width > 1000
