"""Agreement of a segmentation with a reference, by the WMH Segmentation Challenge 2017.

Definitions follow Kuijf et al. 2019 (doi:10.1109/TMI.2019.2905770) and the challenge's
evaluation script. Where that script divides by zero the value is decided here:

================  =================  ====================  ==================
score             both empty         reference empty only  result empty only
================  =================  ====================  ==================
Dice              1                  0                     0
H95               0                  diagonal of the grid  diagonal of the grid
AVD               0                  100                   100
lesion recall     1                  1                     0
lesion precision  1                  0                     1
lesion F1         1                  0                     0
voxel precision   1                  0                     1
voxel recall      1                  1                     0
================  =================  ====================  ==================

F1 by lesion size is defined in `LesionCounts`; the challenge has none.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from bagau_bids.measures.lesions import RELATIVE_TOLERANCE, label_lesions, voxel_volume_mm3
from bagau_bids.spaces import Image

# Between small, medium and large lesions: 0.1 and 1 ml, both of which count as medium.
SIZE_LIMITS_MM3 = (100.0, 1000.0)
_FULLY_CONNECTED = np.ones((3, 3, 3))
# ITK's ball of radius (1, 1, 0) holds the corners: a 3 x 3 square in the plane of the slice.
_IN_PLANE = np.ones((3, 3, 1))


@dataclass(frozen=True)
class Scores:
    """Agreement of one scan; see the module for the empty cases.

    Parameters
    ----------
    dice : float
        2 |A and B| / (|A| + |B|) on voxels, 0 to 1.
    hausdorff95_mm : float
        The larger of the two directed 95th percentiles of surface distance, mm.
    volume_difference_percent : float
        Absolute volume difference (AVD), percent of the reference volume.
    lesion_recall : float
        Reference lesions that share a voxel with the result / reference lesions, 0 to 1.
    lesion_precision : float
        The same detected reference lesions / lesions of the result. Above 1 where one
        lesion of the result covers several of the reference.
    lesion_f1 : float
        Harmonic mean of recall and precision, so it too may exceed 1.
    """

    dice: float
    hausdorff95_mm: float
    volume_difference_percent: float
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one size: how many there are, and how many share a voxel with the other mask.

    Every lesion is judged once, in the class of its own size, whatever the size of what it meets
    in the other mask. That is why precision is not that of the challenge: its numerator, the
    detected lesions of the reference, would be of another class than its denominator wherever
    a lesion of the reference meets a larger or smaller one.

    Parameters
    ----------
    reference : int
        Lesions of the reference.
    detected : int
        Those that share a voxel with the result.
    result : int
        Lesions of the result.
    matching : int
        Those that share a voxel with the reference.
    """

    reference: int
    detected: int
    result: int
    matching: int

    @property
    def recall(self) -> float:
        """Detected lesions / lesions of the reference, 0 to 1; 1 where there is none to find."""
        return self.detected / self.reference if self.reference else 1.0

    @property
    def precision(self) -> float:
        """Matching lesions / lesions of the result, 0 to 1; 1 where none was found."""
        return self.matching / self.result if self.result else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision, 0 to 1; 1 where neither mask has a lesion."""
        return _harmonic_mean(self.recall, self.precision)


@dataclass(frozen=True)
class CaseScores(Scores):
    """Everything that is measured of one scan: the challenge's scores and what they leave out.

    Parameters
    ----------
    voxel_recall, voxel_precision : float
        Voxels of both masks / voxels of the reference, of the result, 0 to 1.
    reference_ml, result_ml : float
        Volumes, without voxels where the reference is 2.
    small, medium, large : LesionCounts
        Lesions below 0.1 ml, from 0.1 to 1 ml, and above 1 ml.
    """

    voxel_recall: float
    voxel_precision: float
    reference_ml: float
    result_ml: float
    small: LesionCounts
    medium: LesionCounts
    large: LesionCounts

    @property
    def volume_difference_ml(self) -> float:
        """Signed volume difference, ml: result minus reference."""
        return self.result_ml - self.reference_ml

    @property
    def reference_lesions(self) -> int:
        """Lesions of the reference, of all sizes."""
        return self.small.reference + self.medium.reference + self.large.reference

    @property
    def result_lesions(self) -> int:
        """Lesions of the result, of all sizes."""
        return self.small.result + self.medium.result + self.large.result


def case_scores(reference: Image, result: np.ndarray) -> CaseScores:
    """Measure everything; arguments and errors are those of `challenge_scores`."""
    truth, found = comparable_masks(reference.data, result)
    recall, precision = voxel_recall_and_precision(truth, found)
    voxel_mm3 = voxel_volume_mm3(reference.affine)
    small, medium, large = lesion_counts_by_size(truth, found, voxel_mm3)
    return CaseScores(
        **asdict(challenge_scores(reference, result)),
        voxel_recall=recall,
        voxel_precision=precision,
        reference_ml=np.count_nonzero(truth) * (voxel_mm3 / 1000),
        result_ml=np.count_nonzero(found) * (voxel_mm3 / 1000),
        small=small,
        medium=medium,
        large=large,
    )


def challenge_scores(reference: Image, result: np.ndarray) -> Scores:
    """Score a result against a reference of the challenge's labels.

    Parameters
    ----------
    reference : Image
        0 background, 1 WMH, 2 other pathology: ignored in both images. Slices lie in the plane of
        axes 0 and 1.
    result : (X, Y, Z) array
        On the grid of the reference; non-zero is WMH.

    Raises
    ------
    ValueError
        If the shapes differ, or the reference holds other labels than 0, 1 and 2.
    """
    truth, found = comparable_masks(reference.data, result)
    recall, precision, f1 = lesion_detection(truth, found)
    return Scores(
        dice=dice(truth, found),
        hausdorff95_mm=hausdorff95_mm(Image(truth, reference.affine), found),
        volume_difference_percent=volume_difference_percent(truth, found),
        lesion_recall=recall,
        lesion_precision=precision,
        lesion_f1=f1,
    )


def comparable_masks(reference: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Binary masks of both images, without the voxels where the reference is 2.

    Returns
    -------
    truth, found : (X, Y, Z) bool arrays

    Raises
    ------
    ValueError
        If the shapes differ, or the reference holds other labels than 0, 1 and 2.
    """
    reference, result = np.asarray(reference), np.asarray(result)
    if reference.shape != result.shape:
        raise ValueError(
            f"reference {reference.shape} and result {result.shape} must share one grid"
        )
    if reference.dtype != bool and not np.isin(reference, (0, 1, 2)).all():
        raise ValueError("the reference must hold 0, 1 (WMH) and 2 (other pathology) only")
    return reference == 1, (result != 0) & (reference != 2)


def dice(truth: np.ndarray, found: np.ndarray) -> float:
    """Dice similarity coefficient of two binary masks; 1 when both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(found)
    if total == 0:
        return 1.0
    return 2.0 * np.count_nonzero(np.logical_and(truth, found)) / total


def volume_difference_percent(truth: np.ndarray, found: np.ndarray) -> float:
    """Absolute volume difference in percent of the reference volume (AVD).

    With an empty reference: 0 when the result is empty too, otherwise 100, the value of the
    opposite mistake, since no finite share of nothing exists.
    """
    truth_voxels, found_voxels = np.count_nonzero(truth), np.count_nonzero(found)
    if truth_voxels == 0:
        return 100.0 if found_voxels else 0.0
    return 100.0 * abs(truth_voxels - found_voxels) / truth_voxels


def hausdorff95_mm(truth: Image, found: np.ndarray) -> float:
    """Measure the distance of the surfaces, mm: modified (95th percentile) Hausdorff.

    A surface is what an erosion in the plane of axes 0 and 1 takes away; voxels beyond the
    grid count as inside, as in ITK; of a mask that fills its slices all voxels are taken.
    Distances run between voxel centres in world coordinates; of each direction the 95th
    percentile, of both the larger. Empty masks: 0 when both are, otherwise the distance
    between opposite corners of the grid, the worst that this grid allows.
    """
    truth_any, found_any = bool(np.any(truth.data)), bool(np.any(found))
    if not truth_any and not found_any:
        return 0.0
    linear = truth.affine[:3, :3]
    if not (truth_any and found_any):
        return _longest_diagonal_mm(truth.shape, linear)
    truth_points = _surface(truth.data) @ linear.T
    found_points = _surface(found) @ linear.T
    to_truth, _ = KDTree(truth_points).query(found_points)
    to_found, _ = KDTree(found_points).query(truth_points)
    return float(max(np.percentile(to_truth, 95), np.percentile(to_found, 95)))


def lesion_detection(truth: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Recall, precision and F1 on lesions: components with 26 neighbours of each mask.

    Both recall and precision count the reference lesions that share a voxel with the
    result; see `Scores`.
    """
    truth_labels, truth_lesions = ndimage.label(truth, structure=_FULLY_CONNECTED)
    _, found_lesions = ndimage.label(found, structure=_FULLY_CONNECTED)
    hit = np.unique(truth_labels[np.asarray(found, dtype=bool)])
    detected = np.count_nonzero(hit)
    recall = detected / truth_lesions if truth_lesions else 1.0
    precision = detected / found_lesions if found_lesions else 1.0
    return float(recall), float(precision), float(_harmonic_mean(recall, precision))


def voxel_recall_and_precision(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Share of the reference's voxels that were found, and of the found ones that are right.

    1 where there is nothing to find, and where nothing was found; see the module.
    """
    both = np.count_nonzero(np.logical_and(truth, found))
    truth_voxels, found_voxels = np.count_nonzero(truth), np.count_nonzero(found)
    recall = both / truth_voxels if truth_voxels else 1.0
    precision = both / found_voxels if found_voxels else 1.0
    return float(recall), float(precision)


def lesion_counts_by_size(
    truth: np.ndarray, found: np.ndarray, voxel_mm3: float
) -> tuple[LesionCounts, LesionCounts, LesionCounts]:
    """Count lesions below 0.1 ml, from 0.1 to 1 ml (both included), and above 1 ml."""
    truth_class, detected = _sizes_and_hits(truth, found, voxel_mm3)
    found_class, matching = _sizes_and_hits(found, truth, voxel_mm3)
    small, medium, large = (
        LesionCounts(
            reference=int(np.count_nonzero(truth_class == size)),
            detected=int(np.count_nonzero(detected[truth_class == size])),
            result=int(np.count_nonzero(found_class == size)),
            matching=int(np.count_nonzero(matching[found_class == size])),
        )
        for size in range(3)
    )
    return small, medium, large


def _sizes_and_hits(
    mask: np.ndarray, other: np.ndarray, voxel_mm3: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each lesion of a mask, its class of size (0, 1, 2) and whether it meets the other."""
    labels = label_lesions(mask)
    count = int(labels.max(initial=0)) + 1
    sizes_mm3 = np.bincount(labels.ravel(), minlength=count)[1:] * voxel_mm3
    hit = np.bincount(labels[np.asarray(other, dtype=bool)], minlength=count)[1:] > 0
    low, high = SIZE_LIMITS_MM3
    not_small = sizes_mm3 >= low * (1 - RELATIVE_TOLERANCE)
    return not_small.astype(int) + (sizes_mm3 > high * (1 + RELATIVE_TOLERANCE)), hit


def _harmonic_mean(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _surface(mask: np.ndarray) -> np.ndarray:
    """(N, 3) voxel indices of a mask's in-plane boundary; all, where it has none."""
    inside = np.asarray(mask, dtype=bool)
    eroded = ndimage.binary_erosion(inside, structure=_IN_PLANE, border_value=1)
    edge = inside & ~eroded
    return np.argwhere(edge if edge.any() else inside).astype(float)


def _longest_diagonal_mm(shape: tuple[int, ...], linear: np.ndarray) -> float:
    """Longest distance between centres of corner voxels, mm."""
    size = np.asarray(shape, dtype=float) - 1
    signs = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]], dtype=float)
    return float(np.linalg.norm((signs * size) @ linear.T, axis=1).max())
