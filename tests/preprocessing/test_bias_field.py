import numpy as np
import pytest
from scipy import ndimage

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.bias_field import correct_bias_field, estimate_bias_field
from bagau_bids.spaces import Image

GREY, WHITE, FLUID, LESION = 120.0, 100.0, 20.0, 155.0
QUICK = {"grid_mm": 8.0, "iterations": (10, 10)}  # for what holds at any resolution


class Head:
    """Nested ellipsoids of grey matter, white matter and fluid in a bright scalp, with lesions."""

    def __init__(self, spacing_mm, seed=5):
        extent = np.array([168.0, 200.0, 144.0])
        shape = np.round(extent / spacing_mm).astype(int)
        self.affine = np.diag([*spacing_mm, 1.0])
        grid = np.moveaxis(np.indices(shape), 0, -1) * spacing_mm
        grid = grid - (shape - 1) * np.asarray(spacing_mm) / 2

        def ellipsoid(x, y, z, centre=(0, 0, 0)):
            return ((((grid - centre) / (x, y, z)) ** 2).sum(-1)) < 1

        self.brain = ellipsoid(65, 80, 58)
        inner = ellipsoid(55, 70, 48)
        ventricle = ellipsoid(14, 28, 14)
        self.lesion = ellipsoid(24, 12, 12, (20, 18, 12)) & ~ventricle
        self.lesion |= ellipsoid(12, 20, 12, (-22, -22, 10)) & ~ventricle
        self.white = inner & ~ventricle & ~self.lesion
        self.grey = self.brain & ~inner
        rng = np.random.default_rng(seed)
        clean = np.where(ellipsoid(76, 92, 68), 300.0, 0.0)
        for tissue, value in (
            (self.brain, GREY),
            (inner, WHITE),
            (ventricle, FLUID),
            (self.lesion, LESION),
        ):
            clean[tissue] = value
        self.clean = clean + rng.normal(0, 3, shape)
        unit = grid / 80
        log_field = 0.25 * unit[..., 0] - 0.2 * unit[..., 1] ** 2 + 0.2 * unit[..., 2]
        log_field += 0.15 * np.sin(2 * unit[..., 1] * unit[..., 0])
        self.field = np.exp(log_field)
        self.field /= self.field[self.brain].mean()
        self.flair = self.clean * self.field


def _variation(values):
    return values.std() / values.mean()


def _contrast(head, image):
    near = ndimage.binary_dilation(head.lesion, iterations=3) & head.white
    return image[head.lesion].mean() / image[near].mean()


@pytest.fixture(scope="module")
def head():
    return Head((2.0, 2.0, 6.0))


@pytest.fixture(scope="module")
def estimated(head):
    return estimate_bias_field(Image(head.flair, head.affine), head.brain, **QUICK)


@pytest.mark.parametrize("spacing_mm", [(2.0, 2.0, 6.0), (6.5, 2.5, 2.5)])
def test_a_known_field_is_taken_out(spacing_mm):
    head = Head(spacing_mm)
    field = estimate_bias_field(Image(head.flair, head.affine), head.brain)
    corrected = head.flair / field
    for tissue in (head.white, head.grey):
        noise = _variation(head.clean[tissue])
        before = _variation(head.flair[tissue])
        after = _variation(corrected[tissue])
        assert before > 3 * noise
        assert after < before / 2
        assert after < 2 * noise
    found, true = np.log(field)[head.brain], np.log(head.field)[head.brain]
    assert np.corrcoef(found, true)[0, 1] > 0.92
    assert (found - true).std() < true.std() / 2
    assert _contrast(head, corrected) == pytest.approx(_contrast(head, head.clean), rel=0.03)


def test_the_field_is_positive_and_one_on_average(head, estimated):
    assert estimated.dtype == np.float32
    assert estimated.shape == head.flair.shape
    assert estimated.min() > 0
    assert estimated[head.brain].mean() == pytest.approx(1, abs=1e-5)


def test_the_field_stays_in_its_range_outside_the_brain(head, estimated):
    inside = estimated[head.brain]
    assert estimated.min() >= 0.98 * inside.min()
    assert estimated.max() <= 1.02 * inside.max()


def test_the_field_has_no_jumps(head, estimated):
    log_field = np.log(estimated)
    for axis, spacing in enumerate((2.0, 2.0, 6.0)):
        assert np.abs(np.diff(log_field, axis=axis)).max() / spacing < 0.02  # per mm


def test_an_image_without_a_field_is_left_nearly_alone(head):
    field = estimate_bias_field(Image(head.clean, head.affine), head.brain, **QUICK)
    assert np.log(field)[head.brain].std() < 0.03


def test_the_result_is_the_same_twice(head, estimated):
    again = estimate_bias_field(Image(head.flair, head.affine), head.brain, **QUICK)
    assert np.array_equal(again, estimated)


def test_the_image_outside_of_the_brain_does_not_matter(head, estimated):
    other = Image(np.where(head.brain, head.flair, 7000.0), head.affine)
    assert np.array_equal(estimate_bias_field(other, head.brain, **QUICK), estimated)


def test_the_unit_of_intensity_does_not_matter(head, estimated):
    scaled = estimate_bias_field(Image(head.flair / 4096, head.affine), head.brain, **QUICK)
    assert np.allclose(scaled, estimated, atol=1e-3)


def test_where_the_head_lies_does_not_matter(head, estimated):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = 10, -300, 40
    tilted = estimate_bias_field(Image(head.flair, turn @ head.affine), head.brain, **QUICK)
    assert np.allclose(tilted, estimated, atol=1e-3)


def test_correction_divides_by_the_field(head, estimated):
    corrected = correct_bias_field(Image(head.flair, head.affine), head.brain, **QUICK).data
    assert corrected.dtype == np.float32
    assert np.allclose(corrected, head.flair / estimated, rtol=1e-5, atol=1e-3)


def test_negative_intensities_count_from_the_lowest(head):
    normalised = (head.flair - 90) / 30
    lowest = normalised[head.brain].min()
    assert lowest < 0
    corrected, expected = (
        correct_bias_field(Image(flair, head.affine), head.brain, **QUICK).data
        for flair in (normalised, normalised - lowest)
    )
    assert np.allclose(corrected, expected, atol=1e-4)
    assert corrected[head.brain].min() == 0


def test_a_tiny_mask_is_refused(head):
    tiny = np.zeros_like(head.brain)
    tiny[40:48, 40:48, 10:12] = True
    with pytest.raises(ProcessingError, match=r"holds 3\.1 ml, expected more than 50.*--deriv"):
        estimate_bias_field(Image(head.flair, head.affine), tiny)


def test_a_brain_without_signal_is_refused(head):
    with pytest.raises(ProcessingError, match="no signal in the brain mask"):
        estimate_bias_field(Image(np.zeros_like(head.flair), head.affine), head.brain)
