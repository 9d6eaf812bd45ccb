"""Losses of the slice networks.

A target holds 0 (background), 1 (WMH), 2 (other pathology, judged neither way, as in the
WMH Segmentation Challenge), 3 (infarct) and 4 (an infarct that could be a WMH by its looks).
What each output of a network shall find, and where it is not judged, is in :data:`JUDGEMENTS`.

References
----------
Salehi SSM, Erdogmus D, Gholipour A. Tversky loss function for image segmentation using 3D
fully convolutional deep networks. 2017. doi:10.1007/978-3-319-67389-9_44.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bagau_bids.synthesis.pool import HIDDEN_INFARCT, INFARCT, NOT_JUDGED, WMH


@dataclass(frozen=True)
class Judgement:
    """Labels that an output shall find, and labels about which it is not judged."""

    positive: tuple[int, ...]
    not_judged: tuple[int, ...] = ()

    def masks(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Say what is true and what is judged, float tensors of the shape of the target."""
        return _among(target, self.positive).float(), (~_among(target, self.not_judged)).float()


JUDGEMENTS = {
    "wmh": Judgement((WMH,), (NOT_JUDGED, HIDDEN_INFARCT)),
    "infarct": Judgement((INFARCT, HIDDEN_INFARCT)),
}


def _among(target: Tensor, labels: tuple[int, ...]) -> Tensor:
    found = torch.zeros_like(target, dtype=torch.bool)
    for label in labels:
        found |= target == label
    return found


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    false_negative_weight: float | Tensor = 0.7,
    smooth: float = 1.0,
    output: str = "wmh",
) -> Tensor:
    """One minus the Tversky index of each image, averaged over the images.

    The larger weight is on false negatives, as Salehi et al. put it and as the public code of
    BAGAU-Net has it; the BAGAU-Net paper prints it on false positives.

    Parameters
    ----------
    logits : (N, 1, H, W) float tensor
    target : (N, 1, H, W) tensor
        Labels 0 to 4.
    false_negative_weight : float or (N,) tensor
        In [0, 1], of all images or of each; false positives weigh the rest.
    smooth : float
        Added to numerator and denominator, in pixels; an image without lesions has loss 0
        when nothing is found in it.
    output : str
        A key of :data:`JUDGEMENTS`.

    Returns
    -------
    loss : scalar tensor
    """
    truth, judged = JUDGEMENTS[output].masks(target)
    probability = logits.float().sigmoid() * judged
    axes = (1, 2, 3)
    hit = (probability * truth).sum(axes)
    missed = ((1 - probability) * truth).sum(axes)
    invented = (probability * (1 - truth)).sum(axes)
    wrong = false_negative_weight * missed + (1 - false_negative_weight) * invented
    return (1 - (hit + smooth) / (hit + wrong + smooth)).mean()


def cross_entropy_loss(logits: Tensor, target: Tensor, *, output: str = "wmh") -> Tensor:
    """Binary cross-entropy averaged over the judged pixels.

    Parameters
    ----------
    logits : (N, 1, H, W) float tensor
    target : (N, 1, H, W) tensor
        Labels 0 to 4.
    output : str
        A key of :data:`JUDGEMENTS`.

    Returns
    -------
    loss : scalar tensor
    """
    truth, judged = JUDGEMENTS[output].masks(target)
    loss = functional.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (loss * judged).sum() / judged.sum().clamp(min=1)


def missed_lesion_loss(logits: Tensor, target: Tensor, lesion_share: Tensor) -> Tensor:
    """Share of each lesion that is missed, averaged over the lesions of all images.

    A lesion of a few pixels counts as much as one of a thousand, which no loss over pixels does
    (Kofler et al. 2023, arXiv:2205.08209, had a loss for each lesion).

    Parameters
    ----------
    logits : (N, 1, H, W) float tensor
        Of WMH.
    target : (N, 1, H, W) tensor
        Labels 0 to 4.
    lesion_share : (N, 1, H, W) float tensor
        In each pixel of a lesion, one over the lesion's pixels.

    Returns
    -------
    loss : scalar tensor
        0 where there is no lesion.
    """
    truth, _ = JUDGEMENTS["wmh"].masks(target)
    weight = truth * lesion_share
    missed = 1 - logits.float().sigmoid()
    return (missed * weight).sum() / weight.sum().clamp(min=1)
