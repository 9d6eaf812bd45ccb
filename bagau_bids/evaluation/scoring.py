"""Masks read from disk, checked against each other, and scored; one bad case spoils no other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bagau_bids.errors import InputImageError
from bagau_bids.evaluation.pairs import MaskPair, Unpaired
from bagau_bids.measures.metrics import CaseScores, case_scores
from bagau_bids.preprocessing.conform import StoredVolume, read_volume
from bagau_bids.spaces import Image, grid_distance_mm, reorient

REFERENCE_LABELS = (0, 1, 2)
EIGHT_BIT_WMH = 255  # what editors of 8-bit masks write for 1
# Two headers that say the same differ by rounding only, far below this at any corner.
GRID_TOLERANCE_MM = 0.1
_ROUNDING = 1e-4  # scaled storage turns 1 into 1.00000006
_MOST_VALUES = 6  # that a message lists


@dataclass(frozen=True)
class Mask(Image):
    """A mask that may be compared: labels, uint8, in RAS order.

    Parameters
    ----------
    stored : StoredVolume
        The mask as it lies in its file.
    """

    stored: StoredVolume


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Parameters
    ----------
    case : str
    scores : CaseScores or None
        None where the case could not be scored.
    problem : str
        Why not; empty where it was.
    pair : MaskPair or None
        The files; None where they did not make a pair.
    entities : dict
        Entities of the scan, short key to label; empty for plain files.
    """

    case: str
    scores: CaseScores | None = None
    problem: str = ""
    pair: MaskPair | None = None
    entities: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def status(self) -> str:
        """``scored``, ``failed``, or ``unpaired`` where there is no pair of files."""
        if self.scores is not None:
            return "scored"
        return "failed" if self.pair is not None else "unpaired"


def unpaired_results(unpaired: Iterable[Unpaired]) -> list[CaseResult]:
    """Results of cases whose files do not make a pair, for the table."""
    return [CaseResult(one.case, problem=one.problem, entities=one.entities) for one in unpaired]


def evaluate_pairs(
    pairs: Iterable[MaskPair],
    *,
    threshold: float | None = None,
    progress: Callable[[CaseResult], None] = lambda result: None,
) -> list[CaseResult]:
    """Score pair after pair; one that cannot be has the reason in its `problem`.

    Parameters
    ----------
    pairs : iterable of MaskPair
    threshold : float or None
        From which value on a voxel of a probability map is WMH; None refuses such maps.
    progress : callable
        Gets each result as it is there.
    """
    results = []
    for pair in pairs:
        results.append(evaluate_pair(pair, threshold=threshold))
        progress(results[-1])
    return results


def evaluate_pair(pair: MaskPair, *, threshold: float | None = None) -> CaseResult:
    """Score one pair; see `evaluate_pairs`."""
    try:
        reference, result = read_pair(pair, threshold=threshold)
    except InputImageError as error:
        return CaseResult(pair.case, None, str(error), pair, pair.entities)
    scores = case_scores(reference, result.data)
    return CaseResult(pair.case, scores, "", pair, pair.entities)


def read_pair(pair: MaskPair, *, threshold: float | None = None) -> tuple[Mask, Mask]:
    """Read both masks of a pair on their common grid.

    Raises
    ------
    InputImageError
        If either cannot be read or holds other values than expected, or the grids differ.
    """
    reference = read_reference_mask(pair.reference)
    result = read_result_mask(pair.result, threshold=threshold)
    check_grid(result.stored, reference.stored)
    return reference, result


def read_reference_mask(path: Path) -> Mask:
    """Read a mask with the labels of the challenge: 0, 1 (WMH) and 2 (other pathology).

    A mask of 0 and 255, as ITK-SNAP and FSLeyes write them, is one of 0 and 1.

    Raises
    ------
    InputImageError
        If it cannot be read or holds other values.
    """
    stored = read_volume(path)
    values = _distinct_values(path, stored)
    whole = np.rint(values)
    if whole.tolist() == [0, EIGHT_BIT_WMH] and np.allclose(values, whole, atol=_ROUNDING):
        return _mask(stored, np.rint(stored.data) != 0)
    if not np.isin(whole, REFERENCE_LABELS).all() or not np.allclose(
        values, whole, atol=_ROUNDING
    ):
        raise InputImageError(
            f"{path}: values {_listed(values)}; expected 0 (background), 1 (WMH) and 2 (other "
            "pathology, not judged), or 0 and 255 (WMH): give a mask, not a map of lesions or "
            "probabilities"
        )
    return _mask(stored, np.rint(stored.data))


def read_result_mask(path: Path, *, threshold: float | None = None) -> Mask:
    """Read a binary mask: 0 and one other value, 1 or 255.

    Parameters
    ----------
    path : Path
    threshold : float or None
        From which value on a voxel of a probability map is WMH; None refuses such maps.

    Raises
    ------
    InputImageError
        If it cannot be read or is not binary; a probability map is called one.
    """
    stored = read_volume(path)
    values = _distinct_values(path, stored)
    whole = np.rint(values)
    if np.allclose(values, whole, atol=_ROUNDING):
        foreground = np.unique(whole[whole != 0])
        if not foreground.size or foreground.tolist() in ([1], [EIGHT_BIT_WMH]):
            return _mask(stored, np.rint(stored.data) != 0)
    elif values.min() >= 0 and values.max() <= 1 + _ROUNDING:
        if threshold is not None:
            return _mask(stored, stored.data >= threshold)
        raise InputImageError(
            f"{path}: values {_listed(values)}, a probability map and not a mask; expected 0 and "
            "1: give the mask made from it, or say to bagau evaluate with --threshold from which "
            "probability on a voxel counts, such as --threshold 0.5"
        )
    raise InputImageError(
        f"{path}: values {_listed(values)}, not a binary mask; expected 0 and 1 (or 0 and 255): "
        "give WMH alone, without other classes and without numbers for lesions"
    )


def check_grid(stored: StoredVolume, expected: StoredVolume) -> None:
    """Make sure that two volumes have the same voxels at the same places of the world.

    The order in which files store the voxels may differ.

    Raises
    ------
    InputImageError
        If they have not; the message holds both sizes and affines.
    """
    found, other = reorient(stored), reorient(expected)
    distance_mm = 0.0
    if found.shape == other.shape:
        distance_mm = grid_distance_mm(found, other.affine)
        if distance_mm <= GRID_TOLERANCE_MM:
            return
    apart = f", {distance_mm:.1f} mm away at a corner" if distance_mm else ""
    raise InputImageError(
        f"{stored.path}: grid {_grid_in_words(stored)}{apart}; expected that of {expected.path}, "
        f"{_grid_in_words(expected)}: resample the mask with nearest neighbours"
    )


def _distinct_values(path: Path, stored: StoredVolume) -> NDArray:
    """Sorted values of a volume, all finite."""
    values = np.unique(stored.data)
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(stored.data))
        raise InputImageError(
            f"{path}: {count} voxels are NaN or infinite; expected the numbers of a mask: set "
            "them to 0 if they are background"
        )
    return values


def _mask(stored: StoredVolume, labels: NDArray) -> Mask:
    ras = reorient(Image(labels.astype(np.uint8), stored.affine))
    return Mask(ras.data, ras.affine, stored)


def _listed(values: NDArray) -> str:
    """First values, shortened, e.g. ``[0, 0.25, 0.5, ... 40 in all]``."""
    shown = [f"{value:.4g}" for value in values[:_MOST_VALUES].tolist()]
    if len(values) > _MOST_VALUES:
        shown.append(f"... {values[-1]:.4g} ({len(values)} in all)")
    return f"[{', '.join(shown)}]"


def _grid_in_words(volume: StoredVolume) -> str:
    return f"{volume.shape} with affine {volume.affine.round(3).tolist()}"
