"""Losses of the slice networks.

A target holds 0 (background), 1 (WMH) and 2 (other pathology, judged neither way, as in the
WMH Segmentation Challenge).

References
----------
Salehi SSM, Erdogmus D, Gholipour A. Tversky loss function for image segmentation using 3D
fully convolutional deep networks. 2017. doi:10.1007/978-3-319-67389-9_44.
"""

from torch import Tensor
from torch.nn import functional

from bagau_bids.training.pool import NOT_JUDGED, WMH


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    false_negative_weight: float | Tensor = 0.7,
    smooth: float = 1.0,
) -> Tensor:
    """One minus the Tversky index of each image, averaged over the images.

    The larger weight is on false negatives, as Salehi et al. put it and as the public code of
    BAGAU-Net has it; the BAGAU-Net paper prints it on false positives.

    Parameters
    ----------
    logits : (N, 1, H, W) float tensor
    target : (N, 1, H, W) tensor
        Labels 0, 1, 2.
    false_negative_weight : float or (N,) tensor
        In [0, 1], of all images or of each; false positives weigh the rest.
    smooth : float
        Added to numerator and denominator, in pixels; an image without lesions has loss 0
        when nothing is found in it.

    Returns
    -------
    loss : scalar tensor
    """
    judged = (target != NOT_JUDGED).float()
    truth = (target == WMH).float()
    probability = logits.float().sigmoid() * judged
    axes = (1, 2, 3)
    hit = (probability * truth).sum(axes)
    missed = ((1 - probability) * truth).sum(axes)
    invented = (probability * (1 - truth)).sum(axes)
    wrong = false_negative_weight * missed + (1 - false_negative_weight) * invented
    return (1 - (hit + smooth) / (hit + wrong + smooth)).mean()


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the judged pixels.

    Parameters
    ----------
    logits : (N, 1, H, W) float tensor
    target : (N, 1, H, W) tensor
        Labels 0, 1, 2.

    Returns
    -------
    loss : scalar tensor
    """
    judged = (target != NOT_JUDGED).float()
    truth = (target == WMH).float()
    loss = functional.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (loss * judged).sum() / judged.sum().clamp(min=1)
