"""Registration of the template: what it finds, how it retries, what it records."""

import dataclasses
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from fake_elastix import answering
from msgspec import structs
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing import elastix, registration
from bagau_bids.preprocessing.registration import (
    Attempt,
    load_parameters,
    mutual_information,
    register_template,
    search_start,
)
from bagau_bids.preprocessing.template import Template
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    forward_field,
    from_elastix,
    inverse_field,
    sample,
)
from bagau_bids.spaces import Image


def rotation(axis, degrees):
    first, second = (i for i in range(3) if i != axis)
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def ellipsoid(points, centre, radii):
    scaled = (points - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
    return (scaled**2).sum(axis=0) < 1


def anatomy(points):
    """Return brain, white matter and ventricles of a lopsided brain at points (3, ...) in mm."""
    brain = ellipsoid(points, (0, 0, 0), (62, 78, 56)) & ~ellipsoid(
        points, (0, 75, -45), (70, 50, 35)
    )
    white = ellipsoid(points, (22, -5, 5), (24, 50, 30)) | ellipsoid(
        points, (-22, 0, 5), (24, 55, 34)
    )
    white |= ellipsoid(points, (0, -45, -30), (10, 12, 25))
    ventricle = ellipsoid(points, (9, 8, 8), (6, 26, 10)) | ellipsoid(
        points, (-9, 8, 8), (5, 22, 9)
    )
    return brain, white & ~ventricle & brain, ventricle


def world_grid(shape, affine):
    return np.moveaxis(
        nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0
    )


def centred(spacing, shape, turn):
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A template of 3 mm voxels, white matter bright as in a T1w."""
    folder = tmp_path_factory.mktemp("template")
    shape = (48, 60, 46)
    affine = centred((3, 3, 3), shape, np.eye(3))
    brain, white, ventricle = anatomy(world_grid(shape, affine))
    t1w = 60 * brain + 40 * white - 45 * (ventricle & brain)
    for name, data in (("t1w", t1w), ("wm", white), ("mask", brain)):
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
    return Template("test", folder / "t1w.nii.gz", folder / "wm.nii.gz", folder / "mask.nii.gz")


def make_scan(turn, spacing=(2.0, 2.0, 5.0), shape=(80, 92, 32), stretch=(0.95, 0.97, 0.9)):
    """Return a FLAIR of the template's anatomy, moved; its grid, brain and white matter."""
    affine = centred(spacing, shape, turn)
    affine[:3, 3] += 15, -20, 30
    points = world_grid(shape, affine) - np.reshape([15, -20, 30], (3, 1, 1, 1))
    points = np.tensordot(rotation(0, 12) @ np.diag(1 / np.asarray(stretch)), points, axes=1)
    bend = 3 * np.sin(points[::-1] / 25)
    brain, white, ventricle = anatomy(points + bend)
    rng = np.random.default_rng(3)
    flair = np.where(brain, 120 - 25 * white - 90 * (ventricle & brain), 30)
    flair = np.abs(flair + rng.normal(0, 4, shape))
    return flair.astype(np.float32), affine, brain, white


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.fixture(scope="module")
def result(template):
    """One registration of an oblique scan, shared by the tests that look at it."""
    flair, affine, brain, white = make_scan(rotation(0, -8) @ rotation(2, 5))
    found = register_template(Image(flair, affine), brain, template, method="sloppy")
    return found, affine, brain, white


def test_white_matter_lands_on_white_matter(result):
    found, _, brain, white = result
    assert found.wm_probseg.dtype == np.float32
    assert found.wm_probseg.shape == white.shape
    assert 0 <= found.wm_probseg.min() <= found.wm_probseg.max() <= 1
    assert dice(found.wm_probseg > 0.5, white) > 0.85
    assert found.used.stage == "bspline"
    assert found.used.overlap > 0.95
    assert len(found.attempts) == 1
    assert found.notes == ()


def test_what_was_used_is_among_the_attempts(result):
    found = result[0]
    assert found.method == "sloppy"
    assert found.attempts == (found.used,)
    assert found.used.min_jacobian < found.used.max_jacobian
    assert found.used.mutual_information > 0


def test_the_map_is_the_template_warped_by_the_transform(result, template):
    found, affine, _, white = result
    image = nib.load(template.wm_probseg)
    points = forward_field(found.transform, Image(white, affine))
    warped = sample(Image(np.asarray(image.dataobj), image.affine), points)
    np.testing.assert_allclose(warped, found.wm_probseg, atol=1e-3)


def test_images_go_to_the_template_and_back(result, template):
    """Coordinates as images: the round trip must return each place to within a millimetre."""
    found, affine, brain, _ = result
    grid = nib.load(template.t1w)
    here = world_grid(brain.shape, affine)
    there_from = inverse_field(found.transform, grid)
    back_from = forward_field(found.transform, Image(brain, affine))
    errors = []
    for axis in range(3):
        there = sample(Image(here[axis], affine), there_from)
        back = sample(Image(there, grid.affine), back_from)
        errors.append(back - here[axis])
    inside = brain.copy()
    for axis in range(3):  # away from where the template's field of view or the scan's ends
        inside &= np.roll(brain, 4, axis) & np.roll(brain, -4, axis)
    distance = np.sqrt((np.square(errors)).sum(axis=0))[inside]
    assert distance.max() < 1


def test_the_same_seed_gives_the_same_bits_and_storage_order_does_not_matter(result, template):
    """The same head from its mirrored and turned storage: same map, voxel by voxel."""
    found, affine, brain, _ = result
    flair, *_ = make_scan(rotation(0, -8) @ rotation(2, 5))
    again = register_template(Image(flair, affine), brain, template, method="sloppy", helpers=3)
    np.testing.assert_array_equal(again.wm_probseg, found.wm_probseg)
    np.testing.assert_array_equal(again.t1w, found.t1w)
    assert again.attempts == found.attempts
    assert again.head_turn == found.head_turn


def test_more_threads_give_next_to_the_same_map_and_the_same_bits_again(result, template):
    found, affine, brain, _ = result
    flair, *_ = make_scan(rotation(0, -8) @ rotation(2, 5))
    scan = Image(flair, affine)
    two, again = (
        register_template(scan, brain, template, method="sloppy", threads=2) for _ in range(2)
    )
    np.testing.assert_array_equal(two.wm_probseg, again.wm_probseg)
    assert dice(two.wm_probseg > 0.5, found.wm_probseg > 0.5) >= 0.995


def test_another_storage_of_the_head_gives_the_same_alignment(result, template):
    flair, affine, brain, white = make_scan(rotation(0, -8) @ rotation(2, 5))
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.asarray(flair.shape[:2]) - 1
    stored = [array[::-1, ::-1] for array in (flair, brain, white)]
    turned = Image(stored[0], affine @ flip)
    found = register_template(turned, stored[1], template, method="sloppy")
    assert dice(found.wm_probseg > 0.5, stored[2]) > 0.85


def test_a_rotation_beyond_elastix_is_found_by_the_search(template):
    flair, affine, brain, _ = make_scan(rotation(0, 0))
    fixed, _ = registration.brain_image(Image(flair, affine), brain)
    image, mask = nib.load(template.t1w), nib.load(template.brain_mask)
    moving = Image(
        image.get_fdata(dtype=np.float32) * mask.get_fdata(dtype=np.float32), image.affine
    )
    turned = np.eye(4)
    turned[:3, :3] = rotation(0, 22)  # 34 degrees between them, with the scan's own 12
    fixed = Image(fixed.data, turned @ fixed.affine)
    centre = turned[:3, :3] @ [15, -20, 30]
    start = search_start(fixed, moving, centre, np.zeros(3))
    angle = np.rad2deg(np.arctan2(start[2, 1], start[1, 1]))
    assert angle == pytest.approx(12 - 22, abs=5) or angle == pytest.approx(-(12 - 22), abs=5)


# ---- the ladder, with elastix replaced ----


@pytest.fixture
def ladder(monkeypatch, template):
    """Run the ladder with a stand-in for one attempt; returns a function of outcomes."""

    def run(*outcomes):
        queue = list(outcomes)

        def attempt(name, start, *rest):
            outcome = queue.pop(0) if queue else outcomes[-1]
            return structs.replace(outcome, start=name), TemplateTransform(start)

        monkeypatch.setattr(registration, "_attempt", attempt)
        flair, affine, brain, _ = make_scan(np.eye(3))
        return register_template(Image(flair, affine), brain, template)

    return run


GOOD = Attempt("", "bspline", overlap=0.95, mutual_information=0.4)
POOR = Attempt("", "bspline", overlap=0.80, mutual_information=0.2)
FAILED = Attempt("", "failed", note="it crashed")


def test_a_good_first_attempt_is_the_only_one(ladder):
    found = ladder(GOOD)
    assert len(found.attempts) == 1
    assert found.used.start == "centre of gravity, searched"
    assert found.notes == ()


@pytest.mark.parametrize("first", [POOR, FAILED])
def test_a_poor_or_crashed_attempt_is_followed_by_another_start(ladder, first):
    found = ladder(first, GOOD)
    assert len(found.attempts) == 2
    assert found.used == found.attempts[1]
    assert found.used.start == "centre of gravity"
    assert any("2 starts" in note for note in found.notes)


def test_when_none_is_good_the_best_is_taken_and_said_to_be_doubtful(ladder):
    better = structs.replace(POOR, overlap=0.85)
    found = ladder(POOR, better, POOR)
    assert found.used.overlap == 0.85
    assert len(found.attempts) == 7
    assert any("doubtful" in note for note in found.notes)


def test_when_all_fail_the_message_lists_the_attempts(ladder):
    with pytest.raises(ProcessingError, match="could not be registered") as caught:
        ladder(FAILED)
    assert "geometric centre" in str(caught.value)
    assert "it crashed" in str(caught.value)
    assert "look at the brain mask" in str(caught.value)


def affine_stage(matrix=None):
    values = [*(np.eye(3) if matrix is None else matrix).ravel(), 0, 0, 0]
    return {
        "Transform": ("AffineTransform",),
        "CenterOfRotationPoint": ("0", "0", "0"),
        "TransformParameters": tuple(map(str, values)),
    }


def test_a_folded_bspline_is_dropped_for_its_affine(monkeypatch, template):
    rng = np.random.default_rng(0)
    wild = {
        "Transform": ("BSplineTransform",),
        "GridSize": ("16", "16", "16"),
        "GridIndex": ("0", "0", "0"),
        "GridSpacing": ("14", "14", "14"),
        "GridOrigin": ("-105", "-105", "-105"),
        "GridDirection": ("1", "0", "0", "0", "1", "0", "0", "0", "1"),
        "TransformParameters": tuple(map(str, rng.normal(0, 30, 3 * 16**3))),
    }
    wild_end = answering(lambda *_, **__: [affine_stage(), wild])
    monkeypatch.setattr(registration, "Elastix", wild_end)
    flair, affine, brain, _ = make_scan(np.eye(3))
    found = register_template(Image(flair, affine), brain, template)
    assert found.used.stage == "affine"
    assert "folds" in found.used.note
    assert len(found.attempts) > 1
    assert found.transform.bspline is None
    assert any("fell back to the affine" in note for note in found.notes)


@pytest.mark.parametrize(
    ("stages", "overlaps", "enough"),
    [
        (["bspline"], [0.95], True),
        (["bspline"], [0.5], False),
        (["affine"], [0.95], False),  # its B-spline was dropped: once more from another start
        (["affine", "bspline"], [0.95, 0.95], True),
        (["affine", "bspline"], [0.95, 0.5], False),
        (["affine"] * 3, [0.95] * 3, True),
        (["affine"] * 3, [0.95, 0.5, 0.95], False),
        (["bspline"], [0.87], False),
        (["bspline", "bspline"], [0.87, 0.875], True),  # the brain mask is at fault, no start
        (["bspline", "affine", "bspline"], [0.87, 0.86, 0.865], True),
        (["bspline", "bspline"], [0.87, 0.85], False),
        (["bspline", "bspline"], [0.83, 0.83], False),
    ],
)
def test_starts_are_tried_until_one_is_good_or_nothing_better_is_to_come(stages, overlaps, enough):
    attempts = [
        Attempt("", stage, overlap=overlap, mutual_information=0.3)
        for stage, overlap in zip(stages, overlaps, strict=True)
    ]
    assert registration._enough(attempts) is enough


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"folded_fraction": 0.02}, "folds"),
        ({"overlap": 0.80}, "overlap fell"),
        ({"mutual_information": 0.05}, "mutual information fell"),
        ({}, ""),
    ],
)
def test_each_reason_to_drop_a_bspline(change, reason):
    affine = Attempt("", "affine", overlap=0.9, mutual_information=0.1)
    bspline = structs.replace(affine, stage="bspline", overlap=0.95, mutual_information=0.3)
    found = registration._implausible(structs.replace(bspline, **change), affine)
    assert (reason in found) if reason else found == ""


def test_an_empty_brain_mask_is_refused(template):
    flair, affine, brain, _ = make_scan(np.eye(3))
    with pytest.raises(ProcessingError, match="brain mask is empty"):
        register_template(Image(flair, affine), brain & False, template)


def test_template_files_on_different_grids_are_refused(template, tmp_path):
    other = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.float32), np.eye(4)), other)
    flair, affine, brain, _ = make_scan(np.eye(3))
    mixed = dataclasses.replace(template, brain_mask=other)
    with pytest.raises(ProcessingError, match="expected one grid"):
        register_template(Image(flair, affine), brain, mixed)


# ---- known lesions ----

TUMOUR = (15 + 30, -20 + 10, 30 + 5), (20, 26, 18)  # centre and radii, mm


def scan_with_tumour(turn=None):
    flair, affine, brain, _ = make_scan(np.eye(3) if turn is None else turn)
    return flair, affine, brain, ellipsoid(world_grid(brain.shape, affine), *TUMOUR) & brain


@pytest.mark.parametrize("turn", [np.eye(3), rotation(0, -8) @ rotation(2, 25)])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_known_lesions_are_left_out_where_they_lie(turn, flip):
    stored = np.diag([*flip, 1.0])
    flair, affine, brain, known = scan_with_tumour(turn)
    stored[:3, 3] = [(size - 1) * (way < 0) for size, way in zip(brain.shape, flip, strict=True)]
    affine = affine @ stored
    flair, brain, known = (
        image[:: flip[0], :: flip[1], :: flip[2]] for image in (flair, brain, known)
    )
    plain = registration._fixed(Image(flair, affine), brain, None)
    found = registration._fixed(Image(np.where(known, 400, flair), affine), brain, known)
    points = world_grid(found.brain.shape, found.image.affine)
    core, around = (ellipsoid(points, TUMOUR[0], np.add(TUMOUR[1], more)) for more in (-4, 6))
    assert core.sum() > 1000
    assert found.excluded[core].all()
    assert not found.excluded[~around].any()
    assert not plain.excluded.any()
    np.testing.assert_array_equal(found.brain, plain.brain)  # the lesion stays in the brain
    np.testing.assert_allclose(found.image.data[~around], plain.image.data[~around], atol=0.01)


def test_known_lesions_are_compared_with_nothing(monkeypatch, template):
    flair, affine, brain, known = scan_with_tumour()
    seen = []

    def elastix_stages(fixed, moving, mask, *_, **__):
        seen.append(mask)
        return [affine_stage()]

    monkeypatch.setattr(registration, "Elastix", answering(elastix_stages))
    monkeypatch.setattr(registration, "_enough", lambda attempts: True)
    start = np.eye(4)
    start[:3, 3] = -15, 20, -30
    monkeypatch.setattr(registration, "search_start", lambda *_: start)

    def information(value, excluded):
        image = np.where(known, value, flair)
        return register_template(Image(image, affine), brain, template, excluded=excluded).used

    aside, believed = (
        [information(value, excluded).mutual_information for value in (0, 110)]
        for excluded in (known, None)
    )
    assert abs(aside[0] - aside[1]) < 0.004  # images are blurred, so the rim still differs
    assert abs(believed[0] - believed[1]) > 0.012
    excluded = registration._fixed(Image(flair, affine), brain, known).excluded
    np.testing.assert_array_equal(seen[0], seen[-1] & ~excluded)


def test_the_search_looks_at_no_known_lesion(template):
    """Two heads that differ in the lesion alone start from the same place."""
    flair, affine, brain, known = scan_with_tumour()
    image = nib.load(template.t1w)
    moving = Image(image.get_fdata(dtype=np.float32), image.affine)
    starts = []
    for value in (0, 120):
        fixed = registration._fixed(Image(np.where(known, value, flair), affine), brain, known)
        excluded = ndimage.binary_dilation(fixed.excluded, iterations=4)  # the search blurs
        centre = np.array([15.0, -20.0, 30.0])
        starts.append(search_start(fixed.image, moving, centre, np.zeros(3), excluded))
    np.testing.assert_allclose(starts[0], starts[1], atol=0.5)


def test_known_lesions_that_leave_no_brain_are_an_error(template):
    flair, affine, brain, _ = make_scan(np.eye(3))
    with pytest.raises(ProcessingError, match="covers the whole brain mask; registration needs"):
        register_template(Image(flair, affine), brain, template, excluded=brain)


# ---- the child process ----


def child(monkeypatch, tmp_path, script):
    """Replace the child's interpreter by a shell script."""
    program = tmp_path / "child.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(program, 0o755)
    monkeypatch.setattr(elastix.sys, "executable", str(program))
    cube = Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    with elastix.Elastix() as runner:
        return runner.register(cube, cube, cube.data > 0, [affine_stage()], np.eye(4))


def test_a_segmentation_fault_becomes_an_error(monkeypatch, tmp_path):
    with pytest.raises(ProcessingError, match="ended by signal SIGSEGV"):
        child(monkeypatch, tmp_path, "echo last words; kill -SEGV $$")


def test_an_error_of_elastix_is_quoted(monkeypatch, tmp_path):
    with pytest.raises(ProcessingError, match="exit code 1 .*too many samples"):
        child(monkeypatch, tmp_path, "echo too many samples map outside; exit 1")


def test_an_unfinished_job_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(ProcessingError, match="exit code 0 instead of returning a transform"):
        child(monkeypatch, tmp_path, "exit 0")


def test_a_process_that_gets_no_job_ends_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(elastix.tempfile, "tempdir", str(tmp_path))
    with elastix.Elastix() as runner:
        process = runner._waiting._process
        assert list(tmp_path.iterdir())
    assert process.returncode is not None
    assert list(tmp_path.iterdir()) == []


def test_the_process_does_not_load_pytorch(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bagau_bids.preprocessing import elastix\n"
        "elastix._register(Path(sys.argv[1]))\n"
        "print('itk' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


# ---- parameters and measures ----


def test_the_presets_are_what_they_claim():
    affine, bspline = load_parameters("paper")
    for stage in (affine, bspline):
        assert stage["NumberOfResolutions"] == ("3",)
        assert stage["Metric"] == ("AdvancedMattesMutualInformation",)
        assert stage["Optimizer"] == ("StandardGradientDescent",)
        assert stage["MaximumNumberOfIterations"] == ("2000",)
    assert bspline["BSplineTransformSplineOrder"] == ("3",)
    for method in registration.METHODS:
        affine, bspline = load_parameters(method)
        assert affine["Transform"] == ("AffineTransform",)
        assert bspline["Transform"] == ("BSplineTransform",)
        assert "//" not in affine


def test_an_unknown_method_is_refused_with_the_choice():
    with pytest.raises(ProcessingError, match=r"'quick' is not known.*robust, paper"):
        load_parameters("quick")


def test_mutual_information_of_known_distributions():
    coin = np.tile([0.0, 1.0], 500)
    assert mutual_information(coin, 5 - coin) == pytest.approx(np.log(2))
    assert mutual_information(coin, np.repeat([0.0, 1.0], 500)) == pytest.approx(0, abs=1e-9)


def test_the_start_counts():
    start = np.eye(4)
    start[:3, 3] = 3, 4, 5
    np.testing.assert_allclose(from_elastix(start, [affine_stage()]).affine, start)
