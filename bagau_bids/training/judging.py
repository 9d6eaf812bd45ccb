"""What a streaming training is judged by: scans of several raters, healthy heads, infarcts.

One rater leaves out what another outlines, so no threshold suits all, and the highest Dice on one
data set says little. The point from which a voxel is called WMH is put where volumes fit on the
whole: each style of labels counts the same, synthetic heads, whose truth is known, being one. At
that point Dice is taken, and what is found where nothing is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.measures.infarcts import tell_apart
from bagau_bids.measures.metrics import comparable_masks, lesion_detection
from bagau_bids.network import cards
from bagau_bids.network.cards import UNCALIBRATED, Calibration
from bagau_bids.network.inference import calibrated, segment
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import LoadedNetwork
from bagau_bids.spaces import Image, voxel_sizes
from bagau_bids.synthesis.engine import synthesise
from bagau_bids.synthesis.heads import TrainingHead, pool_settings
from bagau_bids.synthesis.pool import NOT_JUDGED, WMH
from bagau_bids.training.calibration import THRESHOLDS, has_lesions
from bagau_bids.training.sources import decode
from bagau_bids.training.stroke import unpack_infarcts

SYNTHETIC, HEALTHY, INFARCTS = "synthetic", "healthy", "infarcts"
FITTING_RANGE = (0.25, 0.75)  # of thresholds: beyond, no probability is worth its name
FITTING = tuple(level for level in THRESHOLDS if FITTING_RANGE[0] <= level <= FITTING_RANGE[1])
EMPTY_ML_PER_DICE = 10.0  # ml invented in a healthy head that cost as much as all of the Dice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedScan:
    """A scan with its truth, and the style of its labels.

    Parameters
    ----------
    scan : TrainingScan
    style : str
        Scans whose labels are of the same raters, or of the engine.
    """

    scan: TrainingScan
    style: str


@dataclass(frozen=True)
class InfarctSlices:
    """Slices with infarcts that training never draws, on the host.

    Parameters
    ----------
    flair : (N, 200, 200) uint8 array
        Codes.
    infarct : (N, 200, 200) bool array
    atlas : (200, 200) uint8 array
    """

    flair: NDArray[np.uint8]
    infarct: NDArray[np.bool_]
    atlas: NDArray[np.uint8]


@dataclass(frozen=True)
class Judgement:
    """One line of ``validation.csv``; what does not apply is not a number.

    Parameters
    ----------
    scan : str
        With the name of the network before it.
    style : str
    threshold : float
        At which the rest was measured; of the network's own probability of WMH.
    dice, lesion_recall, lesion_f1 : float
    reference_ml, result_ml : float
    infarct_called_wmh : float
        Of all slices with infarcts, the share of the infarct's area.
    infarct_dice : float
        Of the output for infarcts, at its own threshold.
    wmh_outside_cm2 : float
        WMH outside of the infarct, of a slice.
    """

    scan: str
    style: str
    threshold: float
    dice: float = np.nan
    lesion_recall: float = np.nan
    lesion_f1: float = np.nan
    reference_ml: float = np.nan
    result_ml: float = np.nan
    infarct_called_wmh: float = np.nan
    infarct_dice: float = np.nan
    wmh_outside_cm2: float = np.nan


@dataclass(frozen=True)
class Verdict:
    """What a network is worth.

    Parameters
    ----------
    score : float
        Mean Dice of the labelled scans, less the share of infarcts called WMH, less a tenth for
        each ml found in a healthy head (median).
    calibration : Calibration
        Where volumes of WMH, and areas of infarct, fit.
    lines : tuple of Judgement
    """

    score: float
    calibration: Calibration
    lines: tuple[Judgement, ...]


def synthetic_scans(
    heads: Sequence[TrainingHead], count: int, seed: int, *, healthy: bool
) -> list[TrainingScan]:
    """Draw whole synthetic scans to judge by, their truth as the reference.

    Parameters
    ----------
    heads : sequence of TrainingHead
    count, seed : int
    healthy : bool
        Without lesions and infarcts, or as they come.
    """
    settings = pool_settings()
    if healthy:
        settings = replace(settings, lesions=replace(settings.lesions, none_probability=1.0))
    scans = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        prepared = heads[int(rng.integers(len(heads)))]
        drawn = synthesise(prepared.head, int(rng.integers(2**31)), settings, prepared.lesions)
        assert drawn.wm_atlas is not None
        inputs = network_input(Image(drawn.flair, drawn.affine), drawn.brain_mask, drawn.wm_atlas)
        reference = drawn.wmh_mask.astype(np.uint8)
        name = f"{HEALTHY if healthy else SYNTHETIC}-{number:02d}"
        scans.append(
            TrainingScan(name, name, 0, inputs, drawn.brain_mask, reference, drawn.affine)
        )
    return scans


def held_out_infarcts(arrays: dict[str, NDArray], pixels: int) -> InfarctSlices:
    """Slices of a pack that training leaves alone and that show an infarct.

    Parameters
    ----------
    arrays : dict of str to array
        As :func:`bagau_bids.training.stroke.stroke_arrays` makes them.
    pixels : int
        Of the infarct, at least.
    """
    infarct = unpack_infarcts(arrays)
    kept = arrays["held_out"] & (infarct.sum(axis=(1, 2)) >= pixels)
    levels = arrays["atlas"]
    return InfarctSlices(arrays["flair"][kept], infarct[kept], levels[len(levels) // 2])


def judge(
    name: str,
    network: LoadedNetwork,
    scans: Sequence[JudgedScan],
    infarcts: InfarctSlices | None,
    device: torch.device,
    calibration: Calibration | None = None,
) -> Verdict:
    """Segment everything once and measure it, where volumes fit if nothing else is said.

    Parameters
    ----------
    name : str
        Of the network, for the lines.
    network : LoadedNetwork
        Put into evaluation mode; its own calibration does not count.
    scans : sequence of JudgedScan
    infarcts : InfarctSlices or None
    device : torch.device
    calibration : Calibration, optional
        The fitting one without it.
    """
    network.model.eval()
    bare = network.calibrated(Calibration())
    found = [
        segment([bare], one.scan.inputs, one.scan.brain_mask, device=device, batch_size=32)
        for one in scans
    ]
    in_slices = None if infarcts is None else _of_slices(network, infarcts, device)
    if calibration is None:
        calibration = Calibration(
            fitting_threshold(scans, [one.probability for one in found]),
            UNCALIBRATED
            if in_slices is None or in_slices.infarct is None
            else fitting_area(in_slices.infarct, in_slices.slices.infarct),
        )
    lines = [
        _line(
            name,
            one,
            _told_apart(result.probability, result.infarct_probability, calibration)[0],
            calibration.threshold,
        )
        for one, result in zip(scans, found, strict=True)
    ]
    if in_slices is not None:
        lines.append(_infarct_line(name, in_slices, calibration))
    return Verdict(_score(lines), calibration, tuple(lines))


def _told_apart(
    wmh: NDArray, infarct: NDArray | None, calibration: Calibration
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """WMH and infarct, as they are told apart where the network is used."""
    return tell_apart(
        calibrated(wmh, calibration.threshold),
        None if infarct is None else calibrated(infarct, calibration.infarct_threshold),
        UNCALIBRATED,
    )


def fitting_threshold(scans: Sequence[JudgedScan], probabilities: Sequence[NDArray]) -> float:
    """Threshold at which the volumes of all styles are off by the smallest factor on average.

    Of each style the logarithm of the ratio of its summed volumes is taken; scans without lesions
    have no say. The threshold is within :data:`FITTING_RANGE`.
    """
    styles = sorted({one.style for one in scans if has_lesions(one.scan)})
    offs = []
    for style in styles:
        reference, result = 0.0, np.zeros(len(FITTING))
        for one, probability in zip(scans, probabilities, strict=True):
            if one.style != style or not has_lesions(one.scan):
                continue
            voxel = float(np.prod(voxel_sizes(one.scan.affine)))
            judged = probability[one.scan.reference != NOT_JUDGED]
            reference += float((one.scan.reference == WMH).sum()) * voxel
            result += np.array([(judged >= level).sum() for level in FITTING]) * voxel
        offs.append(np.abs(np.log(np.maximum(result, 1e-3) / reference)))
    if not offs:
        return UNCALIBRATED
    return float(FITTING[int(np.argmin(np.mean(offs, axis=0)))])


def fitting_area(probability: NDArray, truth: NDArray[np.bool_]) -> float:
    """Threshold within :data:`FITTING_RANGE` at which an area is off by the smallest factor.

    Of several the one nearest to one half.

    Parameters
    ----------
    probability, truth : (N, H, W) arrays
        Of pixels of one size.
    """
    areas = np.array([np.count_nonzero(probability >= level) for level in FITTING])
    offs = np.abs(np.log(np.maximum(areas, 1) / max(np.count_nonzero(truth), 1)))
    best = np.flatnonzero(offs == offs.min())
    return min((FITTING[index] for index in best), key=lambda level: abs(level - UNCALIBRATED))


def _line(name: str, one: JudgedScan, wmh: NDArray[np.bool_], threshold: float) -> Judgement:
    scan = one.scan
    voxel_ml = float(np.prod(voxel_sizes(scan.affine))) / 1000
    true, result = comparable_masks(scan.reference, wmh)
    line = Judgement(
        scan=f"{name}: {scan.name}",
        style=one.style,
        threshold=threshold,
        reference_ml=float(true.sum()) * voxel_ml,
        result_ml=float(result.sum()) * voxel_ml,
    )
    if not true.any():
        return line
    box = _box(true | result)
    recall, _, f1 = lesion_detection(true[box], result[box])
    both = float((true & result).sum())
    return replace(
        line,
        dice=2 * both / float(true.sum() + result.sum()),
        lesion_recall=recall,
        lesion_f1=f1,
    )


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box that holds a mask, which is not empty."""
    sides = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        sides.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(sides)


@dataclass(frozen=True)
class _SliceProbabilities:
    """What a network says of slices with infarcts, (N, 200, 200) each."""

    slices: InfarctSlices
    wmh: NDArray[np.float32]
    infarct: NDArray[np.float32] | None


@torch.no_grad()
def _of_slices(
    network: LoadedNetwork, slices: InfarctSlices, device: torch.device
) -> _SliceProbabilities:
    found = []
    for first in range(0, len(slices.flair), 32):
        flair = decode(torch.from_numpy(slices.flair[first : first + 32]).to(device))[:, None]
        atlas = (torch.from_numpy(slices.atlas).to(device).float() / 255).expand_as(flair)
        found.append(network.model(flair=flair, atlas=atlas).float().sigmoid().cpu().numpy())
    outputs = np.concatenate(found).swapaxes(0, 1)
    by_name = dict(zip(network.outputs, outputs, strict=True))
    return _SliceProbabilities(slices, by_name[cards.WMH], by_name.get(cards.INFARCT))


def _infarct_line(name: str, found: _SliceProbabilities, calibration: Calibration) -> Judgement:
    wmh, infarct = _told_apart(found.wmh, found.infarct, calibration)
    truth, brain = found.slices.infarct, found.slices.flair > 0
    area = int(truth.sum())
    both, said = int((infarct & truth).sum()), int(infarct.sum())
    return Judgement(
        scan=f"{name}: {INFARCTS}",
        style=INFARCTS,
        threshold=calibration.threshold,
        infarct_called_wmh=int((wmh & truth & brain).sum()) / max(area, 1),
        infarct_dice=np.nan if found.infarct is None else 2 * both / max(said + area, 1),
        wmh_outside_cm2=int((wmh & ~truth & brain).sum()) / 100 / max(len(truth), 1),
    )


def _score(lines: Sequence[Judgement]) -> float:
    dice = [line.dice for line in lines if np.isfinite(line.dice) and line.style != SYNTHETIC]
    healthy = [line.result_ml for line in lines if line.style == HEALTHY]
    called = [line.infarct_called_wmh for line in lines if line.style == INFARCTS]
    score = float(np.mean(dice)) if dice else 0.0
    if called:
        score -= called[0]
    if healthy:
        score -= float(np.median(healthy)) / EMPTY_ML_PER_DICE
    return score
